"""Every operation on ciphertexts, at random levels, against the simulated one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import EncodingError, ProgramError
from aegis_dask.program import operations
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, Program, capture, concatenate, stack, total
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from tests.arrays import same
from tests.program.machines import (
    SLOTS,
    Matrix,
    Vectors,
    decrypt,
    encrypt,
    random_slots,
    run_encrypted,
    worst_bits,
)
from tests.schemes import Scheme

NAME = "insecure-n10-d40"
BITS = 25.0
"""Correct bits after the point: encryption, products and key switches at scale 2^40 and N = 2^10
leave 29 in the worst of 512 slots, sums of up to 16 of them 27.
"""
FIXED = np.random.default_rng(5)
PERIODIC = Vectors(random_slots(FIXED, 4, 2, 8))
ROWS = Vectors(random_slots(FIXED, 4, 16))
LONG = Vectors(random_slots(FIXED, 4, SLOTS))
SHARED = Vectors(random_slots(FIXED, 1, 4), shared=True)
SHARED_LONG = Vectors(random_slots(FIXED, 1, SLOTS), shared=True)
MATRIX = Matrix("w", (4, 2), (3, 2), 8)
STORE = {"w": random_slots(FIXED, 3, 2, 4, 2, 8)}

# name -> (shapes of the inputs, function)
OPERATIONS: dict[str, tuple[tuple[tuple[int, ...], ...], Callable[..., Any]]] = {
    "add": (((3,), (3,)), lambda x, y: x + y),
    "add one to many": (((), (2, 2)), lambda x, y: x + y),
    "add many to one": (((2, 2), ()), lambda x, y: x + y),
    "subtract": (((3,), (3,)), lambda x, y: x - y),
    "subtract many from one": (((), (3,)), lambda x, y: x - y),
    "subtract one from many": (((3,), ()), lambda x, y: x - y),
    "total": (((2,), (2,)), lambda x, y: total([x, y, x])),
    "negate": (((2,),), lambda x: -x),
    "times i": (((2,),), lambda x: x.times_i() + x.times_i(3).times_i(3)),
    "add constant": (((2,),), lambda x: 0.25 - x + (1 - 2j)),
    "multiply by an integer": (((2,),), lambda x: x * -3),
    "multiply by zero": (((2,),), lambda x: x * 0),
    "multiply by a constant": (((2,),), lambda x: x * (0.3 - 0.4j)),
    "add vectors": (((4,),), lambda x: x.add_plain(ROWS)),
    "add vectors to pairs": (((4, 2),), lambda x: x.add_plain(PERIODIC)),
    "add one vector per pair": (((4, 2),), lambda x: x.add_plain(ROWS)),
    "add long vectors to triples": (((4, 2, 3),), lambda x: x.add_plain(LONG)),
    "add one vector per row and pair": (((4, 2, 2),), lambda x: x.add_plain(PERIODIC)),
    "add a shared vector": (((3,),), lambda x: x.add_plain(SHARED)),
    "add a shared vector to pairs": (((3, 2),), lambda x: x.add_plain(SHARED_LONG)),
    "add a shared vector to one": (((),), lambda x: x.add_plain(SHARED)),
    "add vectors before relinearising": (
        ((4,), (4, 4)),
        lambda x, y: x.contract(y).add_plain(ROWS).add_plain(SHARED_LONG).relinearise(),
    ),
    "multiply by vectors": (((4,),), lambda x: x.multiply_plain(ROWS)),
    "multiply pairs by vectors": (((4, 2),), lambda x: x.multiply_plain(PERIODIC)),
    "multiply pairs by a vector each": (((4, 2),), lambda x: x.multiply_plain(LONG)),
    "multiply by a shared vector": (((3, 2),), lambda x: x.multiply_plain(SHARED)),
    "multiply one by a vector": (((),), lambda x: x.multiply_plain(SHARED_LONG)),
    "multiply": (((3,), (3,)), lambda x, y: x * y),
    "multiply many by one": (((2, 2), ()), lambda x, y: x * y),
    "multiply one by many": (((), (2, 2)), lambda x, y: x * y),
    "square": (((2,),), lambda x: x.square()),
    "contract": (((4,), (3, 4)), lambda x, y: x.contract(y).relinearise()),
    "contract transposed": (((4,), (4, 3)), lambda x, y: x.contract(y, True).relinearise()),
    "add contractions": (
        ((4,), (3, 4)),
        lambda x, y: (x.contract(y) - x.contract(y).times_i() + 0.5).relinearise(),
    ),
    "sum of a contraction": (((4,), (3, 4)), lambda x, y: x.contract(y).sum().relinearise()),
    "pairs of contractions": (
        ((4,), (2, 4)),
        lambda x, y: stack([x.contract(y), x.contract(y)]).pair().relinearise(),
    ),
    "sum of squares": (((4, 2),), lambda x: x.sum_of_squares().relinearise()),
    "sum": (((4, 2),), lambda x: x.sum()),
    "sum of one": (((),), lambda x: x.sum()),
    "rotate": (((2,),), lambda x: x.rotate(3)),
    "rotations": (((2, 2),), lambda x: x.rotations([0, 1, 4])),
    "rotation by nothing": (((2,),), lambda x: x.rotations([0])),
    "rotate and sum": (((2, 3),), lambda x: x.rotate_sum([4, 0, 1])),
    "conjugate": (((2,),), lambda x: x.conjugate()),
    "pair": (((3, 2),), lambda x: x.pair()),
    "pair with the conjugate's sign": (((3, 2),), lambda x: x.pair(-1)),
    "pair of one": (((3, 1),), lambda x: x.pair()),
    "stack": (((2,), (2,)), lambda x, y: stack([x, y, x])),
    "stack of single ones": (((), ()), lambda x, y: stack([x, y])),
    "concatenate": (((2, 2), (1, 2)), lambda x, y: concatenate([x, y])),
    "flatten": (((2, 3),), lambda x: x.flatten()),
    "matrix product": (((4, 2),), lambda x: x.matrix_product(MATRIX)),
    "polynomial": (((2,),), lambda x: x.conjugate().chebyshev([0.1, -0.5, 0.3, 0.2])),
    "polynomial that ends in zeros": (((),), lambda x: x.chebyshev([0.1, -0.5, 0.3, 0, 0, 0, 0])),
}


def program_of(name: str) -> Program:
    shapes, function = OPERATIONS[name]

    def build(c: Capture) -> None:
        c.output("y", function(*(c.input(f"x{i}", s) for i, s in enumerate(shapes))))

    return capture(SLOTS, build)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_on_ciphertexts_is_the_simulated_one(
    name: str, schemes: Callable[[str], Scheme], rng: np.random.Generator
) -> None:
    s, program = schemes(NAME), program_of(name)
    for _ in range(2):
        levels = {
            x: int(rng.integers(max(program.depth, 1), s.params.max_level + 1))
            for x in program.inputs
        }
        inputs = {
            x: random_slots(rng, *program.nodes[i].shape, SLOTS) for x, i in program.inputs.items()
        }
        found = run_encrypted(s, program, inputs, STORE, levels)["y"]
        expected = run(program, Simulated(), inputs, STORE)["y"]
        assert found.shape == expected.shape[:-1] == program.nodes[program.outputs["y"]].shape
        assert worst_bits(decrypt(s, found), expected) > BITS, levels
        assert found.batch.level == min(levels.values()) - program.depth
        assert found.batch.is_canonical


def test_every_operation_is_tested() -> None:
    used = {type(n.op).__name__ for name in OPERATIONS for n in program_of(name).nodes}
    defined = {
        k
        for k, v in vars(operations).items()
        if isinstance(v, type) and issubclass(v, operations.Operation) and not k.startswith("_")
    }
    # Refreshing takes parameters of its own: tests/program/test_refreshing.py.
    assert used == defined - {"Operation", "Within", "Refresh", "Lower"}


def test_a_matrix_is_encoded_in_parts_with_the_same_residues(
    schemes: Callable[[str], Scheme], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    s, program = schemes(NAME), program_of("matrix product")
    x = {"x0": encrypt(s, random_slots(rng, 4, 2, SLOTS))}
    e = Encrypted(s.evaluator)
    whole = run(program, e, x, STORE)["y"]
    monkeypatch.setattr("aegis_dask.program.encrypted.WEIGHT_BYTES", 1)
    assert same(run(program, e, x, STORE)["y"].batch.data, whole.batch.data)


def test_parts_joined_are_the_array(
    schemes: Callable[[str], Scheme], rng: np.random.Generator
) -> None:
    s = schemes(NAME)
    x, e = encrypt(s, random_slots(rng, 4, 2, SLOTS)), Encrypted(s.evaluator)
    parts = [e.part(x, 0, 1), e.part(x, 1, 4)]
    assert [p.shape for p in parts] == [(1, 2), (3, 2)]
    joined = e.join(parts)
    assert joined.shape == x.shape
    assert same(joined.batch.data, x.batch.data)


def test_mistakes_in_values_are_refused(
    schemes: Callable[[str], Scheme], rng: np.random.Generator
) -> None:
    s = schemes(NAME)
    x, e = encrypt(s, random_slots(rng, 4, 2, SLOTS)), Encrypted(s.evaluator)
    with pytest.raises(ProgramError, match="8 ciphertexts is no array"):
        CipherArray(x.batch, (4,))
    for shape in ((2, 8), (4, 3, 8), (8, 8)):  # as many vectors would divide the ciphertexts
        for interpreter, value in ((e, x), (Simulated(), np.zeros((4, 2, SLOTS), complex))):
            with pytest.raises(ProgramError, match="do not fit"):
                interpreter.add_plain(value, np.zeros(shape, complex))  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="at least 32 tokens"):
        e.matrix_product(x, Matrix("w", (4, 2), (1,), 32), {}, 0, 1)
    for bad in (np.nan, 2.0**30):
        store = {"w": np.full((1, 4, 2, 8), bad)}
        with pytest.raises(EncodingError, match="finite"):
            e.matrix_product(x, Matrix("w", (4, 2), (1,), 8), store, 0, 1)
