"""Chains and groups of tasks on one worker become one task each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aegis_dask.placement.fuse import fuse
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.predict import result_bytes, working_bytes
from aegis_dask.placement.tasks import Argument, Plan, Take, Task
from tests.runtime.programs import chain, model


def task(index: int, sources: tuple[int, ...], owner: int = 0, kind: str = "stage") -> Task:
    return Task(index, kind, 0, None, sources, (), (index,), owner, index, 1.0)  # type: ignore[arg-type]


def taking(index: int, sources: tuple[int, ...], owner: int = 0, kind: str = "stage") -> Task:
    arguments = tuple(Argument(i, (Take(k),)) for k, i in enumerate(sources))
    return replace(task(index, sources, owner, kind), arguments=arguments)


def shape(plan: Plan) -> list[tuple[int, ...]]:
    """Results of the parts of every task."""
    return [tuple(p.task.results[0] for p in t.steps) for t in plan.tasks]


def fused(*tasks: Task, output: int = -1) -> Plan:
    last = len(tasks) - 1 if output < 0 else output
    return fuse(Plan(list(tasks), {"y": (last,)}, 2))


def test_a_chain_is_one_task() -> None:
    plan = fused(task(0, (), kind="input"), task(1, (0,)), task(2, (1,)), task(3, (2, 0)))
    assert shape(plan) == [(0,), (1, 2, 3)]
    (last,) = plan.tasks[1:]
    assert last.sources == (0,)
    assert [p.takes for p in last.parts] == [(0,), (-1,), (-1, 0)]
    assert last.seconds == 3.0
    assert plan.outputs == {"y": (1,)}


def test_what_others_take_or_wait_for_stays_apart() -> None:
    # 1 has two users; 4 is on another worker; 3 would wait for it.
    plan = fused(
        task(0, ()),
        task(1, (0,)),
        task(2, (1,)),
        task(3, (1,), owner=1),
        task(4, (2, 3)),
    )
    assert shape(plan) == [(0, 1), (2,), (3,), (4,)]
    assert shape(fused(task(0, ()), task(1, (0,)), output=0)) == [(0,), (1,)]
    assert shape(fused(task(0, ()), task(1, (0,), kind="pick"))) == [(0,), (1,)]


def grouped(*tasks: Task, seconds: float, workers: int = 2, output: int = -1) -> Plan:
    last = len(tasks) - 1 if output < 0 else output
    return fuse(Plan(list(tasks), {"y": (last,)}, workers), target_seconds=seconds)


DIAMOND = (
    task(0, (), kind="input"),
    taking(1, (0,)),
    taking(2, (1,)),
    taking(3, (1,)),
    taking(4, (2, 3)),
    taking(5, (4, 1)),
    taking(6, (5,), kind="pick"),
)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.0, [(0,), (1,), (2,), (3,), (4, 5), (6,)]),  # the last two follow each other
        (2.0, [(0,), (1, 2), (3,), (4, 5), (6,)]),
        (4.0, [(0,), (1, 2, 3), (4, 5), (6,)]),
        (5.0, [(0,), (1, 2, 3, 4, 5), (6,)]),
    ],
)
def test_short_tasks_become_groups(seconds: float, expected: list[tuple[int, ...]]) -> None:
    for workers in (1, 2):
        assert shape(grouped(*DIAMOND, seconds=seconds, workers=workers)) == expected


def test_a_group_gives_what_others_take() -> None:
    plan = grouped(*DIAMOND, seconds=2.0)
    first, second, third = plan.tasks[1:4]
    assert first.results == (1, 2)
    assert first.given == [(1, None), (2, None)]
    assert [p.takes for p in first.parts] == [(0,), (-1,)]
    assert [p.gives for p in first.parts] == [(0,), (0,)]
    assert first.seconds == 2.0
    assert second.sources == (1,)
    assert second.arguments[0].takes == (Take(0, 0),)
    assert third.sources == (1, 2)
    assert [p.takes for p in third.parts] == [(0, 1), (-1, 0)]
    assert [a.takes for a in third.parts[0].task.arguments] == [(Take(0, 1),), (Take(1),)]
    assert [a.takes for a in third.parts[1].task.arguments] == [(Take(0),), (Take(1, 0),)]
    (whole,) = [t for t in grouped(*DIAMOND, seconds=5.0).tasks if t.parts]
    assert whole.results == (5,)
    assert [p.takes for p in whole.parts] == [(0,), (-1,), (-2,), (-2, -1), (-1, -4)]


def test_what_a_group_holds_is_counted() -> None:
    program = chain(12)
    (whole,) = (t for t in grouped(*DIAMOND, seconds=5.0).tasks if t.parts)
    sizes = [0, 1, 10, 100, 1000, 10000, 0, 0]
    # 1 with 2 and 3, then with 4; 5 takes 4 and 1.
    assert working_bytes(program, whole, sizes) == 10000 + 1000 + 1
    assert working_bytes(program, whole, [0, 1, 10, 100, 1000, 0, 0, 0]) == 1111
    first = grouped(*DIAMOND, seconds=2.0).tasks[1]  # gives both of its values
    assert working_bytes(program, first, sizes) == result_bytes(program, first, sizes) == 11


def test_groups_keep_nobody_waiting() -> None:
    # 2 waits for another worker, 3 for nobody; 4 is fetched, 5 is in another layer.
    waits = (
        taking(0, ()),
        taking(1, (), owner=1),
        taking(2, (0, 1)),
        taking(3, (0,)),
        taking(4, (3,)),
        taking(5, (4,), owner=1),
        taking(6, (2, 3, 4)),
        taking(7, (2, 5, 6), kind="pick"),
    )
    assert shape(grouped(*waits, seconds=9.0)) == [(0,), (1,), (2,), (3,), (4,), (5,), (6,), (7,)]
    layers = ["a"] * 4 + ["b"] * 3
    plan = Plan([replace(t, stage=t.index) for t in DIAMOND], {"y": (6,)}, 1)
    assert shape(fuse(plan, layers, 9.0)) == [(0,), (1, 2, 3), (4, 5), (6,)]


def test_one_worker_waits_for_nobody_else() -> None:
    """What it has done before a group is there, though the group's first task did not need it."""
    tasks = (
        taking(0, ()),
        taking(1, ()),
        taking(2, ()),
        taking(3, (0, 2)),
        taking(4, (1, 3), kind="pick"),
    )
    assert shape(grouped(*tasks, seconds=2.0, workers=1)) == [(0, 1), (2, 3), (4,)]
    assert shape(grouped(*tasks, seconds=2.0, workers=2)) == [(0, 1), (2,), (3,), (4,)]


def test_rows_that_stay_where_they_are_take_one_task_each() -> None:
    program = chain(12)
    plan = make_plan(program, 2, [0.1] * len(program.stages), least_seconds=0.0)
    # Three layers of four stages, on two workers.
    assert [len(t.parts) for t in plan.tasks if t.kind == "stage"] == [4] * 6
    assert fuse(plan) == plan


def test_nothing_is_lost() -> None:
    program, workers = model()[0], 3
    work = np.linspace(0.1, 1.0, len(program.stages)).tolist()
    plan = make_plan(program, workers, work)
    parts = [p.task for t in plan.tasks for p in t.steps]
    assert len({(t.kind, t.stage, t.rows, t.owner, t.results) for t in parts}) == len(parts)
    seconds = sum(p.seconds for p in parts)
    assert np.isclose(seconds, sum(t.seconds for t in plan.tasks))
