"""Chains of tasks on one worker become one task each."""

from __future__ import annotations

import numpy as np

from aegis_dask.placement.fuse import fuse
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.tasks import Plan, Task
from tests.runtime.programs import chain, model


def task(index: int, sources: tuple[int, ...], owner: int = 0, kind: str = "stage") -> Task:
    return Task(index, kind, 0, None, sources, (), (index,), owner, index, 1.0)  # type: ignore[arg-type]


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
