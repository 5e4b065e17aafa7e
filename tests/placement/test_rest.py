"""What is left of a program, planned anew for other workers, gives the results of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aegis_dask.placement.devices import MACHINES
from aegis_dask.placement.planner import Planner
from aegis_dask.placement.rest import finished_stages, live_nodes, pieces_of, rest_of
from aegis_dask.placement.search import candidates
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Input
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.checkpoints import Snapshot
from aegis_dask.runtime.graph import make_groups
from aegis_dask.runtime.values import join_rows
from tests.placement.test_tasks import programs, values_of
from tests.runtime.programs import chain, model

Case = tuple[Program, dict[str, NDArray[np.complex128]]]


def reached(program: Program, plan: Plan, values: dict[int, Any], groups: int) -> dict[int, Any]:
    """What the client has fetched when some groups are finished: what later ones take."""
    there = make_groups(program, plan)
    earlier = [g for g in there[:groups] if g.last_use >= groups]
    return {i: values[i] for g in earlier for i in g.wanted}


@settings(max_examples=150, deadline=None)
@given(programs(), st.data())
def test_a_run_goes_on_with_any_number_of_workers_from_any_layer(
    case: Case, data: st.DataObject
) -> None:
    program, inputs = case
    expected = run(program, Simulated(), inputs, {})
    anywhere = frozenset[int]().union(*candidates(program))
    planner = Planner(
        program,
        [1.0] * len(program.stages),
        [1 << 20] * len(program.nodes),
        MACHINES["cpu"] if data.draw(st.booleans()) else None,
        target_seconds=data.draw(st.sampled_from([0.1, 5.0])),
        replicated=data.draw(st.sampled_from([frozenset[int](), anywhere])),
        everywhere=data.draw(st.booleans()),
    )
    given_ = {program.inputs[name]: x for name, x in inputs.items()}
    snapshot = Snapshot()
    snapshot.begin(planner.plan(data.draw(st.integers(1, 4))))
    for _ in range(data.draw(st.integers(1, 3))):  # plans that have to end
        plan = snapshot.plan
        assert plan is not None
        values = values_of(program, plan, given_ | snapshot.known)
        if not plan.tasks:  # the outputs are known already
            break
        groups = data.draw(st.integers(0, len(make_groups(program, plan)) - 1))
        snapshot.update(groups, reached(program, plan, values, groups))
        stages, known = snapshot.finished(program)
        snapshot.begin(planner.plan(data.draw(st.integers(1, 4)), stages), known)
    plan, known = snapshot.plan, given_ | snapshot.known
    assert plan is not None
    values = values_of(program, plan, known)
    for name, node in program.outputs.items():
        pieces = plan.outputs.get(name)
        value = known[node] if pieces is None else join_rows([values[i] for i in pieces])
        assert np.array_equal(value, expected[name])


def test_the_rest_of_everything_is_the_program() -> None:
    program, _ = model()
    rest = rest_of(program, ())
    assert [n.op for n in rest.program.nodes] == [n.op for n in program.nodes]
    assert rest.program.outputs.keys() == program.outputs.keys()
    planner = Planner(program, [1.0] * len(program.stages))
    assert rest.in_whole(planner.plan(2)) == planner.plan(2)


def test_only_what_is_needed_crosses_the_cut() -> None:
    program = chain(8)
    plan = Planner(program, [1.0] * len(program.stages)).plan(2)
    first = make_groups(program, plan)[1].tasks[0]
    finished = finished_stages(program, plan, first)
    assert finished is not None
    assert {program.stages[i].name for i in finished} == {f"layer0/step{i}" for i in range(4)}
    (_, node) = live_nodes(program, finished)
    assert program.stages[program.nodes[node].stage].name == "layer0/step3"
    pieces = pieces_of(program, plan, first, [node])
    assert pieces is not None
    assert [p.rows for p in pieces[node]] == [(0, 2), (2, 4)]
    rest = rest_of(program, finished)
    assert [s.name for s in rest.program.stages if "/" in s.name] == [
        f"layer1/step{i}" for i in range(4, 8)
    ]
    assert [isinstance(n.op, Input) for n in rest.program.nodes[:3]] == [True, True, False]


def test_a_stage_that_is_finished_in_part_is_no_cut() -> None:
    program = chain(2)
    plan = Planner(program, [1.0] * len(program.stages)).plan(2)
    computed = [t.index for t in plan.tasks if t.kind != "input"]
    assert finished_stages(program, plan, computed[0] + 1) is None
