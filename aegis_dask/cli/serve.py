"""``aegis serve`` and ``aegis clients``: a service for several clients."""

from __future__ import annotations

import logging
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.command import command
from aegis_dask.cli.setup import (
    ClusterOptions,
    JobOptions,
    check_cluster,
    cluster,
    find_calibration,
    job_with_room,
    open_source,
    plan_for,
    room_for,
)
from aegis_dask.errors import ServiceError

if TYPE_CHECKING:
    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.service.job import Job
    from aegis_dask.terminal import Terminal

GIB = 1 << 30

State = Annotated[
    Path,
    typer.Option(
        "--state",
        help="The service's directory: clients, keys, jobs. Made if it is missing.",
    ),
]


def serve(
    graphs: Annotated[
        list[str],
        typer.Argument(help="Graph programs to offer, by name or file.", metavar="GRAPH..."),
    ],
    state: State,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    calibration: o.CalibrationFile = None,
    length: o.Length = None,
    insecure: o.Insecure = False,
    scale_bits: o.ScaleBits = 40,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine only with TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8765,
    certificate: Annotated[
        Path | None, typer.Option(help="Certificate of this service, with its chain (PEM).")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Private key of the certificate (PEM).")] = None,
    scheduler: o.Scheduler = None,
    workers: o.Workers = None,
    cluster_kind: o.Cluster = o.ClusterKind.AUTO,
    tls: o.Tls = None,
    insecure_transport: o.InsecureTransport = False,
    timeout: o.Timeout = o.CONNECT_SECONDS,
    machine: o.Machine = None,
    at_once: Annotated[int, typer.Option(min=1, help="Jobs that run side by side.")] = 2,
    most_jobs: Annotated[
        int, typer.Option(min=1, help="Jobs of a client that may wait or run.")
    ] = 16,
    key_sets: Annotated[
        int, typer.Option(min=1, help="Sets of evaluation keys that a client may register.")
    ] = 2,
    key_memory: Annotated[
        float, typer.Option(min=0, help="Memory for clients' evaluation keys, GiB.")
    ] = 8.0,
    disk: Annotated[
        float, typer.Option(min=0.001, help="Most that the directory may hold, GiB.")
    ] = 100.0,
    keep_hours: Annotated[
        float, typer.Option(min=0, help="How long results of jobs are kept.")
    ] = 24.0,
) -> None:
    """Server: keep a model, its plans and a cluster warm, and answer clients over HTTP."""
    from aegis_dask.runtime.certificates import check_private
    from aegis_dask.runtime.security import is_loopback
    from aegis_dask.service.http.app import Limits, make_app
    from aegis_dask.service.http.listen import configure
    from aegis_dask.service.http.offers import Offers
    from aegis_dask.service.http.runner import Runner
    from aegis_dask.service.http.store import Store
    from aegis_dask.service.sources import open_model
    from aegis_dask.terminal import Terminal

    terminal = Terminal(False)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if (certificate is None) != (key is None):
        raise ServiceError("--certificate and --key belong together; give both")
    if certificate is None and not is_loopback(host):
        raise ServiceError(
            f"--host {host} is beyond this machine: clients' tokens would travel in the clear; "
            "give --certificate and --key"
        )
    for file in (certificate, key):
        if file is not None and not file.is_file():
            raise ServiceError(f"there is no file {file}")
    if key is not None:
        check_private(key)
    plan_for(machine)
    where = ClusterOptions(scheduler, workers, cluster_kind, tls, insecure_transport, timeout)
    check_cluster(where)
    store = Store(state, serves=True)
    try:
        whole = open_model(model, sha256)
        jobs = [
            _offered(
                JobOptions(graph, model, sha256, calibration, length, insecure, scale_bits),
                whole,
                store,
                terminal,
            )
            for graph in graphs
        ]
        offers = Offers(jobs)
        offers.save(store)
        again = store.recover()
        with cluster(where, terminal) as executor:
            runner = Runner(
                store,
                offers,
                executor,
                at_once=at_once,
                keys_bytes=int(key_memory * GIB),
                keep_seconds=3600 * keep_hours,
                adapts=workers is None,
            )
            limits = Limits(most_jobs, key_sets, int(disk * GIB))
            settings = configure(make_app(runner, limits), host, port, certificate, key)
            server = _Server(settings, terminal, offers, again, runner.stranded)
            runner.start()
            try:
                server.run()
            finally:
                with terminal.step("Putting back what runs"):
                    runner.close()
            if not server.started:
                raise ServiceError(
                    f"{host}:{port} cannot be listened on; take another port, or end what listens "
                    "there"
                )
    finally:
        store.close()


class _Server:
    """A uvicorn server that says when it is there; signals end it, once what runs is put back."""

    def __init__(
        self, settings: Any, terminal: Terminal, offers: Any, again: int, stranded: int
    ) -> None:
        import uvicorn

        self._server = uvicorn.Server(settings)
        self._terminal, self._offers = terminal, offers
        self._again, self._stranded = again - stranded, stranded

    @property
    def started(self) -> bool:
        """Whether it has listened."""
        return bool(self._server.started)

    def run(self) -> None:
        """Serve until a signal."""
        import asyncio

        async def serve() -> None:
            task = asyncio.create_task(self._server.serve())
            while not self.started and not task.done():
                await asyncio.sleep(0.02)
            if self.started:
                self._announce()
            await task

        # The server raises the signal again when it has ended: what follows is not to be lost.
        handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for each in handlers:
            signal.signal(each, lambda *_: None)
        try:
            with suppress(SystemExit):  # it cannot listen, and has said so
                asyncio.run(serve())
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)

    def _announce(self) -> None:
        settings = self._server.config
        port = self._server.servers[0].sockets[0].getsockname()[1]
        scheme = "https" if settings.ssl_certfile else "http"
        for offer in self._offers:
            job = offer.job
            self._terminal.say(
                f"Offering {job.graph.name} on {job.model.name}, texts of at most "
                f"{job.packing.tokens} tokens."
            )
        if self._again:
            self._terminal.say(f"{self._again} accepted jobs wait and are taken up.")
        if self._stranded:
            self._terminal.say(
                f"{self._stranded} accepted jobs wait for what is not offered now; they are kept, "
                "and run when it is again."
            )
        self._terminal.say(f"Listening on {scheme}://{settings.host}:{port}")


