"""``aegis report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.setup import check_writable, find_scheduler
from aegis_dask.errors import ClusterError, SerializationError

if TYPE_CHECKING:
    from aegis_dask.dashboard.view import RunView

TIMEOUT = 10.0


def report(
    source: Annotated[
        str,
        typer.Argument(
            help="A file that aegis run --record wrote; or the address of a Dask scheduler, such "
            "as tls://10.0.0.5:8786, or @NAME for a cluster of aegis cluster up, for a run that it "
            "has or had.",
            metavar="SOURCE",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write; aegis-report.html here if not given.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Which run of the scheduler, by its name; the last if not given."),
    ] = None,
    tls: o.Tls = None,
    insecure_transport: o.InsecureTransport = False,
    as_json: o.Json = False,
) -> None:
    """Write the panels of the dashboard for one run, to an HTML file that needs nothing else."""
    from aegis_dask.dashboard.document import write_view
    from aegis_dask.dashboard.view import read_view
    from aegis_dask.service.files import writing
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    target = out or Path("aegis-report.html")
    check_writable(target)
    if "://" in source or source.startswith("@"):
        view = _ask(source, run, tls, insecure_transport)
    elif run is not None or tls is not None or insecure_transport:
        raise SerializationError(
            f"{source} is a file, with one run in it; --run chooses among those of a scheduler, "
            "--tls and --insecure-transport say how to reach it"
        )
    else:
        view = read_view(Path(source))
    with writing(target):
        write_view(view, target)
    terminal.say(f"{view.title}, {view.state}: {target}")
    terminal.json({"report": str(target), "run": view.run, "state": view.state})


def _ask(address: str, run: str | None, tls: Path | None, insecure_transport: bool) -> RunView:
    """Return a run that a scheduler knows."""
    from contextlib import ExitStack

    from aegis_dask.dashboard.monitor import view_runs
    from aegis_dask.dashboard.view import parse_view
    from aegis_dask.runtime.cluster import connect

    address, security = find_scheduler(address, tls)
    with ExitStack() as stack:
        client = connect(address, TIMEOUT, security, stack, insecure_transport=insecure_transport)
        found = client.run_on_scheduler(view_runs, None)
    if found is None:
        raise ClusterError(
            f"the scheduler at {address} has never run a program of ours; its monitor comes with "
            "the first 'aegis run --scheduler'"
        )
    views = [parse_view(text) for text in found]
    chosen = [v for v in views if run in (None, v.run)]
    if not chosen:
        known = ", ".join(f"{v.run} ({v.title}, {v.state})" for v in views) or "none"
        raise ClusterError(
            f"the scheduler at {address} knows no run {run or 'yet'}; it knows: {known}"
        )
    return chosen[-1]
