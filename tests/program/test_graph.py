"""Capturing: Python operators become operations, and programs that cannot work are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import Capture, Program, capture, concatenate, stack, total
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from tests.program.machines import SLOTS, Matrix, Vectors, random_slots


def program_of(build: Callable[[Capture], Any]) -> Program:
    """Capture; the returned tensor, if any, is the output."""

    def body(c: Capture) -> None:
        if (out := build(c)) is not None:
            c.output("y", out)

    return capture(SLOTS, body)


# -- operators ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x * y,
        lambda x, y: -x,
        lambda x, y: x + 1.5,
        lambda x, y: 1.5 + x,
        lambda x, y: x - (2 - 1j),
        lambda x, y: 2.25 - x,
        lambda x, y: x * 3,
        lambda x, y: 0.1j * x,
        lambda x, y: np.float64(0.7) * x,
        lambda x, y: np.float64(0.7) - x,
        lambda x, y: np.complex128(1j) + x,
    ],
)
def test_operators_mean_what_they_mean_for_numbers(
    function: Callable[[Any, Any], Any], rng: np.random.Generator
) -> None:
    program = program_of(lambda c: function(c.input("x", (3,)), c.input("z", (3,))))
    x, z = random_slots(rng, 3, SLOTS), random_slots(rng, 3, SLOTS)
    found = run(program, Simulated(), {"x": x, "z": z}, {})["y"]
    np.testing.assert_allclose(found, function(x, z), atol=1e-14)


def test_methods_mean_what_their_docstrings_say(rng: np.random.Generator) -> None:
    a, b = random_slots(rng, 4, SLOTS), random_slots(rng, 2, 4, SLOTS)
    program = program_of(lambda c: c.input("x", (4,)).contract(c.input("z", (2, 4))).relinearise())
    found = run(program, Simulated(), {"x": a, "z": b}, {})["y"]
    np.testing.assert_allclose(found, np.einsum("ks,oks->os", a, b), atol=1e-13)
    program = program_of(lambda c: c.input("x", (2, 4)).rotate_sum([0, 1, -2, 5]))
    found = run(program, Simulated(), {"x": b}, {})["y"]
    expected = sum(np.roll(b[:, k], -s, axis=-1) for k, s in enumerate([0, 1, -2, 5]))
    np.testing.assert_allclose(found, expected, atol=1e-13)
    program = program_of(lambda c: c.input("x", (4,)).square().times_i(-1))
    np.testing.assert_allclose(run(program, Simulated(), {"x": a}, {})["y"], -1j * a * a)


def test_free_operations_take_no_level_and_products_one() -> None:
    def depth(function: Callable[[Any], Any]) -> int:
        return program_of(lambda c: function(c.input("x", (2,)))).depth

    assert depth(lambda x: -x + 1 - x.times_i() * 16 + x.rotate(1).conjugate()) == 0
    assert depth(lambda x: x * 17) == depth(lambda x: x * 0.5) == depth(lambda x: x * 2j) == 1
    assert depth(lambda x: x * x) == depth(lambda x: x.sum_of_squares().relinearise()) == 1
    assert depth(lambda x: (x * x) * x + x) == 2
    assert depth(lambda x: x.chebyshev([0, 0, 1])) == 2
    assert depth(lambda x: x.chebyshev(np.ones(8))) == 3
    assert depth(lambda x: x.chebyshev(np.ones(9))) == 4
    # zeros at the end cost nothing: the evaluator does not see them
    assert depth(lambda x: x.chebyshev([0.5, 1, 0, 0, 0, 0])) == 1


def test_depth_counts_values_that_no_output_needs() -> None:
    def build(c: Capture) -> Any:
        x = c.input("x", ())
        x.square().square()
        return x

    assert program_of(build).depth == 2


def test_rotations_are_taken_modulo_the_slots() -> None:
    program = program_of(lambda c: c.input("x", ()).rotate(-1).rotate(SLOTS).rotate(2 * SLOTS + 3))
    steps = [getattr(n.op, "step", None) for n in program.nodes[1:]]
    assert steps == [SLOTS - 1, 3]


# -- stages -------------------------------------------------------------------------------------


def test_operations_outside_stages_have_one_each_split_where_possible() -> None:
    matrix = Matrix("w", (4,), (3,), 8)

    def build(c: Capture) -> Any:
        x = c.input("x", (4,))
        y = (x + 1).matrix_product(matrix)
        pairs = stack([y, y]).pair()
        both = concatenate([pairs, y])
        return both.contract(stack([both, both]), transposed=True).relinearise() + y.sum()

    stages = program_of(build).stages
    assert [(s.name, s.over) for s in stages] == [
        ("input-x", None),
        ("addconstant", 4),
        ("matrixproduct", 3),
        ("stack", 3),
        ("pair", 3),
        ("concatenate", None),
        ("stack", 6),
        ("contract", None),
        ("relinearise", 2),
        ("sum", None),
        ("add", 2),
    ]


def test_a_single_ciphertext_has_no_rows_to_split() -> None:
    program = program_of(
        lambda c: stack([c.input("x", ()), c.input("z", ())]) + c.input("u", ()).rotations([1, 2])
    )
    overs = {s.name: s.over for s in program.stages}
    assert overs["stack"] is None  # its rows are not rows of its operands
    assert overs["rotations"] is None
    assert overs["add"] == 2


def test_scopes_and_stages_name_the_path() -> None:
    def build(c: Capture) -> Any:
        x = c.input("x", (2,))
        with c.scope("layer0"), c.scope("attention"), c.stage("first", over=2):
            x = x + 1
        return x

    assert program_of(build).stages[-1].name == "layer0/attention/first"


def test_results_and_arguments_are_what_crosses_stages() -> None:
    def build(c: Capture) -> Any:
        x, z = c.input("x", (2,)), c.input("z", ())
        with c.stage("a", over=2):
            y = x * z
            t = y + 1
        with c.stage("b", over=2):
            out = t - x
        c.output("t", t)
        return out

    program = program_of(build)
    first, second = program.stages[2:]
    names = [type(n.op).__name__ for n in program.nodes]
    assert [names[i] for i in program.results(first)] == ["AddConstant"]
    assert program.arguments(first) == [program.inputs["x"], program.inputs["z"]]
    assert program.arguments(second) == [program.outputs["t"], program.inputs["x"]]
    assert program.results(second) == [program.outputs["y"]]


# -- refusals -----------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Callable[[Capture], Any], str]] = {
    "shapes differ": (lambda c: c.input("x", (2,)) + c.input("z", (3,)), r"\(2,\) and \(3,\)"),
    "shapes of one length differ": (
        lambda c: c.input("x", (2, 3)) * c.input("z", (2,)),
        "do not match",
    ),
    "sum of different shapes": (
        lambda c: total([c.input("x", (2,)), c.input("z", ())]),
        "one shape",
    ),
    "stack of different shapes": (
        lambda c: stack([c.input("x", (2,)), c.input("z", (3,))]),
        "one shape",
    ),
    "concatenation of singles": (
        lambda c: concatenate([c.input("x", ()), c.input("z", ())]),
        "do not match",
    ),
    "nothing to stack": (lambda c: stack([]), "at least one"),
    "nothing to add": (lambda c: total([]), "at least one"),
    "contraction of other lengths": (
        lambda c: c.input("x", (2,)).contract(c.input("z", (2, 3))),
        "do not match",
    ),
    "pair of three": (lambda c: c.input("x", (3,)).pair(), "must be 1 or 2"),
    "pair of a single one": (lambda c: c.input("x", ()).pair(), "must be 1 or 2"),
    "too few steps": (lambda c: c.input("x", (3,)).rotate_sum([1, 2]), "2 steps"),
    "matrix of another shape": (
        lambda c: c.input("x", (3,)).matrix_product(Matrix("w", (4,), (2,), 8)),
        r"\(4,\)",
    ),
    "vectors of another length": (
        lambda c: c.input("x", (3,)).add_plain(Vectors(np.zeros((2, 4), complex))),
        "2 plaintext vectors",
    ),
    "vectors for a single one": (
        lambda c: c.input("x", ()).multiply_plain(Vectors(np.zeros((1, 4), complex))),
        "1 plaintext vectors",
    ),
    "product not relinearised": (
        lambda c: c.input("x", (2,)).sum_of_squares() * 0.5,
        "relinearise",
    ),
    "rotation not relinearised": (
        lambda c: c.input("x", (2,)).sum_of_squares().rotate(1),
        "relinearise",
    ),
    "output not relinearised": (lambda c: c.input("x", (2,)).sum_of_squares(), "relinearise"),
    "relinearised twice": (lambda c: c.input("x", (2,)).relinearise(), "2 components already"),
    "constant that is no number": (lambda c: c.input("x", ()) * float("nan"), "finite"),
    "infinite constant": (lambda c: c.input("x", ()) + float("inf"), "finite"),
    "infinite coefficient": (lambda c: c.input("x", ()).chebyshev([1, float("inf")]), "finite"),
    "empty polynomial": (lambda c: c.input("x", ()).chebyshev([]), "at least one coefficient"),
    "empty input": (lambda c: c.input("x", (0, 2)), "at least 1"),
    "no output": (lambda c: c.input("x", ()) and None, "no output"),
    "input twice": (lambda c: c.input("x", ()) + c.input("x", ()), "already an input"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_when_it_is_captured(name: str) -> None:
    build, message = MISTAKES[name]
    with pytest.raises(ProgramError, match=message):
        program_of(build)


def test_an_output_has_one_name() -> None:
    def build(c: Capture) -> Any:
        x = c.input("x", ())
        c.output("y", x)
        return x

    with pytest.raises(ProgramError, match="already an output"):
        program_of(build)


def test_tensors_of_another_program_are_refused() -> None:
    other = Capture(SLOTS).input("x", (2,))
    with pytest.raises(ProgramError, match="another program"):
        program_of(lambda c: c.input("x", (2,)) + other)
    with pytest.raises(ProgramError, match="another program"):
        program_of(lambda c: c.output("y", other))


def test_stages_do_not_nest() -> None:
    def nested(c: Capture) -> Any:
        with c.stage("outer"), c.stage("inner"):
            return c.input("x", ())

    def input_inside(c: Capture) -> Any:
        with c.stage("outer"):
            return c.input("x", ())

    with pytest.raises(ProgramError, match=r"'inner' is inside stage 'outer'"):
        program_of(nested)
    with pytest.raises(ProgramError, match=r"'x' is inside stage 'outer'"):
        program_of(input_inside)
    with pytest.raises(ProgramError, match="split over 0"):
        program_of(lambda c: c.stage("none", over=0).__enter__())


NOT_IN_A_SPLIT_STAGE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "an array of another length": lambda x, m, s: m + 1,
    "a single ciphertext": lambda x, m, s: s + 1,
    "rotations of a single ciphertext": lambda x, m, s: s.rotations([1, 2, 3, 4]),
    "a stack of single ciphertexts": lambda x, m, s: stack([s, s, s, s]),
    "a sum of another length": lambda x, m, s: m.sum(),
    "a sum of a single ciphertext": lambda x, m, s: s.sum(),
    "flattening": lambda x, m, s: m.flatten(),
    "concatenation": lambda x, m, s: concatenate([x, x]),
    "a transposed contraction": lambda x, m, s: x.contract(m, transposed=True),
    "an operand that is needed whole": lambda x, m, s: (x + 1).contract(m),
    "a sum used too early": lambda x, m, s: x + x.sum(),
    "the sum over the rows": lambda x, m, s: x.rotate_sum([1, 2, 3, 4]),
}


@pytest.mark.parametrize("name", NOT_IN_A_SPLIT_STAGE)
def test_what_cannot_be_computed_by_rows_is_refused_in_a_split_stage(name: str) -> None:
    def build(c: Capture) -> Any:
        x, m, s = c.input("x", (4,)), c.input("m", (4, 4)), c.input("s", ())
        # the square matrix has the length of the stage: only what is done with it can be wrong
        over = 5 if name.endswith("of another length") else 4
        with c.stage("split", over=over):
            return NOT_IN_A_SPLIT_STAGE[name](x, m, s)

    with pytest.raises(ProgramError, match="split"):
        program_of(build)
