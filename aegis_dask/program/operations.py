"""The operations of a program, each on an array of ciphertexts.

An array of shape ``(a, b)`` is a*b ciphertexts. Operations say what shape they give, how many
levels they take, and which of their inputs they need whole when only a part of the result (a range
of its leading axis) is computed: that is what decides where a program can be cut into tasks.
"""

from __future__ import annotations

from cmath import isfinite
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.polynomial import depth
from aegis_dask.errors import ProgramError

MAX_INTEGER = 16
"""Largest integer that `MultiplyConstant` multiplies by without a level: it takes 4 bits."""

Shape = tuple[int, ...]
Store = Mapping[str, NDArray[Any]]
"""The weights of a model by name."""


class PlainVectors(Protocol):
    """Plaintext vectors, one per ciphertext of the leading axis, or one for all."""

    @property
    def count(self) -> int | None:
        """Length of the leading axis; None for one vector that all ciphertexts share."""

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return the vectors of a range of the leading axis.

        ``[stop - start, ..., period]``: axes between follow those of the array; where they are
        missing one vector serves all. ``[1, period]`` if shared. A period below the slots repeats.
        """


class PlainMatrix(Protocol):
    """A plaintext matrix in diagonal form (see `circuits.linear`)."""

    @property
    def inputs(self) -> Shape:
        """Shape of the array it applies to: all its ciphertexts are summed over."""

    @property
    def outputs(self) -> Shape:
        """Shape of the result."""

    @property
    def period(self) -> int:
        """Slots after which every plaintext repeats."""

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return ``[stop - start, *outputs[1:], *inputs, period]``."""


