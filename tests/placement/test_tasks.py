"""Tasks run in this process, as workers run them: the results of the program, in any cut."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aegis_dask.errors import ClusterError
from aegis_dask.placement.cut import split
from aegis_dask.placement.lowering import lower
from aegis_dask.placement.plan import Switches, make_plan
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Capture, EncryptedTensor, Program, capture, stack, total
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Input, Sum
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.context import Context
from aegis_dask.runtime.values import join_rows, rows_of
from aegis_dask.runtime.worker import RunSpec, RunState, TaskError, run_task

SLOTS = 4


class Worker:
    """What a task needs of a worker."""

    def __init__(self, address: str) -> None:
        self.address = self.name = address
        self.events: list[Any] = []

    def log_event(self, topic: str, message: Any) -> None:
        self.events.append(message)


def state_of(program: Program, plan: Plan) -> RunState:
    addresses = tuple(f"w{i}" for i in range(plan.workers))
    spec = RunSpec("r", "c", program, plan.tasks, "simulated", addresses)
    return RunState(spec, Context(), threading.Lock(), None)


def run_tasks(program: Program, plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run the tasks of a plan one after the other; return the outputs."""
    values = values_of(program, plan, {program.inputs[name]: x for name, x in inputs.items()})
    return {n: join_rows([values[i] for i in tasks]) for n, tasks in plan.outputs.items()}


def values_of(program: Program, plan: Plan, known: Mapping[int, Any]) -> dict[int, Any]:
    """Return what every task gives; a task has what its sources gave, inputs are known."""
    state = state_of(program, plan)
    values: dict[int, Any] = {}
    for task in plan.tasks:
        if task.kind == "input":
            value = known[task.results[0]]
            values[task.index] = value if task.rows is None else rows_of(value, *task.rows)
            continue
        given = [values[i] for i in task.sources]
        worker = Worker(f"w{task.owner}")
        values[task.index] = state.run(task.index, given, worker)
        assert [e["task"] for e in worker.events] == [task.index]
    return values


@st.composite
def programs(draw: st.DrawFn) -> tuple[Program, dict[str, NDArray[np.complex128]]]:
    """Random programs: stages of one to three operations on arrays of 1 to 5 rows and singles."""
    rows = draw(st.integers(1, 5))

    def build(c: Capture) -> None:
        arrays: list[EncryptedTensor] = [c.input("x", (rows,)), c.input("y", (rows,))]
        singles: list[EncryptedTensor] = [c.input("z", ())]
        made: list[EncryptedTensor] = []
        for i in range(draw(st.integers(2, 8))):
            with c.scope(f"layer{i // 3}"):
                kind = draw(st.sampled_from(["rows", "whole", "total", "single"]))
                if kind == "total":
                    pool = arrays if draw(st.booleans()) else singles
                    terms = [draw(st.sampled_from(pool)) for _ in range(draw(st.integers(2, 12)))]
                    pool.append(total(terms))
                    made.append(pool[-1])
                    continue
                over = rows if kind == "rows" else None
                new: list[EncryptedTensor] = []
                single: list[EncryptedTensor] = []
                local = list(arrays)
                with c.stage(f"stage{i}", over=over):
                    for _ in range(draw(st.integers(1, 3))):
                        a, b = draw(st.sampled_from(local)), draw(st.sampled_from(local))
                        how = draw(st.sampled_from(["add", "sub", "rotate", "spread", "sum"]))
                        if kind == "single" or how == "spread":
                            a = a + draw(st.sampled_from(singles))
                        if how == "sum":
                            single.append(a.sum())
                            continue
                        new.append({"sub": a - b, "rotate": a.rotate(1)}.get(how, a + b * 2))
                        local.append(new[-1])
                arrays += new
                singles += single
                made += [*new, *single]
        if not made:
            made.append(arrays[0] + arrays[1])
        chosen = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3))
        for k, tensor in enumerate(chosen):
            c.output(f"out{k}", tensor)

    program = capture(SLOTS, build)
    rng = np.random.default_rng(0)
    shapes = {"x": (rows,), "y": (rows,), "z": ()}
    return program, {n: rng.integers(-3, 4, (*s, SLOTS)) + 0j for n, s in shapes.items()}


@settings(max_examples=150, deadline=None)
@given(programs(), st.integers(1, 4), st.sampled_from([0.1, 0.4, 5.0]), st.data())
def test_any_cut_and_any_placement_give_the_result_of_the_program(
    case: tuple[Program, dict[str, NDArray[np.complex128]]],
    workers: int,
    target: float,
    data: st.DataObject,
) -> None:
    program, inputs = case
    expected = run(program, Simulated(), inputs, {})
    work = [1.0] * len(program.stages)
    units = split(program, workers, work, target)
    anywhere = [data.draw(st.integers(0, workers - 1)) for _ in units]
    off = Switches(*(data.draw(st.booleans()) for _ in range(4)), data.draw(st.integers(1, 3)))
    for plan in (
        make_plan(program, workers, work, target_seconds=target),
        make_plan(program, workers, work, target_seconds=target, switches=off),
        lower(program, units, anywhere, workers),
    ):
        found = run_tasks(program, plan, inputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert np.array_equal(found[name], value)


def simple() -> tuple[Program, Plan]:
    def build(c: Capture) -> None:
        x = c.input("x", (2,))
        with c.stage("first"):
            y = stack([x, x]).flatten()
        c.output("y", y.sum())

    program = capture(SLOTS, build)
    assert isinstance(program.nodes[0].op, Input)
    assert isinstance(program.nodes[-1].op, Sum)
    return program, make_plan(program, 2, [1.0] * len(program.stages))


def test_a_task_on_a_worker_that_it_is_not_placed_on_fails() -> None:
    program, plan = simple()
    task = next(t for t in plan.tasks if t.kind == "stage")
    state = state_of(program, plan)
    x = np.ones((2, SLOTS)) + 0j
    with pytest.raises(TaskError, match="placed on w0 and was started on w1") as caught:
        state.run(task.index, [x], Worker("w1"))
    assert isinstance(caught.value.error, ClusterError)
    assert not state.active
    assert not state.report.records


def test_a_task_of_a_cancelled_run_fails_at_once() -> None:
    program, plan = simple()
    task = next(t for t in plan.tasks if t.kind == "stage")
    state = state_of(program, plan)
    state.is_cancelled = True
    with pytest.raises(TaskError, match="was cancelled"):
        state.run(task.index, [None], Worker("w0"))


def test_an_error_that_cannot_be_pickled_still_says_what_it_was() -> None:
    program, plan = simple()

    class Local(Exception):  # noqa: N818
        pass

    def broken(context: Context) -> Any:
        raise Local("of this function only")

    addresses = ("w0", "w1")
    spec = RunSpec("r", "c", program, plan.tasks, broken, addresses)
    state = RunState(spec, Context(), threading.Lock(), None)
    task = next(t for t in plan.tasks if t.kind == "stage")
    with pytest.raises(TaskError, match="Local: of this function only") as caught:
        state.run(task.index, [None], Worker("w0"))
    assert type(caught.value.error) is ClusterError


def test_a_worker_that_does_not_know_the_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(Worker):
        plugins: dict[str, Any] = {}  # noqa: RUF012

    monkeypatch.setattr("aegis_dask.runtime.worker.get_worker", lambda: Bare("tcp://w:1"))
    with pytest.raises(ClusterError, match="tcp://w:1 does not know run abc"):
        run_task("abc", 0)
