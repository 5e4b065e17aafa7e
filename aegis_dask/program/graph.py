"""Programs: operations on encrypted tensors, captured by running ordinary Python once.

A program is a list of nodes in order of evaluation, cut into *stages*. A stage is the unit of
placement: its nodes run together in one task, or, if it is split over a leading axis, in one task
per range of that axis. Between stages arrays travel; within one they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

import numpy as np

from aegis_dask.errors import ProgramError
from aegis_dask.program import operations as ops
from aegis_dask.program.operations import Operation, PlainMatrix, PlainVectors, Shape


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes
    ----------
    id
        Position in the program.
    op, inputs
        The operation and the nodes whose values it takes.
    shape, components
        Shape of the array of ciphertexts, and components of each.
    depth
        Levels taken since the inputs of the program.
    stage
        Index of its stage.
    """

    id: int
    op: Operation
    inputs: tuple[int, ...]
    shape: Shape
    components: int
    depth: int
    stage: int


@dataclass
class Stage:
    """Nodes that run together.

    Attributes
    ----------
    index
        Position in the program.
    name
        Path, for example ``layer0/attention/giant3``.
    over
        Length of the leading axis over which it may be split, or None.
    nodes
        Its nodes, in order.
    """

    index: int
    name: str
    over: int | None
    nodes: list[int] = field(default_factory=list)


