"""No process of the server, its scheduler or its workers ever holds the secret key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.ckks.keys import EvaluationKeys, SecretKey
from aegis_dask.ckks.serialization import load
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import load_graph
from aegis_dask.service.client import Client
from tests.service.memory import WINDOW, Search, descendants, patterns_of

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

VISIBLE = "an evaluation key, which is public"

HOLDER = """
import sys
from pathlib import Path
import numpy as np
from aegis_dask.models.checkpoint import load_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.service.client import Client
client = Client.open(Path(sys.argv[1]), load_bert(sys.argv[2]), load_graph("feed_forward"))
key = client._secret_key
client.encrypt(np.zeros((3, 32)))
held = key._residues
forms = [key._coefficients.astype(t) for t in sys.argv[3:]]
limbs = list(range(len(key.params.chain.all_primes)))
forms.append(key.params.ring.from_signed(key._coefficients, limbs))
print("ready", flush=True)
sys.stdin.read()
"""


def can_read_memory() -> bool:
    child = subprocess.Popen(["sleep", "30"])
    try:
        with open(f"/proc/{child.pid}/mem", "rb"):
            return True
    except OSError:
        return False
    finally:
        child.kill()
        child.wait()


pytestmark = pytest.mark.skipif(
    not can_read_memory(),
    reason="/proc/PID/mem of other processes cannot be read here (not Linux, or ptrace is denied)",
)


def secret_of(folder: Path, model: BertModel) -> SecretKey:
    return Client.open(folder, model, load_graph("feed_forward"))._secret_key


@contextmanager
def frozen(pids: list[int]) -> Iterator[list[int]]:
    """Stop processes, so that nothing is freed or moved while their memory is read."""
    stopped = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
    try:
        yield stopped
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_the_search_finds_the_key_in_a_process_that_holds_it(
    checkpoint: Path, model: BertModel, keys: Path
) -> None:
    """The positive control: every form of every window is found where it is."""
    folder = keys / "client"
    kinds = ["int8", "int32", "int64", "float64"]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder, checkpoint, *kinds],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        patterns = patterns_of(secret_of(folder, model))
        found, read = Search(patterns).process(holder.pid)
    finally:
        holder.kill()
        holder.wait()
    assert found == set(patterns)
    assert read > 1 << 20


def test_no_process_of_the_server_ever_holds_the_secret_key(
    checkpoint: Path, model: BertModel, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    """Read the memory of all processes again and again, and once more at the response."""
    secret = secret_of(keys / "client", model)
    public = load(keys / "bundle" / "keys.aegis", secret.params, expect=EvaluationKeys)
    assert public.relinearisation is not None
    visible = np.ascontiguousarray(public.relinearisation.b[0, 0, :WINDOW]).tobytes()
    search = Search({**patterns_of(secret), VISIBLE: visible})
    response = tmp_path / "response"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "aegis_dask.cli", "evaluate", "--model", checkpoint),
            *("--bundle", keys / "bundle"),
            *("--request", request_folder, "--out", response, "--json"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    seen, sighted = set[int](), set[int]()
    with_workers = after = total = 0
    try:
        deadline, pause = time.monotonic() + 240, time.monotonic()
        while server.poll() is None and time.monotonic() < deadline:
            answered = (response / "message.json").exists()
            if time.monotonic() < pause and not (answered and not after):
                time.sleep(0.005)
                continue
            with frozen(descendants(server.pid)) as pids:
                for pid in pids:
                    with suppress(FileNotFoundError, ProcessLookupError):
                        found, read = search.process(pid)
                        if VISIBLE in found:
                            sighted.add(pid)
                            found.remove(VISIBLE)
                        assert not found, f"process {pid} of the server holds {sorted(found)}"
                        total += read
                seen |= set(pids)
                with_workers += len(pids) >= 3
                after += answered
            pause = time.monotonic() + 0.4
        _, errors = server.communicate(timeout=60)
    finally:
        if server.poll() is None:
            server.kill()
    assert server.returncode == 0, errors
    assert (response / "message.json").exists()
    # The server, which is the scheduler too, and two workers; they were read while they worked.
    assert len(seen) >= 3
    assert with_workers >= 2
    assert after >= 1
    assert total > 100 << 20
    # What workers do hold is found in them: the search sees their memory.
    assert sighted - {server.pid}
