"""Command line: ``aegis``.

Commands import what they need when they run, so that ``--help`` and completion are fast.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from aegis_dask import __version__
from aegis_dask.cli import (
    calibrate,
    certs,
    cluster,
    plan,
    remote,
    report,
    run,
    serve,
    service,
    showcase,
)
from aegis_dask.cli.command import command, end_in_order, repeat_lost_interrupts

app = typer.Typer(
    name="aegis",
    help="Transformer inference on CKKS-encrypted activations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that ``sys.argv`` names and exit with its status."""
    # The float64 reference multiplies small matrices, for which OpenBLAS's threads only spin.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.unraisablehook = repeat_lost_interrupts
    end_in_order()
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aegis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


_TRY, _LOCAL, _REMOTE = "Try it", "Client and server in one", "Client and server apart"
_SERVICE = "A service for many clients"
_OPERATE = "Operate"

for body, panel in (
    (showcase.demo, _TRY),
    (showcase.bench, _TRY),
    (plan.plan, _LOCAL),
    (calibrate.calibrate, _LOCAL),
    (run.run, _LOCAL),
    (run.verify, _LOCAL),
    (report.report, _LOCAL),
    (service.keys, _REMOTE),
    (service.encrypt, _REMOTE),
    (service.evaluate, _REMOTE),
    (service.decrypt, _REMOTE),
    (serve.serve, _SERVICE),
):
    app.command(rich_help_panel=panel)(command(body))

app.add_typer(serve.clients, name="clients", rich_help_panel=_SERVICE)
app.add_typer(remote.remote, name="remote", rich_help_panel=_SERVICE)
_certs = typer.Typer(
    help="Certificates: an authority of your own for a cluster.", no_args_is_help=True
)
app.add_typer(_certs, name="certs", rich_help_panel=_OPERATE)
_certs.command()(command(certs.make))
_certs.command()(command(certs.show))

_cluster = typer.Typer(
    help="A scheduler and workers that stay, here or on hosts that ssh reaches.",
    no_args_is_help=True,
)
app.add_typer(_cluster, name="cluster", rich_help_panel=_OPERATE)
_cluster.command()(command(cluster.up))
_cluster.command()(command(cluster.scale))
_cluster.command()(command(cluster.status))
_cluster.command()(command(cluster.down))