class Program:
    """A captured program. Build one with `capture`.

    Attributes
    ----------
    slots
        Slots of a ciphertext.
    nodes, stages
        Operations and stages in order of evaluation.
    inputs, outputs
        Name -> node.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.nodes: list[Node] = []
        self.stages: list[Stage] = []
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}

    @property
    def depth(self) -> int:
        """Levels from the inputs to the deepest value."""
        return max((node.depth for node in self.nodes), default=0)

    @cached_property
    def consumers(self) -> list[list[int]]:
        """Node -> nodes that use its value."""
        out: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in node.inputs:
                out[i].append(node.id)
        return out

    def results(self, stage: Stage) -> list[int]:
        """Return the nodes of a stage whose values other stages, or the caller, use."""
        return self._results[stage.index]

    @cached_property
    def _results(self) -> list[list[int]]:
        final = set(self.outputs.values())
        return [
            [
                i
                for i in stage.nodes
                if i in final or any(self.nodes[c].stage != stage.index for c in self.consumers[i])
            ]
            for stage in self.stages
        ]

    def needed_whole(self, stage: Stage) -> dict[int, bool]:
        """Return the arguments of a stage, and whether each part of the stage needs them whole.

        The others have the leading axis of the stage: a part needs its rows of them only.
        """
        return self._needed_whole[stage.index]

    @cached_property
    def _needed_whole(self) -> list[dict[int, bool]]:
        out: list[dict[int, bool]] = []
        for stage in self.stages:
            found: dict[int, bool] = {}
            for i in stage.nodes:
                node = self.nodes[i]
                for k, j in enumerate(node.inputs):
                    value = self.nodes[j]
                    if value.stage != stage.index:
                        whole = stage.over is None or k in node.op.whole or value.shape == ()
                        found[j] = found.get(j, False) or whole
            out.append(found)
        return out

    def arguments(self, stage: Stage) -> list[int]:
        """Return the nodes outside a stage whose values it uses, in order of first use."""
        out: dict[int, None] = {}
        for i in stage.nodes:
            for j in self.nodes[i].inputs:
                if self.nodes[j].stage != stage.index:
                    out[j] = None
        return list(out)

    def __repr__(self) -> str:
        return (
            f"Program({len(self.nodes)} operations in {len(self.stages)} stages, depth "
            f"{self.depth}, {self.slots} slots)"
        )


class Capture:
    """A program being captured."""

    def __init__(self, slots: int) -> None:
        self.program = Program(slots)
        self._path: list[str] = []
        self._stage: Stage | None = None

    # -- inputs and outputs ------------------------------------------------------------------

    def input(self, name: str, shape: Shape) -> EncryptedTensor:
        """Declare an input of `shape` ciphertexts.

        Raises
        ------
        ProgramError
            If the name is taken, the shape is empty, or a stage is open.
        """
        if name in self.program.inputs:
            raise ProgramError(f"there is already an input {name!r}")
        if not all(n >= 1 for n in shape):
            raise ProgramError(f"input {name!r} has the shape {shape}: every axis is at least 1")
        if self._stage is not None:
            raise ProgramError(
                f"input {name!r} is inside stage {self._stage.name!r}; declare it before"
            )
        with self._own_stage(f"input-{name}", None):
            tensor = self.apply(ops.Input(name, shape))
        self.program.inputs[name] = tensor.node
        return tensor

    def output(self, name: str, tensor: EncryptedTensor) -> None:
        """Declare an output.

        Raises
        ------
        ProgramError
            If the name is taken, or the tensor is of another program or not relinearised.
        """
        if name in self.program.outputs:
            raise ProgramError(f"there is already an output {name!r}")
        if tensor.capture is not self:
            raise ProgramError(f"output {name!r} belongs to another program")
        if tensor.components != 2:
            raise ProgramError(f"output {name!r} must be relinearised first")
        self.program.outputs[name] = tensor.node

    # -- structure ---------------------------------------------------------------------------

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of the stages within, for example with the layer."""
        self._path.append(name)
        try:
            yield
        finally:
            self._path.pop()

    @contextmanager
    def stage(self, name: str, over: int | None = None) -> Iterator[None]:
        """Put the operations within into one stage, which may be split over a leading axis.

        Parameters
        ----------
        name
            Last part of its path.
        over
            Length of the leading axis of all arrays in it, if ranges of that axis can be computed
            apart. Sums over the axis are then complete only after the stage.

        Raises
        ------
        ProgramError
            If a stage is open, or `over` is below 1. Operations that cannot be computed range by
            range are refused when they are captured.
        """
        if over is not None and over < 1:
            raise ProgramError(f"stage {name!r} cannot be split over {over} ciphertexts")
        if self._stage is not None:
            raise ProgramError(f"stage {name!r} is inside stage {self._stage.name!r}")
        with self._own_stage(name, over):
            yield

    @contextmanager
    def _own_stage(self, name: str, over: int | None) -> Iterator[None]:
        stage = Stage(len(self.program.stages), "/".join([*self._path, name]), over)
        self.program.stages.append(stage)
        self._stage = stage
        try:
            yield
        finally:
            self._stage = None

    # -- operations --------------------------------------------------------------------------

    def apply(self, op: Operation, *inputs: EncryptedTensor) -> EncryptedTensor:
        """Append an operation, in a stage of its own if none is open.

        Raises
        ------
        ProgramError
            If the operands do not fit, or the stage is split and the operation cannot be.
        """
        for x in inputs:
            if x.capture is not self:
                raise ProgramError(f"{op.name}: an operand belongs to another program")
        if self._stage is None:
            shapes = [x.shape for x in inputs]
            shape = op.shape(*shapes)
            over = shape[0] if shape and inputs and op.splits(*shapes) else None
            with self._own_stage(op.name, over):
                return self.apply(op, *inputs)
        nodes = [self.program.nodes[x.node] for x in inputs]
        node = Node(
            id=len(self.program.nodes),
            op=op,
            inputs=tuple(n.id for n in nodes),
            shape=op.shape(*(n.shape for n in nodes)),
            components=op.components(*(n.components for n in nodes)),
            depth=max((n.depth for n in nodes), default=0) + op.depth,
            stage=self._stage.index,
        )
        self._check_cut(node, nodes)
        self.program.nodes.append(node)
        self._stage.nodes.append(node.id)
        return EncryptedTensor(self, node.id)

    def _check_cut(self, node: Node, inputs: Sequence[Node]) -> None:
        """Refuse an operation that a split stage cannot compute range by range."""
        stage, op = self._stage, node.op
        assert stage is not None
        if stage.over is None:
            return
        for k, x in enumerate(inputs):
            inside = x.stage == stage.index
            if inside and x.op.reduces:
                raise ProgramError(
                    f"stage {stage.name!r} is split: the sum in it is complete only after it"
                )
            if inside and k in op.whole:
                raise ProgramError(
                    f"{op.name} needs its operand whole; compute it in a stage before "
                    f"{stage.name!r}"
                )
        shapes = [x.shape for x in inputs]
        leading = shapes[0] if op.reduces else node.shape
        if not op.splits(*shapes) or leading[0] != stage.over:
            raise ProgramError(
                f"stage {stage.name!r} is split over {stage.over} ciphertexts; {op.name} of arrays "
                f"of {', '.join(map(str, shapes))} cannot be computed range by range. Put it into "
                "a stage of its own"
            )