class Arithmetic(Protocol):
    """What an interpreter provides. Values are its own; shapes go with them.

    Method names are those of the operations; `Interpreter` implementations are the encrypted, the
    simulated and the symbolic one.
    """

    def __getattr__(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Operation:
    """Base class: a map, ciphertext by ciphertext.

    Subclasses define `_run`, and `_shape`, `_components` and `_splits` where they differ.
    """

    levels: ClassVar[int] = 0
    whole: ClassVar[tuple[int, ...]] = ()
    """Inputs that every part of the result needs whole."""
    reduces: ClassVar[bool] = False
    """Whether the result has no leading axis to cut: parts of the input give partial results."""
    linear: ClassVar[bool] = False
    """Whether it takes ciphertexts that are not relinearised yet, of 3 components."""

    @property
    def name(self) -> str:
        """Name in counts, errors and task keys."""
        return type(self).__name__.lower()

    @property
    def depth(self) -> int:
        """Levels it takes."""
        return self.levels

    def shape(self, *inputs: Shape) -> Shape:
        """Return the shape of the result.

        Raises
        ------
        ProgramError
            If the inputs do not fit.
        """
        return self._shape(*inputs)

    def _shape(self, *inputs: Shape) -> Shape:
        return inputs[0]

    def components(self, *inputs: int) -> int:
        """Return the components (2, or 3 before relinearisation) of the result.

        Raises
        ------
        ProgramError
            If an input must be relinearised first.
        """
        if max(inputs, default=2) > 2 and not self.linear:
            raise self._fail("relinearise the operands first")
        return self._components(*inputs)

    def _components(self, *inputs: int) -> int:
        return max(inputs)

    def splits(self, *inputs: Shape) -> bool:
        """Return whether it can be computed for a range of the leading axis.

        Of the inputs that are not needed `whole` that takes the same range, or all of a single
        ciphertext. An operation that `reduces` gives partial results, which are to be added.
        """
        if self.reduces:
            return bool(inputs[0])
        return bool(self.shape(*inputs)) and self._splits(*inputs)

    def _splits(self, *inputs: Shape) -> bool:
        rows = self.shape(*inputs)[0]
        cut = [x for k, x in enumerate(inputs) if k not in self.whole and x]
        return all(x[0] == rows for x in cut) and (bool(cut) or bool(self.whole))

    def run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        """Run on an interpreter."""
        return self._run(e, store, *inputs)

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        raise NotImplementedError

    def part(self, start: int, stop: int) -> Operation:
        """Return the operation that gives rows ``start:stop`` of the leading axis."""
        return self

    def _fail(self, problem: str) -> ProgramError:
        return ProgramError(f"{self.name}: {problem}")


def _check_finite(op: Operation, *values: complex) -> None:
    if not all(isfinite(complex(v)) for v in values):
        raise op._fail("constants must be finite")


def _broadcast(op: Operation, x: Shape, y: Shape) -> Shape:
    if x == y or y == ():
        return x
    if x == ():
        return y
    raise op._fail(
        f"arrays of {x} and {y} ciphertexts do not match; shapes must be equal, or one a "
        "single ciphertext"
    )


@dataclass(frozen=True)
class Input(Operation):
    """A named input."""

    label: str
    size: Shape

    def _shape(self, *inputs: Shape) -> Shape:
        return self.size

    def _components(self, *inputs: int) -> int:
        return 2


@dataclass(frozen=True)
class Add(Operation):
    """x + y; y may be a single ciphertext."""

    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        return _broadcast(self, *inputs)

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.add(*inputs)


@dataclass(frozen=True)
class Subtract(Operation):
    """x - y; y may be a single ciphertext."""

    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        return _broadcast(self, *inputs)

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.subtract(*inputs)


@dataclass(frozen=True)
class Total(Operation):
    """The sum of several arrays of one shape."""

    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        if len(set(inputs)) != 1:
            raise self._fail(f"arrays of one shape are needed, got {sorted(set(inputs))}")
        return inputs[0]

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        total = inputs[0]
        for x in inputs[1:]:
            total = e.add(total, x)
        return total


@dataclass(frozen=True)
class TimesI(Operation):
    """``i**power`` x: free."""

    power: int = 1
    linear: ClassVar[bool] = True

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.times_i(inputs[0], self.power)


@dataclass(frozen=True)
class AddConstant(Operation):
    """x + c."""

    value: complex
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_finite(self, self.value)

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.add_constant(inputs[0], self.value)


@dataclass(frozen=True)
class MultiplyConstant(Operation):
    """c x, rescaled. Integers are multiplied without a level."""

    value: complex

    def __post_init__(self) -> None:
        _check_finite(self, self.value)

    @property
    def depth(self) -> int:
        """Levels: none for a small integer."""
        return 0 if self.is_integer else 1

    @property
    def is_integer(self) -> bool:
        """Whether the constant is a small integer: an exact product that needs no rescale."""
        v = complex(self.value)
        return v.imag == 0 and v.real.is_integer() and abs(v.real) <= MAX_INTEGER

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        if self.is_integer:
            return e.multiply_integer(inputs[0], int(self.value.real))
        return e.multiply_constant(inputs[0], self.value)


@dataclass(frozen=True)
class _WithVectors(Operation):
    vectors: PlainVectors
    rows: tuple[int, int] | None = None

    def _shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        count = self.vectors.count
        if count is not None and (not x or x[0] != count):
            raise self._fail(f"{count} plaintext vectors do not fit an array of {x} ciphertexts")
        return x

    def part(self, start: int, stop: int) -> Operation:
        return self if self.vectors.count is None else replace(self, rows=(start, stop))

    def _built(self, store: Store) -> NDArray[np.complex128]:
        start, stop = self.rows or (0, self.vectors.count or 1)
        return self.vectors.build(store, start, stop)


@dataclass(frozen=True)
class AddPlain(_WithVectors):
    """x + plaintext vectors."""

    linear: ClassVar[bool] = True

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.add_plain(inputs[0], self._built(store))


@dataclass(frozen=True)
class MultiplyPlain(_WithVectors):
    """x times plaintext vectors, rescaled."""

    levels: ClassVar[int] = 1

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.multiply_plain(inputs[0], self._built(store))


@dataclass(frozen=True)
class Multiply(Operation):
    """x y, relinearised and rescaled; y may be a single ciphertext."""

    levels: ClassVar[int] = 1

    def _shape(self, *inputs: Shape) -> Shape:
        return _broadcast(self, *inputs)

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.multiply(*inputs)


@dataclass(frozen=True)
class Contract(Operation):
    """``out[o] = sum_k x[k] y[o, k]`` (``y[k, o]`` if transposed): 3 components, not rescaled."""

    transposed: bool = False
    whole: ClassVar[tuple[int, ...]] = (0,)

    def _splits(self, *inputs: Shape) -> bool:
        return not self.transposed  # the rows of y[k, o] are summed over

    def _shape(self, *inputs: Shape) -> Shape:
        x, y = inputs
        if len(x) != 1 or len(y) != 2 or y[0 if self.transposed else 1] != x[0]:
            raise self._fail(f"{x} and {y} ciphertexts do not match")
        return (y[1 if self.transposed else 0],)

    def _components(self, *inputs: int) -> int:
        return 3

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.contract(*inputs, self.transposed)


@dataclass(frozen=True)
class SumOfSquares(Operation):
    """``sum_k x[k]^2`` over the whole array: 3 components, not rescaled."""

    reduces: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        return ()

    def _components(self, *inputs: int) -> int:
        return 3

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.sum_of_squares(inputs[0])


@dataclass(frozen=True)
class Relinearise(Operation):
    """Back to 2 components and to the canonical scale, one level down."""

    levels: ClassVar[int] = 1
    linear: ClassVar[bool] = True

    def _components(self, *inputs: int) -> int:
        if inputs != (3,):
            raise self._fail("the operand has 2 components already")
        return 2

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.relinearise(inputs[0])


@dataclass(frozen=True)
class Rotate(Operation):
    """Rotate the slots to the left."""

    step: int

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.rotate(inputs[0], self.step)


@dataclass(frozen=True)
class Rotations(Operation):
    """Several rotations of each ciphertext, ``[*s] -> [*s, len(steps)]``, one decomposition."""

    steps: tuple[int, ...]

    def _shape(self, *inputs: Shape) -> Shape:
        return (*inputs[0], len(self.steps))

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.rotations(inputs[0], self.steps)


@dataclass(frozen=True)
class RotateSum(Operation):
    """``[*s, len(steps)] -> [*s]``: rotate along the last axis by its own step, and add."""

    steps: tuple[int, ...]

    def _shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if not x or x[-1] != len(self.steps):
            raise self._fail(f"{len(self.steps)} steps do not fit {x} ciphertexts")
        return x[:-1]

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.rotate_sum(inputs[0], self.steps)


@dataclass(frozen=True)
class Conjugate(Operation):
    """The complex conjugate of every slot."""

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.conjugate(inputs[0])


@dataclass(frozen=True)
class Pair(Operation):
    """``[*s, 2] -> [*s]``: ``x[..., 0] + i sign x[..., 1]``. Free; ``[*s, 1]`` loses its axis."""

    sign: int = 1
    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if not x or x[-1] not in (1, 2):
            raise self._fail(f"the last axis of {x} ciphertexts must be 1 or 2")
        return x[:-1]

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.pair(inputs[0], self.sign)


@dataclass(frozen=True)
class Stack(Operation):
    """Arrays of one shape side by side in a new last axis."""

    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        if len(set(inputs)) != 1:
            raise self._fail(f"arrays of one shape are needed, got {sorted(set(inputs))}")
        return (*inputs[0], len(inputs))

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.stack(inputs)


@dataclass(frozen=True)
class Flatten(Operation):
    """One axis instead of all (keeps C order); cannot be cut."""

    whole: ClassVar[tuple[int, ...]] = (0,)
    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        return (prod(inputs[0]),)

    def _splits(self, *inputs: Shape) -> bool:
        return False

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.flatten(inputs[0])


@dataclass(frozen=True)
class Concatenate(Operation):
    """Arrays one after the other along the leading axis; cannot be cut."""

    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        if len({x[1:] for x in inputs}) != 1 or not all(inputs):
            raise self._fail(f"arrays of {inputs} ciphertexts do not match")
        return (sum(x[0] for x in inputs), *inputs[0][1:])

    def _splits(self, *inputs: Shape) -> bool:
        return False

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.concatenate(inputs)


@dataclass(frozen=True)
class Sum(Operation):
    """The sum of all ciphertexts of an array: one ciphertext."""

    reduces: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def _shape(self, *inputs: Shape) -> Shape:
        return ()

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.sum(inputs[0])


@dataclass(frozen=True)
class MatrixProduct(Operation):
    """A plaintext matrix in diagonal form times the whole array, rescaled."""

    matrix: PlainMatrix
    rows: tuple[int, int] | None = None
    levels: ClassVar[int] = 1
    whole: ClassVar[tuple[int, ...]] = (0,)

    def _shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if x != self.matrix.inputs:
            raise self._fail(f"a matrix for {self.matrix.inputs} ciphertexts was given {x}")
        return self.matrix.outputs

    def part(self, start: int, stop: int) -> Operation:
        """Return the operation that multiplies by those rows of the matrix only."""
        return replace(self, rows=(start, stop))

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        start, stop = self.rows or (0, self.matrix.outputs[0])
        return e.matrix_product(inputs[0], self.matrix, store, start, stop)


@dataclass(frozen=True)
class Chebyshev(Operation):
    """``sum_k c_k T_k(x)`` for slots in [-1, 1]."""

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.coefficients:
            raise self._fail("a polynomial has at least one coefficient")
        _check_finite(self, *self.coefficients)

    @property
    def depth(self) -> int:
        """Levels: those of the highest degree whose coefficient is not 0."""
        return depth(max((k for k, c in enumerate(self.coefficients) if c), default=0))

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.chebyshev(inputs[0], np.array(self.coefficients))


@dataclass(frozen=True)
class Within(Operation):
    """x, of which it is known that no real or imaginary part of a slot exceeds a bound.

    Free. Nothing on the server can check it: a simulated run does, on the client.

    Attributes
    ----------
    bound
        Largest absolute value of a real or imaginary part.
    error
        Absolute error that a refresh may make; infinity if any will do.
    """

    bound: float
    error: float = inf

    def __post_init__(self) -> None:
        _check_finite(self, self.bound)
        if not (self.bound > 0 and self.error > 0):
            raise self._fail(
                f"bound and error must be positive, {self.bound} and {self.error} were given"
            )

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.within(inputs[0], self.bound)


@dataclass(frozen=True)
class Lower(Operation):
    """x, some levels down (see `program.trim`).

    Attributes
    ----------
    by
        How many.
    """

    by: int = 1

    def __post_init__(self) -> None:
        if self.by < 1:
            raise self._fail(f"it goes down by 1 level or more, not by {self.by}")

    @property
    def depth(self) -> int:
        """Levels it takes."""
        return self.by

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.lower(inputs[0], self.by)


@dataclass(frozen=True)
class Refresh(Operation):
    """Bring ciphertexts back to the level that bootstrapping gives (see `program.refresh`).

    Attributes
    ----------
    merged
        The values are real, and the two of the last axis share one bootstrap.
    real
        The values are real: half of a bootstrap's work on its polynomial.
    shrink
        Divide the values by ``2**shrink`` before and multiply them back after: for those that
        exceed what bootstrapping takes.
    iterations
        More than one refresh the error of the last as well: as many times the bits, for one level
        (`Bootstrapper.refresh_precise`).
    """

    merged: bool = False
    real: bool = False
    shrink: int = 0
    iterations: int = 1

    @property
    def kind(self) -> str:
        """``"merged"``, ``"real"`` or ``"complex"``."""
        return "merged" if self.merged else "real" if self.real else "complex"

    @property
    def price(self) -> float:
        """Time of a refresh, in those of a complex ciphertext (docs/bootstrapping.md)."""
        return self.iterations * (0.8 if self.real else 1.0)

    def _shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if self.merged and (not x or x[-1] != 2 or self.iterations > 1):
            raise self._fail(f"{x} ciphertexts cannot be merged in pairs")
        return x

    def _splits(self, *inputs: Shape) -> bool:
        # A range of the leading axis takes pairs apart where that is the last one.
        return super()._splits(*inputs) and not (self.merged and len(inputs[0]) == 1)

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.refresh(inputs[0], self)
