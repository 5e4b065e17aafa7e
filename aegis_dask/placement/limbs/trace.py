"""Kernel calls written down instead of being made: a program at the granularity of polynomials.

`Recorder` has the interface of a ring (`ring.backend.Ring`). Arithmetic that runs on it, unchanged,
leaves a list of `Instruction`s on `Buffer`s: which polynomials depend on which, and whether through
all limbs of them (ModUp, ModDown, rescaling: *RNS-coupled*) or limb by limb.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import ClusterError
from aegis_dask.ring.backend import HoistedKey, Limbs, switch_one_by_one
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import BaseConversion, DigitRaise, ModDown

Shape = tuple[int, ...]
Step = tuple[Any, ...]
"""``("index", ...)``, ``("limbs", start, stop)``, ``("reshape", shape)`` or ``("swap", a, b)``."""


@dataclass
class Buffer:
    """Memory of its own: polynomials, or weights with limbs as their first axis.

    Attributes
    ----------
    shape
        With all limbs.
    axis
        Axis of the limbs.
    limbs
        Prime of each, None while it is not known.
    """

    shape: Shape
    axis: int
    limbs: list[int | None]


@dataclass(frozen=True)
class View:
    """A buffer, or a part of it seen in some shape."""

    buffer: int
    path: tuple[Step, ...] = ()


@dataclass(frozen=True)
class PerLimb:
    """Constants whose first axis is that of the limbs."""

    values: NDArray[Any]


@dataclass(frozen=True)
class Primes:
    """The limbs of an operation, as primes."""

    indices: tuple[int, ...]


@dataclass(frozen=True)
class KeyPart:
    """Half of an evaluation key.

    Attributes
    ----------
    element
        Galois element, or None for products.
    level
        Level of the ciphertexts that it serves.
    """

    element: int | None
    level: int


@dataclass(frozen=True)
class Instruction:
    """A kernel call.

    Attributes
    ----------
    name
        Method of `Ring`, or ``store`` for an assignment.
    out
        Buffer that it makes, or None if it writes into one.
    arguments, keywords
        Operands: `View`, `Primes`, `PerLimb`, `KeyPart`, or plain values.
    target
        View that is written, if any.
    stage
        Stage of the program.
    """

    name: str
    out: int | None
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)
    target: View | None = None
    stage: int = 0

    @property
    def views(self) -> list[View]:
        """Operands that are read."""
        operands = [*self.arguments, *self.keywords.values()]
        return [a for a in operands if isinstance(a, View)]


class Traced:
    """What stands for an array: a view of a buffer, without data."""

    __array_ufunc__ = None
    dtype = np.dtype(np.uint32)
    itemsize = 4
    # Kernels take views as they are; whether a copy is needed shows where the data is.
    flags = SimpleNamespace(c_contiguous=True, writeable=True, aligned=True)

    def __init__(
        self,
        ring: Recorder,
        view: View,
        shape: Shape,
        axis: int,
        limbs: tuple[int, int],
    ) -> None:
        self.ring, self.view, self.shape, self.axis, self.range = ring, view, shape, axis, limbs

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes with all limbs."""
        return 4 * prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Traced]:
        return (self[i] for i in range(len(self)))

    def _step(self, step: Step, shape: Shape, axis: int, limbs: tuple[int, int]) -> Traced:
        view = View(self.view.buffer, (*self.view.path, step))
        return Traced(self.ring, view, shape, axis, limbs)

    def __getitem__(self, index: Any) -> Traced:
        items = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in items:
            at = items.index(Ellipsis)
            items[at : at + 1] = [slice(None)] * (self.ndim - len(items) + 1)
        wanted = sum(i is not None for i in items)
        items += [slice(None)] * (self.ndim - wanted)
        shape: list[int] = []
        plain: list[Any] = []
        out, source, axis, cut = self, 0, -1, self.range
        for item in items:
            if item is None:
                shape.append(1)
                plain.append(None)
                continue
            size = self.shape[source]
            if source == self.axis:
                if not isinstance(item, slice) or item.step not in (None, 1):
                    raise ClusterError(f"limbs are taken one after the other, not by {item!r}")
                start, stop, _ = item.indices(size)
                cut = (self.range[0] + start, self.range[0] + stop)
                axis = len(shape)
                shape.append(stop - start)
                plain.append(slice(None))
            elif isinstance(item, slice):
                start, stop, step = item.indices(size)
                shape.append(len(range(start, stop, step)))
                plain.append(slice(start, stop, step))
            else:
                plain.append(int(item) % size)
            source += 1
        if cut != self.range:
            first = cut[0] - self.range[0], cut[1] - self.range[0]
            limbed = list(self.shape)
            limbed[self.axis] = cut[1] - cut[0]
            out = out._step(("limbs", *first), tuple(limbed), self.axis, cut)
        return out._step(("index", *plain), tuple(shape), axis, cut)

    def __setitem__(self, index: Any, value: Any) -> None:
        part = self[index]
        if not isinstance(value, Traced):
            raise ClusterError(f"only polynomials are assigned to polynomials, not {value!r}")
        self.ring.unify(part, value)
        self.ring.note("store", None, (value.view,), target=part.view)

    def reshape(self, *shape: Any) -> Traced:
        """Return a view of another shape; the axes of limbs and points stay the last ones."""
        sizes = list(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape)
        if -1 in sizes:
            rest = -prod(sizes)
            sizes[sizes.index(-1)] = prod(self.shape) // rest if rest else 0
        if tuple(sizes[-2:]) != self.shape[-2:] or self.axis != self.ndim - 2:
            raise ClusterError(f"limbs do not stay apart from {self.shape} to {tuple(sizes)}")
        step = ("reshape", tuple(sizes))
        return self._step(step, tuple(sizes), len(sizes) - 2, self.range)

    def swapaxes(self, a: int, b: int) -> Traced:
        """Return a view with two axes exchanged, not those of limbs or points."""
        shape = list(self.shape)
        if max(a % self.ndim, b % self.ndim) >= self.axis:
            raise ClusterError("the axes of limbs and points keep their place")
        shape[a], shape[b] = shape[b], shape[a]
        return self._step(("swap", a, b), tuple(shape), self.axis, self.range)

    def copy(self) -> Traced:
        """Return a copy."""
        out = self.ring.empty(self.shape)
        out[...] = self
        return out


