"""Units and tasks: every row once, few and coarse, and no more travels than needed."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ClusterError
from aegis_dask.placement.cut import Unit, block_of, is_input, split
from aegis_dask.placement.lowering import FAN_IN, lower
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.strategy import contiguous
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Capture, Program, capture, total
from tests.runtime.programs import SLOTS, chain, model

PROGRAM, _ = model()


def plan_of(program: Program, workers: int, seconds: float, **options: Any) -> Plan:
    return make_plan(program, workers, [seconds] * len(program.stages), **options)


def by_stage(units: list[Unit]) -> dict[int, list[Unit]]:
    out: defaultdict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        out[unit.stage].append(unit)
    return dict(out)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 31])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 7])
def test_blocks_partition_the_rows(rows: int, blocks: int) -> None:
    if blocks <= rows:
        found = [block_of(r, blocks, rows) for r in range(rows)]
        bounds = [b * rows // blocks for b in range(blocks + 1)]
        expected = [b for b in range(blocks) for _ in range(bounds[b], bounds[b + 1])]
        assert found == expected


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("seconds", [0.0, 0.04, 0.3, 5.0])
def test_units_cover_every_row_of_every_stage_once(workers: int, seconds: float) -> None:
    program = PROGRAM
    units = by_stage(split(program, workers, [seconds] * len(program.stages)))
    for stage in program.stages:
        if is_input(program, stage):
            assert stage.index not in units
            continue
        mine = units[stage.index]
        assert sum(u.seconds for u in mine) == pytest.approx(seconds)
        if mine[0].rows is None:
            assert len(mine) == 1
        else:
            rows = [r for u in mine if u.rows for r in range(*u.rows)]
            assert rows == list(range(stage.over or 0))


def test_units_last_about_the_target_and_are_not_too_short() -> None:
    program = chain(1, rows=64)
    (stage,) = [s for s in program.stages if s.over == 64]

    def units(seconds: float, workers: int) -> list[Unit]:
        work = [0.0] * len(program.stages)
        work[stage.index] = seconds
        return split(program, workers, work)

    assert len(units(16.0, 2)) == 32  # half a second each
    assert len(units(0.8, 4)) == 4  # one each: 0.2 s
    assert len(units(0.1, 4)) == 2  # more would last less than 50 ms
    assert len(units(0.01, 4)) == 1
    assert {u.block for u in units(16.0, 2)} == {0, 1}


def test_rows_that_are_spread_stay_where_they_are() -> None:
    """Light stages after a heavy one are split as it is; nothing travels."""
    program = chain(5, rows=8)
    work = [0.0] * len(program.stages)
    work[1] = 2.0
    units = split(program, 4, work)
    owners = contiguous(program, units, 4, [1] * len(program.nodes))
    plan = lower(program, units, owners, 4)
    assert not any(t.kind in ("join", "pick", "sum") for t in plan.tasks)
    assert all(plan.tasks[i].owner == t.owner for t in plan.tasks for i in t.sources)


def test_sibling_stages_are_dealt_and_a_lone_stage_goes_to_its_arguments() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        parts = []
        for g in range(8):
            with c.stage(f"giant{g}"):
                parts.append(x.rotate(g + 1))
        with c.stage("lone"):
            y = parts[5].sum() * 2
        c.output("y", y)
        for g, p in enumerate(parts):
            c.output(f"p{g}", p)

    program = capture(SLOTS, build)
    units = split(program, 4, [1.0] * len(program.stages))
    owners = contiguous(program, units, 4, [1 << 20] * len(program.nodes))
    assert Counter(owners[:8]) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert owners[8] == owners[5]


def test_sums_over_workers_send_one_value_per_worker() -> None:
    """32 values on 4 workers, added: each worker sends every other one its part of the sum."""

    def build(c: Capture) -> None:
        x = c.input("x", (8,))
        parts = []
        for g in range(32):
            with c.stage(f"giant{g}"):
                parts.append(x.rotate(g + 1))
        c.output("y", total(parts))

    program = capture(SLOTS, build)
    plan = plan_of(program, 4, 1.0)
    tasks = plan.tasks
    last = [tasks[i] for i in plan.outputs["y"]]
    assert [t.rows for t in last if t.rows and t.rows[0] == 2 * t.owner] == [
        (0, 2),
        (2, 4),
        (4, 6),
        (6, 8),
    ] or len(last) == 8
    crossing = [(tasks[i], t) for t in tasks for i in t.sources if tasks[i].owner != t.owner]
    assert len(crossing) == 3 * len(last)
    assert all(source.kind == "sum" and source.rows == t.rows for source, t in crossing)
    assert all(len(t.arguments) <= FAN_IN + 3 for t in tasks)
    # Sums are to run as soon as their terms are there, before later terms.
    first = min((t for t in tasks if t.kind == "sum"), key=lambda t: t.index)
    assert first.rank < max(t.rank for t in tasks if t.kind == "stage")


def test_a_partial_sum_that_several_tasks_need_is_put_together_once() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (8,))
        with c.stage("square", over=8):
            y = x * 2
            q = y.sum_of_squares()
        with c.stage("scale", over=8):
            z = (y + q).relinearise()
        c.output("z", z)

    plan = plan_of(capture(SLOTS, build), 2, 4.0)
    sums = [t for t in plan.tasks if t.kind == "sum"]
    # On each worker four parts; then the two workers' sums.
    assert [len(t.arguments) for t in sums] == [4, 4, 2]
    users = [t for t in plan.tasks if t.kind == "stage" and sums[-1].index in t.sources]
    assert len(users) == 8


def test_values_of_several_levels_are_added_in_the_order_of_the_program() -> None:
    """Bringing a value to another level rounds: there the order of a sum matters."""

    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        parts = []
        for g in range(8):
            with c.stage(f"giant{g}"):
                parts.append(x.rotate(g + 1) if g else x * 0.5)
        c.output("y", total(parts))

    plan = plan_of(capture(SLOTS, build), 4, 1.0)
    assert not [t for t in plan.tasks if t.kind == "sum"]


def test_another_worker_fetches_only_the_result_and_the_rows_it_needs() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        with c.stage("two"):
            y, z = x.rotate(1), x.rotate(2)
        with c.stage("use", over=4):
            u = y * 2
        c.output("u", u)
        c.output("z", z)

    program = capture(SLOTS, build)
    plan = plan_of(program, 2, 1.0)
    tasks = plan.tasks
    crossing = [tasks[i] for t in tasks for i in t.sources if tasks[i].owner != t.owner]
    assert [(t.kind, t.rows) for t in crossing] == [("pick", (2, 4)), ("pick", (2, 4))] or (
        {(t.kind, t.rows) for t in crossing} == {("pick", (2, 4))}
    )
    y = next(n.id for n in program.nodes if program.consumers[n.id] and n.stage == 1)
    assert all(t.results == (y,) for t in crossing)
    # The caller, too, gets one result and not both.
    assert [tasks[i].kind for i in plan.outputs["z"]] == ["pick"]


def test_inputs_are_sent_in_rows_where_rows_are_needed() -> None:
    plan = plan_of(chain(1, rows=8), 4, 1.0)
    sent = [(t.owner, t.rows) for t in plan.tasks if t.kind == "input"]
    assert sent == [(w, (2 * w, 2 * w + 2)) for w in range(4)]


def test_sources_come_first_and_every_rank_follows_its_sources() -> None:
    for workers in (1, 2, 3, 4):
        plan = plan_of(PROGRAM, workers, 1.0)
        for t in plan.tasks:
            assert all(i < t.index and plan.tasks[i].rank <= t.rank for i in t.sources)
            for part in t.steps:
                takes = [take for a in part.task.arguments for take in a.takes]
                assert all(0 <= take.source < len(part.takes) for take in takes)
                assert all(-1 <= i < len(t.sources) for i in part.takes)


def test_wrong_arguments_are_refused() -> None:
    work = [1.0] * len(PROGRAM.stages)
    with pytest.raises(ClusterError, match="cannot cut a program for 0 workers"):
        split(PROGRAM, 0, work)
    with pytest.raises(ClusterError, match="one estimate per stage"):
        split(PROGRAM, 2, work[:-1])
    assert np.isfinite(sum(u.seconds for u in split(PROGRAM, 2, work)))


def test_sums_are_cut_into_slices_and_nothing_else_is() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (8,))
        terms = []
        for g in range(4):
            with c.stage(f"term{g}"):
                terms.append(x.rotate(g + 1))
        with c.stage("sum", over=8):
            y = total(terms)
        with c.stage("scaled", over=8):
            c.output("y", y * 2)

    program = capture(512, build)
    work = [1.0] * len(program.stages)
    plain, cut = (split(program, 2, work, 5.0, slices=k) for k in (1, 3))
    rows = {u.rows for u in cut if program.stages[u.stage].name == "sum"}
    assert rows == {(0, 1), (1, 2), (2, 4), (4, 5), (5, 6), (6, 8)}
    others = [[u for u in units if program.stages[u.stage].name != "sum"] for units in (plain, cut)]
    assert others[0] == others[1]
