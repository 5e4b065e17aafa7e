"""`python -m benchmarks.fuzzing --count 1000000`: fuzz the parsers; exit status 1 for a failure."""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.fuzzing import Target
from benchmarks.fuzzing.engine import (
    Failure,
    Report,
    Tally,
    choose_targets,
    judge,
    make_input,
    run_watched,
    scratch,
    warm_up,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzzing", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="*", default=[], metavar="TARGET")
    parser.add_argument("--index", type=int, help="run this one input of the one target again")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    if options.count < 1 or options.processes < 1:
        parser.error("--count and --processes must be at least 1")
    try:
        with scratch() as folder:
            targets = choose_targets(folder, options.only)
            if options.index is not None:
                if len(targets) != 1:
                    parser.error("--index needs --only with one target")
                return repeat(targets[0], options.seed, options.index, options.failures)
    except ValueError as e:
        parser.error(str(e))
    begin = time.monotonic()
    shown = [begin]

    def notify(report: Report) -> None:
        if time.monotonic() - shown[0] > 10:
            shown[0] = time.monotonic()
            rate = report.inputs / (shown[0] - begin)
            print(
                f"{report.inputs} inputs, {rate:.0f}/s, {len(report.failures)} failures",
                file=sys.stderr,
                flush=True,
            )

    choose = partial(choose_targets, names=options.only)
    report = run_watched(choose, options.seed, options.count, options.processes, notify)
    show(report, time.monotonic() - begin)
    for failure in report.failures:
        path = failure.save(options.failures)
        print(f"{path}: {failure.what.strip().splitlines()[-1]}\n  again: {failure}")
    return 1 if report.failures else 0


def repeat(target: Target, seed: int, index: int, failures: Path) -> int:
    """Make one input again and say what becomes of it."""
    warm_up([target])
    data, tally = make_input(target, seed, index), Tally()
    what = judge(target, data, tally) or judge(target, data, tally, measured=True)
    path = Failure(target.name, seed, index, what or "nothing wrong", data).save(failures)
    print(f"{path}: {len(data)} bytes; {what or 'as it must be'}")
    return 1 if what else 0


def show(report: Report, seconds: float) -> None:
    """Print a table."""
    print(f"{'target':24} {'inputs':>9} {'valid':>8} {'refused at':>10} {'s':>6} {'MB':>6}")
    for name, t in sorted(report.tallies.items()):
        print(
            f"{name:24} {t.inputs:9} {t.accepted:8} {len(t.places):10} {t.seconds:6.2f} "
            f"{t.memory / 1e6:6.1f}"
        )
    print(
        f"{report.inputs} inputs in {seconds:.0f} s, {report.inputs / seconds:.0f}/s, "
        f"{len(report.failures)} failures"
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
