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
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="Measure kernels, copies, Dask's latency and transfers instead, and write this "
            "machine to a .json file for --machine."
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Time the operations of CKKS on this machine, with the precision of each."""
    if calibrate is not None:
        return _calibrate(calibrate, as_json)
    from aegis_dask.bench import run  # imports Numba, which --version and --help can do without

    return run(preset=preset, threads=threads, seed=seed, as_json=as_json)


def _calibrate(path: Path, as_json: bool) -> int:
    import json

    from aegis_dask.ckks.files import write_atomically
    from aegis_dask.cli.setup import check_writable
    from aegis_dask.errors import ClusterError
    from aegis_dask.runtime.calibrate import measure_machine
    from aegis_dask.service.files import writing
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    if path.suffix != ".json":
        raise ClusterError(f"{path} does not end in .json; give a name such as machine.json")
    check_writable(path)
    with terminal.step("Measuring this machine"):
        machine = measure_machine()
    text = json.dumps(machine.to_dict(), indent=1)
    with writing(path):
        write_atomically(path, [text.encode()])
    device, link = machine.device, machine.inside
    terminal.pairs(
        {
            "device": f"{device.name}, {device.memory_bytes / 1e9:.0f} GB",
            "kernels": f"{device.speed:.2f} times as fast as estimated for a thread",
            "copies": f"{device.bytes_per_second / 1e9:.2f} GB/s, read and written",
            "hop on one worker": f"{machine.hop_seconds * 1e3:.1f} ms",
            "across workers": f"{(machine.hop_seconds + link.latency_seconds) * 1e3:.1f} ms",
            f"{link.name}": f"{link.bytes_per_second / 1e9:.2f} GB/s",
        }
    )
    terminal.say(f"Machine: {path}. Plan for it with --machine {path}.")
    terminal.json({"machine": machine.to_dict(), "file": str(path)})
    return 0
