"""What a monitor is told of a run before it begins: a few numbers per stage, none per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

from aegis_dask.circuits.operators import layer_of, operator_of
from aegis_dask.placement.devices import MACHINES, Machine
from aegis_dask.placement.predict import predict
from aegis_dask.placement.simulate import simulate
from aegis_dask.placement.tasks import Plan
from aegis_dask.placement.traffic import CLIENT
from aegis_dask.program.graph import Program, Stage
from aegis_dask.program.operations import Input, Refresh
from aegis_dask.program.symbolic import Analysis

MOST_SIMULATED = 50_000
"""Plans of more tasks are not simulated before they run: it would take a second."""


@dataclass(frozen=True)
class StageBrief:
    """A stage: its tasks, those that an earlier run has done, their estimated work, its levels.

    Attributes
    ----------
    name
        As in the program.
    layer, operator
        Positions among those of the brief.
    tasks, done
        How many there are, and how many need not run.
    work
        Estimated seconds of all of them.
    low, high
        Levels between which its values are; -1 where unknown. Of a stage that refreshes: before
        and after.
    refreshes
        Bootstraps.
    """

    name: str
    layer: int
    operator: int
    tasks: int
    done: int
    work: float
    low: int
    high: int
    refreshes: int


@dataclass(frozen=True)
class Brief:
    """A run, before it begins.

    Attributes
    ----------
    run, title, parameters
        Its name in the keys of its tasks, and what it is.
    client
        Who runs it, by Dask's name of the client.
    addresses, names
        Of its workers.
    layers, operators, stages
        What it does.
    worker_tasks
        Tasks of each worker.
    pairs
        (source, destination, bytes) between workers, or None if they are unknown.
    peaks
        Most bytes of results that each worker will hold, or None.
    seconds
        Predicted time, or None.
    precision_bits
        What the parameters leave after one product, or None.
    resumed, skipped
        How often the run was taken up again, and tasks that are not run again for that.
    """

    run: str
    title: str
    parameters: str
    client: str
    addresses: tuple[str, ...]
    names: tuple[str, ...]
    layers: tuple[str, ...]
    operators: tuple[str, ...]
    stages: tuple[StageBrief, ...]
    worker_tasks: tuple[int, ...]
    pairs: tuple[tuple[int, int, int], ...] | None = None
    peaks: tuple[int, ...] | None = None
    seconds: float | None = None
    precision_bits: float | None = None
    resumed: int = 0
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return what `brief_from_dict` reads: lists, text and numbers."""
        return asdict(self)


def brief_from_dict(data: Mapping[str, Any]) -> Brief:
    """Return the brief that `Brief.to_dict` describes."""
    tuples = ("addresses", "names", "layers", "operators", "worker_tasks")
    pairs, peaks = data["pairs"], data["peaks"]
    return Brief(
        **{
            **data,
            **{name: tuple(data[name]) for name in tuples},
            "stages": tuple(StageBrief(**s) for s in data["stages"]),
            "pairs": None if pairs is None else tuple((a, b, count) for a, b, count in pairs),
            "peaks": None if peaks is None else tuple(peaks),
        }
    )


def make_brief(
    program: Program,
    plan: Plan,
    *,
    run: str,
    addresses: Sequence[str],
    names: Sequence[str],
    title: str = "",
    client: str = "",
    analysis: Analysis | None = None,
    machine: Machine | None = None,
    first: int = 0,
    resumed: int = 0,
) -> Brief:
    """Return what a monitor must know of a run.

    Parameters
    ----------
    program, plan
        The program, and its tasks.
    run, title, client, addresses, names, resumed
        See `Brief`.
    analysis
        Of the program, if its levels and sizes are known.
    machine
        Devices and links, if times can be predicted.
    first
        Tasks before this one have been done by the run that is taken up again.
    """
    layers: dict[str, int] = {}
    operators: dict[str, int] = {}
    count = [0] * len(program.stages)
    done = [0] * len(program.stages)
    work = [0.0] * len(program.stages)
    for task in plan.tasks:
        if task.kind == "input":
            continue
        for step in task.steps:
            stage = step.task.stage
            count[stage] += 1
            done[stage] += task.index < first
            work[stage] += step.task.seconds
    owned = Counter(t.owner for t in plan.tasks if t.kind != "input")
    stages = []
    layer = ""
    for i, part in enumerate(program.stages):
        layer = layer_of(part.name) or _scope_of(part.name) or layer
        where = kind = 0
        if count[i]:
            where = layers.setdefault(layer or "program", len(layers))
            kind = operators.setdefault(operator_of(part.name), len(operators))
        low, high, refreshes = _levels(program, part, analysis)
        stages.append(
            StageBrief(part.name, where, kind, count[i], done[i], work[i], low, high, refreshes)
        )
    pairs = peaks = seconds = None
    if analysis is not None:
        sent = predict(program, plan, analysis.node_bytes).pairs
        pairs = tuple((a, b, n) for (a, b), n in sorted(sent.items()) if CLIENT not in (a, b))
        if len(plan.tasks) <= MOST_SIMULATED:
            # When a result may go hardly depends on the machine; how long all takes does.
            found = simulate(program, plan, analysis.node_bytes, machine or MACHINES["cpu"])
            peaks = found.peak_bytes
            seconds = None if machine is None else found.makespan
    params = None if analysis is None else analysis.params
    return Brief(
        run=run,
        title=title,
        parameters="" if params is None else params.name,
        client=client,
        addresses=tuple(addresses),
        names=tuple(names),
        layers=tuple(layers) or ("program",),
        operators=tuple(operators) or ("nothing",),
        stages=tuple(stages),
        worker_tasks=tuple(owned[i] for i in range(len(addresses))),
        pairs=pairs,
        peaks=peaks,
        seconds=seconds,
        precision_bits=(
            None if params is None else params.literal.scale_bits - log2(params.ring_degree)
        ),
        resumed=resumed,
        skipped=sum(t.kind != "input" for t in plan.tasks[:first]),
    )


def _scope_of(name: str) -> str:
    """Return the first part of the name of a stage of another graph, "" if it has one part."""
    scope, slash, _ = name.partition("/")
    return scope if slash else ""


def _levels(program: Program, stage: Stage, analysis: Analysis | None) -> tuple[int, int, int]:
    """Return the lowest and the highest level of a stage, and its bootstraps."""
    if analysis is None or not stage.nodes:
        return -1, -1, 0
    levels = analysis.levels
    refreshed = [i for i in stage.nodes if isinstance(program.nodes[i].op, Refresh)]
    if refreshed:
        bootstraps = sum(analysis.node_cost[i].counts["bootstraps"] for i in refreshed)
        before = min(levels[j] for i in refreshed for j in program.nodes[i].inputs)
        return before, max(levels[i] for i in refreshed), bootstraps
    nodes = [i for i in stage.nodes if not isinstance(program.nodes[i].op, Input)] or stage.nodes
    found = [levels[i] for i in nodes]
    return min(found), max(found), 0
