"""From a program to tasks for a number of workers: cut, place, lower."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod

from aegis_dask.errors import ClusterError
from aegis_dask.placement.cut import LEAST_SECONDS, TARGET_SECONDS, split
from aegis_dask.placement.fuse import fuse
from aegis_dask.placement.lowering import lower
from aegis_dask.placement.predict import peak_bytes
from aegis_dask.placement.strategy import BANDWIDTH, HOP_SECONDS, Strategy, contiguous, stage_order
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program


@dataclass(frozen=True)
class Switches:
    """Ways to order work and sums, to see what each is worth.

    Attributes
    ----------
    urgent_first
        Begin with what others wait for (`strategy.stage_order`), or on one worker in that order or
        the program's, whichever holds less; else in the order of the program.
    fuses
        Make chains and groups of tasks one (`fuse`).
    shares_joins, adds_in_parts
        See `lowering.lower`.
    slices
        Parts of sums between workers that travel one by one (`cut.split`).
    """

    urgent_first: bool = True
    fuses: bool = True
    shares_joins: bool = True
    adds_in_parts: bool = True
    slices: int = 1


ALL_ON = Switches()


def make_plan(
    program: Program,
    workers: int,
    stage_work: Sequence[float],
    *,
    node_bytes: Sequence[int] | None = None,
    place: Strategy = contiguous,
    target_seconds: float = TARGET_SECONDS,
    least_seconds: float = LEAST_SECONDS,
    replicated: Collection[int] = (),
    everywhere: bool = False,
    switches: Switches = ALL_ON,
    bandwidth: float = BANDWIDTH,
    hop_seconds: float = HOP_SECONDS,
) -> Plan:
    """Return the tasks of a program.

    Parameters
    ----------
    program
        The program.
    workers
        Number of workers.
    stage_work
        Estimated seconds of every stage on one worker.
    node_bytes
        Size of every node's value; by default its number of ciphertexts counts.
    place
        Strategy that chooses the worker of each unit.
    target_seconds, least_seconds
        How long tasks should last, and how short they may get.
    replicated
        Stages that every worker computes for itself (see `cut.split`).
    everywhere
        Give every worker all results (see `lowering.lower`).
    switches
        What can be turned off.
    bandwidth, hop_seconds
        Of the links, for that order.

    Raises
    ------
    ClusterError
        If a number is out of range, or the strategy gives workers that there are not.
    """
    if node_bytes is None:
        node_bytes = [prod(n.shape) * n.components << 20 for n in program.nodes]
    units = split(
        program, workers, stage_work, target_seconds, least_seconds, replicated, switches.slices
    )
    owners = place(program, units, workers, node_bytes)
    if len(owners) != len(units) or not all(0 <= w < workers for w in owners):
        raise ClusterError(
            f"the placement gave {len(owners)} workers for {len(units)} units, from "
            f"{min(owners, default=0)} to {max(owners, default=0)}; it must give one of 0 to "
            f"{workers - 1} for each"
        )
    layers = [s.name.split("/")[0] if "/" in s.name else "" for s in program.stages]

    def ordered(order: Sequence[int] | None) -> Plan:
        plan = lower(
            program,
            units,
            owners,
            workers,
            everywhere,
            order,
            switches.shares_joins,
            switches.adds_in_parts,
        )
        return fuse(plan, layers, target_seconds) if switches.fuses else plan

    if not switches.urgent_first:
        return ordered(None)
    urgent = ordered(stage_order(program, units, node_bytes, bandwidth, hop_seconds))
    if workers > 1:
        return urgent
    # Nobody waits for one worker: what counts is how much it holds.
    plans = (urgent, ordered(None))
    return min(plans, key=lambda plan: peak_bytes(program, plan, node_bytes))
