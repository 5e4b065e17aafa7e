"""A report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from aegis_dask.placement.traffic import format_bytes
from aegis_dask.runtime.cluster import cores
from aegis_dask.runtime.result import Operator, Result, Span

MOST_SPANS = 20_000
"""Tasks drawn on the timeline; of more, the longest."""
WIDTH, LANE = 1000, 26

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1060px; color: #1c2430;
  background: #fff; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; margin: .6em 0 }
td, th { padding: .25em .8em; text-align: right; border-bottom: 1px solid #dde3ea }
td:first-child, th:first-child { text-align: left } th { font-weight: 600 }
.bar { display: inline-block; height: .75em; background: #3b7dd8; vertical-align: middle }
.note { color: #5b6878 } svg { width: 100%; height: auto } svg text { font-size: 11px }
""".strip()


def write_report(
    result: Result,
    path: str | Path,
    *,
    title: str = "Encrypted run",
    precision: Mapping[str, object] | None = None,
    about: Mapping[str, object] | None = None,
) -> Path:
    """Write a report and return its path.

    Parameters
    ----------
    result
        What to report.
    path
        The file; an existing one is replaced.
    title
        Heading.
    precision
        Figures of the error against a reference, measured by the caller.
    about
        More to say about model, input or machine.
    """
    sections = [
        _section("Summary", _pairs(_summary(result))),
        _section("Precision", _pairs(precision)) if precision else "",
        _section("Where the time went", _scheduling(result)),
        _section("Timeline", _timeline(result)),
        _section("Time by operation", _operators(result.operations, "operation", "calls")),
        _section("Time by stage", _operators(result.stages, "stage", "tasks")),
        _section("Bytes by pair of workers", _transfers(result)),
        _section("Workers", _workers(result)),
        _section("Machine and parameters", _pairs({**_machine(), **result.about, **(about or {})})),
    ]
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{''.join(sections)}</body></html>\n"
    )
    target = Path(path)
    target.write_text(text, encoding="utf-8")
    return target


# -- pieces of HTML: everything that comes from outside is escaped here ------------------------


def _section(heading: str, body: str) -> str:
    return f"<h2>{escape(heading)}</h2>\n{body}\n"


def _row(cells: Iterable[object], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>\n"


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    return f"<table>{_row(head, 'th')}{''.join(_row(r) for r in rows)}</table>"


def _pairs(values: Mapping[str, object]) -> str:
    return f"<table>{''.join(_row(item) for item in values.items())}</table>"


# -- sections ----------------------------------------------------------------------------------


def _summary(result: Result) -> dict[str, object]:
    out: dict[str, object] = {
        "time": f"{result.seconds:.3f} s",
        "workers": len(result.workers),
        "tasks": result.tasks,
        "outputs": ", ".join(result.outputs),
        "share of the workers' time in scheduling and transfers": f"{result.scheduling_share:.1%}",
        "between workers": format_bytes(result.transfers.between_workers),
        "largest memory of a worker": format_bytes(result.peak_memory),
    }
    if result.dashboard:
        out["Dask's dashboard during the run"] = result.dashboard
    return out


def _scheduling(result: Result) -> str:
    s = result.scheduling
    whole = s.wall * s.workers or 1.0
    parts = (("in tasks", s.busy), ("scheduling and transfers", s.dispatch), ("idle", s.waiting))
    rows = [(name, f"{seconds:.3f} s", f"{seconds / whole:.1%}") for name, seconds in parts]
    table = _table(("of all workers together", "time", "share"), rows)
    gap = f"{1000 * s.mean_gap:.1f} ms"
    return (
        f'{table}<p class="note">From the moment when a task could have started to its start pass '
        f"{escape(gap)} on average. Idle: nothing could be run.</p>"
    )


def _operators(operators: Mapping[str, Operator], what: str, unit: str) -> str:
    if not operators:
        return '<p class="note">Nothing was measured.</p>'
    longest = max(o.seconds for o in operators.values()) or 1.0
    rows = []
    for name, o in operators.items():
        width = 100 * o.seconds / longest
        rows.append(
            f"<tr><td>{escape(name)}</td><td>{o.calls}</td><td>{o.seconds:.3f} s</td>"
            f'<td style="text-align:left;width:40%">'
            f'<span class="bar" style="width:{width:.1f}%"></span></td></tr>\n'
        )
    return f"<table>{_row((what, unit, 'time', ''), 'th')}{''.join(rows)}</table>"


def _hue(name: str) -> int:
    value: int = zlib.crc32(name.encode()) % 360
    return value


def _timeline(result: Result) -> str:
    spans: Sequence[Span] = result.timeline
    if not spans:
        return '<p class="note">No tasks.</p>'
    dropped = len(spans) - MOST_SPANS
    if dropped > 0:
        spans = sorted(spans, key=lambda s: s.start - s.stop)[:MOST_SPANS]
    end = max(result.seconds, max(s.stop for s in spans)) or 1.0
    scale = (WIDTH - 90) / end
    height = LANE * len(result.workers) + 24
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    for i, worker in enumerate(result.workers):
        out.append(f'<text x="0" y="{LANE * i + 17}">worker {escape(worker.name)}</text>')
    for s in spans:
        x, w = 85 + s.start * scale, max(0.4, (s.stop - s.start) * scale)
        label = escape(f"{s.name} ({s.kind}), {1000 * (s.stop - s.start):.1f} ms")
        out.append(
            f'<rect x="{x:.2f}" y="{LANE * s.worker + 3}" width="{w:.2f}" height="{LANE - 6}" '
            f'fill="hsl({_hue(s.name.rpartition("/")[2])},55%,58%)"><title>{label}</title></rect>'
        )
    for k in range(6):
        x = 85 + (WIDTH - 95) * k / 5
        out.append(
            f'<text x="{x:.0f}" y="{height - 6}" text-anchor="middle">{end * k / 5:.2f} s</text>'
        )
    out.append("</svg>")
    if dropped > 0:
        out.append(f'<p class="note">The {dropped} shortest tasks are not drawn.</p>')
    return "".join(out)


def _transfers(result: Result) -> str:
    names = [*(f"worker {w.name}" for w in result.workers), "client"]
    rows = [
        [name, *(format_bytes(x) if x else "" for x in row)]
        for name, row in zip(names, result.transfers.matrix, strict=True)
    ]
    wire = sum(result.transfers.wire.values())
    note = (
        f"Residues, without headers. The workers wrote {format_bytes(wire)} to their connections."
        if wire
        else "Residues, without headers."
    )
    stages = sorted(result.transfers.stages.items(), key=lambda item: -item[1])[:20]
    by_stage = ""
    if stages:
        by_stage = _table(
            ("sent from worker to worker, by stage", "bytes"),
            [(name, format_bytes(count)) for name, count in stages],
        )
    head = ("from \\ to", *names)
    return f'{_table(head, rows)}<p class="note">{escape(note)}</p>{by_stage}'


def _workers(result: Result) -> str:
    rows = [
        (w.name, w.address, w.tasks, f"{w.busy_seconds:.3f} s", format_bytes(w.peak_memory))
        for w in result.workers
    ]
    return _table(("worker", "address", "tasks", "in tasks", "largest memory"), rows)


def _machine() -> dict[str, object]:
    return {
        "client": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "Python": platform.python_version(),
    }
