"""What a job would take, counted on symbols before anything is encrypted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from aegis_dask.circuits.operators import layer_of, operator_of
from aegis_dask.ckks.bootstrapping.bootstrapper import working_bytes
from aegis_dask.errors import LevelError
from aegis_dask.program.graph import Program
from aegis_dask.program.operations import Lower, Refresh
from aegis_dask.program.refresh import Budget, Placement, eager
from aegis_dask.program.symbolic import COUNTED, Analysis, Cost
from aegis_dask.service.job import Job
from aegis_dask.service.keys import KeyList


@dataclass(frozen=True)
class Refreshed:
    """A value that is refreshed.

    Attributes
    ----------
    stage, operation
        What gives it.
    ciphertexts
        How many it has.
    level, level_after
        Level at which it arrives, and its level afterwards.
    bootstraps
        How many it takes.
    kind
        ``"complex"``, ``"real"`` (half of a bootstrap's polynomial is saved) or ``"merged"`` (two
        real ciphertexts in one bootstrap).
    iterations
        2 if it is refreshed twice, for precision.
    divisor
        Power of two that it is divided by meanwhile, to fit the range of a bootstrap.
    users
        Operations that take the result.
    """

    stage: str
    operation: str
    ciphertexts: int
    level: int
    level_after: int
    bootstraps: int
    kind: str
    iterations: int
    divisor: int
    users: tuple[str, ...]

    @property
    def layer(self) -> str:
        """The layer that it is in, empty if in none."""
        return layer_of(self.stage)


def refreshes_of(analysis: Analysis) -> tuple[Refreshed, ...]:
    """Return what a program refreshes, in order of evaluation."""
    program, levels = analysis.program, analysis.levels
    found = []
    for node in program.nodes:
        if not isinstance(op := node.op, Refresh):
            continue
        source = program.nodes[node.inputs[0]]
        found.append(
            Refreshed(
                stage=program.stages[source.stage].name,
                operation=source.op.name,
                ciphertexts=prod(node.shape),
                level=levels[source.id],
                level_after=levels[node.id],
                bootstraps=analysis.node_cost[node.id].counts["bootstraps"],
                kind=op.kind,
                iterations=op.iterations,
                divisor=1 << op.shrink,
                users=tuple(sorted({program.nodes[c].op.name for c in program.consumers[node.id]})),
            )
        )
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Counts of a job.

    Attributes
    ----------
    depth
        Levels on the longest path, refreshes or not.
    operators
        Operator -> counts.
    total
        Counts of the whole program.
    refreshes
        What is refreshed; nothing if the levels suffice.
    keys
        Evaluation keys, those of bootstrapping included.
    input_bytes, output_bytes, weight_bytes, live_bytes
        Sizes in memory: of the ciphertexts that go in and come out, of the model's weights, and of
        the largest set of values that are needed at the same time.
    refresh_bytes
        What one refresh takes meanwhile.
    """

    depth: int
    operators: dict[str, Cost]
    total: Cost
    refreshes: tuple[Refreshed, ...]
    keys: KeyList
    input_bytes: int
    output_bytes: int
    weight_bytes: int
    live_bytes: int
    refresh_bytes: int

    @property
    def seconds(self) -> float:
        """Estimated time on one thread."""
        return self.total.seconds

    @property
    def bootstraps(self) -> int:
        """Number of bootstraps."""
        return sum(r.bootstraps for r in self.refreshes)

    @property
    def refreshed_ciphertexts(self) -> int:
        """Ciphertexts that are refreshed: bootstraps, were none merged and none repeated."""
        return sum(r.ciphertexts for r in self.refreshes)

    @property
    def bootstraps_per_layer(self) -> dict[str, int]:
        """Layer -> bootstraps."""
        out: Counter[str] = Counter()
        for r in self.refreshes:
            out[r.layer] += r.bootstraps
        return dict(out)

    def memory_bytes(self, workers: int) -> int:
        """Return the memory of one machine that runs everything, in so many processes."""
        shared = self.keys.nbytes + self.weight_bytes + self.live_bytes
        return shared + workers * self.refresh_bytes

    def to_dict(self, workers: int) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "depth": self.depth,
            "operators": [
                {"name": name, **_counts(cost), "seconds": round(cost.seconds, 3)}
                for name, cost in self.operators.items()
            ],
            "total": _counts(self.total),
            "one_thread_seconds": round(self.seconds, 3),
            "bootstraps": self.bootstraps,
            "bootstraps_per_layer": self.bootstraps_per_layer,
            "refreshed_ciphertexts": self.refreshed_ciphertexts,
            "refreshes": [{"layer": r.layer, **asdict(r)} for r in self.refreshes],
            "evaluation_keys": self.keys.count,
            "evaluation_key_bytes": self.keys.nbytes,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "weight_bytes": self.weight_bytes,
            "ciphertext_memory_bytes": self.live_bytes,
            "workers": workers,
            "memory_bytes": self.memory_bytes(workers),
        }


