"""What every way of ordering work and sums is worth: plans without one of them, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aegis_dask.placement.devices import Machine
from aegis_dask.placement.plan import ALL_ON, Switches
from aegis_dask.placement.search import plain, search
from aegis_dask.placement.simulate import simulate
from aegis_dask.program.operations import Contract, SumOfSquares
from aegis_dask.program.symbolic import Analysis, Symbol, Symbolic, analyse
from aegis_dask.service.job import Job

SLICES = 8


@dataclass(frozen=True)
class Ablated:
    """A plan with one thing turned off or on.

    Attributes
    ----------
    name
        What differs from the plan of the search.
    seconds
        Makespan.
    exposed
        Seconds in which the device that waits the longest waits for data.
    sent
        Bytes between devices.
    tasks
        Tasks of the plan.
    """

    name: str
    seconds: float
    exposed: float
    sent: int
    tasks: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)


def ablate(job: Job, machine: Machine, devices: int) -> list[Ablated]:
    """Return the plan of the search, and the same without each of its parts.

    How the work is cut and what is replicated stays as the search has chosen it, but for the row
    that is about that.
    """
    a = job.analysis
    found = search(job.program, devices, a.stage_work, a.node_bytes, machine)
    least, replicated = found.least_seconds, found.replicated

    def row(
        name: str,
        switches: Switches = ALL_ON,
        analysis: Analysis = a,
        work: Sequence[float] = a.stage_work,
        copies: frozenset[int] = replicated,
    ) -> Ablated:
        program, sizes = analysis.program, analysis.node_bytes
        plan = plain(program, devices, work, sizes, machine, least, copies, switches)
        s = simulate(program, plan, sizes, machine)
        tasks = sum(t.kind != "input" for t in plan.tasks)
        return Ablated(name, s.makespan, max(s.exposed), sum(s.received), tasks)

    untrimmed = _untrimmed(job)

    return [
        row("all of it"),
        row("values not lowered where they are made", ALL_ON, untrimmed, untrimmed.stage_work),
        row("products relinearised before they are added", work=_early(a)),
        row("in the order of the program, not urgent first", replace(ALL_ON, urgent_first=False)),
        row("joins in every task, not shared", replace(ALL_ON, shares_joins=False)),
        row("terms of sums sent, not sums", replace(ALL_ON, adds_in_parts=False)),
        row("tasks not fused", replace(ALL_ON, fuses=False)),
        row("nothing computed by every device", copies=frozenset()),
        row(f"sums between devices in {SLICES} slices", replace(ALL_ON, slices=SLICES)),
    ]


def _untrimmed(job: Job) -> Analysis:
    """Return the analysis of a job whose values stay at the level at which they are made."""
    return analyse(job.untrimmed, job.parameters)


def _early(analysis: Analysis) -> list[float]:
    """Return the work of every stage if each product were relinearised before it is added."""
    program, out = analysis.program, list(analysis.stage_work)
    for node in program.nodes:
        if not isinstance(node.op, (Contract, SumOfSquares)):
            continue
        products = analysis.node_cost[node.id].counts["products"]
        symbolic = Symbolic(analysis.params)
        level = analysis.levels[node.id]
        symbolic.relinearise(Symbol((products,), level, 3))
        once = symbolic.cost.seconds
        count = max(1, len(node.shape) and node.shape[0])
        out[node.stage] += once * (1 - count / products)
    return out
