"""``aegis plan``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_dask.cli import options as o
from aegis_dask.cli.setup import check_writable
from aegis_dask.errors import ClusterError, ModelError, ProgramError, TextError

if TYPE_CHECKING:
    from aegis_dask.models.calibration import Calibration
    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.models.graphs import Graph
    from aegis_dask.program.refresh import Placement
    from aegis_dask.service.ablation import Ablated
    from aegis_dask.service.comparison import Comparison
    from aegis_dask.service.job import Job
    from aegis_dask.service.plan import Estimate
    from aegis_dask.service.scaling import Scaled
    from aegis_dask.terminal import Terminal

DEFAULT_LENGTH = 128
COLUMNS = {
    "rot.": "rotations",
    "conj.": "conjugations",
    "plain": "plain_products",
    "prod.": "products",
    "switch": "key_switches",
    "boot.": "bootstraps",
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
    refreshes: Annotated[
        bool,
        typer.Option(
            "--refreshes",
            help="Show where ciphertexts are refreshed (bootstrapped) and why, beside how many "
            "bootstraps refreshing without planning would take.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the levels along the program, and its refreshes, to this .html file."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Simulate the plan on this many devices, and on fewer."),
    ] = None,
    machine: Annotated[
        str,
        typer.Option(help="What they are: cpu, h200-nvlink, a100-40-pcie, .. or a .json file."),
    ] = "cpu",
    depends: Annotated[
        Path | None,
        typer.Option(
            "--dependencies",
            help="Write what depends on what to this file: what can be divided alike and what that "
            "takes from elsewhere (.graphml), or every operand too (.json).",
        ),
    ] = None,
    against: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Compare what limb-parallel and replicating systems would send with our plans, on "
            "that many devices.",
        ),
    ] = False,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation",
            help="Simulate the plan without each of the ways in which work and sums are ordered.",
        ),
    ] = False,
    operator: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="STAGE",
            help="Say where stages of that name are put, and why: attention/key-steps, norm1, ..",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the plan for that many devices, and the comparison, to this .json file; "
            "'aegis run --plan' runs it."
        ),
    ] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(
            help="Draw when each of the devices does what, and compared strategies, to this .html "
            "file."
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Count what a graph would take: operations, levels, bootstraps, keys, memory, time."""
    from aegis_dask.models.graphs import load_graph
    from aegis_dask.service.job import make_job
    from aegis_dask.service.plan import compare, describe_comparison, estimate
    from aegis_dask.service.summary import describe_job
    from aegis_dask.terminal import Terminal

    if (against or ablation or operator is not None) and (devices or 1) < 2:
        raise ClusterError(
            "--compare, --ablation and --explain are for several devices; give --devices 4"
        )
    if timeline is not None and devices is None:
        raise ClusterError("--timeline draws devices; give --devices 4")
    if out is not None and devices is None:
        raise ClusterError("--out writes a plan for a number of devices; give --devices 4")
    if out is not None and out.suffix != ".json":
        raise ClusterError(f"{out} does not end in .json; give a name such as plan.json")
    terminal = Terminal(as_json)
    from aegis_dask.placement.devices import load_machine

    kind = load_machine(machine)
    for page in (plot, timeline):
        if page is not None:
            from aegis_dask.service.refresh_plot import check_plot, plot_levels

            check_plot(page)
    if depends is not None:
        from aegis_dask.placement.dependencies import check_name

        check_name(depends)
    check_writable(plot, depends, timeline, out)
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
    with terminal.step("Choosing parameters and counting"):
        job = make_job(bert, ranges, loaded, tokens, scale_bits=scale_bits, allow_insecure=insecure)
        counted = estimate(job)
    if operator is not None and not any(operator in s.name for s in job.program.stages):
        names = sorted({re.sub(r"-?\d+$", "", s.name) for s in job.program.stages})
        raise ProgramError(f"no stage has {operator!r} in its name; there are {', '.join(names)}")
    assert job.params is not None
    terminal.warn_if_insecure(job.parameters)
    compared: dict[str, Placement | None] = {}
    if refreshes and job.placement is not None:
        with terminal.step("Comparing with other placements"):
            compared = compare(job.placement)
    _show(terminal, job, counted, workers)
    if refreshes:
        _show_refreshes(terminal, counted, compared)
    if plot is not None:
        plot_levels(job.analysis, plot, f"{job.graph.name} on {job.model.name}, {tokens} tokens")
        terminal.say(f"Plot: {plot}")
    if depends is not None:
        _write_dependencies(terminal, job, depends)
    scaled: list[Scaled] = []
    if devices is not None:
        from aegis_dask.service.scaling import scale

        with terminal.step("Planning and simulating"):
            counts = [1 << k for k in range(devices.bit_length()) if 1 << k <= devices]
            scaled = scale(job, kind, [*counts, devices])
        _show_scaling(terminal, scaled)
    comparisons: list[Comparison] = []
    if against:
        from aegis_dask.service.comparison import compare as compare_strategies
        from aegis_dask.service.comparison import schemes

        with terminal.step("Comparing strategies"):
            for scheme in schemes(job.analysis):
                comparisons.append(compare_strategies(job, kind, devices or 1, scheme))
        _show_comparisons(terminal, comparisons)
    ablated: list[Ablated] = []
    if ablation:
        from aegis_dask.service.ablation import ablate

        with terminal.step("Turning things off"):
            ablated = ablate(job, kind, devices or 1)
        _show_ablation(terminal, ablated, scaled[-1])
    if timeline is not None:
        from aegis_dask.service.timeline_plot import plot_timeline

        title = f"{job.graph.name} on {job.model.name}, {tokens} tokens"
        plot_timeline(job.program, scaled[-1], timeline, title, comparisons)
        terminal.say(f"Timeline: {timeline}")
    if out is not None:
        from aegis_dask.placement.files import write_plan

        about = {
            **describe_job(job, tokens),
            "machine": kind.to_dict(),
            "scaling": [s.to_dict() for s in scaled],
            "comparisons": [c.to_dict() for c in comparisons],
        }
        write_plan(out, scaled[-1].plan, job.program, about)
        terminal.say(f"Plan: {out}, {scaled[-1].tasks} tasks on {scaled[-1].devices} devices")
    reasons: Sequence[str] = ()
    if operator is not None:
        from aegis_dask.service.comparison import explain

        reasons = explain(job, scaled[-1], operator)
        terminal.say("")
        for line in reasons:
            terminal.say(line)
    terminal.json(
        {
            **describe_job(job, tokens),
            "calibrated": ranges.texts > 0,
            **counted.to_dict(workers),
            "placements": describe_comparison(compared),
            "plot": None if plot is None else str(plot),
            "machine": kind.to_dict() if scaled else None,
            "scaling": [s.to_dict() for s in scaled],
            "comparisons": [c.to_dict() for c in comparisons],
            "ablation": [row.to_dict() for row in ablated],
            "reasons": list(reasons),
            "timeline": None if timeline is None else str(timeline),
            "out": None if out is None else str(out),
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


def _show(terminal: Terminal, job: Job, counted: Estimate, workers: int) -> None:
    from rich.text import Text

    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.runtime.cluster import cores
    from aegis_dask.terminal import parameter_lines, short_count, table_of

    assert job.params is not None
    terminal.say(
        f"{job.graph.name} on {job.model.name}: {job.packing.length} tokens in "
        f"{job.packing.tokens} positions, {counted.depth} levels on the longest path."
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
        "of ciphertexts; switch: key switches of all kinds, without those of bootstraps; boot.: "
        "bootstraps; s: seconds on one thread."
    )
    threads = min(workers, cores())
    terminal.pairs(
        {
            **parameter_lines(job.parameters, job.placement),
            "evaluation keys": f"{counted.keys.count}, {format_bytes(counted.keys.nbytes)} in "
            "memory (half of it in a file)",
            "ciphertexts in": format_bytes(counted.input_bytes),
            "ciphertexts out": format_bytes(counted.output_bytes),
            "weights": format_bytes(counted.weight_bytes),
            "values at the same time": format_bytes(counted.live_bytes),
            "memory of one machine": f"about {format_bytes(counted.memory_bytes(workers))}",
            "time": f"about {counted.seconds:,.0f} s on one thread, on {threads} at best "
            f"{counted.seconds / threads:,.0f} s ({workers} workers, {cores()} cores here)",
        }
    )


def _write_dependencies(terminal: Terminal, job: Job, path: Path) -> None:
    from aegis_dask.placement.dependencies import dependencies
    from aegis_dask.placement.traffic import format_bytes

    found = dependencies(job.analysis)
    found.write(path)
    sizes = found.bytes_by_kind
    terminal.say("")
    terminal.say(
        f"Dependencies: {path}. {len(found.clusters)} sets of values that can be divided alike. "
        f"Operands that couple ciphertexts: {format_bytes(sizes.get('application', 0))}; limbs "
        f"only: {format_bytes(sizes.get('rns', 0))}; nothing: "
        f"{format_bytes(sizes.get('local', 0))}. Limbs are independent in "
        f"{found.separable_share:.1%} of the work."
    )


def _show_scaling(terminal: Terminal, scaled: list[Scaled]) -> None:
    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.terminal import table_of

    machine = scaled[0].simulation.machine
    terminal.say("")
    terminal.say(
        f"Simulated on devices of the kind {machine.device.name}, {machine.per_node} to a node, "
        f"{machine.inside.name} within it and {machine.between.name} between nodes."
    )
    table = table_of(
        "devices",
        "s",
        "faster",
        "efficiency",
        "between devices",
        "waiting for data",
        "a device",
    )
    for s in scaled:
        exposed = max(s.simulation.exposed) / s.simulation.makespan
        table.add_row(
            str(s.devices),
            f"{s.simulation.makespan:.3g}",
            f"{s.speedup:.2f}x",
            f"{s.efficiency:.1%}",
            format_bytes(s.traffic.between_workers),
            f"{exposed:.1%}",
            format_bytes(s.device_bytes),
        )
    terminal.show(table)
    for s in scaled:
        if not s.fits:
            terminal.say(s.shortage() + ".", "bold red")
    most = scaled[-1]
    if most.operators:
        table = table_of("operator", f"sent between {most.devices} devices", "share")
        for name, size in sorted(most.operators.items(), key=lambda item: -item[1]):
            table.add_row(name, format_bytes(size), f"{size / most.traffic.between_workers:.0%}")
        terminal.show(table)
    terminal.say(
        "a device: results, all evaluation keys and all weights on it at the same time (on "
        f"{most.devices}: {format_bytes(most.needed_bytes)} with the keys that its tasks use, "
        f"{format_bytes(most.ciphertext_bytes)} of results); waiting for data: of the device that "
        "waits the longest."
    )


def _show_comparisons(terminal: Terminal, comparisons: Sequence[Comparison]) -> None:
    from rich.text import Text

    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.service.comparison import ATTENTION, COLUMNS, FORWARD
    from aegis_dask.terminal import table_of

    for c in comparisons:
        terminal.say("")
        terminal.say(f"Strategies on {c.devices} devices, {c.scheme}: bytes between devices.")
        table = table_of("strategy", ATTENTION, FORWARD, "both", "s")
        for s in c.strategies:
            cells = [
                format_bytes(s.sent[p]) if p in s.counts else f"({format_bytes(s.sent[p])})"
                for p in (ATTENTION, FORWARD)
            ]
            seconds = f"{'' if s.is_ours or 'limb' not in s.name else '> '}{s.seconds:.3g}"
            style = "bold" if s.is_ours else ""
            table.add_row(Text(s.name), *cells, format_bytes(s.total), seconds, style=style)
        terminal.show(table)
        own = min((s for s in c.strategies if s.is_ours), key=lambda s: s.total)
        saved = {part: c.saved(part, own.name) for part in (ATTENTION, FORWARD)}
        terminal.say(
            f"{own.name} sends {saved[ATTENTION]:.1%} less for attention and {saved[FORWARD]:.1%} "
            f"less for feed-forward than the strongest of the others ("
            f"{c.strongest(ATTENTION).name}; {c.strongest(FORWARD).name}), and "
            f"{c.saved(FORWARD, own.name, COLUMNS):.1%} less for feed-forward than a split by "
            "columns and rows, whose attention is ours (in brackets)."
        )


def _show_ablation(terminal: Terminal, rows: Sequence[Ablated], scaled: Scaled) -> None:
    from rich.text import Text

    from aegis_dask.placement.traffic import format_bytes
    from aegis_dask.terminal import table_of

    terminal.say("")
    terminal.say(
        f"The plan for {scaled.devices} devices, {scaled.simulation.machine.inside.name}, with one "
        "thing turned off or on."
    )
    table = table_of("plan", "s", "", "waiting for data, s", "between devices", "tasks")
    first = rows[0]
    for row in rows:
        change = "" if row is first else f"{row.seconds / first.seconds - 1:+.1%}"
        table.add_row(
            Text(row.name),
            f"{row.seconds:.3f}",
            change,
            f"{row.exposed:.3f}",
            format_bytes(row.sent),
            str(row.tasks),
        )
    table.columns[0].no_wrap = False
    terminal.show(table)


def _show_refreshes(
    terminal: Terminal, counted: Estimate, compared: Mapping[str, Placement | None]
) -> None:
    from rich.text import Text

    from aegis_dask.terminal import table_of

    terminal.say("")
    if not counted.refreshes:
        terminal.say("Nothing is refreshed: the levels suffice.")
        return
    table = table_of("refreshed", "ct.", "level", "boot.", "kind", "for")
    for r in counted.refreshes:
        kind = r.kind + ", twice" * (r.iterations > 1)
        kind += f", / {r.divisor}" if r.divisor > 1 else ""
        levels = f"{r.level} -> {r.level_after}"
        cells = (str(r.ciphertexts), levels, str(r.bootstraps), kind)
        table.add_row(Text(f"{r.stage}: {r.operation}"), *cells, Text(", ".join(r.users)))
    table.columns[-1].no_wrap = False  # leave room for the stage's name in narrow terminals
    terminal.show(table)
    terminal.say(
        "ct.: ciphertexts; boot.: bootstraps; real: for half of the work on the polynomial; "
        "merged: two real ciphertexts in one bootstrap; twice: its error too, for precision; / n: "
        "divided by n meanwhile, to fit the range; for: the operations that take the result."
    )
    layers = counted.bootstraps_per_layer
    if any(layers):
        each = ", ".join(f"{name or 'elsewhere'} {count}" for name, count in layers.items())
        terminal.say(f"Bootstraps per layer: {each}.")
    terminal.say("")
    table = table_of("placement", "bootstraps", "ciphertexts", "sites")
    for name, p in compared.items():
        counts = (p.bootstraps, p.unmerged, len(p.sites)) if p else ("impossible",)
        table.add_row(Text(name), *(str(n) for n in counts))
    terminal.show(table)
