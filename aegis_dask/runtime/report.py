"""A report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from aegis_dask.ckks.files import write_atomically
from aegis_dask.dashboard.document import make_document
from aegis_dask.dashboard.markup import bar, none, row, table, text, time_text
from aegis_dask.dashboard.panels import Panel, make_panels
from aegis_dask.placement.traffic import format_bytes
from aegis_dask.runtime.cluster import cores
from aegis_dask.runtime.result import Operator, Result


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
    view = result.view
    extra = {
        "Summary": _pairs(_summary(result)),
        "Precision": _pairs(precision) if precision else "",
        "Where the time went": _scheduling(result),
        "Workers": _workers(result),
        "Time by operation": _operators(result.operations, "operation", "calls"),
        "Bytes by pair of workers": _transfers(result),
        "Time by stage": _operators(result.stages, "stage", "tasks"),
        "Machine and parameters": _pairs({**_machine(), **result.about, **(about or {})}),
    }
    seen = [Panel("run", title, "", "", whole=True)] if view is None else make_panels(view)
    panels = [
        replace(seen[0], heading=title),
        *seen[1:],
        *(Panel(_name(heading), heading, "", body) for heading, body in extra.items() if body),
    ]
    target = Path(path)
    write_atomically(target, [make_document(title, panels).encode()])
    return target


def _name(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _pairs(values: Mapping[str, object]) -> str:
    return f"<table>{''.join(row(item, left=2) for item in values.items())}</table>"


# -- sections ----------------------------------------------------------------------------------


def _summary(result: Result) -> dict[str, object]:
    out: dict[str, object] = {
        "time": f"{result.seconds:.3f} s",
        "workers": len(result.workers),
        "tasks": result.tasks,
        "outputs": ", ".join(result.outputs),
        "share of the workers' time in scheduling and transfers": f"{result.scheduling_share:.1%}",
        "between workers": format_bytes(result.transfers.between_workers),
        "largest memory of a worker": result.memory_text,
    }
    if result.dashboard:
        out["Dask's dashboard during the run"] = result.dashboard
    return out


def _scheduling(result: Result) -> str:
    s = result.scheduling
    whole = s.wall * s.workers or 1.0
    parts = (("in tasks", s.busy), ("scheduling and transfers", s.dispatch), ("idle", s.waiting))
    rows = [(name, f"{seconds:.3f} s", f"{seconds / whole:.1%}") for name, seconds in parts]
    shares = table(("of all workers together", "time", "share"), rows)
    gap = f"{1000 * s.mean_gap:.1f} ms"
    return (
        f'{shares}<p class="note">From the moment when a task could have started to its start pass '
        f"{text(gap)} on average. Idle: nothing could be run.</p>"
    )


def _operators(operators: Mapping[str, Operator], what: str, unit: str) -> str:
    if not operators:
        return none("Nothing was measured.")
    longest = max(o.seconds for o in operators.values()) or 1.0
    rows = [
        (name, bar(o.seconds / longest, label=time_text(o.seconds)), o.calls, f"{o.seconds:.3f} s")
        for name, o in operators.items()
    ]
    return table((what, "", unit, "time"), rows)


def _transfers(result: Result) -> str:
    names = [*(f"worker {w.name}" for w in result.workers), "client"]
    rows = [
        [name, *(format_bytes(count) if count else "" for count in counts)]
        for name, counts in zip(names, result.transfers.matrix, strict=True)
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
        by_stage = table(
            ("sent from worker to worker, by stage", "bytes"),
            [(name, format_bytes(count)) for name, count in stages],
        )
    head = ("from \\ to", *names)
    return f'{table(head, rows)}<p class="note">{text(note)}</p>{by_stage}'


def _workers(result: Result) -> str:
    rows = [
        (
            *(w.name, w.address, w.tasks, f"{w.busy_seconds:.3f} s", format_bytes(w.peak_memory)),
            format_bytes(w.device_memory) if w.device_memory else "",
        )
        for w in result.workers
    ]
    return table(("worker", "address", "tasks", "in tasks", "largest memory", "of its GPU"), rows)


def _machine() -> dict[str, object]:
    return {
        "client": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "Python": platform.python_version(),
    }
