"""``aegis demo`` and ``aegis bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis_dask.cli import options


def demo(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    text: Annotated[
        str | None, typer.Option(help="A sentence of your own; a sample if not given.")
    ] = None,
    length: options.Length = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML report; aegis-demo.html here if not given.")
    ] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="A small ring without security: seconds.")
    ] = False,
    as_json: options.Json = False,
) -> int:
    """Run one encrypted layer of MiniLM on Dask workers, and see what happens where."""
    from aegis_dask.demo import REPORT, run

    return run(
        workers=workers,
        text=text,
        length=length,
        report=None if no_report else report or Path(REPORT),
        as_json=as_json,
        insecure=insecure,
    )


def bench(
    preset: Annotated[str, typer.Option(help="Parameter set to use.")] = "n16-d40",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with; all cores if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the input values; fresh ones if not given.")
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Time the operations of CKKS on this machine, with the precision of each."""
    from aegis_dask.bench import run  # imports Numba, which --version and --help can do without

    return run(preset=preset, threads=threads, seed=seed, as_json=as_json)
