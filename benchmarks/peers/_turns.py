"""Peers that take turns: a process that refreshes one ciphertext whenever it is told to.

Libraries whose operations take seconds are compared in alternation, so that drift of the machine
meets both. Runs inside the peer's own subprocess; valid on Python 3.10 like `benchmarks._measure`.

Protocol: one JSON object per line on stdout, of kind ``ready`` (or ``missing``, ``error``) after
the start. Then, per line ``complex`` or ``real`` on stdin, one of kind ``time`` (or ``error``). At
the end of stdin ``size``, and the process ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._measure import machine_info, measure, peak_rss_bytes
from benchmarks.peers._harness import report_missing

TOLERANCE = 1e-2
"""A larger error is a wrong result: the least precise peer has 1e-4."""
SEED = 1


@dataclass(frozen=True)
class Refresh:
    """One kind of refresh, ready to run.

    Attributes
    ----------
    run
        What is timed.
    decrypt
        Slots of its result.
    expected
        What they should be.
    levels_left
        Levels of its result that can be used before it has to be refreshed again.
    """

    run: Callable[[], Any]
    decrypt: Callable[[Any], Any]
    expected: Any
    levels_left: Callable[[Any], int]


@dataclass(frozen=True)
class Subject:
    """A library with its keys: its refreshes by kind of slots, and its parameters."""

    refreshes: Mapping[str, Refresh]
    params: Mapping[str, Any]


def sample(slots: int, real: bool) -> Any:
    """Slots with parts uniform in [-1, 1], the same for every library."""
    parts = np.random.default_rng(SEED).uniform(-1, 1, (2, slots))
    return parts[0] if real else parts[0] + 1j * parts[1]


def serve(
    lib: str, build: Callable[[Mapping[str, Any]], Subject], argv: Sequence[str] | None = None
) -> int:
    """Build the subject, then refresh as told; the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=json.loads, required=True, help="arguments, as JSON")
    parser.add_argument("--quiet-wait", type=float, default=0, help="seconds to wait for quiet")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    try:
        subject = build(args.config)
    except ImportError as reason:
        return report_missing(lib, reason)
    setup_s = round(time.perf_counter() - begin, 2)
    _emit("ready", setup_s=setup_s, params=dict(subject.params), machine=machine_info())
    warm: set[str] = set()
    for line in sys.stdin:
        slots = line.strip()
        try:
            if slots not in warm:
                subject.refreshes[slots].run()
                warm.add(slots)
            _emit(**_turn(subject.refreshes[slots], args.quiet_wait), slots=slots)
        except Exception as error:  # a peer's failure must not hide the remaining figures
            _emit("error", slots=slots, error=f"{type(error).__name__}: {error}")
    _emit("size", what="peak_rss", bytes=peak_rss_bytes())
    return 0


def _emit(kind: str, **fields: Any) -> None:
    print(json.dumps({"kind": kind, **fields}), flush=True)


def _turn(refresh: Refresh, quiet_wait_s: float) -> dict[str, Any]:
    """One timed refresh, and the errors of what it returned."""
    kept: list[Any] = []

    def run() -> None:
        kept[:] = [refresh.run()]

    timed = measure(run, 0, min_reps=1, max_reps=1, warm=0, quiet_wait_s=quiet_wait_s)
    (result,) = kept
    errors = np.abs(np.asarray(refresh.decrypt(result)) - refresh.expected)
    largest = float(errors.max())
    if not largest < TOLERANCE:  # also catches NaN
        return {"kind": "error", "error": f"wrong result: {largest:.3g} >= {TOLERANCE:g}"}
    return {
        "kind": "time",
        "seconds": timed.min_ms / 1e3,
        "foreign_load": timed.foreign_load,
        "max_error": largest,
        "mean_error": float(errors.mean()),
        "levels_left": refresh.levels_left(result),
        "peak_rss_bytes": peak_rss_bytes(),
    }
