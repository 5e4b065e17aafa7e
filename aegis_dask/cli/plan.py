"""``aegis plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_dask.cli import options as o
from aegis_dask.errors import ModelError, ParameterError, TextError

if TYPE_CHECKING:
    from aegis_dask.models.calibration import Calibration
    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.models.graphs import Graph
    from aegis_dask.service.job import Job
    from aegis_dask.service.plan import Estimate
    from aegis_dask.terminal import Terminal

DEFAULT_LENGTH = 128
COLUMNS = {
    "rot.": "rotations",
    "conj.": "conjugations",
    "plain": "plain_products",
    "prod.": "products",
    "switch": "key_switches",
    "levels": "levels",
}


def plan(
    graph: o.GraphName,
    model: o.Model = None,
    sha256: o.Sha256 = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Count for a shape without weights: bert-base, bert-large, ..."),
    ] = None,
    calibration: o.CalibrationFile = None,
    length: o.Length = None,
    workers: Annotated[int, typer.Option(min=1, help="Workers to divide the work among.")] = 2,
    insecure: o.Insecure = False,
    scale_bits: o.ScaleBits = 40,
    as_json: o.Json = False,
) -> None:
    """Count what a graph would take: operations, levels, keys, memory, time."""
    from aegis_dask.models.graphs import load_graph
    from aegis_dask.service.plan import estimate, largest_parameters
    from aegis_dask.service.summary import describe_job
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    loaded = load_graph(graph)
    if shape is not None and (model, sha256, calibration) != (None, None, None):
        raise ModelError("--shape has no weights; give it without --model, --sha256, --calibration")
    bert = _model(loaded, model, sha256, shape, length)
    tokens = length or min(DEFAULT_LENGTH, bert.config.max_positions)
    if tokens > bert.config.max_positions:
        raise TextError(
            f"--length is {tokens}, {bert.name} has positions for {bert.config.max_positions}"
        )
    ranges = _ranges(bert, calibration, terminal)
    job, why = _job(bert, ranges, loaded, tokens, insecure, scale_bits)
    params = job.params
    if params is None:
        params = largest_parameters(job.packing.slots, scale_bits)
    with terminal.step("Counting"):
        counted = estimate(job, params)
    _show(terminal, job, counted, workers, why)
    terminal.json(
        {
            **describe_job(job, tokens),
            "no_parameters_because": why,
            "calibrated": ranges.texts > 0,
            "counted_with": params.name,
            **counted.to_dict(),
            "workers": workers,
        }
    )


def _model(
    graph: Graph, path: Path | None, sha256: str | None, shape: str | None, length: int | None
) -> BertModel:
    from aegis_dask.models.checkpoint import SHAPES, named_config, shape_only
    from aegis_dask.service.sources import first_layers, open_model

    if shape is None:
        return first_layers(open_model(path, sha256), graph.layers)
    usual = SHAPES[shape].max_positions if shape in SHAPES else 0
    config = named_config(shape, max(usual, length or 0))
    return first_layers(shape_only(config), graph.layers)


def _ranges(model: BertModel, path: Path | None, terminal: Terminal) -> Calibration:
    from aegis_dask.service.sources import assumed_calibration, saved_calibration

    found = None if model.path is None else saved_calibration(model, path)
    if found is None:
        terminal.note(
            "Typical ranges are assumed: no calibration was given. After 'aegis calibrate' levels "
            "and polynomials are those of the model."
        )
        found = assumed_calibration(model)
    return found


def _job(
    model: BertModel,
    ranges: Calibration,
    graph: Graph,
    tokens: int,
    insecure: bool,
    scale_bits: int,
) -> tuple[Job, str | None]:
    """Return the job, and why it has no parameters if so."""
    from aegis_dask.ckks.parameters import MAX_LOG_N
    from aegis_dask.service.job import make_job
    from aegis_dask.service.plan import largest_parameters

    try:
        job = make_job(model, ranges, graph, tokens, scale_bits=scale_bits, allow_insecure=insecure)
        return job, None
    except ParameterError as e:
        # In the largest ring that has secure parameters: there refreshing will be possible.
        slots = largest_parameters(1 << (MAX_LOG_N - 2), scale_bits).slots
        return make_job(model, ranges, graph, tokens, slots=slots, encrypted=False), str(e)


def _show(terminal: Terminal, job: Job, counted: Estimate, workers: int, why: str | None) -> None:
    from rich.text import Text

    from aegis_dask.runtime.cluster import cores
    from aegis_dask.runtime.transfers import format_bytes
    from aegis_dask.terminal import parameter_lines, short_count, table_of

    terminal.say(
        f"{job.graph.name} on {job.model.name}: {job.packing.length} tokens in "
        f"{job.packing.tokens} positions, {counted.depth} levels on the longest path."
    )
    if why is not None:
        terminal.say(f"No parameters fit: {why}.", "yellow")
        terminal.say(
            f"Counted with {counted.params.name}, as if values could be refreshed (bootstrapped): "
            f"with all of its {counted.params.max_level} levels after each, {counted.bootstraps} "
            "bootstraps or more. Their time and their keys are not included."
        )
    table = table_of("operator", *COLUMNS, "s")
    for name, cost in {**counted.operators, "total": counted.total}.items():
        if not any(cost.counts.values()):
            continue  # inputs
        cells = [short_count(cost.counts.get(what, 0)) for what in COLUMNS.values()]
        style = "bold" if name == "total" else ""
        table.add_row(Text(name), *cells, short_count(cost.seconds), style=style)
    terminal.show(table)
    terminal.say(
        "rot.: rotations; conj.: conjugations; plain: products with plaintexts; prod.: products "
        "of ciphertexts; switch: key switches of all kinds; s: seconds on one thread."
    )
    threads = min(workers, cores())
    terminal.pairs(
        {
            **(parameter_lines(counted.params) if why is None else {}),
            "evaluation keys": f"{counted.keys.count}, {format_bytes(counted.key_bytes)} in memory "
            "(half of it in a file)",
            "ciphertexts in": format_bytes(counted.input_bytes),
            "ciphertexts out": format_bytes(counted.output_bytes),
            "weights": format_bytes(counted.weight_bytes),
            "values at the same time": format_bytes(counted.live_bytes),
            "memory of one machine": f"about {format_bytes(counted.memory_bytes)}",
            "time": f"about {counted.seconds:,.0f} s on one thread, on {threads} at best "
            f"{counted.seconds / threads:,.0f} s ({workers} workers, {cores()} cores here)",
        }
    )
