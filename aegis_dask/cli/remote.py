"""``aegis remote``: use a service that somebody runs with ``aegis serve``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.command import command
from aegis_dask.cli.service import BUNDLE, CLIENT, open_client
from aegis_dask.cli.setup import check_writable
from aegis_dask.errors import InsecureParametersError, ServiceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.models.graphs import Graph
    from aegis_dask.service.client import Client
    from aegis_dask.service.http.remote import RemoteService, Status
    from aegis_dask.service.job import Job
    from aegis_dask.terminal import Terminal

WHERE = "service.json"
"""File in the client's folder that says where its keys are registered."""

Service = Annotated[
    str, typer.Option("--service", help="Address of the service, https://HOST:PORT.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the token that the operator gave you; without it the environment variable "
        "AEGIS_TOKEN."
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option(
        "--ca", help="Certificate of the authority that signed the service's, if no public one."
    ),
]
Keys = Annotated[
    Path, typer.Option("--keys", help="The folder that aegis remote register has made.")
]
JobId = Annotated[str, typer.Argument(help="Identifier of the job.", metavar="JOB")]

remote = typer.Typer(
    help="Client: use a service.", no_args_is_help=True, pretty_exceptions_enable=False
)


@remote.command()
@command
def offers(
    service: Service,
    token_file: TokenFile = None,
    ca: Authority = None,
    as_json: o.Json = False,
) -> None:
    """List what a service computes."""
    from rich.text import Text  # what others say is no markup

    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.terminal import Terminal, table_of

    terminal = Terminal(as_json)
    with _connect(service, token_file, ca) as connected:
        found = connected.offers()
    table = table_of("graph", "model", "tokens", "keys", "size of keys", "size of a request")
    for offer in found:
        table.add_row(
            *(Text(str(offer[name])) for name in ("graph", "model", "tokens", "keys")),
            *(format_bytes(offer[name]) for name in ("keys_bytes", "request_bytes")),
        )
    terminal.show(table)
    terminal.json({"offers": found})


@remote.command()
@command
def register(
    graph: o.GraphName,
    service: Service,
    out: Annotated[
        Path,
        typer.Option(
            help="New folder for the secret key, or that of a registration to go on with."
        ),
    ],
    model: o.Model = None,
    sha256: o.Sha256 = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Take an offer whose parameters are WITHOUT SECURITY. Never for real data.",
        ),
    ] = False,
    token_file: TokenFile = None,
    ca: Authority = None,
    as_json: o.Json = False,
) -> None:
    """Make keys for what a service offers, and send it the evaluation keys."""
    from aegis_dask.models.graphs import load_graph
    from aegis_dask.service.client import KEYS
    from aegis_dask.service.files import check_new, write_json
    from aegis_dask.service.job import read_job
    from aegis_dask.service.sources import first_layers, open_model
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    begun = (out / BUNDLE).is_dir() and not (out / WHERE).exists()
    if not begun:
        check_new(out)
    program = load_graph(graph)
    loaded = first_layers(open_model(model, sha256), program.layers)
    with _connect(service, token_file, ca) as connected:
        found = [offer for offer in connected.offers() if offer["graph"] == program.name]
        mine = [offer for offer in found if offer["weights"] == loaded.sha256]
        if not mine:
            what = f"{program.name} on {loaded.name}"
            other = "with other weights only" if found else "not at all"
            raise ServiceError(
                f"the service offers {what} {other}; see aegis remote offers, and give the model "
                "that it names"
            )
        description = connected.describe(mine[0]["fingerprint"])
        try:
            job = read_job(description, loaded, program, allow_insecure=insecure)
        except InsecureParametersError as e:
            raise InsecureParametersError(
                "what the service offers is insecure: it or anyone else could find your secret "
                f"key. To try things without real data, give --insecure ({e})"
            ) from None
        terminal.warn_if_insecure(job.parameters)
        if begun:
            _check_begun(out, job, loaded, program)
        else:
            _make_keys(out, job, terminal)
        try:
            with terminal.step("Sending the evaluation keys"):
                identifier = connected.register(job, out / BUNDLE / KEYS)
        except BaseException:  # the service may have them, or take them still
            terminal.note(
                f"{out} is kept, with the SECRET KEY: give the same command again to go on, or "
                "remove the folder. What is registered for you: aegis remote keys"
            )
            raise
    authority = None if ca is None else str(ca.resolve())
    write_json(out / WHERE, {"service": service, "keys": identifier, "ca": authority})
    shutil.rmtree(out / BUNDLE)  # the service has it, and it can be made again
    terminal.say(
        f"{out} holds the SECRET KEY for {job.graph.name} on {job.model.name}, texts of at most "
        f"{job.packing.tokens} tokens. Keep it; never send it."
    )
    terminal.json(
        {
            "service": service,
            "keys": identifier,
            "fingerprint": job.fingerprint,
            "tokens": job.packing.tokens,
            "out": str(out),
        }
    )


