"""CKKS libraries, ours among them, each measured in a subprocess of its own.

A fresh process keeps figures honest: the number of threads is fixed before the library loads, and
its peak memory is nobody else's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]

#: Lines that published results of a peer must carry.
ATTRIBUTIONS: Mapping[str, str] = {
    "desilo": (
        "This work uses the DESILO FHE library developed by DESILO Inc. (https://desilo.ai)"
    ),
}


@dataclass(frozen=True)
class Peer:
    """How to start one library, and how to get it."""

    module: str
    install: str


OURS = "aegis"
PEERS: Mapping[str, Peer] = {
    OURS: Peer("benchmarks.peers.aegis_peer", "pip install -e ."),
    "openfhe": Peer(
        "benchmarks.peers.openfhe_peer",
        "pip install openfhe; each of its wheels serves one Python version only (the one for "
        "Ubuntu 22.04 serves 3.10)",
    ),
    "tenseal": Peer("benchmarks.peers.tenseal_peer", "pip install tenseal"),
    "desilo": Peer(
        "benchmarks.peers.desilo_peer",
        "pip install desilofhe; closed, for non-commercial use only",
    ),
}


def interpreter(name: str) -> str:
    """Python that runs the peer: $AEGIS_BENCH_PYTHON_<NAME>, or the one running now."""
    return os.environ.get(f"AEGIS_BENCH_PYTHON_{name.upper()}", sys.executable)


def run_peer(
    name: str,
    threads: int,
    logn: int,
    ops: str | Sequence[str] = "all",
    budget: float = 1.5,
    quiet_wait_s: float = 0,
) -> list[dict[str, Any]]:
    """Run one peer in a subprocess and return its records, echoing each to stderr as it comes.

    Returns [] after printing one line if the library is not installed. A peer that dies leaves
    its records so far and one of kind `error` with `op` None.
    """
    peer = PEERS[name]
    python = interpreter(name)
    command = [python, "-m", peer.module]
    command += [f"--threads={threads}", f"--logn={logn}", f"--budget={budget}"]
    command += [f"--ops={ops if isinstance(ops, str) else ','.join(ops)}"]
    command += [f"--quiet-wait={quiet_wait_s}"]
    records: list[dict[str, Any]] = []
    try:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=_environment(threads), stdout=subprocess.PIPE, text=True
        )
    except OSError as reason:
        print(f"{name}: skipped, cannot start {python}: {reason}")
        return []
    with process:
        for line in process.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("{"):  # libraries may print warnings of their own
                records.append(json.loads(line))
    missing = [record for record in records if record["kind"] == "missing"]
    if missing:
        print(
            f"{name}: skipped ({missing[0]['reason']}); to include it: {peer.install}; "
            f"AEGIS_BENCH_PYTHON_{name.upper()} names another interpreter"
        )
        return []
    if process.returncode != 0:
        error = f"exit status {process.returncode}"
        records.append(
            {
                "kind": "error",
                "lib": name,
                "threads": threads,
                "logn": logn,
                "op": None,
                "error": error,
            }
        )
    return records


def _environment(threads: int) -> dict[str, str]:
    """Environment with the thread count that OpenMP and Numba read when a library loads."""
    count = str(threads)
    # NumPy's BLAS only checks results; its threads would count as the library's load.
    fixed = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **fixed, "OMP_NUM_THREADS": count, "NUMBA_NUM_THREADS": count}