@dataclass(frozen=True, eq=False)
class EncryptedTensor:
    """An array of ciphertexts in a program being captured, with the operators of Python.

    ``x + y``, ``x - y``, ``x * y`` take tensors (equal shapes, or one a single ciphertext) and
    numbers; ``-x`` is free, ``x * 0.5`` takes a level, ``x * 2`` does not.
    """

    capture: Capture
    node: int
    __array_ufunc__ = None  # NumPy numbers leave their operators to ours

    @property
    def shape(self) -> Shape:
        """Shape of the array of ciphertexts."""
        return self.capture.program.nodes[self.node].shape

    @property
    def components(self) -> int:
        """Components of each ciphertext."""
        return self.capture.program.nodes[self.node].components

    def _apply(self, op: Operation, *others: EncryptedTensor) -> EncryptedTensor:
        return self.capture.apply(op, self, *others)

    def __add__(self, other: EncryptedTensor | complex) -> EncryptedTensor:
        if isinstance(other, EncryptedTensor):
            return self._apply(ops.Add(), other)
        return self._apply(ops.AddConstant(complex(other)))

    __radd__ = __add__

    def __sub__(self, other: EncryptedTensor | complex) -> EncryptedTensor:
        if isinstance(other, EncryptedTensor):
            return self._apply(ops.Subtract(), other)
        return self._apply(ops.AddConstant(-complex(other)))

    def __rsub__(self, other: complex) -> EncryptedTensor:
        return -self + other

    def __neg__(self) -> EncryptedTensor:
        return self._apply(ops.TimesI(2))

    def __mul__(self, other: EncryptedTensor | complex) -> EncryptedTensor:
        if isinstance(other, EncryptedTensor):
            return self._apply(ops.Multiply(), other)
        return self if other == 1 else self._apply(ops.MultiplyConstant(complex(other)))

    __rmul__ = __mul__

    def square(self) -> EncryptedTensor:
        """Return x x."""
        return self._apply(ops.Multiply(), self)

    def times_i(self, power: int = 1) -> EncryptedTensor:
        """Return ``i**power`` x."""
        return self._apply(ops.TimesI(power % 4))

    def add_plain(self, vectors: PlainVectors) -> EncryptedTensor:
        """Add plaintext vectors."""
        return self._apply(ops.AddPlain(vectors))

    def multiply_plain(self, vectors: PlainVectors) -> EncryptedTensor:
        """Multiply by plaintext vectors."""
        return self._apply(ops.MultiplyPlain(vectors))

    def rotate(self, step: int) -> EncryptedTensor:
        """Rotate the slots to the left: slot j takes the value of slot ``j + step``."""
        step %= self.capture.program.slots
        return self if step == 0 else self._apply(ops.Rotate(step))

    def rotations(self, steps: Sequence[int]) -> EncryptedTensor:
        """Return ``[*shape, len(steps)]``: each ciphertext rotated by every step."""
        slots = self.capture.program.slots
        return self._apply(ops.Rotations(tuple(s % slots for s in steps)))

    def rotate_sum(self, steps: Sequence[int]) -> EncryptedTensor:
        """Rotate each ciphertext of the last axis by its own step, and add them up."""
        slots = self.capture.program.slots
        return self._apply(ops.RotateSum(tuple(s % slots for s in steps)))

    def conjugate(self) -> EncryptedTensor:
        """Return the complex conjugate of every slot."""
        return self._apply(ops.Conjugate())

    def pair(self, sign: int = 1) -> EncryptedTensor:
        """Return ``x[..., 0] + i sign x[..., 1]``."""
        return self._apply(ops.Pair(sign))

    def contract(self, other: EncryptedTensor, transposed: bool = False) -> EncryptedTensor:
        """Return ``out[o] = sum_k x[k] y[o, k]``, not yet relinearised."""
        return self._apply(ops.Contract(transposed), other)

    def sum_of_squares(self) -> EncryptedTensor:
        """Return the sum of the squares of all ciphertexts, not yet relinearised."""
        return self._apply(ops.SumOfSquares())

    def relinearise(self) -> EncryptedTensor:
        """Return to 2 components, and rescale."""
        return self._apply(ops.Relinearise())

    def sum(self) -> EncryptedTensor:
        """Return the sum of all ciphertexts."""
        return self._apply(ops.Sum())

    def flatten(self) -> EncryptedTensor:
        """Return the array with one axis."""
        return self if len(self.shape) == 1 else self._apply(ops.Flatten())

    def matrix_product(self, matrix: PlainMatrix) -> EncryptedTensor:
        """Multiply by a plaintext matrix in diagonal form."""
        return self._apply(ops.MatrixProduct(matrix))

    def within(self, bound: float, error: float = inf) -> EncryptedTensor:
        """State that no real or imaginary part of a slot exceeds `bound`; free.

        Such values can be refreshed (`program.refresh`) if that does not change them by more than
        `error`. A simulated run checks the bound.
        """
        return self._apply(ops.Within(float(bound), float(error)))

    def chebyshev(self, coefficients: Sequence[float]) -> EncryptedTensor:
        """Evaluate ``sum_k c_k T_k``; the slots must lie in [-1, 1]."""
        return self._apply(ops.Chebyshev(tuple(float(c) for c in np.asarray(coefficients))))

    def __repr__(self) -> str:
        return f"EncryptedTensor({self.shape} ciphertexts)"


