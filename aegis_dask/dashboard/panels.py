"""The panels of a run: HTML that the page, the report and the file of `aegis report` share."""

from __future__ import annotations

from dataclasses import dataclass

from aegis_dask.dashboard.drawing import draw_levels, draw_timeline
from aegis_dask.dashboard.markup import (
    BOOTSTRAPPING,
    MEASURED,
    PLANNED,
    Raw,
    bar,
    bullet,
    colours,
    none,
    table,
    text,
    time_text,
)
from aegis_dask.dashboard.view import (
    CANCELLED,
    CONTINUED,
    FAILED,
    FINISHED,
    LOST,
    RUNNING,
    RunView,
)
from aegis_dask.placement.traffic import format_bytes

STATE_COLOURS = {
    RUNNING: "#2f6fb0",
    FINISHED: "#1b7f4b",
    FAILED: "#a3260d",
    LOST: "#a3260d",
    CANCELLED: "#566272",
    CONTINUED: "#1b7f4b",
}
MEMORY_SLACK = 1.1
"""So much more memory than planned is as planned: Dask's objects are counted too."""
MOST_PAIRS = 8
MOST_LAYERS = 40
"""Rows of a table before it tells of the rest in one."""


@dataclass(frozen=True)
class Panel:
    """A part of the page: its name in the document, its heading, a sentence, and its body."""

    name: str
    heading: str
    note: str
    body: str
    whole: bool = False

    @property
    def html(self) -> str:
        """All of it."""
        note = f'<p class="note">{self.note}</p>' if self.note else ""
        return (
            f'<div class="aegis" id="{self.name}"><h2>{text(self.heading)}</h2>{note}{self.body}'
            "</div>"
        )


def make_panels(view: RunView) -> list[Panel]:
    """Return the panels of a run, in the order of the page."""
    return [
        Panel("run", view.title, "", _head(view), whole=True),
        Panel(
            "timeline",
            "Timeline",
            "What each device did when. Colour: operator. Height: share of the time in tasks. "
            "Above: when each layer ran.",
            (draw_timeline(view) + _legend(view))
            if any(d.segments for d in view.devices)
            else none("No task has finished yet."),
            whole=True,
        ),
        Panel(
            "layers",
            "Layers",
            "How far each layer is, and when it is done. A task is a step, or several in a row.",
            _layers(view),
        ),
        Panel(
            "levels",
            "Levels and refreshes",
            "Levels that values have left. Dark: done. "
            f'<span style="color:{BOOTSTRAPPING}">Arrows</span> are refreshes (bootstraps), '
            "filled once they are done.",
            draw_levels(view) or none("Levels are known of encrypted programs only."),
        ),
        Panel(
            "links",
            "Bytes per link",
            f"{_swatch(MEASURED)} sent so far, {_swatch(PLANNED)} planned. Residues, without "
            "headers.",
            _links(view),
        ),
        Panel(
            "memory",
            "Memory per device",
            f"Results held: {_swatch(MEASURED)} the most so far, {_swatch(PLANNED)} planned. "
            "Beside them the process with keys and weights, and its limit.",
            _memory(view),
        ),
        Panel("slowest", "Slowest tasks", "", _slowest(view)),
        Panel("errors", "Errors", "", _errors(view)),
    ]


def _swatch(colour: str) -> str:
    return (
        f'<span style="display:inline-block;width:10px;height:10px;border-radius:2px;'
        f'background:{colour}"></span>'
    )


def _head(view: RunView) -> str:
    state = (
        f'<span class="state" style="background:{STATE_COLOURS[view.state]}">{text(view.state)}'
        "</span>"
    )
    facts = [
        f"{view.done:,} of {view.tasks:,} tasks",
        f"{len(view.devices)} device{'' if len(view.devices) == 1 else 's'}",
        time_text(view.seconds),
    ]
    if view.state == RUNNING and view.remaining is not None:
        facts.append(f"about {time_text(view.remaining)} to go")
    if view.predicted_seconds is not None:
        facts.append(f"planned {time_text(view.predicted_seconds)}")
    if view.refreshes:
        facts.append(f"{view.refreshed:,} of {view.refreshes:,} bootstraps")
    if view.parameters:
        facts.append(view.parameters)
    if view.resumed:
        facts.append(f"taken up again {view.resumed} time{'' if view.resumed == 1 else 's'}")
    line = f"{state} &nbsp;{text(' · '.join(facts))}"
    colour = STATE_COLOURS[view.state]
    progress = bar(view.share, colour, f"{view.share:.0%} of the work is done")
    message = f'<p class="error">{text(view.message)}</p>' if view.message else ""
    return f'<p style="margin:2px 0 10px">{line}</p>{progress}{message}'


