"""Running programs: whole, by stages, and stages by parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_dask.errors import LevelError, ProgramError
from aegis_dask.program import interpreter
from aegis_dask.program.encrypted import Encrypted
from aegis_dask.program.graph import Capture, Program, capture, stack
from aegis_dask.program.interpreter import run, run_stage
from aegis_dask.program.simulated import Simulated
from tests.arrays import same
from tests.program.machines import (
    SLOTS,
    Matrix,
    Slots,
    Vectors,
    encrypt,
    random_slots,
    run_in_parts,
)
from tests.schemes import Scheme

ROWS = 5
MATRIX = Matrix("w", (ROWS, 2), (ROWS,), 8)
STORE = {"w": np.random.default_rng(1).integers(-2, 3, (ROWS, ROWS, 2, 8)) / 4 + 0j}
VECTORS = Vectors(np.random.default_rng(2).integers(-2, 3, (ROWS, 4)) / 4 + 0j)
SHARED = Vectors(np.random.default_rng(3).integers(-2, 3, (1, SLOTS)) / 4 + 0j, shared=True)


def everything(c: Capture) -> None:
    """Split stages with all that cutting must handle."""
    x, y, s = c.input("x", (ROWS,)), c.input("y", (ROWS, 2)), c.input("s", ())
    with c.stage("maps", over=ROWS):
        a = (x * s).add_plain(VECTORS) + s
        b = y.pair().multiply_plain(SHARED) - a
        ab = stack([a, b]).rotate_sum([1, 0])
    with c.stage("products", over=ROWS):
        m = y.matrix_product(MATRIX).rotate(2)
        squares = stack([m, ab]).sum_of_squares()
        plain = (m + 1).sum()
    with c.stage("needs x whole and by rows", over=ROWS):
        table = stack([x, x, m, m, ab])
        z = x.contract(table).relinearise() + x.conjugate()
    with c.stage("whole"):
        r = squares.relinearise() + plain
    c.output("z", z + r)
    c.output("ab", ab)
    c.output("r", r)


PROGRAM = capture(SLOTS, everything)


def quarters(rng: np.random.Generator, *shape: int) -> Slots:
    """Multiples of 1/4: sums and products of them are exact in any order."""
    return rng.integers(-3, 4, (*shape, SLOTS)) / 4 + 0j


def inputs_of(program: Program, rng: np.random.Generator) -> dict[str, Slots]:
    return {k: quarters(rng, *program.nodes[i].shape) for k, i in program.inputs.items()}


def test_a_program_does_what_its_python_does(rng: np.random.Generator) -> None:
    given = inputs_of(PROGRAM, rng)
    x, y, s = (given[k] for k in "xys")
    a = x * s + np.tile(VECTORS.values, SLOTS // 4) + s
    b = (y[:, 0] + 1j * y[:, 1]) * SHARED.values - a
    ab = np.roll(a, -1, axis=-1) + b
    m = np.roll((np.tile(STORE["w"], SLOTS // 8) * y).sum(axis=(1, 2)), -2, axis=-1)
    r = (m * m + ab * ab).sum(axis=0) + (m + 1).sum(axis=0)
    z = np.stack([(x * np.stack([v[o] for v in (x, x, m, m, ab)])).sum(axis=0) for o in range(5)])
    found = run(PROGRAM, Simulated(), given, STORE)
    np.testing.assert_allclose(found["ab"], ab, atol=1e-12)
    np.testing.assert_allclose(found["r"], r, atol=1e-12)
    np.testing.assert_allclose(found["z"], z + x.conj() + r, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(cuts=st.sets(st.integers(1, ROWS - 1)))
def test_parts_of_stages_are_the_stages(cuts: set[int]) -> None:
    given_slots = inputs_of(PROGRAM, np.random.default_rng(4))
    whole = run(PROGRAM, Simulated(), given_slots, STORE)
    bounds = [0, *sorted(cuts), ROWS]
    found = run_in_parts(PROGRAM, Simulated(), given_slots, STORE, lambda over: bounds)
    for name, i in PROGRAM.outputs.items():
        assert np.array_equal(found[i], whole[name]), name


@settings(
    deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.sets(st.integers(1, ROWS - 1), min_size=1))
def test_parts_of_encrypted_stages_give_the_same_residues(
    schemes: Callable[[str], Scheme], cuts: set[int]
) -> None:
    s = schemes("insecure-n10-d40")
    rng = np.random.default_rng(4)
    given_slots = {k: encrypt(s, v) for k, v in inputs_of(PROGRAM, rng).items()}
    e, bounds = Encrypted(s.evaluator), [0, *sorted(cuts), ROWS]
    whole = run(PROGRAM, e, given_slots, STORE)
    found = run_in_parts(PROGRAM, e, given_slots, STORE, lambda over: bounds)
    for name, i in PROGRAM.outputs.items():
        assert same(found[i].batch.data, whole[name].batch.data), name


def test_a_part_needs_whole_what_an_operation_mixes() -> None:
    names = {i: name for name, i in PROGRAM.inputs.items()}
    stages = {s.name: s for s in PROGRAM.stages}

    def needs(stage: str) -> dict[str, bool]:
        found = PROGRAM.needed_whole(stages[stage]).items()
        return {names[i]: w for i, w in found if i in names}

    assert needs("maps") == {"x": False, "y": False, "s": True}
    assert needs("products") == {"y": True}
    assert needs("needs x whole and by rows") == {"x": True}


@pytest.mark.parametrize("rows", [(0, ROWS + 1), (2, 2), (3, 2), (-1, 2)])
def test_rows_that_a_stage_does_not_have_are_refused(rows: tuple[int, int]) -> None:
    stages = {s.name: s for s in PROGRAM.stages}
    with pytest.raises(ProgramError, match=f"{ROWS} rows to split"):
        run_stage(PROGRAM, stages["maps"], Simulated(), STORE, {}, rows)
    with pytest.raises(ProgramError, match="no rows to split"):
        run_stage(PROGRAM, stages["whole"], Simulated(), STORE, {}, rows)


def test_inputs_must_be_those_of_the_program(rng: np.random.Generator) -> None:
    x = inputs_of(PROGRAM, rng)
    for wrong in ({"x": x["x"]}, {**x, "more": x["x"]}):
        with pytest.raises(ProgramError, match=r"\['s', 'x', 'y'\]"):
            run(PROGRAM, Simulated(), wrong, STORE)
    with pytest.raises(ProgramError, match=r"'y' is an array of \(5, 2\).* given was .*\(5,\)"):
        run(PROGRAM, Simulated(), {**x, "y": x["x"]}, STORE)


@pytest.mark.parametrize("error", [LevelError("no level"), ValueError("anything")])
def test_an_error_carries_the_operation_and_the_stage(
    error: Exception, rng: np.random.Generator
) -> None:
    class Failing(Simulated):
        def sum_of_squares(self, x: Any) -> Any:
            raise error

    with pytest.raises(type(error)) as caught:
        run(PROGRAM, Failing(), inputs_of(PROGRAM, rng), STORE)
    assert caught.value.__notes__ == ["in sumofsquares of stage 'products'"]
    error.__notes__.clear()


def test_values_are_dropped_after_their_last_use(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chain(c: Capture) -> None:
        x = c.input("x", ())
        for _ in range(20):
            x = x + 1
        c.output("y", x)

    held = []
    original = interpreter.run_stage

    def counting(*args: Any) -> Any:
        held.append(len(args[4]))
        return original(*args)

    monkeypatch.setattr(interpreter, "run_stage", counting)
    run(capture(SLOTS, chain), Simulated(), {"x": random_slots(rng, SLOTS)}, {})
    assert len(held) == 21
    assert max(held) == 1
