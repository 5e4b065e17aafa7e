"""The simulator on plans whose times can be worked out by hand, and on those of programs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.errors import ClusterError
from aegis_dask.placement.devices import MACHINES, Device, Link, Machine
from aegis_dask.placement.plan import ALL_ON, make_plan
from aegis_dask.placement.predict import peak_bytes, predict
from aegis_dask.placement.simulate import Simulation, simulate
from aegis_dask.placement.tasks import Argument, Plan, Task
from aegis_dask.program.graph import Capture, Program, capture, total
from tests.runtime.programs import model

LINK = Link("a link", 100.0, 0.5)
MACHINE = Machine(Device("a device", 1000, 2.0, 1e9), 8, LINK, LINK, 0.0, 0.25)
"""Speed 2, 100 bytes per second after half a second, a quarter of a second from task to task."""


def chain_program() -> Program:
    def build(c: Capture) -> None:
        x = c.input("x", (2,))
        with c.stage("double"):
            y = x + x
        with c.stage("square"):
            z = y * y
        c.output("y", z)

    return capture(512, build)


def task(index: int, stage: int, node: int, sources: tuple[int, ...], owner: int, s: float) -> Task:
    kind = "input" if not sources else "stage"
    arguments: tuple[Argument, ...] = ()
    return Task(index, kind, stage, None, sources, arguments, (node,), owner, float(stage), s)


def chain(owners: tuple[int, int, int]) -> tuple[Program, Plan]:
    """Input, double (2 s of work), square (4 s of work) on these devices."""
    program = chain_program()
    tasks = [
        task(0, 0, 0, (), owners[0], 0.0),
        task(1, 1, 1, (0,), owners[1], 2.0),
        task(2, 2, 2, (1,), owners[2], 4.0),
    ]
    return program, Plan(tasks, {"y": (2,)}, max(owners) + 1)


SIZES = [50, 200, 10]


def run(owners: tuple[int, int, int], machine: Machine = MACHINE) -> Simulation:
    program, plan = chain(owners)
    return simulate(program, plan, SIZES, machine)


def test_one_device_adds_up_the_work_and_the_hops() -> None:
    found = run((0, 0, 0))
    assert found.makespan == 1.0 + 0.25 + 2.0
    assert found.work == 3.0
    assert found.received == (0,)
    assert found.exposed == (0.0,)
    assert found.peak_bytes == (250,)  # the input and its double


def test_a_transfer_takes_latency_and_bandwidth_and_is_exposed() -> None:
    found = run((0, 0, 1))
    # 1 s, a hop, half a second and 200 bytes at 100 per second, 2 s
    assert found.makespan == pytest.approx(1.0 + 0.25 + 0.5 + 2.0 + 2.0)
    assert found.received == (0, 200)
    assert found.exposed == (0.0, pytest.approx(2.5))
    assert found.peak_bytes == (250, 210)
    assert found.busy == (1.0, 2.0)


def test_links_between_nodes_are_their_own() -> None:
    apart = replace(MACHINE, per_node=1, between=Link("slow", 50.0, 1.0))
    assert run((0, 0, 1), apart).makespan == pytest.approx(1.0 + 0.25 + 1.0 + 4.0 + 2.0)


def test_a_plan_that_waits_for_itself_is_refused() -> None:
    program, plan = chain((0, 0, 0))
    tasks = [plan.tasks[0], replace(plan.tasks[1], sources=(2,)), plan.tasks[2]]
    with pytest.raises(ClusterError, match="2 of 3 tasks wait for each other"):
        simulate(program, replace(plan, tasks=tasks), SIZES, MACHINE)


PROGRAM, _ = model()


@settings(max_examples=25, deadline=None)
@given(
    workers=st.integers(1, 6),
    seconds=st.lists(st.floats(0, 2), min_size=1, max_size=20),
    machine=st.sampled_from(sorted(MACHINES)),
)
def test_what_holds_for_every_plan(workers: int, seconds: list[float], machine: str) -> None:
    work = [seconds[i % len(seconds)] for i in range(len(PROGRAM.stages))]
    sizes = [1 << 20] * len(PROGRAM.nodes)
    plan = make_plan(PROGRAM, workers, work, node_bytes=sizes)
    found = simulate(PROGRAM, plan, sizes, MACHINES[machine])
    again = simulate(PROGRAM, plan, sizes, MACHINES[machine])
    assert again == found  # deterministic
    assert len(found.timeline) == len(plan.tasks)
    tolerance = 1e-9 * (1 + found.makespan)
    assert found.makespan + tolerance >= found.work / workers
    assert found.efficiency <= 1 + 1e-9
    assert sum(found.received) == predict(PROGRAM, plan, sizes).between_workers
    for device in range(workers):
        mine = sorted((i.start, i.stop) for i in found.timeline if i.device == device)
        assert all(a[1] <= b[0] + tolerance for a, b in pairwise(mine))
        idle = found.makespan - found.busy[device]
        assert -tolerance <= found.exposed[device] <= idle + tolerance
        assert found.peak_bytes[device] >= 0
    started = {i.task: i for i in found.timeline}
    for t in plan.tasks:
        for i in t.sources:
            assert started[i].stop <= started[t.index].start + tolerance


def test_one_worker_takes_the_order_that_holds_less() -> None:
    """Of the order of the program, and that in which others would wait least."""

    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        terms = []
        for i in range(4):
            with c.stage(f"wide{i}"):
                wide = x * (i + 1)
            with c.stage(f"narrow{i}"):
                terms.append((wide * wide).sum())
        c.output("y", total(terms))

    program = capture(512, build)
    sizes = [10 * max(1, *n.shape, 1) for n in program.nodes]
    work = [1.0] * len(program.stages)
    apart = replace(ALL_ON, fuses=False)
    in_order = make_plan(
        program, 1, work, node_bytes=sizes, switches=replace(apart, urgent_first=False)
    )
    chosen = make_plan(program, 1, work, node_bytes=sizes, switches=apart)
    peaks = [peak_bytes(program, plan, sizes) for plan in (chosen, in_order)]
    assert peaks[0] <= peaks[1]
    assert peaks[0] == 40 + 40 + 30  # the input, the last wide value, sums of the others


def test_faster_links_never_hurt_a_chain_and_free_ones_hide_it() -> None:
    free = Link("free", 1e18, 0.0)
    found = run((0, 0, 1), replace(MACHINE, inside=free, hop_seconds=0.0))
    assert found.makespan == pytest.approx(found.work)
