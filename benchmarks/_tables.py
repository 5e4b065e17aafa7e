"""Markdown tables of a run, aligned so that they also read well in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks._results import Run
from benchmarks.floor import Shape, work
from benchmarks.peers import OURS
from benchmarks.peers._harness import OPS

NAMES = {OURS: "aegis_dask", "openfhe": "OpenFHE", "tenseal": "SEAL", "desilo": "DESILO"}
_NONE = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One Markdown table, first column left, the others right."""
    lines = [list(header), *(list(row) for row in rows)]
    width = [max(len(row[i]) for row in lines) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [first.ljust(width[0])]
        padded += [cell.rjust(w) for cell, w in zip(rest, width[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(width)]
    return "\n".join([line(lines[0]), line(rule), *(line(row) for row in lines[1:])])


def number(value: float | None, digits: int = 3) -> str:
    """A positive number with about three significant digits."""
    if value is None:
        return _NONE
    for limit, places in ((100, 0), (10, 1), (1, 2)):
        if value >= limit:
            return f"{value:.{places}f}"
    return f"{value:.{digits}f}"


def factor(value: float | None) -> str:
    """A ratio, for example ``5.6x``."""
    return _NONE if value is None else f"{value:.2f}x"


def megabytes(value: int | None) -> str:
    """Bytes as MB."""
    return _NONE if value is None else number(value / 1e6)


def name(lib: str) -> str:
    """How a library is called in text."""
    return NAMES.get(lib, lib)


def _count(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")


def _milliseconds(run: Run, lib: str, threads: int, op: str) -> str:
    record = run.time(lib, threads, op)
    if record is None:
        return _NONE
    return number(record["min_ms"]) + "*" * run.disturbed(lib, threads, op)


def _ops(run: Run) -> list[str]:
    return [op for op in OPS if any(run.time(OURS, t, op) for t in run.threads)]


def times(run: Run, threads: int) -> str:
    """Milliseconds of every operation, ours beside the peers'."""
    peers = [lib for lib in run.libs if lib != OURS]
    header = [f"ms, {_count(threads)}", name(OURS)]
    for lib in peers:
        header += [name(lib), "ratio"]
    rows = []
    for op in _ops(run):
        row = [op, _milliseconds(run, OURS, threads, op)]
        for lib in peers:
            row += [
                _milliseconds(run, lib, threads, op),
                factor(run.speedup(lib, threads, op)),
            ]
        rows.append(row)
    return table(header, rows)


def floors(run: Run, threads: int) -> str:
    """Our times beside the least ones that arithmetic and bytes allow."""
    header = [f"ms, {_count(threads)}", "ours", "floor", "distance"]
    header += ["arithmetic", "keys", "buffers", "memory hidden"]
    rows = []
    for op in _ops(run):
        least, ours = run.floor(op, threads), run.milliseconds(OURS, threads, op)
        if least is None or ours is None:
            continue
        row = [op, _milliseconds(run, OURS, threads, op), number(least.total)]
        row.append(factor(ours / least.total))
        parts = (least.arithmetic, least.keys, least.buffers, least.hidden)
        rows.append([*row, *map(number, parts)])
    return table(header, rows)


def counts(run: Run) -> str:
    """What the floors count."""
    shape = run.params(OURS).get("shape")
    if shape is None:
        return ""
    all_work = work(Shape(**shape))
    header = ["count, per operation", "limb NTTs", "conversion MAC-limbs", "inner MAC-limbs"]
    header += ["reductions", "keys MB", "buffers MB"]
    rows = []
    for op in _ops(run):
        if op in all_work:
            w = all_work[op]
            plain = (w.transforms, w.conversion_macs, w.inner_macs, w.reductions)
            rows.append([op, *map(str, plain), megabytes(w.key_bytes), megabytes(w.buffer_bytes)])
    return table(header, rows)


def copies(run: Run) -> str:
    """Element-wise operations against copying as many bytes."""
    header = ["element-wise", "threads", "ms", "copy ms", "GB/s of the copy", "ratio"]
    sizes = {r["what"]: r["bytes"] for r in run.records if r["kind"] == "probe" and "bytes" in r}
    rows = []
    for op in ("add", "multiply_plain"):
        for threads in run.threads:
            copy, ours = run.copy_ms(op, threads), run.milliseconds(OURS, threads, op)
            if copy is None or ours is None:
                continue
            rate = sizes[f"copy:{op}"] / copy / 1e6
            row = [op, str(threads), *map(number, (ours, copy, rate))]
            rows.append([*row, factor(run.copy_ratio(op, threads))])
    return table(header, rows)


def sizes(run: Run) -> str:
    """Memory, and the sizes of keys and ciphertexts."""
    header = ["MB", *(name(lib) for lib in run.libs)]
    rows = []
    for what in ("ciphertext", "rotation_key"):
        row = [what.replace("_", " ")]
        for lib in run.libs:
            size, note = run.size(lib, what), run.size_note(lib, what).split(";")[0]
            row.append(f"{megabytes(size)} ({note})" if size else _NONE)
        rows.append(row)
    for threads in run.threads:
        for label, op in (("one rotation key", "rotate"), ("all keys", "matvec_128")):
            values = [run.peak_rss(lib, threads, op) for lib in run.libs]
            if any(values):
                rows.append([f"peak memory, {label}, {_count(threads)}", *map(megabytes, values)])
    return table(header, rows)


def errors(run: Run) -> str:
    """Largest error of each checked result, for values in [-1, 1]."""
    header = ["largest error", *(name(lib) for lib in run.libs)]
    rows = []
    for op in _ops(run):
        row = [op]
        for lib in run.libs:
            found = [r for t in run.threads if (r := run.time(lib, t, op))]
            row.append(f"{max(r['extra']['max_error'] for r in found):.1e}" if found else _NONE)
        rows.append(row)
    return table(header, rows)


def params(run: Run) -> str:
    """Parameters of each library."""
    fields = ("version", "levels", "limbs", "special_limbs", "log_q", "log_qp", "dnum")
    header = ["parameters", *(name(lib) for lib in run.libs)]
    rows = []
    for field in fields:
        row = [field.replace("_", " ")]
        for lib in run.libs:
            p = run.params(lib)
            value = len(p["limb_bits"]) if field == "limbs" and "limb_bits" in p else p.get(field)
            row.append(_NONE if value is None else str(value))
        rows.append(row)
    return table(header, rows)
