"""Our bootstrapping beside OpenFHE's, in turns: `python -m benchmarks.bootstrapping`.

For each number of threads one process of ours stays, and for each configuration of OpenFHE one
process of its own comes beside it. They refresh one after the other, so that drift of the machine
meets both, and every result is decrypted and compared. All slots of N = 2^16 are in use. OpenFHE's
are real, its default; ours are complex, and once more real, which takes half of EvalMod.

Both processes are in memory at the same time: 18 GB for N = 2^16.

Configurations of OpenFHE, all of 128 bits by its own check, with sparse-secret encapsulation:

- level budgets 3-3 and 4-4 (levels of each linear transform), coefficients first: `EvalBootstrap`;
- level budget 3-3, slots first: `EvalBootstrapStCFirst`. The best of it: faster and more precise.

Lattigo is quoted, not run. Precision over many slots: `python -m benchmarks.precision`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._bootstrap_results import Run
from benchmarks._measure import machine_info
from benchmarks._sessions import Config, Session
from benchmarks.peers import OURS

RESULTS = Path("benchmarks/results/bootstrapping.json")
_ROOT = Path(__file__).resolve().parents[1]

MAIN = "n16-d40-b13"
OTHERS = ("n16-d35-b15", "n15-d35-b3")
QUICK = "insecure-n12-d40-b7"


def ours(preset: str) -> Config:
    """Our refreshes with one preset."""
    return Config(preset, OURS, {"preset": preset}, ("complex", "real"))


def openfhe(logn: int) -> list[Config]:
    """OpenFHE's best configurations; secure ones for N = 2^16, and on small rings for tests."""
    # Scales and depths of the research note: the largest that 2^16 has room for with budget 3-3,
    # the fastest with 4-4.
    sets = {"3-3": (3, 52, 22, False), "3-3 slots first": (3, 52, 22, True)}
    sets["4-4"] = (4, 55, 19, False)
    return [
        Config(
            f"OpenFHE {name}",
            "openfhe",
            {
                "logn": logn,
                "budget": budget,
                "scale_bits": scale_bits,
                "depth": depth,
                "slots_first": slots_first,
                "secure": logn == 16,
            },
            ("real",),
        )
        for name, (budget, scale_bits, depth, slots_first) in sets.items()
    ]


PEERS = tuple(config.name.removeprefix("OpenFHE ") for config in openfhe(16))


def measure_run(
    main: Config,
    peers: Sequence[Config] = (),
    others: Sequence[Config] = (),
    threads: Sequence[int] = (1, 2),
    repeats: int = 3,
    quiet_wait_s: float = 0,
    command: str = "",
) -> Run:
    """Measure one configuration of ours in turns with each peer, then `others` alone.

    A peer that is not installed is said to be missing, and left out.
    """
    records: list[dict[str, Any]] = []
    for count in threads:
        with Session(main, count, quiet_wait_s, records) as own:
            measured = False
            for peer in peers:
                with Session(peer, count, quiet_wait_s, records) as beside:
                    if beside.ready:
                        own.beside = peer.name
                        _take_turns((own, beside), repeats)
                        measured = True
            if not measured:  # no peer, or none that is installed
                _take_turns((own,), repeats)
        for config in others:
            with Session(config, count, quiet_wait_s, records) as own:
                _take_turns((own,), repeats)
    return Run(command, machine_info(), records)


def _take_turns(sessions: Sequence[Session], repeats: int) -> None:
    for _ in range(repeats):
        for session in sessions:
            session.run()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=_numbers, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each configuration")
    parser.add_argument(
        "--peers",
        type=_names,
        default=list(PEERS),
        help=f"configurations of OpenFHE, of {', '.join(PEERS)}; none: ours only",
    )
    parser.add_argument("--all", action="store_true", help=f"also {' and '.join(OTHERS)}")
    parser.add_argument("--quick", action="store_true", help="insecure rings of 2^12, a minute")
    parser.add_argument(
        "--quiet-wait", type=float, default=0, help="seconds to wait for a quiet machine, each turn"
    )
    parser.add_argument(
        "--json", type=Path, help=f"write all records here; default: {RESULTS}, none with --quick"
    )
    args = parser.parse_args(argv)
    unknown = sorted(set(args.peers) - set(PEERS))
    if unknown:
        parser.error(f"unknown configurations: {', '.join(unknown)}; known: {', '.join(PEERS)}")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    return args


def store(run: Run, path: Path = _ROOT / RESULTS) -> None:
    """Write a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run.to_dict(), indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if one of our refreshes failed."""
    args = _parse(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    peers = [
        p for p in openfhe(12 if args.quick else 16) if p.name[len("OpenFHE ") :] in args.peers
    ]
    run = measure_run(
        ours(QUICK if args.quick else MAIN),
        peers,
        [ours(preset) for preset in OTHERS] if args.all and not args.quick else [],
        args.threads,
        args.repeats,
        args.quiet_wait,
        shlex.join(["python", "-m", "benchmarks.bootstrapping", *words]),
    )
    print(run.report())
    path = args.json or (None if args.quick else _ROOT / RESULTS)
    if path is not None:
        store(run, path)
    return int(any(r["kind"] == "error" and r["lib"] == OURS for r in run.records))


if __name__ == "__main__":
    sys.exit(main())
