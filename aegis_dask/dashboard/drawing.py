"""The two drawings of a run, as SVG: its timeline, and its levels."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_dask.dashboard.markup import (
    BOOTSTRAPPING,
    INK,
    LINE,
    colours,
    text,
    ticks,
    time_text,
    time_ticks,
)
from aegis_dask.dashboard.view import RUNNING, Column, Layer, RunView

WIDTH = 1200
LEFT, RIGHT = 84, 12
BAND, LANE = 20, 38
THIN_LANE = 14
"""Height of a lane where there are many devices."""
MANY = 12
"""So many devices are many."""
LEAST_LABEL = 44
"""Narrower bands have no name."""
LEVELS_WIDTH, LEVELS_HEIGHT = 590, 250
DONE, TO_DO = "#7f93a8", "#dde3ea"


def draw_timeline(view: RunView) -> str:
    """Return what every device did when, by operator, and when the layers ran."""
    lane = LANE if len(view.devices) <= MANY else THIN_LANE
    planned = view.predicted_seconds
    stops = [s.stop for d in view.devices for s in d.segments]
    end = max([view.seconds, *stops, 1e-3])
    shown = planned is not None and planned <= 2 * end
    if shown and planned is not None and view.state == RUNNING:
        end = max(end, planned)
    scale = (WIDTH - LEFT - RIGHT) / end
    height = BAND + 6 + lane * len(view.devices) + 36
    bottom = height - 20
    out = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{text(_summary(view))}">',
        *_bands(view.layers, scale, bottom),
    ]
    for t in time_ticks(end):
        x = LEFT + t * scale
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{BAND}" y2="{bottom}" stroke="{LINE}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{time_text(t)}</text>')
    fill = colours([o.name for o in view.operators])
    for i, device in enumerate(view.devices):
        top = BAND + 6 + lane * i
        out.append(
            f'<text class="strong" x="{LEFT - 8}" y="{top + lane / 2 + 4:.0f}" '
            f'text-anchor="end">{text(_short(device.name))}</text>'
        )
        room = lane - (5 if lane == LANE else 2)
        for s in device.segments:
            busy = min(1.0, s.busy / (s.stop - s.start)) if s.stop > s.start else 1.0
            h = room * max(0.25, busy)
            name = view.operators[s.operator].name
            label = f"{name}, {time_text(s.busy)} from {time_text(max(0.0, s.start))}"
            out.append(
                f'<rect x="{LEFT + max(0.0, s.start) * scale:.1f}" y="{top + room - h:.1f}" '
                f'width="{max(0.6, (s.stop - s.start) * scale):.1f}" height="{h:.1f}" '
                f'fill="{fill[s.operator]}"><title>{text(label)}</title></rect>'
            )
    if shown and planned is not None:
        x = LEFT + planned * scale
        early = x < WIDTH / 2
        if x <= WIDTH:
            out.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{BAND}" y2="{bottom}" stroke="{INK}" '
                f'stroke-width="1.5" stroke-dasharray="5 4"><title>planned end</title></line>'
                f'<text x="{x + (4 if early else -4):.1f}" y="{bottom - 4}" '
                f'text-anchor="{"start" if early else "end"}">planned end</text>'
            )
    if view.state == RUNNING:
        x = LEFT + view.seconds * scale
        out.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{BAND}" y2="{bottom}" stroke="{BOOTSTRAPPING}" '
            f'stroke-width="1.5"><title>now</title></line>'
            f'<text x="{x + (4 if x < WIDTH - 40 else -4):.1f}" y="{bottom - 4}" '
            f'text-anchor="{"start" if x < WIDTH - 40 else "end"}">now</text>'
        )
    out.append("</svg>")
    return "".join(out)


def _summary(view: RunView) -> str:
    return (
        f"Timeline of {len(view.devices)} devices over {time_text(view.seconds)}, coloured by "
        "operator; the same times are in the list of operators below"
    )


def _short(name: str) -> str:
    name = f"device {name}" if name.isdigit() else name
    return name if len(name) <= 13 else f"..{name[-11:]}"


def _bands(layers: Sequence[Layer], scale: float, bottom: float) -> list[str]:
    """Draw when each layer ran: a line above the lanes, its name, every other one shaded."""
    out = []
    ran = [(x.name, x.begin, x.end) for x in layers if x.begin is not None and x.end is not None]
    free = 0.0  # up to where names are written
    for i, (name, begin, end) in enumerate(ran):
        x, width = LEFT + max(0.0, begin) * scale, max(1.0, (end - max(0.0, begin)) * scale)
        if i % 2:
            out.append(
                f'<rect x="{x:.1f}" y="{BAND}" width="{width:.1f}" height="{bottom - BAND:.0f}" '
                f'fill="#f3f5f8"/>'
            )
        out.append(
            f'<rect x="{x:.1f}" y="{BAND - 3}" width="{max(1.0, width - 1):.1f}" height="3" '
            f'fill="{DONE}"><title>{text(name)}</title></rect>'
        )
        label = name if len(name) <= 16 else f"{name[:15]}.."
        if width >= LEAST_LABEL and x >= free:
            free = x + 7 * len(label)
            out.append(f'<text class="strong" x="{x + 2:.1f}" y="{BAND - 7}">{text(label)}</text>')
    return out


def draw_levels(view: RunView) -> str:
    """Return the levels of the values along the program, and where they are refreshed."""
    columns = view.columns
    known = [c for c in columns if c.high is not None or c.refreshed_to is not None]
    if not known:
        return ""
    top = max(max(c.high or 0, c.refreshed_to or 0) for c in known)
    width, height = LEVELS_WIDTH, LEVELS_HEIGHT
    left, low = 34, height - 26
    step = (low - 26) / max(1, top)
    wide = (width - left - 4) / len(columns)

    def y(level: float) -> float:
        return low - level * step

    label = (
        f"Levels along {len(columns)} columns of stages, from {top} to 0; {view.refreshed} of "
        f"{view.refreshes} bootstraps are done"
    )
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text(label)}">']
    for level in (round(t) for t in ticks(top, 5)):
        out.append(
            f'<line x1="{left}" x2="{width}" y1="{y(level):.1f}" y2="{y(level):.1f}" '
            f'stroke="{LINE}"/><text x="{left - 6}" y="{y(level) + 4:.1f}" '
            f'text-anchor="end">{level}</text>'
        )
    out += _layer_names(view, left, wide)
    bar = max(0.8, wide * (0.86 if wide > 3 else 1.0))
    for k, c in enumerate(columns):
        x = left + k * wide
        if c.high is not None and c.low is not None:
            half = min(0.3, 3 / step)
            title = f"{_column_name(c)}: level {c.high} to {c.low}, {c.share:.0%} done"
            out.append(
                f'<rect x="{x:.1f}" y="{y(c.high + half):.1f}" width="{bar:.1f}" '
                f'height="{(c.high - c.low + 2 * half) * step:.1f}" '
                f'fill="{DONE if c.share >= 1 else TO_DO}"><title>{text(title)}</title></rect>'
            )
        if c.refreshed_from is not None and c.refreshed_to is not None:
            out.append(_arrow(c, x + wide / 2, y(c.refreshed_from), y(c.refreshed_to)))
    out.append(
        f'<text x="{left}" y="{height - 6}">stages, in the order of the program</text></svg>'
    )
    return "".join(out)


def _column_name(column: Column) -> str:
    more = f" and {column.stages - 1} more" if column.stages > 1 else ""
    return f"{column.name}{more}"


def _arrow(c: Column, x: float, start: float, stop: float) -> str:
    """Draw a refresh; a hollow head where it is not done."""
    title = (
        f"{_column_name(c)}: {c.refreshes} bootstraps, level {c.refreshed_from} to "
        f"{c.refreshed_to}, {c.share:.0%} done"
    )
    fill = BOOTSTRAPPING if c.share >= 1 else "#fff"
    return (
        f'<g stroke="{BOOTSTRAPPING}" stroke-width="1.3"><title>{text(title)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{start:.1f}" y2="{stop + 6:.1f}"/>'
        f'<path d="M{x - 4:.1f},{stop + 7:.1f} L{x:.1f},{stop:.1f} L{x + 4:.1f},{stop + 7:.1f} Z" '
        f'fill="{fill}"/></g>'
    )


def _layer_names(view: RunView, left: float, wide: float) -> list[str]:
    out = []
    free, before = 0.0, -1
    for k, c in enumerate(view.columns):
        if c.layer == before:
            continue
        before = c.layer
        x, name = left + k * wide, view.layers[c.layer].name
        out.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{LEVELS_HEIGHT - 26}" stroke="#b7c1cc" '
            f'stroke-dasharray="2 3"/>'
        )
        if x >= free:
            free = x + 7 * len(name) + 8
            out.append(f'<text class="strong" x="{x + 3:.1f}" y="14">{text(name)}</text>')
    return out