def _counts(cost: Cost) -> dict[str, int]:
    return {what: cost.counts.get(what, 0) for what in (*COUNTED, "levels")}


def estimate(job: Job) -> Estimate:
    """Count a job that has parameters."""
    program, analysis = job.program, job.analysis
    operators: dict[str, Cost] = {}
    for stage in program.stages:
        name = operator_of(stage.name)
        cost = operators[name] = operators.get(name, Cost()) + analysis.stage_cost(stage)
        cost.counts["levels"] = max(cost.counts["levels"], _depth_of(program, stage.nodes))
    total, sizes, refreshing = analysis.total, analysis.node_bytes, analysis.bootstrapping
    total.counts["levels"] = job.depth
    return Estimate(
        depth=job.depth,
        operators=operators,
        total=total,
        refreshes=refreshes_of(analysis),
        keys=job.keys,
        input_bytes=sum(sizes[i] for i in program.inputs.values()),
        output_bytes=sum(sizes[i] for i in program.outputs.values()),
        weight_bytes=sum(a.size * a.itemsize for a in job.model.tensors().values()),
        live_bytes=_largest_live(program, sizes),
        refresh_bytes=0 if refreshing is None else working_bytes(refreshing),
    )


def _depth_of(program: Program, nodes: list[int]) -> int:
    """Return the levels that the longest path inside a stage takes to compute."""
    inside = set(nodes)
    depth: dict[int, int] = {}
    for i in nodes:
        node = program.nodes[i]
        before = max((depth[j] for j in node.inputs if j in inside), default=0)
        taken = 0 if isinstance(node.op, Lower) else node.op.depth
        depth[i] = before + taken
    return max(depth.values(), default=0)


def _largest_live(program: Program, sizes: list[int]) -> int:
    """Return the most bytes that are alive between stages, each stage run after the other."""
    end = len(program.stages)
    final = set(program.outputs.values())
    change: Counter[int] = Counter()
    for stage in program.stages:
        for i in program.results(stage):
            uses = [program.nodes[j].stage for j in program.consumers[i]]
            last = end if i in final else max(uses, default=stage.index)
            change[stage.index] += sizes[i]
            change[last + 1] -= sizes[i]
    largest = live = 0
    for index in sorted(change):
        live += change[index]
        largest = max(largest, live)
    return largest


# -- beside other placements -----------------------------------------------------------------


def compare(planned: Placement) -> dict[str, Placement | None]:
    """Return a placement and others of the same program, by name; None for one that gets stuck."""
    program, budget = planned.program, planned.budget
    careless = Budget(budget.output_level, budget.input_level)
    return {
        planned.method: planned,
        "eager": _eager(program, budget),
        "eager, if values of any size could be refreshed": _eager(program, careless),
    }


def _eager(program: Program, budget: Budget) -> Placement | None:
    try:
        return eager(program, budget)
    except LevelError:  # it has gone too low for the only values that can be refreshed
        return None


def describe_comparison(compared: Mapping[str, Placement | None]) -> list[dict[str, Any]]:
    """Return JSON-ready figures of placements."""
    return [
        {
            "method": name,
            "bootstraps": p.bootstraps if p else None,
            "refreshed_ciphertexts": p.unmerged if p else None,
            "sites": len(p.sites) if p else None,
        }
        for name, p in compared.items()
    ]
