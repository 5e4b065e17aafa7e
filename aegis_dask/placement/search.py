"""Search for the plan that a simulation finds fastest.

Two things are decided for a machine: how fine the work is cut, and which stages every device
computes for itself. A value that all devices need whole, such as keys rotated by every baby step of
attention, can be made in parts and sent to all, or be made by all from something smaller. Which is
better depends on the link: what takes 2 % of the work may be three quarters of the bytes.

The search begins with plans that replicate nothing and takes what the simulator says is faster, so
it is never worse than those, by that measure. It is deterministic.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from aegis_dask.placement.cut import LEAST_SECONDS, TARGET_SECONDS, can_be_replicated, is_input
from aegis_dask.placement.devices import Machine
from aegis_dask.placement.plan import ALL_ON, Switches, make_plan
from aegis_dask.placement.simulate import Simulation, simulate
from aegis_dask.placement.strategy import Contiguous
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program, Stage
from aegis_dask.program.operations import Lower, Operation, Pair, Rotations

FINER = (1.0, 0.4, 0.2, 0.1, 0.02)
"""Shares of `LEAST_SECONDS` that are tried."""


@dataclass(frozen=True)
class Found:
    """A plan, what it would take, and what was decided.

    Attributes
    ----------
    plan, simulation
        The plan and its simulation.
    least_seconds
        How short tasks may get, on a device of the machine.
    replicated
        Stages that every device computes for itself.
    """

    plan: Plan
    simulation: Simulation
    least_seconds: float
    replicated: frozenset[int]


def plain(
    program: Program,
    devices: int,
    stage_work: Sequence[float],
    node_bytes: Sequence[int],
    machine: Machine,
    least_seconds: float = LEAST_SECONDS,
    replicated: frozenset[int] = frozenset(),
    switches: Switches = ALL_ON,
) -> Plan:
    """Return the plan for a machine without a search.

    Tasks last as long on its devices as they do on a CPU by default, so that Dask's share stays
    small: faster devices get larger tasks.
    """
    speed = machine.device.speed
    bandwidth, hop = machine.inside.bytes_per_second / speed, machine.hop_seconds * speed
    return make_plan(
        program,
        devices,
        stage_work,
        node_bytes=node_bytes,
        place=Contiguous(bandwidth, hop),
        bandwidth=bandwidth,
        hop_seconds=hop,
        target_seconds=TARGET_SECONDS * speed,
        least_seconds=least_seconds * speed,
        replicated=replicated,
        switches=switches,
    )


def search(
    program: Program,
    devices: int,
    stage_work: Sequence[float],
    node_bytes: Sequence[int],
    machine: Machine,
    within_seconds: float | None = None,
    reserved_bytes: int = 0,
) -> Found:
    """Return the plan that is simulated to end first; of equal ones, that which sends least.

    With a time, the plan that sends least of those that end within it. Plans that fit into the
    memory of the devices come before any that do not.

    Parameters
    ----------
    program, devices, machine
        What runs, on how many devices of which machine.
    stage_work
        Seconds of every stage on a device of speed 1.
    node_bytes
        Size of every node's value.
    within_seconds
        Time that is enough.
    reserved_bytes
        Memory of every device that is taken by keys and weights.
    """
    room = machine.device.memory_bytes - reserved_bytes

    def price(found: Found) -> tuple[bool, float, float]:
        fits = max(found.simulation.peak_bytes) <= room
        seconds, sent = found.simulation.makespan, float(sum(found.simulation.received))
        return not fits, seconds if within_seconds is None else max(seconds, within_seconds), sent

    def attempt(least: float, replicated: frozenset[int]) -> Found:
        plan = plain(program, devices, stage_work, node_bytes, machine, least, replicated)
        simulation = simulate(program, plan, node_bytes, machine)
        return Found(plan, simulation, least, replicated)

    nothing: frozenset[int] = frozenset()
    best = min((attempt(LEAST_SECONDS * f, nothing) for f in FINER), key=price)
    if devices > 1:
        best = min(best, attempt(best.least_seconds, rotating(program)), key=price)
        tried: set[frozenset[int]] = set()
        wanted = candidates(program)
        while wanted:
            if within_seconds is not None:  # the time there is goes to what is sent most
                wanted.sort(key=lambda s: -_bytes_of(program, s, node_bytes))
            for stages in wanted:
                found = attempt(best.least_seconds, best.replicated | stages)
                best = min(best, found, key=price)
            tried.update(wanted)
            # What replicated stages take is then needed whole, and may be replicated too.
            wanted = [s for s in feeding(program, best.replicated) if s not in tried]
        # With less to send it may pay to cut finer, or coarser, than before.
        rest = (LEAST_SECONDS * f for f in FINER)
        best = min((best, *(attempt(least, best.replicated) for least in rest)), key=price)
    return best


def candidates(program: Program) -> list[frozenset[int]]:
    """Return sets of stages to replicate, alike in all layers.

    Those that others need whole, each kind for itself; and chains of such with a single ciphertext
    as their result: replicated together they need no exchange between them. Stages with sums over
    their leading axis are none.
    """
    needed = {
        program.nodes[j].stage
        for stage in program.stages
        for j, whole in program.needed_whole(stage).items()
        if whole
    }
    chains: defaultdict[str, set[int]] = defaultdict(set)
    chain: list[Stage] = []
    alone: list[int] = []

    def end() -> None:
        if len(chain) > 1:
            name = re.sub(r"\d+", "#", "+".join(s.name for s in chain))
            chains[name].update(s.index for s in chain)
        chain.clear()

    for index in sorted(needed):
        stage = program.stages[index]
        if not _can(program, index):
            end()
            continue
        alone.append(index)
        if all(program.nodes[i].shape == () for i in program.results(stage)):
            if chain and chain[-1].index not in {
                program.nodes[j].stage for j in program.arguments(stage)
            }:
                end()
            chain.append(stage)
        else:
            end()
    end()
    return [*(frozenset(stages) for stages in chains.values()), *_alike(program, alone)]


def _bytes_of(program: Program, stages: Collection[int], node_bytes: Sequence[int]) -> int:
    return sum(node_bytes[i] for s in stages for i in program.results(program.stages[s]))


def rotating(program: Program, or_pairing: bool = False) -> frozenset[int]:
    """Return the stages that do nothing but rotate: what they take is a fraction of the result.

    With `or_pairing` those too that only put two ciphertexts into one.
    """

    def only(s: Stage, *kinds: type[Operation]) -> bool:
        return all(isinstance(program.nodes[i].op, kinds) for i in s.nodes)

    return frozenset(
        s.index
        for s in program.stages
        if s.nodes
        and can_be_replicated(program, s)
        and (only(s, Rotations, Pair, Lower) and (or_pairing or not only(s, Pair, Lower)))
    )


def feeding(program: Program, replicated: Collection[int]) -> list[frozenset[int]]:
    """Return sets of stages that replicated ones take something from, alike in all layers."""
    sources = {
        program.nodes[j].stage for i in replicated for j in program.arguments(program.stages[i])
    }
    return _alike(program, [i for i in sorted(sources - set(replicated)) if _can(program, i)])


def _can(program: Program, index: int) -> bool:
    stage = program.stages[index]
    return can_be_replicated(program, stage) and not is_input(program, stage)


def _alike(program: Program, stages: Sequence[int]) -> list[frozenset[int]]:
    """Return the stages in sets of equal names but for numbers."""
    out: defaultdict[str, set[int]] = defaultdict(set)
    for index in stages:
        out[re.sub(r"\d+", "#", program.stages[index].name)].add(index)
    return [frozenset(found) for found in out.values()]
