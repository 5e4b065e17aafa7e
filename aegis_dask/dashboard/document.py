"""One HTML file that needs nothing else: no script, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aegis_dask.ckks.files import write_atomically
from aegis_dask.dashboard.markup import CARDS, STYLE, text
from aegis_dask.dashboard.panels import Panel, make_panels
from aegis_dask.dashboard.view import RunView

BODY = "body { margin: 0; background: #fafafa }"


def make_document(title: str, panels: Iterable[Panel]) -> str:
    """Return panels as a document."""
    sections = [
        f'<section class="{"whole" if panel.whole else ""}">{panel.html}</section>\n'
        for panel in panels
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{BODY}\n{STYLE}\n{CARDS}</style></head>\n"
        f'<body><main class="aegis-page">\n{"".join(sections)}</main></body></html>\n'
    )


def write_view(view: RunView, path: Path) -> None:
    """Write what there is to see of a run; an existing file is replaced.

    Raises
    ------
    OSError
        If the file cannot be written; no part of it is left.
    """
    write_atomically(path, [make_document(view.title, make_panels(view)).encode()])
