"""The page in the dashboard of Dask's scheduler: ``/aegis``, linked from its menu.

A document of Bokeh with a piece of HTML for each panel, brought up to date every second. What it
shows is kept by the monitor; a page asks for it and holds nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aegis_dask.dashboard.markup import CARDS, STYLE, none, text, time_text
from aegis_dask.dashboard.panels import STATE_COLOURS, Panel, make_panels

if TYPE_CHECKING:
    from aegis_dask.dashboard.log import RunLog
    from aegis_dask.dashboard.monitor import Monitor

PAGE = "aegis"
UPDATE_MS = 1000
COMPONENTS = ("bokeh", "bokeh-widgets")
"""Scripts of Bokeh that the page needs: less than half of all of them, by size."""
MOST_LINKS = 12
"""Runs that are linked from the page."""
PANELS = ("run", "timeline", "layers", "levels", "links", "memory", "slowest", "errors")
WHOLE = ("runs", "run", "timeline")
TEMPLATE = """
{% extends "base.html" %}
{% block extra_resources %}<style>{{ cards }}
.navbar li:has(> a[href="aegis"]) { background-color: rgba(234, 170, 109, 0.7) }</style>
{% endblock %}
{% block content %}
{% from macros import embed %}
<main class="aegis-page" aria-label="Runs of aegis_dask">
{% for name in names %}
<section class="{{ 'whole' if name in whole else '' }}">{{ embed(roots[name]) }}</section>
{% endfor %}
</main>
{{ plot_script }}
{% endblock %}
"""


def stock_pages(scheduler: Any) -> Any:
    """Return the application of Bokeh with Dask's own pages, None without a dashboard."""
    for application in getattr(scheduler.http_application, "applications", []):
        if type(application).__name__ == "DaskBokehTornado":
            return application
    return None


def open_pages(scheduler: Any, monitor: Monitor) -> None:
    """Add the page to the dashboard of a scheduler that runs, and to its menu.

    Without a dashboard there is no page. Dask takes applications when its scheduler starts, and
    tells the templates of all pages of its menu then; so ours is an application of its own on the
    same server, and its name is put into that menu.
    """
    stock = stock_pages(scheduler)
    if stock is None:
        return
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    menu: dict[str, Any] = template_variables(scheduler)
    if PAGE in menu["pages"]:
        return

    def document(server: Any, extra: dict[str, Any], doc: Any) -> None:
        make_document(doc, monitor, extra)

    application = BokehApplication({f"/{PAGE}": document}, scheduler, stock.prefix, menu)
    everything = application.resources

    def resources(absolute_url: str | bool | None = True) -> Any:
        found = everything(absolute_url)
        found.components = list(COMPONENTS)
        return found

    application.resources = resources
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    application.start()
    menu["pages"].insert(1, PAGE)


def make_document(doc: Any, monitor: Monitor, extra: dict[str, Any]) -> None:
    """Fill a document of Bokeh with a run: the one that its address asks for, or the last."""
    import distributed.http
    from bokeh.models import InlineStyleSheet
    from bokeh.models.widgets import Div
    from jinja2 import Environment, FileSystemLoader

    arguments = {}
    if doc.session_context is not None:
        arguments = doc.session_context.request.arguments
    asked = arguments.get("run", [b""])[0].decode("utf-8", "replace")
    style = InlineStyleSheet(css=STYLE)
    shown = {
        name: Div(name=name, stylesheets=[style], disable_math=True, sizing_mode="stretch_width")
        for name in ("runs", *PANELS)
    }

    drawn: list[RunLog] = []  # the last one that had ended: it does not change

    def update() -> None:
        monitor.settle()
        log = choose(monitor, asked)
        found = {"runs": list_runs(monitor, asked)}
        if log is not None and log not in drawn:
            now = time.time()
            drawn[:] = [log] if log.ended is not None else []
            found |= {panel.name: panel.html for panel in make_panels(log.view(now))}
        for name, html in found.items():
            if shown[name].text != html:
                shown[name].text = html

    update()
    for div in shown.values():
        doc.add_root(div)
    doc.add_periodic_callback(update, UPDATE_MS)
    doc.title = "Dask: Aegis"
    folder = Path(distributed.http.__file__).parent / "templates"
    environment = Environment(loader=FileSystemLoader(folder), autoescape=False)
    doc.template = environment.from_string(TEMPLATE)
    doc.template_variables.update({**extra, "cards": CARDS, "names": list(shown), "whole": WHOLE})


def choose(monitor: Monitor, asked: str) -> RunLog | None:
    """Return the run that is asked for, or else the last."""
    return monitor.runs.get(asked) or next(reversed(monitor.runs.values()), None)


def list_runs(monitor: Monitor, asked: str) -> str:
    """Return links to the runs there are, the last first."""
    if not monitor.runs:
        body = none("No run yet. It will be here as soon as one begins.")
        return Panel("runs", "Runs", "", body).html
    now = time.time()
    links = []
    for name, log in list(reversed(monitor.runs.items()))[:MOST_LINKS]:
        ago = time_text(max(0.0, now - log.begin))
        colour = STATE_COLOURS[log.state]
        current = ' aria-current="page"' if name == asked else ""
        links.append(
            f'<li><i style="background:{colour}"></i>'
            f'<a href="{PAGE}?run={text(quote(name))}"{current}>'
            f"{text(log.brief.title or f'run {name}')}</a> "
            f"<small>{text(log.state)}, began {ago} ago</small></li>"
        )
    latest = f'<li><a href="{PAGE}">Follow the latest</a></li>' if asked else ""
    body = f'<ul class="legend" aria-label="Runs">{"".join(links)}{latest}</ul>'
    return Panel("runs", "Runs", "", body).html
