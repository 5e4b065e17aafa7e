"""`docs/benchmarks.md`, written from the records in `benchmarks/results`.

`python -m benchmarks._docs` writes it again without measuring.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import _tables, bootstrapping, model, precision
from benchmarks._bootstrap_results import Run as BootstrapRun
from benchmarks._measure import DISTURBED
from benchmarks._results import Run
from benchmarks.claims import Options
from benchmarks.peers import ATTRIBUTIONS, OURS

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("benchmarks/results/engine.json")
PAGE = Path("docs/benchmarks.md")

_INTRODUCTION = f"""\
# Benchmarks

This page is written by `python -m benchmarks.engine --write-docs`; do not edit it.

## Method

- One command measures everything, on one machine, one library at a time. Each library runs in a
  process of its own for each number of threads, fixed before it loads (`OMP_NUM_THREADS`,
  `NUMBA_NUM_THREADS`). Ours runs before and after the others, each time with half of the budget.
- Every result is decrypted and compared with the expected values before it is timed. Times are
  minima in milliseconds; a ratio is the time of the library divided by ours. `*`: another
  process used more than {DISTURBED} cores each time, which is tried again at the end; a library
  that was disturbed has no ratio, it would be too large.
- All operations are at the top level, on full vectors of N/2 real values, one ciphertext each.
  `encrypt` uses the public key and an encoded plaintext; `decrypt` includes decoding;
  `multiply_plain` does not rescale; `hoisted_rotations_8` makes 8 rotations of one ciphertext;
  `matvec_128` multiplies a 128 x 128 matrix, encoded before, with 16 baby and 8 giant steps;
  `chebyshev_31` evaluates a series of degree 31. The last two use each library's own algorithm:
  ours sums over QP, divides once per giant step, and needs one level less for the series.
- Parameters are each library's own for 128 bits of security, with nearly the same log Q. SEAL has
  one special prime and so a digit for every prime; for N = 2^16 it checks no security. A level of
  OpenFHE and SEAL has 50 bits (40 for N = 2^13), one of ours 40 (30 for N = 2^13), so we have more
  levels and larger errors after a rescale: they are given below.
- The ratios of `add` and `multiply_plain` are the least certain: between runs of this command the
  times of OpenFHE varied by 1.6, as memory happened to be placed.
- The floor is a lower bound for our own algorithm on this machine (`benchmarks/floor.py`): limb
  NTTs, multiply-accumulates of base conversions and inner products, and reductions, counted from
  the parameters, at two vector instructions per cycle of the measured clock; keys at the measured
  bandwidth of reading from memory; other arrays, written and read once, at that of copying.
  Element-wise arithmetic, permutations and Python are left out. *Memory hidden*: the larger of
  arithmetic and memory instead of their sum.
- Element-wise operations are compared with a parallel copy that reads and writes as many bytes in
  total as they do: three ciphertexts for `add`, two and a plaintext for `multiply_plain`.
"""


_BOOTSTRAPPING = """\
## Bootstrapping

All slots of N = 2^16 are refreshed in turns with OpenFHE 1.6.1 (sparse-secret encapsulation, 128
bits by its own check, FLEXIBLEAUTO, 3 digits): level budget 3-3 (22 levels of 52 bits) in both
orders, 4-4 (19 of 55 bits). One process per configuration and number of threads; every result is
decrypted. Times are minima of undisturbed turns; a ratio takes our turns beside that peer only.
OpenFHE's slots are real, ours complex unless said otherwise. Levels left are those until the next
refresh. Lattigo is quoted from another machine.
"""
_MODEL = """\
## A whole model, encrypted

All six layers of all-MiniLM-L6-v2 on a bundled text that did not take part in the calibration, with
128-bit security, on local worker processes. Memory is the proportional set size of all processes,
sampled every second: what they share, keys above all, counts once. Eager placement refreshes an
operand when an operation runs out of levels, within the same limits on sizes and errors.
"""


_CLAIMS = """\
## Claims

