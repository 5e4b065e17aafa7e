"""``aegis cluster``: a scheduler and workers that stay, here or on hosts that ssh reaches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.command import CHECK_FAILED

if TYPE_CHECKING:
    from aegis_dask.terminal import Terminal

Name: TypeAlias = Annotated[str, typer.Argument(help="Name of the cluster.")]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Even if runs are under way, which lose workers by it.")
]
DEFAULT = "default"


def up(
    name: Name = DEFAULT,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of workers, over all hosts: 2 on this machine, or 1 per host."
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Start workers on this host, which ssh must reach without a question; may be "
            "repeated. 'local' is this machine.",
            metavar="HOST",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Address of this machine at which the scheduler listens: loopback, or with hosts "
            "the one from which they are reached.",
            metavar="ADDRESS",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the scheduler; 0 for a free one.")
    ] = 0,
    tls: Annotated[
        Path | None,
        typer.Option(
            help="Directory of certificates (aegis certs make); new ones are made without it.",
            metavar="DIRECTORY",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Kernel threads of each worker; the cores are divided without it."
        ),
    ] = None,
    memory_limit: Annotated[
        str,
        typer.Option(
            help="Memory of each worker, such as 8GB or 0.5 of the host's; beyond it the worker is "
            "restarted. Keys that workers share count in full for each."
        ),
    ] = "1.0",
    gpus: Annotated[
        int, typer.Option(min=0, help="GPUs per host, to which workers are dealt; 0 for CPUs.")
    ] = 0,
    python: Annotated[
        str | None,
        typer.Option(help="Python of the hosts, with aegis-dask; the path of this one's."),
    ] = None,
    ssh: Annotated[
        str, typer.Option(help="The ssh client, with options of yours.", metavar="COMMAND")
    ] = "ssh",
    as_json: o.Json = False,
) -> None:
    """Start a scheduler here and workers, with TLS, and leave them running."""
    import sys

    from aegis_dask.runtime import standing
    from aegis_dask.runtime.launch import LOCAL, Host
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    hosts = [Host() if h == LOCAL else Host(h, python or sys.executable, ssh) for h in host or []]
    plan = standing.Plan(workers, hosts, listen, port, tls, threads, memory_limit, gpus)
    state = standing.up(name, plan, terminal.note)
    count = len(state.workers)
    terminal.say(
        f"Cluster {name!r}: {count} {'worker' if count == 1 else 'workers'}, scheduler at "
        f"{state.address}."
    )
    terminal.say(f"Run on it:   aegis run GRAPH --text TEXT --scheduler @{name}")
    terminal.say(f"End it:      aegis cluster down {name}")
    terminal.json(
        {
            "name": name,
            "address": state.address,
            "tls": state.tls,
            "workers": [p.name for p in state.workers],
        }
    )


def scale(
    workers: Annotated[int, typer.Argument(min=0, help="Number of workers that there shall be.")],
    name: Name = DEFAULT,
    force: Force = False,
    as_json: o.Json = False,
) -> None:
    """Start or retire workers."""
    from aegis_dask.runtime import standing
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    state = standing.scale(name, workers, force, terminal.note)
    names = [p.name for p in state.workers]
    terminal.say(f"Cluster {name!r} has {len(names)} workers: {', '.join(names) or 'none'}.")
    terminal.json({"name": name, "workers": names})


def status(name: Name = DEFAULT, as_json: o.Json = False) -> int:
    """Show a cluster: its workers, runs and addresses. Exit with 1 if something is missing."""
    from aegis_dask.runtime import standing
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    found = standing.status(name)
    _show(found, terminal)
    terminal.json(found)
    healthy = found["answers"] and all(w["state"] == "running" for w in found["workers"])
    return 0 if healthy else CHECK_FAILED


def down(name: Name = DEFAULT, force: Force = False, as_json: o.Json = False) -> None:
    """Stop a cluster, or what a crash has left of it, and remove its files."""
    from aegis_dask.runtime import standing
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    count = standing.down(name, force, terminal.note)
    terminal.say(f"Cluster {name!r} is gone; {count} processes were stopped.")
    terminal.json({"name": name, "stopped": count})


def _show(found: dict[str, Any], terminal: Terminal) -> None:
    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.terminal import table_of

    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    terminal.pairs(
        {
            "cluster": found["name"],
            "scheduler": found["address"] + ("" if found["answers"] else " DOES NOT ANSWER"),
            "dashboard": found["dashboard"] or "none",
            "certificates": found["tls"],
            "versions": versions or "unknown",
            "runs": ", ".join(found["runs"]) or "none",
        }
    )
    table = table_of("worker", "host", "state", "memory", "limit", "CPU", "threads", "tasks")
    for worker in found["workers"]:
        table.add_row(
            worker["name"],
            worker["host"],
            worker["state"],
            format_bytes(worker["memory"]),
            format_bytes(worker["memory_limit"]),
            f"{worker['cpu']:.0f} %",
            str(worker["threads"]),
            str(worker["tasks"]),
        )
    terminal.show(table)
    for error in found["errors"]:
        terminal.warn(error)
    for worker in found["workers"]:
        if worker["state"] != "running":
            terminal.warn(f"worker {worker['name']}: {worker['state']}; its log: {worker['log']}")
