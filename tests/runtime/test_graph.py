"""Keys that people can read, pins on every task, groups that the scheduler can swallow."""

from __future__ import annotations

import pickle

import pytest
from dask.utils import key_split

from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program
from aegis_dask.runtime.graph import (
    GROUP_TASKS,
    make_graph,
    make_groups,
    make_keys,
    make_ranks,
    words_of,
)
from tests.runtime.programs import chain, model

PROGRAM, _ = model()


def plan_of(program: Program, workers: int = 2) -> Plan:
    return make_plan(program, workers, [1.0] * len(program.stages))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("layer0/attention/giant3", "layer0-attention-giant"),
        ("layer11/ffn/up_2", "layer11-ffn-up"),
        ("add", "add"),
        ("3/x", "x3-x"),
        ("pool/T_16/w", "pool-T-w"),
    ],
)
def test_the_prefix_that_dask_shows_names_the_stage(stage: str, words: str) -> None:
    assert words_of(stage) == words
    assert key_split((f"{words}-12-abcdefab", 3)) == words


def test_keys_are_unique_and_differ_from_run_to_run() -> None:
    plan = plan_of(PROGRAM)
    one, two = (make_keys(PROGRAM, plan.tasks, token) for token in ("0a1b2c3d", "deadbeef"))
    assert len(set(one)) == len(one)
    assert not set(one) & set(two)


def test_every_task_is_pinned_to_the_address_of_its_owner() -> None:
    plan = plan_of(PROGRAM)
    keys, ranks = make_keys(PROGRAM, plan.tasks, "t"), make_ranks(plan.tasks)
    addresses = ["tcp://a:1", "tcp://b:2"]
    seen = 0
    for group in make_groups(PROGRAM, plan):
        graph = make_graph(PROGRAM, plan, group, keys, ranks, addresses, "t")
        graph.validate()
        for layer in graph.layers.values():
            annotations = pickle.loads(pickle.dumps(layer.annotations))
            for key in layer:
                task = plan.tasks[keys.index(key)]
                assert annotations["workers"](key) == [addresses[task.owner]]
                assert annotations["priority"](key) == -ranks[task.index]
                about = annotations["aegis"](key)
                assert about["task"] == task.index
                assert about["operator"].startswith(about["layer"])
                seen += 1
    assert seen == sum(t.kind != "input" for t in plan.tasks)


def test_groups_are_layers_and_not_too_large() -> None:
    plan = plan_of(PROGRAM)
    assert [g.name for g in make_groups(PROGRAM, plan)] == ["layer0", "layer1"]
    program = chain(400, rows=32)
    plan = plan_of(program, 8)
    groups = make_groups(program, plan, most=100)
    sizes = [g.tasks[1] - g.tasks[0] for g in groups]
    assert max(sizes) <= 100 < GROUP_TASKS
    assert sum(sizes) == len(plan.tasks)
    assert groups[-1].wanted == plan.outputs["y"]
    for g, group in enumerate(groups[:-1]):
        assert group.wanted
        assert group.last_use > g
