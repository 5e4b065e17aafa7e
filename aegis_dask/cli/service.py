"""``aegis keys``, ``encrypt``, ``evaluate``, ``decrypt``: client and server on two machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.setup import (
    ClusterOptions,
    JobOptions,
    check_cluster,
    check_writable,
    cluster,
    find_calibration,
    job_with_room,
    open_source,
    plan_for,
    room_for,
)
from aegis_dask.errors import ParameterError, TextError

if TYPE_CHECKING:
    from aegis_dask.ckks.sharing import Sharing
    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.models.graphs import Graph
    from aegis_dask.service.client import Client
    from aegis_dask.terminal import Terminal

CLIENT, BUNDLE = "client", "bundle"
"""Folders that ``aegis keys`` makes."""

ClientDirectory = Annotated[
    Path, typer.Option("--client", help="The client's folder, made by aegis keys. Never send it.")
]


def keys(
    graph: o.GraphName,
    out: Annotated[Path, typer.Option(help="New folder for the client's keys and the bundle.")],
    model: o.Model = None,
    sha256: o.Sha256 = None,
    calibration: o.CalibrationFile = None,
    length: o.Length = None,
    insecure: o.Insecure = False,
    scale_bits: o.ScaleBits = 40,
    as_json: o.Json = False,
) -> None:
    """Client: make a secret key, and the bundle of evaluation keys for the server."""
    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.service.client import Client
    from aegis_dask.service.files import check_new, make_directory, size_of
    from aegis_dask.service.local import check_memory
    from aegis_dask.service.summary import describe_job
    from aegis_dask.terminal import Terminal, parameter_lines

    terminal = Terminal(as_json)
    check_new(out)
    options = JobOptions(graph, model, sha256, calibration, length, insecure, scale_bits)
    source = open_source(options)
    positions = room_for(options, source)
    ranges = find_calibration(source, calibration, positions, terminal)
    job = job_with_room(options, source, ranges, positions)
    terminal.warn_if_insecure(job.parameters)
    check_memory(job)
    with terminal.step(f"Making {job.keys.count} keys"):
        client = Client.create(job)
        make_directory(out)
        client.save(out / CLIENT)
        client.save_bundle(out / BUNDLE)
    sizes = {name: size_of(out / name) for name in (CLIENT, BUNDLE)}
    terminal.say(f"{job.graph.name} on {job.model.name}, texts of at most {positions} tokens")
    terminal.pairs(parameter_lines(job.parameters, job.placement))
    terminal.say("")
    terminal.pairs(
        {
            str(out / CLIENT): f"{format_bytes(sizes[CLIENT])}: the SECRET KEY. Keep it; whoever "
            "reads it can decrypt everything. Needed by encrypt and decrypt",
            str(out / BUNDLE): f"{format_bytes(sizes[BUNDLE])}: evaluation keys, parameters and "
            "calibrated ranges. Send it to the server once. Needed by evaluate",
        }
    )
    terminal.json(
        {
            **describe_job(job, positions),
            "fingerprint": job.fingerprint,
            "evaluation_keys": job.keys.count,
            "evaluation_key_bytes": job.keys.nbytes,
            "client": str(out / CLIENT),
            "client_bytes": sizes[CLIENT],
            "bundle": str(out / BUNDLE),
            "bundle_bytes": sizes[BUNDLE],
        }
    )


def encrypt(
    client: ClientDirectory,
    text: o.Text,
    out: Annotated[Path, typer.Option(help="New folder for the request.")],
    model: o.Model = None,
    sha256: o.Sha256 = None,
    graph: o.GraphOption = None,
    as_json: o.Json = False,
) -> None:
    """Client: encrypt a text into a request for the server."""
    from aegis_dask.models.text import Tokenizer
    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.service import local
    from aegis_dask.service.files import check_new, size_of
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    check_new(out)
    opened = open_client(client, model, sha256, graph, terminal)
    ids = Tokenizer.for_model(opened.job.model).encode(text)
    with terminal.step("Checking the text and encrypting"):
        prepared = local.prepare(opened.job, ids)
        opened.request(prepared.x, out)
    terminal.say(
        f"{len(ids)} tokens encrypted: send {out} ({format_bytes(size_of(out))}) to the server."
    )
    terminal.json({"request": str(out), "tokens": len(ids), "bytes": size_of(out)})


def evaluate(
    bundle: Annotated[Path, typer.Option(help="The client's bundle, made by aegis keys.")],
    request: Annotated[Path, typer.Option(help="The client's request, made by aegis encrypt.")],
    out: Annotated[Path, typer.Option(help="New folder for the response.")],
    model: o.Model = None,
    sha256: o.Sha256 = None,
    graph: o.GraphOption = None,
    scheduler: o.Scheduler = None,
    workers: o.Workers = None,
    cluster_kind: o.Cluster = o.ClusterKind.AUTO,
    tls: o.Tls = None,
    insecure_transport: o.InsecureTransport = False,
    timeout: o.Timeout = o.CONNECT_SECONDS,
    machine: o.Machine = None,
    report: o.Report = None,
    as_json: o.Json = False,
) -> None:
    """Server: run the graph on a request. There is no secret key here."""
    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.runtime.report import write_report
    from aegis_dask.service.client import JOB
    from aegis_dask.service.files import check_new, read_json, size_of, writing
    from aegis_dask.service.messages import Message
    from aegis_dask.service.server import Server, read_bundle
    from aegis_dask.service.summary import describe_job, describe_result
    from aegis_dask.terminal import Terminal, operator_table, transfer_table

    terminal = Terminal(as_json)
    check_new(out)
    check_writable(report)
    plan_for(machine)
    loaded, program = _own(read_json(bundle / JOB), model, sha256, graph)
    where = ClusterOptions(scheduler, workers, cluster_kind, tls, insecure_transport, timeout)
    check_cluster(where)
    with terminal.step("Reading keys"):
        job, evaluation_keys = read_bundle(bundle, loaded, program)
    terminal.warn_if_insecure(job.parameters)
    length = Message.load(request, job, job.analysis.top_level).length  # before workers start
    with cluster(where, terminal) as executor:
        with terminal.step("Giving keys and weights to the workers"):
            server = Server(job, evaluation_keys, executor)
        with terminal.bar("evaluating") as progress:
            result = server.answer(request, out, progress)
    terminal.show(operator_table(result))
    terminal.show(transfer_table(result))
    terminal.say(
        f"{result.tasks} tasks on {len(result.workers)} workers in {result.seconds:.2f} s; largest "
        f"memory of a worker {result.memory_text}."
    )
    terminal.say(f"Send {out} ({format_bytes(size_of(out))}) back to the client.")
    if report is not None:
        with writing(report):
            write_report(result, report, title=f"{job.graph.name}: an answered request")
        terminal.note(f"Report: {report}")
    terminal.json(
        {
            **describe_job(job, length),
            "response": str(out),
            "bytes": size_of(out),
            "report": None if report is None else str(report),
            "run": describe_result(result),
        }
    )


def decrypt(
    client: ClientDirectory,
    response: Annotated[Path, typer.Option(help="The server's response.")],
    text: Annotated[
        str | None, typer.Option(help="The text of the request, to compare with float64.")
    ] = None,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    graph: o.GraphOption = None,
    output: o.Output = None,
    share: Annotated[
        float | None,
        typer.Option(
            metavar="BITS",
            help="Add noise, so that others may see the result: bits of statistical security "
            "against finding the secret key, such as 30. Needs --share-error.",
        ),
    ] = None,
    share_error: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Bound on the largest error of the encrypted computation, such as several times "
            "the one that aegis run prints against the same circuit without encryption.",
        ),
    ] = None,
    share_results: Annotated[
        int,
        typer.Option(metavar="N", help="Results that are ever shared with this secret key."),
    ] = 1,
    share_precision: Annotated[
        float,
        typer.Option(metavar="BITS", help="Bits after the binary point that the noise must leave."),
    ] = 4,
    as_json: o.Json = False,
) -> None:
    """Client: decrypt the server's response."""
    from aegis_dask.ckks.precision import precision_stats
    from aegis_dask.models.text import Tokenizer
    from aegis_dask.service import local
    from aegis_dask.service.files import write_array
    from aegis_dask.service.summary import describe_precision
    from aegis_dask.terminal import Terminal, precision_line

    terminal = Terminal(as_json)
    check_writable(output)
    sharing = _sharing(share, share_error, share_results, share_precision)
    opened = open_client(client, model, sha256, graph, terminal)
    with terminal.step("Decrypting"):
        values = opened.read_response(response, sharing)
    result: dict[str, Any] = {"tokens": values.shape[0], "features": values.shape[1]}
    if sharing is not None:
        result["shared"] = {
            "statistical_security_bits": sharing.bits,
            "results": sharing.queries,
            "error": sharing.error,
            "noise": sharing.deviation(values.size),
        }
    stats = None
    if text is not None:
        ids = Tokenizer.for_model(opened.job.model).encode(text)
        if len(ids) != len(values):
            raise TextError(
                f"the text has {len(ids)} tokens, the response is of one with {len(values)}; give "
                "the text of the request"
            )
        stats = precision_stats(local.prepare(opened.job, ids).expected, values)
        result["precision"] = describe_precision(stats)
    if output is not None:
        write_array(output, values)
        terminal.note(f"Result: {output}")
    first = ", ".join(f"{v:.4f}" for v in values[0, :6])
    terminal.say(f"{values.shape[0]} tokens x {values.shape[1]} features, the first: {first}, ...")
    if sharing is not None:
        terminal.say(
            f"With noise of standard deviation {sharing.deviation(values.size):.3g}, for one of "
            f"{sharing.queries} shared results: {sharing.bits:g} bits of statistical security if "
            f"errors are below {sharing.error:g}."
        )
    if stats is not None:
        terminal.say(precision_line(stats, "the reference"))
    terminal.json({**result, "output": None if output is None else str(output)})


