"""Ten million inputs for the parsers of what others send."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.claims import Claim, Finding
from benchmarks.fuzzing.engine import choose_targets, run_watched

INPUTS = 10_000_000
SEED = 20_250_611
FAILURES = Path("fuzz-failures")


def _fuzz() -> Finding:
    """Count the inputs that parsers took as they must; inputs of failures are kept in files."""
    report = run_watched(choose_targets, SEED, INPUTS, min(2, os.cpu_count() or 1))
    paths = [str(failure.save(FAILURES)) for failure in report.failures]
    valid = sum(t.accepted for t in report.tallies.values())
    places = {place for t in report.tallies.values() for place in t.places}
    slowest = max(t.seconds for t in report.tallies.values())
    note = (
        f"{len(report.tallies)} parsers, {valid} inputs valid, refused at {len(places)} places; "
        f"slowest {slowest:.2f} s of CPU time"
    )
    if paths:
        note = f"{len(paths)} failures, the first in {paths[0]}; {note}"
    return Finding(report.inputs - len(paths), note, sound=not paths)


def claim() -> Claim:
    """Every parser refuses or takes every input, in bounded time and memory."""
    return Claim(
        "fuzzing",
        f">= {INPUTS}",
        "inputs without crash, hang or over-allocation",
        _fuzz,
        command=f"python -m benchmarks.fuzzing --count {INPUTS} --seed {SEED}",
        slow=True,
    )
