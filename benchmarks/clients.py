"""Many clients of one service: ``python -m benchmarks.clients --clients 24 --minutes 15``.

Starts ``aegis serve`` in a process of its own, with MiniLM's feed-forward half on a small ring, and
clients with keys of their own. Every other client is greedy and keeps three jobs in the queue, the
rest one. Every result is decrypted and compared. Printed are failures, how jobs were shared among
the clients, and how the memory of the service and its workers went once it was warm.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aegis_dask.models import corpus
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.text import Tokenizer
from aegis_dask.service import local
from aegis_dask.service.client import KEYS, Client
from aegis_dask.service.http.remote import RemoteService
from aegis_dask.service.http.store import Store
from aegis_dask.service.job import Job, read_job
from aegis_dask.service.sources import first_layers, open_model

GRAPH = "feed_forward"
ROOT = Path(__file__).resolve().parents[1]
GREEDY = 3
"""Jobs that a greedy client keeps in the queue."""
TOLERANCE = 2e-3
SAMPLE_SECONDS = 5.0
WARM_SHARE = 1 / 3
"""Part of the time after which memory is looked at."""


@dataclass
class Report:
    """What was seen.

    Attributes
    ----------
    clients, minutes
        What was asked for.
    done, failed
        Jobs; a wrong result is a failed job.
    least, most
        Jobs done for a client.
    jain
        Jain's index of fairness of the jobs done, 1 if all clients have as many.
    memory_mb
        Anonymous memory of the service and its workers, mean once warm.
    growth_mb_per_hour, growth
        Slope of a line through it, and what that is over the time that was looked at, as a share
        of the mean.
    median_seconds
        From submitting to the decrypted result.
    errors
        The first few.
    """

    clients: int
    minutes: float
    done: int
    failed: int
    least: int
    most: int
    jain: float
    memory_mb: float
    growth_mb_per_hour: float
    growth: float
    median_seconds: float
    errors: list[str]


@contextmanager
def served(state: Path, workers: int) -> Iterator[tuple[int, str]]:
    """Run the service; give its process and address."""
    command = [
        *(sys.executable, "-m", "aegis_dask.cli", "serve", GRAPH, "--insecure", "--port", "0"),
        *("--state", str(state), "--workers", str(workers)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Listening on "):
                yield process.pid, line.split()[-1]
                return
        raise RuntimeError("the service has not started")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def anonymous_bytes(pid: int) -> int:
    """Memory of a process and its descendants that is no map of a file."""
    total = 0
    for each in family(pid):
        try:
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    total += int(line.split()[1]) << 10
        except OSError:
            continue  # it has just ended
    return total


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    out = [pid]
    for each in out:
        out += children.get(each, [])
    return out


class Customer(threading.Thread):
    """A client that keeps the service busy until it may stop.

    Parameters
    ----------
    url, token
        The service.
    job
        Description of what is offered.
    jobs
        How many it keeps in the queue.
    stop
        Set when it is to end.
    """

    def __init__(
        self, url: str, token: str, job: Job, jobs: int, text: str, stop: threading.Event
    ) -> None:
        super().__init__()
        self.remote = RemoteService(url, token)
        self.client = Client.create(job)
        ids = Tokenizer.for_model(self.client.job.model).encode(text)[:32]
        self.prepared = local.prepare(self.client.job, ids)
        self.jobs, self.stop = jobs, stop
        self.seconds: list[float] = []
        self.errors: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            self.client.save_bundle(Path(folder, "bundle"))
            file = Path(folder, "bundle", KEYS)
            self.keys = self.remote.register(self.client.job, file)

    def run(self) -> None:
        waiting: deque[tuple[str, float]] = deque()
        while not self.stop.is_set():
            try:
                while len(waiting) < self.jobs:
                    x = self.client.encrypt(self.prepared.x)
                    job = self.remote.submit(self.keys, x, len(self.prepared.x))
                    waiting.append((job.id, time.monotonic()))
                if not self.finish(*waiting[0]):
                    break
                waiting.popleft()
            except Exception as e:  # whatever it is, it is a failure of the service
                self.errors.append(f"{type(e).__name__}: {e}")
                waiting.clear()

    def finish(self, identifier: str, start: float) -> bool:
        """Wait for a job and check its result; False if it is time to stop."""
        status = self.remote.status(identifier)
        while not status.has_ended:
            if self.stop.is_set():
                return False
            status = self.remote.news(status, 2.0)
        if status.state != "done":
            raise RuntimeError(f"{status.state}: {status.error}")
        y = self.client.decrypt(self.remote.result(identifier, self.client.job), status.length)
        error = float(np.abs(y - self.prepared.expected).max())
        if not error < TOLERANCE:
            raise RuntimeError(f"a wrong result: the error is {error:.2g}")
        self.remote.cancel(identifier)  # its result is no longer needed
        self.seconds.append(time.monotonic() - start)
        return True


def measure(clients: int, minutes: float, workers: int = 2) -> Report:
    """Run everything."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, "state")
        store = Store(state)
        tokens = [store.add_client(f"client-{i}") for i in range(clients)]
        store.close()
        with served(state, workers) as (pid, url):
            return _measure(pid, url, tokens, minutes)


def _measure(pid: int, url: str, tokens: list[str], minutes: float) -> Report:
    graph = load_graph(GRAPH)
    model = first_layers(open_model(None), graph.layers)
    with RemoteService(url, tokens[0]) as remote:
        (offer,) = remote.offers()
        found = remote.describe(offer["fingerprint"])
        job = read_job(found, model, graph, allow_insecure=True)
    stop = threading.Event()
    texts = corpus.sentences()
    people = [
        Customer(url, token, job, GREEDY if i % 2 else 1, texts[i % len(texts)], stop)
        for i, token in enumerate(tokens)
    ]
    for person in people:
        person.start()
    begin = time.monotonic()
    samples: list[tuple[float, float]] = []
    while (now := time.monotonic() - begin) < 60 * minutes:
        samples.append((now, anonymous_bytes(pid) / 1e6))
        time.sleep(SAMPLE_SECONDS)
    stop.set()
    for person in people:
        person.join(120)
    warm = np.array([s for s in samples if s[0] >= WARM_SHARE * 60 * minutes])
    slope, _ = np.polyfit(warm[:, 0], warm[:, 1], 1)
    counts = np.array([len(p.seconds) for p in people])
    errors = [e for p in people for e in p.errors]
    return Report(
        clients=len(people),
        minutes=minutes,
        done=int(counts.sum()),
        failed=len(errors),
        least=int(counts.min()),
        most=int(counts.max()),
        jain=float(counts.sum() ** 2 / (len(counts) * (counts**2).sum())) if counts.any() else 0.0,
        memory_mb=float(warm[:, 1].mean()),
        growth_mb_per_hour=float(3600 * slope),
        growth=float(slope * (warm[-1, 0] - warm[0, 0]) / warm[:, 1].mean()),
        median_seconds=float(np.median([s for p in people for s in p.seconds] or [0.0])),
        errors=errors[:5],
    )


def main() -> None:
    """Print a report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    report = measure(options.clients, options.minutes, options.workers)
    print(json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