def _sharing(
    bits: float | None, error: float | None, results: int, precision: float
) -> Sharing | None:
    from aegis_dask.ckks.sharing import Sharing

    if (bits is None) != (error is None):
        raise ParameterError(
            "--share and --share-error go together: the noise that hides the error of the "
            "computation depends on how large it can be"
        )
    if bits is None or error is None:
        return None
    return Sharing(error, bits, results, precision)


def open_client(
    directory: Path,
    model: Path | None,
    sha256: str | None,
    graph: str | None,
    terminal: Terminal,
) -> Client:
    """Read a client's folder with one's own copy of model and graph."""
    from aegis_dask.service.client import JOB, Client
    from aegis_dask.service.files import read_json

    loaded, program = _own(read_json(directory / JOB), model, sha256, graph)
    opened = Client.open(directory, loaded, program)
    terminal.warn_if_insecure(opened.job.parameters)
    return opened


def _own(
    job: dict[str, Any], model: Path | None, sha256: str | None, graph: str | None
) -> tuple[BertModel, Graph]:
    """Return one's own copy of the model and of the graph that a job names.

    The name comes from the other side: it only chooses among the library's graphs, since loading a
    graph executes it.
    """
    from aegis_dask.models.graphs import graph_names, load_graph
    from aegis_dask.service.sources import open_model

    name = job.get("graph")
    if graph is None and name not in graph_names():
        raise ParameterError(
            f"the job is for graph {name!r}, which does not come with the library; give your copy "
            "of it with --graph"
        )
    return open_model(model, sha256), load_graph(graph or str(name))
