"""A drawing of a program's levels, and of where it is refreshed: one HTML file by Bokeh."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from bokeh.embed import file_html
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations import Label, Span
from bokeh.plotting import figure
from bokeh.resources import INLINE

from aegis_dask.circuits.operators import layer_of
from aegis_dask.ckks.files import write_atomically
from aegis_dask.errors import SerializationError
from aegis_dask.program.graph import Program
from aegis_dask.program.operations import Refresh
from aegis_dask.program.symbolic import Analysis
from aegis_dask.service.files import writing
from aegis_dask.service.plan import Refreshed, refreshes_of

COLOURS = {"complex": "#d55e00", "real": "#0072b2", "merged": "#009e73"}
"""Of each kind of refresh; told apart by the colour-blind too (Okabe and Ito)."""
HEIGHT = 480
HALF_BAR = 0.2
"""A stage that stays at one level is drawn this much around it, in levels."""


def check_plot(path: Path) -> None:
    """Refuse a file that is not HTML by its name, before work is done.

    Raises
    ------
    SerializationError
        If so.
    """
    if path.suffix != ".html":
        raise SerializationError(
            f"{path} does not end in .html: the plot is a page for a browser; give a name such as "
            f"{path.with_suffix('.html')}"
        )


def plot_levels(analysis: Analysis, path: Path, title: str) -> None:
    """Draw the levels of a program's values, stage by stage.

    Parameters
    ----------
    analysis
        Of the program with its refreshes.
    path
        An HTML file, which needs nothing else; an existing one is replaced.
    title
        Heading.

    Raises
    ------
    SerializationError
        If the name does not end in ``.html``, or the file cannot be written; no part of it is left.
    """
    check_plot(path)
    program, levels = analysis.program, analysis.levels
    top = max(levels)
    plot = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        title=title,
        x_axis_label="stage",
        y_axis_label="level",
        y_range=Range1d(start=-1, end=top + 2),
        tools="xpan,xwheel_zoom,box_zoom,reset,save",
    )
    _draw_stages(plot, program, levels)
    _draw_refreshes(plot, program, refreshes_of(analysis))
    _draw_layers(plot, program, top)
    page = file_html(plot, INLINE, title)
    with writing(path):
        write_atomically(path, [page.encode()])


def _draw_stages(plot: figure, program: Program, levels: list[int]) -> None:
    """Draw a bar per stage from the lowest to the highest level of its values."""
    stages = [s for s in program.stages if not _refreshes(program, s.nodes)]
    low = [min(levels[i] for i in s.nodes) for s in stages]
    high = [max(levels[i] for i in s.nodes) for s in stages]
    source = ColumnDataSource(
        {
            "x": [s.index for s in stages],
            "stage": [s.name for s in stages],
            "low": low,
            "high": high,
            "bottom": [level - HALF_BAR for level in low],
            "top": [level + HALF_BAR for level in high],
        }
    )
    bars = plot.vbar("x", 0.8, "top", "bottom", source=source, color="#b8c2cc")
    tips = [("stage", "@stage"), ("levels", "@high to @low")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tips))


def _draw_refreshes(plot: figure, program: Program, found: tuple[Refreshed, ...]) -> None:
    """Draw an arrow per refresh from the level at which a value arrives to the one it gets."""
    places = [s.index for s in program.stages if _refreshes(program, s.nodes)]
    placed = list(zip(places, found, strict=True))
    for kind, colour in COLOURS.items():
        some = [(x, r) for x, r in placed if r.kind == kind]
        if not some:
            continue
        source = ColumnDataSource(
            {
                "x": [x for x, _ in some],
                "stage": [r.stage for _, r in some],
                "operation": [r.operation for _, r in some],
                "ciphertexts": [r.ciphertexts for _, r in some],
                "bootstraps": [r.bootstraps for _, r in some],
                "low": [r.level for _, r in some],
                "high": [r.level_after for _, r in some],
                "iterations": [r.iterations for _, r in some],
                "divisor": [r.divisor for _, r in some],
                "users": [", ".join(r.users) for _, r in some],
            }
        )
        total = sum(r.bootstraps for _, r in some)
        plot.segment("x", "low", "x", "high", source=source, color=colour, line_width=2)
        heads = plot.scatter(
            "x",
            "high",
            source=source,
            marker="triangle",
            size=11,
            color=colour,
            legend_label=f"{kind}: {total} bootstraps",
        )
        tips = [
            ("refreshed", "@operation of @stage"),
            ("ciphertexts", "@ciphertexts"),
            ("bootstraps", f"@bootstraps ({kind})"),
            ("levels", "@low to @high"),
            ("times", "@iterations"),
            ("divided by", "@divisor"),
            ("for", "@users"),
        ]
        plot.add_tools(HoverTool(renderers=[heads], tooltips=tips))
    if found:
        plot.legend.orientation = "horizontal"
        plot.legend.location = "bottom_left"


def _draw_layers(plot: figure, program: Program, top: int) -> None:
    """Draw a line where a layer begins, and its name."""
    for name, stages in groupby(program.stages, key=lambda s: layer_of(s.name)):
        start = next(stages).index - 0.5
        plot.add_layout(Span(location=start, dimension="height", line_color="#5b6878"))
        plot.add_layout(Label(x=start, y=top + 1, x_offset=4, text=name, text_font_size="12px"))


def _refreshes(program: Program, nodes: list[int]) -> bool:
    return any(isinstance(program.nodes[i].op, Refresh) for i in nodes)
