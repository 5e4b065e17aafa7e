"""``aegis demo``: one encrypted layer of a real model on a cluster of worker processes."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from typing import Any

from rich.text import Text

from aegis_dask.ckks.security import SECURITY_BITS
from aegis_dask.models.calibration import calibrate
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.text import Tokenizer
from aegis_dask.placement.traffic import format_bytes
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.report import write_report
from aegis_dask.service import local, sources
from aegis_dask.service.files import writing
from aegis_dask.service.job import make_job, positions_for
from aegis_dask.service.local import Outcome, Prepared
from aegis_dask.service.summary import describe_outcome, report_precision
from aegis_dask.terminal import Terminal, parameter_lines, show_run

GRAPH = "bert_layer"
TEXT = (
    "The nurse wrote down the results of the blood test and called the doctor before lunch, "
    "because the numbers were far too high and the patient had fever."
)
REPORT = "aegis-demo.html"
TOLERANCE = 1e-2
PRECISION_FAILURE = 1

_ROLES = {
    "client (this process)": "the text, the embeddings, the SECRET KEY: encrypts and decrypts",
    "scheduler (here in it too)": "names of tasks: neither keys nor data",
    "workers": "weights, evaluation keys, ciphertexts: compute, and cannot decrypt",
}
_SECURE = (
    "All of it is 128-bit secure. A layer takes more levels than the ring has: the workers refresh "
    "ciphertexts on the way (bootstrapping), still without the secret key."
)
_INSECURE = (
    "This ring is small and deep, so that the demonstration takes seconds. Without --insecure it "
    "is 128-bit secure, and takes minutes."
)


def run(
    workers: int = 2,
    text: str | None = None,
    length: int | None = None,
    report: Path | None = None,
    as_json: bool = False,
    insecure: bool = False,
) -> int:
    """Run the demonstration and print what it measured.

    Parameters
    ----------
    workers
        Worker processes.
    text
        A sentence; one of ours by default.
    length
        Longest text to make room for; that of the text by default.
    report
        Where to write the report in HTML; None for no report.
    as_json
        Print one JSON object instead of tables.
    insecure
        Take a small ring without security, for seconds instead of minutes.

    Returns
    -------
    int
        Exit status: 0 if no value differs from float64 by more than 1e-2, else 1.

    Raises
    ------
    ModelError
        If the model is not installed.
    TextError
        If the text is too long or empty.
    RangeError
        If the text leaves the ranges that were calibrated on the sample texts.
    """
    start = time.perf_counter()
    terminal = Terminal(as_json)
    prepared, texts = _prepare(TEXT if text is None else text, length, insecure, terminal)
    job = prepared.job
    assert job.params is not None
    _explain(prepared, texts, terminal)
    terminal.warn_if_insecure(job.parameters)
    terminal.say(_SECURE if job.parameters.is_secure else _INSECURE)
    with terminal.step(f"Starting {workers} worker processes"):
        executor = local.open_executor(None, workers)
    with executor:
        _show_dashboard(executor, terminal)
        outcome = local.run_encrypted(prepared, executor, terminal)
    passed = outcome.precision.max_error <= TOLERANCE
    show_run(terminal, outcome)
    if report is not None:
        _write(outcome, report, terminal)
    seconds = time.perf_counter() - start
    terminal.say(
        f"{'Passed' if passed else 'FAILED'}: the largest error is "
        f"{'at most' if passed else 'above'} {TOLERANCE:g}. {seconds:.1f} s in all.",
        "green" if passed else "bold red",
    )
    terminal.json(_as_dict(outcome, texts, report, seconds, passed))
    return 0 if passed else PRECISION_FAILURE


def _prepare(
    text: str, length: int | None, insecure: bool, terminal: Terminal
) -> tuple[Prepared, int]:
    """Calibrate the layer and build the job; return it and the number of texts."""
    graph = load_graph(GRAPH)
    model = sources.first_layers(sources.open_model(None), graph.layers)
    ids = Tokenizer.for_model(model, length).encode(text)
    positions = positions_for(length or len(ids))
    samples = sources.sample_ids(model, min(positions, model.config.max_positions))
    with terminal.step(f"Calibrating layer 0 on {len(samples)} texts"):
        calibration = calibrate(model, samples)
        job = make_job(
            model, calibration, graph, len(ids), tokens=positions, allow_insecure=insecure
        )
        return local.prepare(job, ids), len(samples)


def _explain(prepared: Prepared, texts: int, terminal: Terminal) -> None:
    job = prepared.job
    assert job.params is not None
    packing, keys = job.packing, job.keys
    terminal.say("One encoder layer of all-MiniLM-L6-v2 on encrypted data", "bold")
    terminal.pairs(_ROLES)
    terminal.say("")
    terminal.pairs(
        {
            "text": f"{len(prepared.x)} tokens, in {packing.tokens} positions",
            "calibrated on": f"{texts} sample texts, cut to {packing.tokens} tokens",
            "ciphertexts": f"{prod(job.layout.shape)} in, as many out",
            "program": f"{len(job.program.nodes)} operations, {job.depth} levels deep",
            "evaluation keys": f"{keys.count}, {format_bytes(keys.nbytes)}",
            **parameter_lines(job.parameters, job.placement),
        }
    )


def _show_dashboard(executor: Executor, terminal: Terminal) -> None:
    link = executor.dashboard_link
    if link:
        terminal.err.print(Text(f"Watch the workers: {link}", style="bold"))


def _write(outcome: Outcome, path: Path, terminal: Terminal) -> None:
    with writing(path):
        write_report(
            outcome.result,
            path,
            title="aegis demo: one encrypted layer of all-MiniLM-L6-v2",
            precision=report_precision(outcome),
            about={
                **_ROLES,
                "security": _security(outcome),
            },
        )
    terminal.say(f"Report: {path}")


def _security(outcome: Outcome) -> str:
    if outcome.prepared.job.parameters.is_secure:
        return f"{SECURITY_BITS} bits"
    return "NONE: this ring is far too small, for demonstration only"


def _as_dict(
    outcome: Outcome, texts: int, report: Path | None, seconds: float, passed: bool
) -> dict[str, Any]:
    return {
        **describe_outcome(outcome),
        "calibration_texts": texts,
        "tolerance": TOLERANCE,
        "report": None if report is None else str(report),
        "total_seconds": round(seconds, 3),
        "passed": passed,
    }