def _offered(options: JobOptions, model: BertModel, store: Any, terminal: Terminal) -> Job:
    """Build a job for texts of every length that there is room for."""
    from aegis_dask.service.http.offers import offered_before
    from aegis_dask.service.local import check_memory

    source = open_source(options, model)
    positions = room_for(options, source)
    found = offered_before(store, source.graph, source.model, positions, options.insecure)
    if found is None or options.calibration is not None:
        ranges = find_calibration(source, options.calibration, positions, terminal)
        found = job_with_room(options, source, ranges, positions)
    terminal.warn_if_insecure(found.parameters)
    check_memory(found)
    return found


clients = typer.Typer(
    help="Server: who may use a service.", no_args_is_help=True, pretty_exceptions_enable=False
)


@clients.command("add")
@command
def add_client(
    name: Annotated[str, typer.Argument(help="Name of the client.")], state: State
) -> None:
    """Let a client in, and print its token once: only a hash of it is kept."""
    from aegis_dask.service.http.store import Store

    with closing(Store(state)) as store:
        typer.echo(store.add_client(name))


@clients.command("remove")
@command
def remove_client(
    name: Annotated[str, typer.Argument(help="Name of the client.")], state: State
) -> None:
    """Let a client in no more, and delete its keys, jobs and results."""
    from aegis_dask.service.http.store import Store

    with closing(Store(state)) as store:
        store.remove_client(name)


@clients.command("list")
@command
def list_clients(state: State, as_json: o.Json = False) -> None:
    """List the clients of a service."""
    import datetime

    from aegis_dask.service.http.store import Store
    from aegis_dask.terminal import Terminal, table_of

    terminal = Terminal(as_json)
    with closing(Store(state)) as store:
        rows = []
        for name, created in store.clients().items():
            when = datetime.datetime.fromtimestamp(created).isoformat(" ", "seconds")
            rows.append((name, when, len(store.keys(name)), len(store.jobs(name))))
    table = table_of("client", "added", "key sets", "jobs")
    for row in rows:
        table.add_row(*map(str, row))
    terminal.show(table)
    names = ("client", "added", "key_sets", "jobs")
    terminal.json({"clients": [dict(zip(names, row, strict=True)) for row in rows]})