@remote.command("keys")
@command
def list_keys(
    service: Service,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="ID", help="Delete this set first; may be repeated."),
    ] = None,
    token_file: TokenFile = None,
    ca: Authority = None,
    as_json: o.Json = False,
) -> None:
    """List the sets of evaluation keys that a service has for you."""
    import numpy as np
    from rich.text import Text

    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.terminal import Terminal, table_of

    terminal = Terminal(as_json)
    with _connect(service, token_file, ca) as connected:
        for identifier in remove or []:
            connected.remove_keys(identifier)
        found = connected.key_sets()
        graphs = {offer["fingerprint"]: offer["graph"] for offer in connected.offers()}
    table = table_of("keys", "graph", "size", "registered (UTC)")
    for each in found:
        graph = Text(graphs.get(each["offer"], "no longer offered"))
        when = str(np.datetime64(int(each["created"]), "s"))  # of any year, a stranger says it
        table.add_row(each["id"], graph, format_bytes(each["bytes"]), when)
    terminal.show(table)
    terminal.json({"keys": found})


@remote.command()
@command
def run(
    keys: Keys,
    text: o.Text,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    graph: o.GraphOption = None,
    token_file: TokenFile = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """Encrypt a text, let the service compute, and decrypt the result."""
    from aegis_dask.ckks.precision import precision_stats
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    check_writable(output)
    client, where = _open(keys, model, sha256, graph, terminal)
    prepared = _prepared(client, text, terminal)
    with _service(where, token_file) as connected:
        with _watching(terminal) as watch:
            job = connected.submit(where["keys"], client.encrypt(prepared.x), len(prepared.x))
            ended = connected.wait(job.id, watch=watch)
        values = connected.decrypted(client, ended, len(prepared.x))
    stats = precision_stats(prepared.expected, values)
    _show(terminal, values, output, job.id, stats)


@remote.command()
@command
def submit(
    keys: Keys,
    text: o.Text,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    graph: o.GraphOption = None,
    token_file: TokenFile = None,
    as_json: o.Json = False,
) -> None:
    """Encrypt a text and send it; print the job, which the service will not forget."""
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    client, where = _open(keys, model, sha256, graph, terminal)
    prepared = _prepared(client, text, terminal)
    with _service(where, token_file) as connected:
        job = connected.submit(where["keys"], client.encrypt(prepared.x), len(prepared.x))
    terminal.say(job.id)
    terminal.json({"job": job.id, "state": job.state, "position": job.position})


@remote.command()
@command
def jobs(keys: Keys, token_file: TokenFile = None, as_json: o.Json = False) -> None:
    """List your jobs at the service."""
    from dataclasses import asdict

    from rich.text import Text

    from aegis_dask.terminal import Terminal, table_of

    terminal = Terminal(as_json)
    with _service(_where(keys), token_file) as connected:
        found = connected.jobs()
    table = table_of("job", "state", "position", "done", "tokens", "error")
    for job in found:
        position = "" if job.position is None else str(job.position)
        table.add_row(
            job.id, job.state, position, f"{job.share:.0%}", str(job.length), Text(job.error)
        )
    terminal.show(table)
    terminal.json({"jobs": [asdict(job) for job in found]})


@remote.command()
@command
def fetch(
    job: JobId,
    keys: Keys,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    graph: o.GraphOption = None,
    token_file: TokenFile = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """Wait for a job, fetch its result and decrypt it."""
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    check_writable(output)
    client, where = _open(keys, model, sha256, graph, terminal)
    with _service(where, token_file) as connected:
        with _watching(terminal) as watch:
            ended = connected.wait(job, watch=watch)
        values = connected.decrypted(client, ended)
    _show(terminal, values, output, job)


@remote.command()
@command
def cancel(job: JobId, keys: Keys, token_file: TokenFile = None) -> None:
    """Cancel a job, or forget one that has ended, with its result."""
    with _service(_where(keys), token_file) as connected:
        connected.cancel(job)


def _make_keys(out: Path, job: Job, terminal: Terminal) -> None:
    from aegis_dask.service.client import Client
    from aegis_dask.service.files import make_directory

    make_directory(out)
    try:
        with terminal.step(f"Making {job.keys.count} keys"):
            client = Client.create(job)
            client.save(out / CLIENT)
            # Its folder appears when it is complete: keys cannot be made again from outside.
            client.save_bundle(out / f".{BUNDLE}")
            (out / f".{BUNDLE}").rename(out / BUNDLE)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _check_begun(out: Path, job: Job, model: BertModel, graph: Graph) -> None:
    """Refuse to go on with keys that were made for another job."""
    from aegis_dask.service.client import Client

    if Client.open(out / CLIENT, model, graph).job.fingerprint != job.fingerprint:
        raise ServiceError(
            f"{out} holds keys for another job than the service offers now; give another name or "
            "remove it"
        )


def _connect(url: str, token_file: Path | None, ca: Path | None) -> RemoteService:
    from aegis_dask.service.files import reading
    from aegis_dask.service.http.remote import RemoteService

    token = None
    if token_file is not None:
        with reading(token_file):
            token = token_file.read_text(encoding="utf-8").strip()
    return RemoteService(url, token, ca=ca)


def _where(keys: Path) -> dict[str, Any]:
    from aegis_dask.service.files import read_json

    where = read_json(keys / WHERE)
    if not all(isinstance(where.get(name), str) for name in ("service", "keys")):
        raise ServiceError(f"{keys / WHERE} does not name a service; register again")
    return where


def _service(where: dict[str, Any], token_file: Path | None) -> RemoteService:
    ca = where.get("ca")
    return _connect(where["service"], token_file, None if ca is None else Path(ca))


def _open(
    keys: Path, model: Path | None, sha256: str | None, graph: str | None, terminal: Terminal
) -> tuple[Client, dict[str, Any]]:
    return open_client(keys / CLIENT, model, sha256, graph, terminal), _where(keys)


def _prepared(client: Client, text: str, terminal: Terminal) -> Any:
    from aegis_dask.models.text import Tokenizer
    from aegis_dask.service import local

    ids = Tokenizer.for_model(client.job.model).encode(text)
    with terminal.step("Checking the text"):
        return local.prepare(client.job, ids)


@contextmanager
def _watching(terminal: Terminal) -> Iterator[Callable[[Status], None]]:
    """Show how a job goes."""
    from aegis_dask.runtime.progress import Progress

    with terminal.bar("at the service") as bar:

        def watch(status: Status) -> None:
            stage = status.stage or status.state
            if status.position is not None:
                stage = f"number {status.position} in the queue"
            seconds = 0.0 if status.started is None else (status.finished or 0) - status.started
            bar(Progress(int(100 * status.share), 100, status.share, stage, max(0.0, seconds)))

        yield watch


def _show(
    terminal: Terminal, values: NDArray[Any], output: Path | None, job: str, stats: Any = None
) -> None:
    from aegis_dask.service.files import write_array
    from aegis_dask.service.summary import describe_precision
    from aegis_dask.terminal import precision_line

    if output is not None:
        write_array(output, values)
        terminal.note(f"Result: {output}")
    first = ", ".join(f"{v:.4f}" for v in values[0, :6])
    terminal.say(f"{values.shape[0]} tokens x {values.shape[1]} features, the first: {first}, ...")
    result: dict[str, Any] = {"job": job, "tokens": values.shape[0], "features": values.shape[1]}
    if stats is not None:
        terminal.say(precision_line(stats, "the reference"))
        result["precision"] = describe_precision(stats)
    terminal.json({**result, "output": None if output is None else str(output)})