def _legend(view: RunView) -> str:
    whole = sum(o.seconds for o in view.operators) or 1.0
    items = [
        f'<li><i style="background:{colour}"></i>{text(o.name)} '
        f"<small>{time_text(o.seconds)}, {o.seconds / whole:.0%}</small></li>"
        for o, colour in zip(view.operators, colours([o.name for o in view.operators]), strict=True)
        if o.done
    ]
    return f'<ul class="legend" aria-label="Operators">{"".join(items)}</ul>'


def _layers(view: RunView) -> str:
    rows = []
    for layer in view.layers[:MOST_LAYERS]:
        if not layer.tasks:
            continue
        if layer.done >= layer.tasks:
            left = "done"
        elif layer.remaining is None:
            left = ""
        else:
            left = f"in {time_text(layer.remaining)}"
        colour = STATE_COLOURS[FINISHED] if layer.done >= layer.tasks else MEASURED
        rows.append(
            (
                layer.name,
                bar(layer.share, colour, f"{layer.share:.0%} done"),
                f"{layer.done:,} / {layer.tasks:,}",
                time_text(layer.seconds) if layer.seconds else "",
                left,
            )
        )
    if not rows:
        return none("The run has no tasks.")
    more = len(view.layers) - MOST_LAYERS
    rest = none(f"{more} further layers are not listed.") if more > 0 else ""
    return table(("layer", Raw("progress"), "steps", "time in tasks", "finished"), rows) + rest


def _links(view: RunView) -> str:
    if len(view.devices) < 2:
        return none("There is one device: nothing is sent.")
    if not view.pairs:
        return none("Nothing has been sent between devices.")
    pairs = sorted(view.pairs, key=lambda p: -max(p.measured, p.planned or 0))
    largest = max(max(p.measured, p.planned or 0) for p in pairs)
    rows: list[tuple[object, ...]] = []
    for p in pairs[:MOST_PAIRS]:
        a, b = (view.devices[i].name for i in (p.source, p.destination))
        rows.append(_link_row(f"{a} → {b}", p.measured, p.planned, largest))
    rest = pairs[MOST_PAIRS:]
    if len(pairs) > 1:
        known = (
            None if any(p.planned is None for p in pairs) else sum(p.planned or 0 for p in pairs)
        )
        sent = sum(p.measured for p in pairs)
        name = "all" if not rest else f"all, {len(rest)} more pairs among them"
        rows.append(_link_row(name, sent, known, max(sent, known or 0)))
    return table(("from → to", "", "sent", "planned"), rows)


def _link_row(name: str, measured: int, planned: int | None, whole: float) -> tuple[object, ...]:
    plan = "unknown" if planned is None else format_bytes(planned)
    label = f"{format_bytes(measured)} sent, {plan} planned"
    return name, bullet(measured, planned, whole, label), format_bytes(measured), plan


def _memory(view: RunView) -> str:
    largest = max((max(d.peak, d.planned_peak or 0) for d in view.devices), default=0)
    rows = []
    for d in view.devices:
        plan = "unknown" if d.planned_peak is None else format_bytes(d.planned_peak)
        label = f"at most {format_bytes(d.peak)} held, {plan} planned"
        process = "" if not d.process else format_bytes(d.process)
        if d.process and d.limit:
            process += f" of {format_bytes(d.limit)}"
        rows.append(
            (
                d.name,
                bullet(d.peak, d.planned_peak, largest, label, MEMORY_SLACK),
                format_bytes(d.peak),
                plan,
                process,
            )
        )
    return table(("device", "", "most held", "planned", "process"), rows)


def _slowest(view: RunView) -> str:
    if not view.slowest:
        return none("No task has finished yet.")
    longest = view.slowest[0].seconds
    rows = [
        (
            s.stage,
            f"{s.task:,}",
            view.devices[s.device].name,
            bar(s.seconds / (longest or 1.0), label=time_text(s.seconds)),
            time_text(s.seconds),
        )
        for s in view.slowest
    ]
    return table(("stage", "task", "device", "", "time"), rows)


def _errors(view: RunView) -> str:
    if not view.trouble:
        return none("None.")
    rows = [(t.what, t.where, time_text(t.seconds)) for t in reversed(view.trouble)]
    return table(("what", "where", "after"), rows, left=2)
