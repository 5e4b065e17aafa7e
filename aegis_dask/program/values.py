"""What is known of the values of a program before it runs: whether they are real, and how large.

Bootstrapping asks both: two real ciphertexts share one bootstrap, and none may exceed a bound.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Literal, NamedTuple

import numpy as np

from aegis_dask.program import operations as ops
from aegis_dask.program.graph import Node, Program

Parity = Literal["real", "imaginary", "complex"]


def parities(program: Program) -> list[Parity]:
    """Return for every node whether its slots are real, imaginary or complex.

    Inputs and plaintext vectors are taken as real; a matrix product is complex.
    """
    out: list[Parity] = []
    for node in program.nodes:
        out.append(_parity(program, node, [out[i] for i in node.inputs]))
    return out


def _parity(program: Program, node: Node, inputs: list[Parity]) -> Parity:
    op = node.op
    if isinstance(op, ops.Input):
        return "real"
    if isinstance(op, ops.MatrixProduct):
        return "complex"
    if isinstance(op, ops.Pair):
        single = program.nodes[node.inputs[0]].shape[-1] == 1
        return inputs[0] if single else "complex"
    if isinstance(op, (ops.Add, ops.Subtract)) and _is_conjugate_pair(program, node):
        return "real" if isinstance(op, ops.Add) else "imaginary"
    if isinstance(op, ops.TimesI) and op.power % 2:
        return {"real": "imaginary", "imaginary": "real", "complex": "complex"}[inputs[0]]  # type: ignore[return-value]
    if isinstance(op, (ops.AddConstant, ops.MultiplyConstant)) and complex(op.value).imag:
        return "complex"
    if isinstance(op, (ops.Multiply, ops.Contract, ops.SumOfSquares)):
        kinds = inputs if len(inputs) == 2 else inputs * 2
        if "complex" in kinds:
            return "complex"
        return "real" if kinds[0] == kinds[1] else "imaginary"
    if isinstance(op, (ops.AddPlain, ops.AddConstant, ops.Chebyshev)):
        return "real" if inputs[0] == "real" else "complex"
    return inputs[0] if len(set(inputs)) == 1 else "complex"


def _is_conjugate_pair(program: Program, node: Node) -> bool:
    """Whether the operands are a value and its conjugate."""
    for a, b in (node.inputs, node.inputs[::-1]):
        other = program.nodes[b]
        if isinstance(other.op, ops.Conjugate) and other.inputs == (a,):
            return True
    return False


class Bound(NamedTuple):
    """What is known of the size of a value.

    Attributes
    ----------
    value
        Bound on real and imaginary parts of slots; infinity if nothing is known.
    error
        Error that a refresh may make; 0 if nothing is known.
    """

    value: float
    error: float


UNKNOWN = Bound(inf, 0.0)


def magnitudes(program: Program) -> list[Bound]:
    """Return what is known of the value of every node.

    Inputs of polynomials are at most 1, other values what the program states
    (`operations.Within`); what is no larger than such a value is known too.
    """
    parity = parities(program)
    out: list[Bound] = []
    for node in program.nodes:
        bound = _magnitude(program, node, out, parity)
        for c in program.consumers[node.id]:
            user = program.nodes[c].op
            if isinstance(user, ops.Within):
                bound = _tighter(bound, Bound(user.bound, user.error))
            elif isinstance(user, ops.Chebyshev):
                bound = _tighter(bound, Bound(1.0, inf))
        out.append(bound)
    return out


def _tighter(known: Bound, stated: Bound) -> Bound:
    if known.value == inf:
        return stated
    return Bound(min(known.value, stated.value), min(known.error, stated.error))


_KEPT = (
    ops.TimesI,
    ops.Rotate,
    ops.Rotations,
    ops.Conjugate,
    ops.Stack,
    ops.Concatenate,
    ops.Flatten,
    ops.Relinearise,
    ops.Lower,
    ops.Refresh,
)
"""Operations whose result is no larger than the largest operand."""


def _magnitude(program: Program, node: Node, known: list[Bound], parity: list[Parity]) -> Bound:
    op = node.op
    given = [known[i] for i in node.inputs]
    if isinstance(op, ops.Within):
        return _tighter(given[0], Bound(op.bound, op.error))
    if isinstance(op, _KEPT):
        return Bound(max(b.value for b in given), min(b.error for b in given))
    if isinstance(op, ops.Pair):
        source = node.inputs[0]
        single = program.nodes[source].shape[-1] == 1
        return given[0] if single or parity[source] == "real" else UNKNOWN
    if isinstance(op, ops.Chebyshev):
        return Bound(_largest_value(op.coefficients), inf)
    return UNKNOWN


@lru_cache(maxsize=1024)
def _largest_value(coefficients: tuple[float, ...]) -> float:
    """Return the largest absolute value of a polynomial on [-1, 1], a little more than exact."""
    grid = np.cos(np.linspace(0, np.pi, 16 * len(coefficients) + 1))
    largest = np.abs(np.polynomial.chebyshev.chebval(grid, np.array(coefficients))).max()
    return 1.01 * float(largest)
