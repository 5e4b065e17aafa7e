"""Our engine beside other CKKS libraries, in one run: `python -m benchmarks.engine`.

Every library runs in a process of its own per thread count, ours once before and once after the
others, each time with half of the budget: drift of the machine shows, and favours nobody. Results
are checked before they are timed; a figure is the minimum over its repetitions.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _docs, _tables
from benchmarks._measure import DISTURBED, machine_info
from benchmarks._results import Record, Run
from benchmarks.peers import ATTRIBUTIONS, OURS, PEERS, run_peer
from benchmarks.peers._harness import OPS
from benchmarks.peers._harness import PRESETS as RINGS

DEFAULT_PEERS = ("openfhe", "tenseal")


def measure_run(
    logn: int,
    threads: Sequence[int] = (1, 2),
    peers: Sequence[str] = DEFAULT_PEERS,
    ops: Sequence[str] = OPS,
    budget: float = 1.5,
    quiet_wait_s: float = 0,
    command: str = "",
    retries: int = 1,
) -> Run:
    """Measure one ring size: ours, the peers, ours again, for each thread count.

    Then up to `retries` times what other processes disturbed.
    """
    records: list[Record] = []
    for count in threads:
        records += run_peer(OURS, count, logn, ops, budget / 2, quiet_wait_s)
        for peer in peers:
            records += run_peer(peer, count, logn, ops, budget, quiet_wait_s)
        records += run_peer(OURS, count, logn, ops, budget / 2, quiet_wait_s)
    run = Run(logn, command, machine_info(), records)
    for _ in range(retries):
        for count in threads:
            for lib in run.libs:
                again = [op for op in ops if run.disturbed(lib, count, op)]
                if again:
                    records += run_peer(lib, count, logn, again, budget, quiet_wait_s)
    return run


def show(run: Run) -> None:
    """Print the tables of a run."""
    machine = run.machine
    print(f"\nN = 2^{run.logn}; {machine['cpu']}, {machine['cores']} cores, {machine['date']}")
    print(f"commit {machine['commit']}; minima; ratio: time of the library over ours\n")
    print(_tables.params(run), end="\n\n")
    for count in run.threads:
        print(_tables.times(run, count), end="\n\n")
    print(f"* another process used more than {DISTURBED} cores meanwhile\n")
    for count in run.threads:
        model = run.machine_model(count)
        if model is not None:
            print(
                f"{count} threads: {model.clock_ghz:.2f} GHz, memory read {model.read_gb_s:.1f} "
                f"GB/s, copy {model.copy_gb_s:.1f} GB/s (read + write)\n"
            )
            print(_tables.floors(run, count), end="\n\n")
    for text in (_tables.counts(run), _tables.copies(run), _tables.sizes(run), _tables.errors(run)):
        print(text, end="\n\n")
    for problem in run.problems():
        print(problem)
    for lib in run.libs:
        if lib in ATTRIBUTIONS:
            print(ATTRIBUTIONS[lib])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logn", type=_numbers, default=[16], help="ring sizes, 16,15,13")
    parser.add_argument("--threads", type=_numbers, default=[1, 2])
    parser.add_argument("--peers", type=_names, default=list(DEFAULT_PEERS))
    parser.add_argument("--ops", type=_names, default=list(OPS))
    parser.add_argument("--budget", type=float, default=1.5, help="seconds per operation")
    parser.add_argument(
        "--quiet-wait", type=float, default=0, help="seconds to wait for a quiet machine, each"
    )
    parser.add_argument(
        "--retries", type=int, default=1, help="times to repeat what other processes disturbed"
    )
    parser.add_argument("--json", type=Path, help="write all records here")
    parser.add_argument(
        "--write-docs",
        action="store_true",
        help=f"keep the records in {_docs.RESULTS} and rewrite {_docs.PAGE} from it",
    )
    args = parser.parse_args(argv)
    for what, given, known in (
        ("ring sizes", args.logn, RINGS),
        ("peers", args.peers, [name for name in PEERS if name != OURS]),
        ("operations", args.ops, OPS),
    ):
        unknown = sorted(set(given) - set(known))
        if unknown:
            parser.error(f"unknown {what}: {unknown}; known: {', '.join(map(str, known))}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for; 1 if one of our results was wrong."""
    args = _parse(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join(["python", "-m", "benchmarks.engine", *words])
    runs = []
    for logn in args.logn:
        run = measure_run(
            logn,
            args.threads,
            args.peers,
            args.ops,
            args.budget,
            args.quiet_wait,
            command,
            args.retries,
        )
        show(run)
        runs.append(run)
    if args.json:
        args.json.write_text(json.dumps([run.to_dict() for run in runs], indent=1) + "\n")
    if args.write_docs:
        _docs.update(runs)
    failed = any(r["kind"] == "error" and r["lib"] == OURS for run in runs for r in run.records)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
