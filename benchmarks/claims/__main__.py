"""Check the claims of a group, print a table, append a line each to the group's results.

A missed claim is kept, with ``"holds": false``, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import claims
from benchmarks._measure import machine_info
from benchmarks._tables import number, table
from benchmarks.claims import Claim, Finding, Options

_ROOT = Path(__file__).resolve().parents[2]


def groups() -> list[str]:
    """Names of the groups there are."""
    names = (module.name for module in pkgutil.iter_modules(claims.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def check(claim: Claim) -> Finding:
    """Measure a claim; whatever it raises is a finding that misses."""
    try:
        return claim.measure()
    except Exception as error:
        return Finding(None, f"{type(error).__name__}: {error}", sound=False)


def record(group: str, claim: Claim, finding: Finding, machine: dict[str, Any]) -> dict[str, Any]:
    """One line of results."""
    line = {
        "claim": claim.name,
        "value": finding.value,
        "unit": claim.unit,
        "target": claim.target,
        "holds": claim.holds(finding),
        "command": claim.command or f"python -m benchmarks.claims {group} --only {claim.name}",
        "date": machine["date"],
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "commit": machine["commit"],
    }
    return line | ({"note": finding.note} if finding.note else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the claims of one group; the exit status is 1 if one does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("group", choices=groups())
    parser.add_argument("--only", default="", help="names of claims, separated by commas")
    parser.add_argument("--quick", action="store_true", help="skip slow claims, measure briefly")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/GROUP.jsonl")
    args = parser.parse_args(argv)
    options = Options(tuple(name for name in args.only.split(",") if name), args.quick)
    known: list[Claim] = import_module(f"benchmarks.claims.{args.group}").claims(options)
    unknown = set(options.only) - {claim.name for claim in known}
    if unknown:
        names = ", ".join(claim.name for claim in known)
        parser.error(f"unknown claims {', '.join(sorted(unknown))}; there are {names}")
    chosen = [claim for claim in known if options.wants(claim.name)]
    path = args.results or _ROOT / "benchmarks/results" / f"{args.group}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, missed = [], 0
    for claim in chosen:
        if claim.slow and options.quick:
            rows.append([claim.name, "skipped", claim.target, claim.unit, "", ""])
            continue
        begin = time.perf_counter()
        finding = check(claim)
        line = record(args.group, claim, finding, machine_info())
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        missed += not line["holds"]
        verdict = "holds" if line["holds"] else "MISSED"
        seconds = f"{time.perf_counter() - begin:.0f}"
        rows.append([claim.name, number(finding.value), claim.target, claim.unit, verdict, seconds])
        print(f"{claim.name}: {verdict} {finding.note}", file=sys.stderr, flush=True)
    print(table(["claim", "value", "target", "unit", "", "seconds"], rows))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