def stack(tensors: Sequence[EncryptedTensor]) -> EncryptedTensor:
    """Return tensors of one shape side by side in a new last axis."""
    return _first(tensors).capture.apply(ops.Stack(), *tensors)


def concatenate(tensors: Sequence[EncryptedTensor]) -> EncryptedTensor:
    """Return tensors one after the other along the leading axis."""
    return _first(tensors).capture.apply(ops.Concatenate(), *tensors)


def total(tensors: Sequence[EncryptedTensor]) -> EncryptedTensor:
    """Return the sum of tensors of one shape."""
    first = _first(tensors)
    return first if len(tensors) == 1 else first.capture.apply(ops.Total(), *tensors)


def _first(tensors: Sequence[EncryptedTensor]) -> EncryptedTensor:
    if not tensors:
        raise ProgramError("at least one tensor is needed")
    return tensors[0]


def capture(slots: int, function: Callable[[Capture], None]) -> Program:
    """Run `function` once and return the program that it builds.

    Parameters
    ----------
    slots
        Slots of a ciphertext: rotations act modulo this number.
    function
        Declares inputs, computes, and declares outputs.

    Raises
    ------
    ProgramError
        If operands do not fit, a stage cannot be split as it says, or there is no output.

    Examples
    --------
    >>> def squares(c):
    ...     x = c.input("x", (2,))
    ...     c.output("y", x * x + 1)
    >>> capture(512, squares)
    Program(3 operations in 3 stages, depth 1, 512 slots)
    """
    context = Capture(slots)
    function(context)
    if not context.program.outputs:
        raise ProgramError("the program declares no output")
    return context.program
