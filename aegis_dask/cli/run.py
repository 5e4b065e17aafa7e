"""``aegis run`` and ``aegis verify``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.command import CHECK_FAILED
from aegis_dask.cli.setup import (
    ClusterOptions,
    JobOptions,
    check_cluster,
    check_writable,
    cluster,
    open_source,
    plan_for,
    prepare,
)

if TYPE_CHECKING:
    from aegis_dask.placement.files import SavedPlan
    from aegis_dask.service.local import Outcome
    from aegis_dask.terminal import Terminal

DEFAULT_TOLERANCE = 1e-2


def run(
    graph: o.GraphName,
    text: o.Text,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    calibration: o.CalibrationFile = None,
    scheduler: o.Scheduler = None,
    workers: o.Workers = None,
    cluster_kind: o.Cluster = o.ClusterKind.AUTO,
    tls: o.Tls = None,
    insecure_transport: o.InsecureTransport = False,
    timeout: o.Timeout = o.CONNECT_SECONDS,
    machine: o.Machine = None,
    saved: o.PlanFile = None,
    interpreter: Annotated[
        o.InterpreterName, typer.Option(help="Encrypt, or run the same circuit in plain.")
    ] = o.InterpreterName.ENCRYPTED,
    insecure: o.Insecure = False,
    scale_bits: o.ScaleBits = 40,
    length: o.Length = None,
    report: o.Report = None,
    record: o.Record = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> None:
    """Encrypt a text, run a graph on Dask workers, decrypt, and compare with float64."""
    from aegis_dask.service.summary import describe_outcome
    from aegis_dask.terminal import Terminal, show_run

    terminal = Terminal(as_json)
    check_writable(report, record, output)
    plan_for(machine)
    job_options = JobOptions(graph, model, sha256, calibration, length, insecure, scale_bits)
    plan = _open_plan(saved, workers, machine)
    where = ClusterOptions(scheduler, workers, cluster_kind, tls, insecure_transport, timeout)
    outcome = _run(job_options, text, where, interpreter, terminal, plan)
    values = describe_outcome(outcome)
    values |= _write(outcome, report, output, terminal)
    values["record"] = _write_record(outcome, record, terminal)
    show_run(terminal, outcome)
    terminal.json(values)


def verify(
    graph: o.GraphName,
    text: o.Text,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    calibration: o.CalibrationFile = None,
    scheduler: o.Scheduler = None,
    workers: o.Workers = None,
    cluster_kind: o.Cluster = o.ClusterKind.AUTO,
    tls: o.Tls = None,
    insecure_transport: o.InsecureTransport = False,
    timeout: o.Timeout = o.CONNECT_SECONDS,
    machine: o.Machine = None,
    insecure: o.Insecure = False,
    scale_bits: o.ScaleBits = 40,
    length: o.Length = None,
    tolerance: o.Tolerance = DEFAULT_TOLERANCE,
    report: o.Report = None,
    output: o.Output = None,
    as_json: o.Json = False,
) -> int:
    """Run a graph encrypted, and compare with the same circuit in plain and with float64."""
    from aegis_dask.ckks.precision import precision_stats
    from aegis_dask.service.summary import describe_outcome, describe_precision
    from aegis_dask.terminal import Terminal, table_of

    terminal = Terminal(as_json)
    check_writable(report, output)
    plan_for(machine)
    job_options = JobOptions(graph, model, sha256, calibration, length, insecure, scale_bits)
    interpreter = o.InterpreterName.ENCRYPTED
    where = ClusterOptions(scheduler, workers, cluster_kind, tls, insecure_transport, timeout)
    outcome = _run(job_options, text, where, interpreter, terminal)
    prepared = outcome.prepared
    comparisons = {"encrypted and simulated": outcome.circuit_precision}
    if prepared.reference is not None:
        comparisons["encrypted and float64"] = outcome.precision
        comparisons["simulated and float64"] = precision_stats(
            prepared.reference, prepared.simulated
        )
    # The third row is the circuit's own error; what is asked for is that of the result.
    worst = max(stats.max_error for name, stats in comparisons.items() if "encrypted" in name)
    passed = worst <= tolerance
    values = describe_outcome(outcome)
    values |= _write(outcome, report, output, terminal)
    table = table_of("compared", "largest error", "worst bits", "mean bits")
    for name, stats in comparisons.items():
        table.add_row(name, f"{stats.max_error:.2e}", f"{stats.worst:.1f}", f"{stats.mean:.1f}")
    terminal.show(table)
    verdict = "within" if passed else "ABOVE"
    terminal.say(
        f"The largest error, {worst:.2e}, is {verdict} the tolerance of {tolerance:g}.",
        "" if passed else "bold red",
    )
    values["comparisons"] = {name: describe_precision(s) for name, s in comparisons.items()}
    terminal.json({**values, "tolerance": tolerance, "passed": passed})
    return 0 if passed else CHECK_FAILED


def _open_plan(path: Path | None, workers: int | None, machine: str | None) -> SavedPlan | None:
    """Read a plan, and refuse options that contradict it before work is done."""
    from aegis_dask.errors import ClusterError
    from aegis_dask.placement.files import read_plan

    if path is None:
        return None
    if machine is not None:
        raise ClusterError("--machine searches a plan, --plan gives one; leave one out")
    saved = read_plan(path)
    if workers not in (None, count := saved.plan.workers):
        raise ClusterError(
            f"{path} is a plan for {count} workers, --workers asks for {workers}; leave it out, or "
            f"make a plan with 'aegis plan --devices {workers} --out FILE.json'"
        )
    return saved


def _run(
    options: JobOptions,
    text: str,
    where: ClusterOptions,
    interpreter: o.InterpreterName,
    terminal: Terminal,
    plan: SavedPlan | None = None,
) -> Outcome:
    from aegis_dask.service.local import run_encrypted, run_simulated

    if plan is not None and where.workers is None:
        where = replace(where, workers=plan.plan.workers)
    encrypted = interpreter == o.InterpreterName.ENCRYPTED
    source = open_source(options)
    ids = source.tokenize(text)
    check_cluster(where)
    prepared = prepare(options, source, ids, terminal, encrypted=encrypted)
    job = prepared.job
    terminal.say(
        f"{job.graph.name} on {job.model.name}: {len(ids)} tokens in {job.packing.tokens} "
        f"positions, {job.depth} levels."
    )
    if job.params is not None:
        terminal.say(repr(job.params))
    with cluster(where, terminal) as executor:
        if encrypted:
            return run_encrypted(prepared, executor, terminal, plan)
        return run_simulated(prepared, executor, terminal, plan)


def _write(
    outcome: Outcome, report: Path | None, output: Path | None, terminal: Terminal
) -> dict[str, Any]:
    """Write the files that were asked for; return their names."""
    from aegis_dask.runtime.report import write_report
    from aegis_dask.service.files import write_array, writing
    from aegis_dask.service.summary import report_precision

    written: dict[str, Any] = {"report": None, "output": None}
    job = outcome.prepared.job
    if output is not None:
        write_array(output, outcome.output)
        terminal.note(f"Result: {output}")
        written["output"] = str(output)
    if report is not None:
        with writing(report):
            write_report(
                outcome.result,
                report,
                title=f"{job.graph.name} on {job.model.name}, {outcome.interpreter}",
                precision=report_precision(outcome),
                about={"tokens": len(outcome.prepared.x), "positions": job.packing.tokens},
            )
        terminal.note(f"Report: {report}")
        written["report"] = str(report)
    return written


def _write_record(outcome: Outcome, record: Path | None, terminal: Terminal) -> str | None:
    """Write what was measured, for `aegis report`; return the name of the file."""
    from aegis_dask.ckks.files import write_atomically
    from aegis_dask.service.files import writing

    if record is None:
        return None
    view = outcome.result.view
    assert view is not None
    with writing(record):
        write_atomically(record, [view.to_json().encode()])
    terminal.note(f"Record: {record}. Make a report of it with 'aegis report {record}'.")
    return str(record)
