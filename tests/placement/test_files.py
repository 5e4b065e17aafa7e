"""Plans on disk, and what holds for every plan."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_dask.errors import ClusterError, SerializationError
from aegis_dask.placement.cut import LEAST_SECONDS
from aegis_dask.placement.devices import GIB, MACHINES
from aegis_dask.placement.files import (
    check_plan,
    fingerprint,
    plan_from_dict,
    plan_to_dict,
    read_plan,
    write_plan,
)
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.search import FINER, candidates, plain, search
from aegis_dask.placement.simulate import simulate
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program
from tests.placement.test_tasks import programs
from tests.runtime.programs import chain, model

PROGRAM = model()[0]
Drawn = tuple[Program, Any]


def plan_for(
    program: Program, workers: int, least: float, target: float, everywhere: bool, alike: bool
) -> Plan:
    copies = frozenset[int]().union(*candidates(program)) if alike else frozenset[int]()
    work = [0.1 * (1 + i % 4) for i in range(len(program.stages))]
    return make_plan(
        program,
        workers,
        work,
        least_seconds=least,
        target_seconds=target,
        everywhere=everywhere,
        replicated=copies,
    )


def holds(program: Program, plan: Plan) -> None:
    """Every task has a device, sources come first, outputs are there, and it is saved whole."""
    for index, task in enumerate(plan.tasks):
        assert task.index == index
        assert 0 <= task.owner < plan.workers
        assert all(0 <= i < index for i in task.sources)
        for part in task.steps:
            used = {take.source for a in part.task.arguments for take in a.takes}
            assert used == set(range(len(part.takes)))
    reached = {i for pieces in plan.outputs.values() for i in pieces} | set(plan.kept)
    for task in reversed(plan.tasks):  # all that is computed is for something
        assert task.index in reached
        reached.update(task.sources)
    check_plan(plan, program, plan.workers)
    text = json.dumps(plan_to_dict(plan), allow_nan=False)
    assert plan_from_dict(json.loads(text)) == plan


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    drawn=programs(),
    workers=st.integers(1, 5),
    least=st.sampled_from([0.0, 0.05, 1.0]),
    target=st.sampled_from([0.02, 0.5]),
    everywhere=st.booleans(),
    alike=st.booleans(),
)
def test_every_plan_is_sound_and_reloads_equal(
    drawn: Drawn, workers: int, least: float, target: float, everywhere: bool, alike: bool
) -> None:
    program = drawn[0]
    holds(program, plan_for(program, workers, least, target, everywhere, alike))


@settings(max_examples=40, deadline=None)
@given(
    drawn=programs(),
    devices=st.integers(1, 4),
    memory=st.integers(1, 60),
)
def test_the_search_keeps_the_memory_limit_where_it_can(
    drawn: Drawn, devices: int, memory: int
) -> None:
    """A plan that exceeds it is returned only if none that was tried keeps it."""
    program = drawn[0]
    work = [1.0 + i % 3 for i in range(len(program.stages))]
    sizes = [1 << 20] * len(program.nodes)
    device = replace(MACHINES["cpu"].device, memory_bytes=memory << 20)
    small = replace(MACHINES["cpu"], device=device)
    large = replace(small, device=replace(device, memory_bytes=GIB << 10))
    found = search(program, devices, work, sizes, small)
    holds(program, found.plan)
    assert search(program, devices, work, sizes, small) == found
    others = [search(program, devices, work, sizes, large).simulation]
    others += [simulate(program, p, sizes, small) for p in (
        plain(program, devices, work, sizes, small, LEAST_SECONDS * f) for f in FINER
    )]  # fmt: skip
    if any(max(o.peak_bytes) <= device.memory_bytes for o in others):
        assert max(found.simulation.peak_bytes) <= device.memory_bytes


@pytest.fixture
def plan() -> Plan:
    return plan_for(PROGRAM, 3, 0.0, 0.5, False, False)


def test_equal_plans_are_equal_files(plan: Plan, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_plan(first, plan, PROGRAM, {"tokens": 32})
    write_plan(second, deepcopy(plan), model()[0], {"tokens": 32})
    assert first.read_bytes() == second.read_bytes()
    saved = read_plan(first)
    assert saved.plan == plan
    assert saved.about == {"tokens": 32}
    saved.check(PROGRAM, 3)


def test_a_plan_is_for_one_program_and_number_of_workers(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, plan, PROGRAM)
    saved = read_plan(path)
    with pytest.raises(ClusterError, match="for 3 workers, there are 2: give --workers 3"):
        saved.check(PROGRAM, 2)
    with pytest.raises(ClusterError, match="for another program"):
        saved.check(model(giants=7)[0], 3)
    assert fingerprint(PROGRAM) != fingerprint(chain(3))
    with pytest.raises(ClusterError, match="the plan gives the outputs"):
        check_plan(plan, chain(3), 3)


BREAKS: dict[str, tuple[Any, str]] = {
    "no tasks": (lambda d: d.pop("tasks"), "has no 'tasks'"),
    "no workers": (lambda d: d.update(workers=0), "'workers' .* at least 1"),
    "truth as number": (lambda d: d.update(workers=True), "'workers'"),
    "owner": (lambda d: d["tasks"][0].update(owner=3), "'owner' of task 0 must .* below 3"),
    "sources after": (lambda d: d["tasks"][0].update(sources=[0]), "task 0 takes something"),
    "kind": (lambda d: d["tasks"][0].update(kind=["x"]), "'kind' of task 0"),
    "rows": (lambda d: d["tasks"][0].update(rows=[2, 1]), "'rows' of task 0"),
    "rank": (lambda d: d["tasks"][0].update(rank="soon"), "'rank' of task 0 must be a number"),
    "infinite": (lambda d: d["tasks"][0].update(seconds=float("inf")), "'seconds'"),
    "negative": (lambda d: d["tasks"][0].update(seconds=-1), "'seconds'"),
    "slot": (
        lambda d: d["tasks"][-1]["arguments"][0]["takes"][0].update(slot=7),
        "takes result 7 of one that gives",
    ),
    "take": (
        lambda d: d["tasks"][-1]["arguments"][0]["takes"][0].update(source=99),
        "'source' of an argument",
    ),
    "outputs": (lambda d: d["outputs"].update(y=[10**6]), "'y' of outputs"),
    "text": (lambda d: d.update(tasks="many"), "'tasks' of the plan must be a list"),
    "task": (lambda d: d["tasks"].append(3), "must be an object"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_damaged_plans_are_refused(plan: Plan, what: str) -> None:
    data = plan_to_dict(plan)
    change, message = BREAKS[what]
    change(data)
    with pytest.raises(SerializationError, match=message):
        plan_from_dict(data)


def test_damaged_files_are_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(SerializationError, match="cannot be read: No such file"):
        read_plan(path)
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "has no 'format'"),
        ('{"format": "x"}', "'aegis plan --out FILE' writes one"),
        ('{"format": "aegis-plan", "version": 99}', "of version 99, this library reads 2"),
    ):
        path.write_text(text)
        with pytest.raises(SerializationError, match=message):
            read_plan(path)
    with pytest.raises(SerializationError, match="cannot be written"):
        write_plan(tmp_path / "no" / "plan.json", plan, PROGRAM)


def test_plans_for_other_stages_are_refused(plan: Plan) -> None:
    task = next(t for t in plan.tasks if t.kind == "stage")

    def changed(**fields: Any) -> Plan:
        tasks = [replace(t, **fields) if t is task else t for t in plan.tasks]
        return replace(plan, tasks=tasks)

    for fields, message in (
        ({"stage": 10**6}, "a stage or a value that the program does not have"),
        ({"results": (0,)}, "does not give the results of stage"),
        ({"arguments": ()}, "does not take the arguments of stage"),
        ({"rows": (0, 10**6)}, "gives rows"),
        ({"kind": "round"}, "use Executor.run_by_limbs"),
    ):
        with pytest.raises(ClusterError, match=message):
            check_plan(changed(**{"parts": (), **fields}), PROGRAM, 3)