class Recorder:
    """A ring that writes down what it is asked for.

    Attributes
    ----------
    chain
        Primes.
    buffers, instructions
        What has been written down.
    stage
        Stage to which instructions belong.
    """

    part_bytes, weight_bytes = 1 << 26, 0

    def __init__(self, chain: ModulusChain) -> None:
        self.chain, self.degree = chain, chain.ring_degree
        self.buffers: list[Buffer] = []
        self.instructions: list[Instruction] = []
        self.stage = 0

    # -- writing down ------------------------------------------------------------------------

    def make(self, shape: Shape, limbs: Limbs | None, axis: int = -2) -> Traced:
        """Return a new buffer."""
        axis %= len(shape)
        known: list[int | None] = [None] * shape[axis]
        if limbs is not None:
            known = [int(i) for i in limbs]
        self.buffers.append(Buffer(tuple(shape), axis, known))
        view = View(len(self.buffers) - 1)
        return Traced(self, view, tuple(shape), axis, (0, shape[axis]))

    def note(
        self,
        name: str,
        out: Traced | None,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any] | None = None,
        target: View | None = None,
    ) -> None:
        """Append an instruction."""
        made = None if out is None else out.view.buffer
        self.instructions.append(
            Instruction(name, made, arguments, keywords or {}, target, self.stage)
        )

    def limbs_of(self, x: Traced) -> list[int | None]:
        """Return the primes of what is known of the limbs of a view."""
        return self.buffers[x.view.buffer].limbs[slice(*x.range)]

    def bind(self, x: Traced, limbs: Limbs) -> None:
        """Take note of the primes of the limbs of a view.

        Raises
        ------
        ClusterError
            If they were others.
        """
        wanted = [int(i) for i in limbs]
        known = self.limbs_of(x)
        if len(known) != len(wanted) or any(
            k not in (None, w) for k, w in zip(known, wanted, strict=True)
        ):
            raise ClusterError(f"limbs {wanted} are taken from an array with the limbs {known}")
        self.buffers[x.view.buffer].limbs[slice(*x.range)] = wanted

    def unify(self, x: Traced, y: Traced) -> None:
        """Take note that the limbs of two views are the same."""
        for a, b in ((x, y), (y, x)):
            known = self.limbs_of(b)
            if known and None not in known:
                self.bind(a, [i for i in known if i is not None])

    def _operand(self, x: Any, limbs: Sequence[int] | None) -> Any:
        if isinstance(x, Traced):
            if limbs is not None:
                self.bind(x, limbs)
            return x.view
        if isinstance(x, np.ndarray):
            return PerLimb(x)
        return x

    def _elementwise(
        self, name: str, shape: Shape, operands: Sequence[Any], limbs: Limbs, out: Any = None
    ) -> Any:
        primes = tuple(int(i) for i in limbs)
        views = tuple(self._operand(x, primes) for x in operands)
        if out is None:
            made = self.make(shape, primes)
            self.note(name, made, (*views, Primes(primes)))
            return made
        self.bind(out, primes)
        self.note(name, None, (*views, Primes(primes)), target=out.view)
        return out

    # -- memory ------------------------------------------------------------------------------

    def empty(self, shape: Shape) -> Traced:
        """See `Ring.empty`."""
        out = self.make(tuple(shape), None)
        self.note("empty", out, ())
        return out

    def zeros(self, shape: Shape) -> Traced:
        """See `Ring.zeros`."""
        out = self.make(tuple(shape), None)
        self.note("zeros", out, ())
        return out

    def from_host(self, x: NDArray[np.uint32]) -> Traced:
        """See `Ring.from_host`: of weights, whose first axis is that of the limbs."""
        out = self.make(x.shape, None, axis=0)
        self.note("from_host", out, (PerLimb(x),))
        return out

    keep = from_host

    def to_host(self, x: Any) -> Any:
        """Refuse: there is no data."""
        raise ClusterError("a program that is written down has no data to look at")

    def synchronize(self) -> None:
        """Do nothing."""

    # -- limb by limb ------------------------------------------------------------------------

    def ntt(self, x: Traced, limbs: Limbs) -> Any:
        """See `Ring.ntt`."""
        return self._elementwise("ntt", x.shape, [x], limbs)

    def intt(self, x: Traced, limbs: Limbs) -> Any:
        """See `Ring.intt`."""
        return self._elementwise("intt", x.shape, [x], limbs)

    def add(self, x: Traced, y: Traced, limbs: Limbs, out: Any = None) -> Any:
        """See `Ring.add`."""
        return self._elementwise("add", x.shape, [x, y], limbs, out)

    def sub(self, x: Traced, y: Traced, limbs: Limbs, out: Any = None) -> Any:
        """See `Ring.sub`."""
        return self._elementwise("sub", x.shape, [x, y], limbs, out)

    def negate(self, x: Traced, limbs: Limbs) -> Any:
        """See `Ring.negate`."""
        return self._elementwise("negate", x.shape, [x], limbs)

    def to_montgomery(self, x: Traced, limbs: Limbs) -> Any:
        """See `Ring.to_montgomery`."""
        return self._elementwise("to_montgomery", x.shape, [x], limbs)

    def multiply(self, x: Traced, y: Traced, limbs: Limbs, accumulate: Any = None) -> Any:
        """See `Ring.multiply`."""
        self._no_sums(accumulate)
        return self._elementwise("multiply", x.shape, [x, y], limbs)

    def multiply_runs(self, x: Traced, w: Any, limbs: Limbs, accumulate: Any = None) -> Any:
        """See `Ring.multiply_runs`."""
        self._no_sums(accumulate)
        return self._elementwise("multiply_runs", x.shape, [x, w], limbs)

    def add_runs(self, x: Traced, w: Any, limbs: Limbs) -> Any:
        """See `Ring.add_runs`."""
        return self._elementwise("add_runs", x.shape, [x, w], limbs)

    def _no_sums(self, accumulate: Any) -> None:
        if accumulate is not None:
            raise ClusterError("products that are added to others are not written down")

    def tensor(self, x: Traced, y: Traced, limbs: Limbs) -> Any:
        """See `Ring.tensor`."""
        return self._elementwise("tensor", (x.shape[0], 3, *x.shape[2:]), [x, y], limbs)

    def contract(self, x: Traced, y: Traced, limbs: Limbs) -> Any:
        """See `Ring.contract`."""
        rows = () if x.ndim == 4 else (x.shape[0],)
        shape = (*rows, y.shape[0], 3, *x.shape[-2:])
        return self._elementwise("contract", shape, [x, y], limbs)

    def automorphism(self, x: Traced, galois_element: int, out: Any = None) -> Any:
        """See `Ring.automorphism`."""
        out = self.make(x.shape, None)
        self.unify(out, x)
        self.note("automorphism", out, (x.view, galois_element))
        return out

    def from_signed(self, x: NDArray[np.int64], limbs: Limbs) -> Any:
        """See `Ring.from_signed`."""
        shape = (*x.shape[:-1], len(limbs), self.degree)
        primes = tuple(int(i) for i in limbs)
        out = self.make(shape, primes)
        self.note("from_signed", out, (x, Primes(primes)))
        return out

    def gemm(self, x: Traced, weights: Traced, limbs: Limbs, accumulate: Any = None) -> Any:
        """See `Ring.gemm`."""
        shape = (weights.shape[2], *x.shape[1:])
        self._no_sums(accumulate)
        return self._elementwise("gemm", shape, [x, weights], limbs)

    def encode_weights(self, coefficients: NDArray[np.int64], limbs: Limbs) -> Any:
        """See `Ring.encode_weights`."""
        primes = tuple(int(i) for i in limbs)
        out = self.make((len(primes), *coefficients.shape), primes, axis=0)
        self.note("encode_weights", out, (coefficients, Primes(primes)))
        return out

    # -- through all limbs -------------------------------------------------------------------

    def raise_digits(self, x: Traced, constants: DigitRaise) -> Any:
        """See `Ring.raise_digits`."""
        return self._raised(x, constants, ())

    def _raised(self, x: Traced, constants: DigitRaise, also: tuple[int, ...]) -> Any:
        self.bind(x, constants.sources)
        shape = (len(x), len(constants.conversions), len(constants.limbs), self.degree)
        out = self.make(shape, constants.limbs)
        self.note("raise_digits", out, (x.view, constants), {"also": also})
        return out

    def inner_product(
        self,
        x: Traced,
        digits: Traced,
        constants: DigitRaise,
        key_b: Any,
        key_a: Any,
        transform: bool,
        key_rows: Any = None,
    ) -> Any:
        """See `Ring.inner_product`."""
        return self._multiplied(x, digits, constants, key_b, transform, ())

    def _multiplied(
        self,
        x: Traced,
        digits: Traced,
        constants: DigitRaise,
        key: KeyPart,
        transform: bool,
        also: tuple[int, ...],
    ) -> Any:
        out = self.make((len(x), 2, len(constants.limbs), self.degree), constants.limbs)
        operands = (x.view, digits.view, constants, key, transform)
        # The digits are transformed in place.
        target = digits.view if transform else None
        self.note("inner_product", out, operands, {"also": also}, target)
        return out

    def mod_down(
        self,
        x: Traced,
        constants: ModDown,
        addend: Traced | None = None,
        galois_element: int = 1,
    ) -> Any:
        """See `Ring.mod_down`."""
        targets = constants.conversion.targets
        out = self.make((*x.shape[:2], len(targets), self.degree), targets)
        added = None if addend is None else addend.view
        self.note("mod_down", out, (x.view, constants, added, galois_element))
        return out

    def switch_key(
        self,
        x: Traced,
        raise_constants: DigitRaise,
        key_b: Any,
        key_a: Any,
        down: ModDown,
        addend: Traced | None = None,
        galois_element: int = 1,
        key_rows: Any = None,
    ) -> Any:
        """See `Ring.switch_key`: written down as its three parts.

        The limbs that the division drops are asked for everywhere, so that it needs no exchange.
        """
        special = len(self.chain.primes)
        dropped = tuple(int(i) for i in down.conversion.sources if i < special)
        digits = self._raised(x, raise_constants, dropped)
        inner = self._multiplied(x, digits, raise_constants, key_b, True, dropped)
        return self.mod_down(inner, down, addend, galois_element)

    def convert(self, x: Any, conversion: BaseConversion) -> Any:
        """Refuse: bootstrapping is not divided by limbs."""
        raise ClusterError("a program that refreshes ciphertexts cannot be divided by limbs")

    uniform = automorphism_multiply_add = turned_products = convert

    def switch_hoisted(
        self,
        x: Any,
        digits: Any,
        raise_constants: DigitRaise,
        keys: Sequence[HoistedKey],
        down: ModDown,
        addend: Any,
    ) -> list[Any]:
        """See `Ring.switch_hoisted`: written down as its parts."""
        ring: Any = self
        return switch_one_by_one(ring, x, digits, raise_constants, keys, down, addend)