What each group of `python -m benchmarks.claims GROUP` found last, claim by claim, missed ones too;
all findings are in `benchmarks/results/*.jsonl`. Why something is missed is told in
[placement](placement.md), [bootstrapping](bootstrapping.md) and [GPU](gpu.md). What needs a GPU has
not been measured: none was at hand.
"""
_GROUPS = ("engine", "layer", "bootstrap", "gpu", "placement", "operate")


def update(runs: Sequence[Run]) -> None:
    """Put runs into the stored results, each in place of that of its ring size; write the page."""
    stored = load()
    stored.update({run.logn: run for run in runs})
    path = _ROOT / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_compact([stored[logn] for logn in sorted(stored, reverse=True)]))
    write(stored)


def write(runs: dict[int, Run]) -> None:
    """Write the page."""
    (_ROOT / PAGE).write_text(page(runs))


def _compact(runs: Sequence[Run]) -> str:
    """JSON with one record per line, so that differences are readable."""
    texts = []
    for run in runs:
        content = run.to_dict()
        lines = ",\n".join(json.dumps(record) for record in content.pop("records"))
        texts.append(json.dumps(content)[:-1] + f', "records": [\n{lines}\n]}}')
    return "[\n" + ",\n".join(texts) + "\n]\n"


def load() -> dict[int, Run]:
    """Stored runs by ring size."""
    path = _ROOT / RESULTS
    if not path.exists():
        return {}
    return {run.logn: run for run in map(Run.from_dict, json.loads(path.read_text()))}


def page(runs: dict[int, Run]) -> str:
    """The whole page."""
    parts = [_INTRODUCTION]
    for logn in sorted(runs, reverse=True):
        parts += _section(runs[logn])
    parts += _bootstrapping() + _model() + _claims()
    used = {lib for run in runs.values() for lib in run.libs}
    parts += [ATTRIBUTIONS[lib] for lib in sorted(used & set(ATTRIBUTIONS))]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _section(run: Run) -> list[str]:
    m, ours = run.machine, run.params(OURS)
    facts = [
        f"`{run.command}`",
        f"{m['date']}, commit {m['commit']}; {m['cpu']}, {m['cores']} cores, "
        f"{m['memory_gib']} GiB, {' '.join(m['simd']) or 'no vector extensions listed'}; "
        f"{m['os']}; Python {m['python']}, Numba {ours.get('numba')}, NumPy {ours.get('numpy')}; "
        f"our preset {ours.get('preset')}.",
    ]
    parts = [f"## N = 2^{run.logn}\n", *(fact + "\n" for fact in facts), _tables.params(run)]
    parts += [_tables.times(run, count) for count in run.threads]
    for count in run.threads:
        model = run.machine_model(count)
        if model is not None:
            parts.append(
                f"### Distance to the floor, threads: {count}\n\n"
                f"Clock {model.clock_ghz:.2f} GHz, memory read {model.read_gb_s:.1f} GB/s, copy "
                f"{model.copy_gb_s:.1f} GB/s (read + write).\n\n" + _tables.floors(run, count)
            )
    parts += [_tables.counts(run), _tables.copies(run), _tables.sizes(run), _tables.errors(run)]
    problems = run.problems()
    if problems:
        parts.append("Left out:\n\n" + "\n".join(f"- {p}" for p in problems))
    return parts


def _read(path: Path) -> dict[str, Any] | None:
    """Return a stored record, None if there is none."""
    whole = _ROOT / path
    if not whole.exists():
        return None
    record: dict[str, Any] = json.loads(whole.read_text())
    return record


def _facts(record: Mapping[str, Any]) -> str:
    m = record["machine"]
    return (
        f"`{record['command']}`\n\n{m['date']}, commit {m['commit']}; {m['cpu']}, {m['cores']} "
        f"cores, {m['memory_gib']} GiB."
    )


def _bootstrapping() -> list[str]:
    """Bootstrapping beside OpenFHE, and its precision over many slots."""
    parts = []
    if (run := _read(bootstrapping.RESULTS)) is not None:
        parts += [_BOOTSTRAPPING, _facts(run), BootstrapRun(**run).report()]
    if (found := _read(precision.RESULTS)) is not None:
        presets = [
            precision.Precision(**{k: v for k, v in p.items() if k not in ("worst", "mean")})
            for p in found["presets"]
        ]
        parts += ["### Precision of a refresh", _facts(found), precision.ours_table(presets)]
        parts += [precision.published_table()]
    return parts


def _model() -> list[str]:
    """A whole model end to end."""
    record = _read(model.RESULTS)
    return [] if record is None else [_MODEL, _facts(record), model.markdown(record)]


def _claims() -> list[str]:
    """The last finding of every claim."""
    parts = [_CLAIMS]
    for group in _GROUPS:
        path = _ROOT / RESULTS.parent / f"{group}.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        last: dict[str, dict[str, Any]] = {line["claim"]: line for line in lines}
        known = import_module(f"benchmarks.claims.{group}").claims(Options())
        rows = []
        for line in (last[claim.name] for claim in known if claim.name in last):
            is_known = line["value"] is not None
            found = f"{line['value']:.4g}" if is_known else "not measured"
            verdict = ("holds" if line["holds"] else "missed") if is_known else ""
            day = line["date"][:10]
            rows.append([line["claim"], found, line["target"], line["unit"], verdict, day])
        if rows:
            header = ["claim", "found", "asked", "", "", "date"]
            parts += [f"### {group}", _tables.table(header, rows)]
    return parts


if __name__ == "__main__":
    write(load())
