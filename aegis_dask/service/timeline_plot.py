"""A page that shows when every device of a simulated plan does what, and what strategies send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FactorRange, HoverTool
from bokeh.palettes import Category20
from bokeh.plotting import figure
from bokeh.resources import INLINE
from bokeh.transform import dodge

from aegis_dask.circuits.operators import operator_of
from aegis_dask.ckks.files import write_atomically
from aegis_dask.placement.traffic import format_bytes
from aegis_dask.program.graph import Program
from aegis_dask.service.comparison import ATTENTION, FORWARD, Comparison
from aegis_dask.service.files import writing
from aegis_dask.service.refresh_plot import check_plot
from aegis_dask.service.scaling import Scaled

ROW_HEIGHT = 44
TOOLS = "xpan,xwheel_zoom,box_zoom,reset,save"
OTHERS, OURS = "#b8c2cc", "#1f77b4"


def plot_timeline(
    program: Program,
    scaled: Scaled,
    path: Path,
    title: str,
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Draw the timeline of a plan, and the bytes of compared strategies.

    Parameters
    ----------
    program, scaled
        What was simulated, on how many devices.
    path
        An HTML file, which needs nothing else; an existing one is replaced.
    title
        Heading.
    comparisons
        Strategies side by side, drawn below.

    Raises
    ------
    SerializationError
        If the name does not end in ``.html``, or the file cannot be written; no part of it is left.
    """
    check_plot(path)
    figures: list[Any] = [_timeline(program, scaled, title)]
    figures += [_bytes(c) for c in comparisons]
    page = file_html(column(figures, sizing_mode="stretch_width"), INLINE, title)
    with writing(path):
        write_atomically(path, [page.encode()])


def _timeline(program: Program, scaled: Scaled, title: str) -> figure:
    s = scaled.simulation
    devices = [f"device {d}" for d in range(scaled.devices)]
    plot = figure(
        height=260 + ROW_HEIGHT * scaled.devices,
        title=f"{title}: {s.makespan:.3g} s on {scaled.devices} x {s.machine.device.name}, "
        f"{scaled.efficiency:.1%} efficient",
        x_axis_label="seconds",
        y_range=FactorRange(factors=devices[::-1]),
        sizing_mode="stretch_width",
        tools=TOOLS,
    )
    rows: dict[str, list[Any]] = {}
    for interval in s.timeline:
        task = scaled.plan.tasks[interval.task]
        if task.kind == "input":
            continue
        start, whole = interval.start, task.seconds or 1.0
        for part in task.steps:  # what a fused task does, one after the other
            t, share = part.task, part.task.seconds / whole if task.parts else 1.0
            stop = start + share * (interval.stop - interval.start)
            stage = program.stages[t.stage].name
            row = (devices[interval.device], start, stop, stage, t.kind)
            rows.setdefault(operator_of(stage), []).append(row)
            start = stop
    palette = Category20[20]
    for k, (operator, found) in enumerate(rows.items()):
        source = ColumnDataSource(
            {
                **{
                    name: [row[i] for row in found]
                    for i, name in enumerate(("device", "start", "stop", "stage", "kind"))
                },
                "ms": [f"{1e3 * (stop - start):.2f}" for _, start, stop, _, _ in found],
            }
        )
        bars = plot.hbar(
            "device",
            left="start",
            right="stop",
            height=0.8,
            source=source,
            color=palette[k % len(palette)],
            legend_label=operator,
        )
        tips = [
            ("stage", "@stage (@kind)"),
            ("device", "@device"),
            ("time", "@ms ms from @start s"),
        ]
        plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.add_layout(plot.legend[0], "below")
    plot.legend.ncols = 3
    plot.legend.label_text_font_size = "11px"
    return plot


def _bytes(comparison: Comparison) -> figure:
    names = [s.name for s in comparison.strategies]
    plot = figure(
        height=360,
        title=f"Bytes between {comparison.devices} devices, {comparison.scheme}",
        x_range=FactorRange(factors=names),
        sizing_mode="stretch_width",
        y_axis_type="log",
        y_axis_label="GB",
        tools=TOOLS,
    )
    for shift, part in ((-0.2, ATTENTION), (0.2, FORWARD)):
        source = ColumnDataSource(
            {
                "name": names,
                "gb": [max(s.sent[part] / 1e9, 1e-3) for s in comparison.strategies],
                "size": [format_bytes(s.sent[part]) for s in comparison.strategies],
                "s": [f"{s.seconds:.3g}" for s in comparison.strategies],
            }
        )
        bars = plot.vbar(
            dodge("name", shift, range=plot.x_range),
            top="gb",
            bottom=1e-3,
            width=0.36,
            source=source,
            color=OURS if part == ATTENTION else OTHERS,
            legend_label=part,
        )
        tips = [("strategy", "@name"), (part, "@size"), ("time", "@s s")]
        plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))
    plot.xaxis.major_label_orientation = 0.3
    return plot
