"""The kernel interface on a GPU."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import BackendError
from aegis_dask.ring import operands
from aegis_dask.ring.backend import Array, HoistedKey, Limbs, switch_one_by_one
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import BaseConversion, DigitRaise, ModDown
from aegis_dask.ring.cuda_backend import twiddles
from aegis_dask.ring.cuda_backend.launcher import Device, Launcher
from aegis_dask.ring.cuda_backend.residency import KeptArray
from aegis_dask.ring.cuda_backend.sources import (
    CHACHA_THREADS,
    COLUMNS,
    CONVERT_COLUMNS,
    KEYS,
    MAX_LOG_N,
    MIN_LOG_N,
    PAIR,
    TAIL,
    TAILS,
    THIN,
    THREADS,
    TILE,
    VECTOR,
)
from aegis_dask.ring.tables import shoup_pair

SMALLEST_PART, PARTS = 1 << 26, 64
"""Operations work on a 64th of the device's memory at a time: their temporaries take several times
that, and smaller launches do not fill the device."""
WEIGHT_PARTS = 16
"""Likewise, of prepared weights, unless it is configured."""
_NO_KEY = (0, 0, 0, 1)
_NO_ADDEND = (0, 0, 0, 1, 0)
THIN_GROUPS = 2
"""Groups of THIN outputs, up to which a matrix product takes the kernel for few outputs."""
Structure = tuple[int, ...]
"""A structure of the sources that is passed by value: its fields, addresses among them."""


def _factors(pair: tuple[NDArray[np.uint32], NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """Constants and their Shoup companions next to each other, as the kernels read them."""
    return np.ascontiguousarray(np.stack(pair, axis=-1))


def _transposed(matrix: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the matrix of a conversion with targets last, filled up to a multiple of VECTOR."""
    return np.pad(matrix.T, ((0, 0), (0, -len(matrix) % VECTOR)))


class _Rows(NamedTuple):
    """Rows of an array that a launch treats.

    Attributes
    ----------
    value
        Structure `Rows` of the sources.
    limbs
        How many there are of each polynomial.
    """

    value: Structure
    limbs: int


class _Conversions(NamedTuple):
    """Base conversions that one launch does.

    Attributes
    ----------
    array
        Structures `Conversion` of the sources, on the device.
    digits
        How many there are.
    keep
        Arrays that they point to.
    """

    array: Any
    digits: int
    keep: list[Any]


class _Raising(NamedTuple):
    """Constants of `DigitRaise` on the device.

    Attributes
    ----------
    factors
        Of the inverse transform of what is raised.
    window
        Its rows.
    digits
        Rows of raised digits that are to be transformed.
    conversions
        Of the digits.
    digit_of, primes
        Of the raised limbs.
    """

    factors: Any
    window: _Rows
    digits: _Rows
    conversions: _Conversions
    digit_of: Any
    primes: Any


class _Dividing(NamedTuple):
    """Constants of `ModDown` on the device.

    Attributes
    ----------
    sources, kept
        Rows that leave: in what is divided, and by themselves.
    targets
        Rows of the result.
    target_rows, source_factors, source_addend, target_factors, addend_factors
        As in `ModDown`.
    """

    sources: _Rows
    kept: _Rows
    targets: _Rows
    target_rows: Any
    source_factors: Any
    source_addend: Any
    target_factors: Any
    addend_factors: Any


class CudaRing:
    """CKKS kernels on a GPU for the primes of one chain (see `backend.Ring`).

    Parameters
    ----------
    chain
        The primes.
    device
        Where to run.
    """

    def __init__(self, chain: ModulusChain, device: Device) -> None:
        n = chain.ring_degree
        log_n = n.bit_length() - 1
        if not MIN_LOG_N <= log_n <= MAX_LOG_N:
            raise BackendError(
                f"ring degree {n} is not supported by the GPU backend; use a power of two from "
                f"2^{MIN_LOG_N} to 2^{MAX_LOG_N}"
            )
        self.chain, self.degree, self.device = chain, n, device
        self.part_bytes = max(SMALLEST_PART, device.memory() // PARTS)
        self.weight_bytes = device.memory() // WEIGHT_PARTS
        self._launcher = Launcher(device, log_n)
        self._launch, self._integers = self._launcher.launch, self._launcher.integers
        self.launches = self._launcher.launches
        """How often each kernel has been launched."""
        primes = chain.all_primes
        columns = [
            primes,
            [pow(p, -1, 1 << 32) for p in primes],
            [pow(2, 64, p) for p in primes],
            [(1 << 32) // p for p in primes],
            *shoup_pair([1 << 32] * len(primes), primes),
            [2 * p for p in primes],
            [0] * len(primes),
        ]
        self._host_table = np.ascontiguousarray(np.array(columns, np.uint32).T)
        self._table = device.upload(self._host_table)
        self._by_degree = _factors(shoup_pair([pow(n, -1, p) for p in primes], primes))
        self._keep: list[Any] = []
        self._forward, self._inverse = self._upload_twiddles(False), self._upload_twiddles(True)

    def _upload_twiddles(self, inverse: bool) -> Structure:
        tables = twiddles.tables(self.degree, self.chain.all_primes, inverse)
        arrays = [self.device.upload(t) for t in tables]
        self._keep += arrays
        return tuple(map(self.device.address, arrays))

    # -- memory -----------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised array."""
        return self.device.empty(shape)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an array of zeros."""
        out = self.empty(shape)
        out[...] = 0
        return out

    def from_host(self, x: NDArray[Any]) -> Array:
        """Copy a host array to the device."""
        out: Array = self.device.upload(x)
        return out

    def keep(self, x: NDArray[np.uint32]) -> Array:
        """See `Ring.keep`."""
        return cast("Array", KeptArray(x))

    def to_host(self, x: Array) -> NDArray[np.uint32]:
        """Copy a device array to the host."""
        given: Any = x
        host: NDArray[np.uint32] = (
            given.host if isinstance(given, KeptArray) else self.device.download(x)
        )
        return host

    def synchronize(self) -> None:
        """See `Ring.synchronize`."""
        self.device.synchronize()

    # -- helpers ----------------------------------------------------------------------------

    def _limbs(self, x: Array, limbs: Limbs) -> tuple[Any, Any]:
        """Return the primes of the limbs of x, on the device, and the table of primes."""
        operands.check_limbs(x, len(limbs), self.degree)
        return self._integers(limbs), self._table

    @staticmethod
    def _flat_out(out: Array) -> Array:
        operands.check_contiguous(out)
        return out

    def _which(self, x: Array, y: Array) -> Any:
        """Polynomial of y that goes with each polynomial of x; None where it is the same one."""
        operands.check_same_limbs(x, y)
        if y.shape == x.shape:
            return None
        own = np.arange(prod(y.shape[:-2])).reshape(y.shape[:-2])
        return self._integers(np.broadcast_to(own, x.shape[:-2]))

    def _rows(
        self, primes: Any, count: int, places: Any = None, stride: int | None = None
    ) -> _Rows:
        """Return rows of these primes: all of them, or those at `places` of every `stride`."""
        address = self.device.address
        where = 0 if places is None else address(places)
        return _Rows((where, address(primes), count if stride is None else stride), count)

    def _batched(self, x: Array) -> tuple[Array, int]:
        """Return x with contiguous elements, and rows from one to the next: a part of an array."""
        row, step = 4 * self.degree, x.strides[0]
        if not x[0].flags.c_contiguous or step % row or step < 0:
            x = self.device.contiguous(x)
        return x, x.strides[0] // row

    def _addend(self, addend: Array | None) -> tuple[Array | None, Structure]:
        """Return what keeps the memory of an addend, and its structure."""
        if addend is None:
            return None, _NO_ADDEND
        addend, step = self._batched(addend)
        batch, used, limbs, _ = addend.shape
        return addend, (self.device.address(addend), used, limbs, batch, step)

    def _row_grid(self, polys: int, rows: _Rows) -> tuple[int, ...]:
        return polys, TAIL // COLUMNS, rows.limbs

    def _tail_grid(self, polys: int, rows: _Rows) -> tuple[int, ...]:
        return polys, max(1, self.degree // TAIL // TAILS), rows.limbs

    # -- transforms -------------------------------------------------------------------------

    def ntt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.ntt`."""
        primes, _ = self._limbs(x, limbs)
        x, out = self.device.contiguous(x), self.empty(x.shape)
        self._ntt(out, x, prod(x.shape[:-2]), self._rows(primes, len(limbs)))
        return out

    def _ntt(self, out: Array, x: Array, polys: int, rows: _Rows) -> None:
        common = (rows.value, self._forward, self._table)
        self._launch("ntt_rows", self._row_grid(polys, rows), out, x, *common)
        self._launch("ntt_tails", self._tail_grid(polys, rows), out, *common)

    def intt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.intt`."""
        primes, _ = self._limbs(x, limbs)
        factors = self._launcher.kept(
            self,
            tuple(limbs),
            lambda: self.device.upload(self._by_degree[np.asarray(limbs, np.int64)]),
        )
        x, out = self.device.contiguous(x), self.empty(x.shape)
        rows = self._rows(primes, len(limbs))
        self._intt(out, x, prod(x.shape[:-2]), rows, rows, factors)
        return out

    def _intt(
        self,
        out: Array,
        x: Array,
        polys: int,
        source_rows: _Rows,
        rows: _Rows,
        factors: Any,
        addend: Structure = _NO_ADDEND,
        components: int = 1,
        addend_factors: Any = None,
    ) -> None:
        common = (self._inverse, self._table)
        extra = (addend, components, addend_factors)
        grid = self._tail_grid(polys, source_rows)
        self._launch("intt_tails", grid, out, x, *extra, source_rows.value, *common)
        self._launch("intt_rows", self._row_grid(polys, rows), out, rows.value, factors, *common)

    # -- element-wise -----------------------------------------------------------------------

    def _points(self, x: Array, each: int = VECTOR) -> tuple[int, ...]:
        """Return the grid of a kernel whose threads treat `each` points of x."""
        return prod(x.shape[:-2]) * (self.degree // (THREADS * each)), x.shape[-2]

    def add(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """See `Ring.add`."""
        return self._binary("add", x, y, limbs, out)

    def sub(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """See `Ring.sub`."""
        return self._binary("sub", x, y, limbs, out)

    def _binary(self, kernel: str, x: Array, y: Array, limbs: Limbs, out: Array | None) -> Array:
        constants = self._limbs(x, limbs)
        out = self.empty(x.shape) if out is None else out
        which = self._which(x, y)
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        self._launch(kernel, self._points(x), self._flat_out(out), x, y, which, *constants)
        return out

    def negate(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.negate`."""
        constants, out = self._limbs(x, limbs), self.empty(x.shape)
        self._launch("negate", self._points(x), out, self.device.contiguous(x), *constants)
        return out

    def multiply(self, x: Array, y: Array, limbs: Limbs, accumulate: Array | None = None) -> Array:
        """See `Ring.multiply`."""
        constants = self._limbs(x, limbs)
        out = self.empty(x.shape) if accumulate is None else accumulate
        which, adds = self._which(x, y), int(accumulate is not None)
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        grid = self._points(x)
        self._launch("multiply", grid, self._flat_out(out), x, y, which, adds, *constants)
        return out

    def multiply_runs(
        self, x: Array, w: NDArray[np.uint32], limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """See `Ring.multiply_runs`."""
        constants = self._limbs(x, limbs)
        w = operands.rows_of_runs(w, x)
        q = self._host_table[np.asarray(limbs, np.int64), 0].astype(np.uint64)[:, None, None]
        ws = ((w.astype(np.uint64) << np.uint64(32)) // q).astype(np.uint32)
        factors = self._launcher.content(_factors((w, ws)))
        out = self.empty(x.shape) if accumulate is None else accumulate
        x, adds = self.device.contiguous(x), int(accumulate is not None)
        arguments = (self._flat_out(out), x, factors, *self._runs(w, x), adds, *constants)
        self._launch("multiply_runs", self._points(x), *arguments)
        return out

    @staticmethod
    def _runs(w: NDArray[np.uint32], x: Array) -> tuple[int, int, int]:
        """Return runs, rows, and the polynomials of x that share one."""
        _, rows, runs = w.shape
        return runs, rows, max(1, prod(x.shape[:-2]) // rows)

    def add_runs(self, x: Array, w: NDArray[np.uint32], limbs: Limbs) -> Array:
        """See `Ring.add_runs`."""
        constants, out = self._limbs(x, limbs), self.empty(x.shape)
        w = operands.rows_of_runs(w, x)
        x, values = self.device.contiguous(x), self._launcher.content(w)
        self._launch("add_runs", self._points(x), out, x, values, *self._runs(w, x), *constants)
        return out

    def tensor(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """See `Ring.tensor`."""
        constants = self._limbs(x, limbs)
        out = self.empty((x.shape[0], 3, *x.shape[2:]))
        which = self._which(x[:, 0], y[:, 0])
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        self._launch("tensor", self._points(x[:, 0]), out, x, y, which, *constants)
        return out

    def from_signed(self, x: NDArray[np.int64], limbs: Limbs) -> Array:
        """See `Ring.from_signed`."""
        out = self.empty((*x.shape[:-1], len(limbs), self.degree))
        constants = self._limbs(out, limbs)
        signed = self.device.upload(np.ascontiguousarray(x))
        self._launch("from_signed", self._points(out, 1), out, signed, *constants)
        return out

    def to_montgomery(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.to_montgomery`."""
        return self.multiply_runs(x, self._host_table[np.asarray(limbs, np.int64), 4:5], limbs)

    # -- sampling ---------------------------------------------------------------------------

    def uniform(self, seed: bytes, domain: int, indices: Sequence[int], limbs: Limbs) -> Array:
        """See `Ring.uniform`."""
        operands.check_seed(seed)
        out = self.empty((len(indices), len(limbs), self.degree))
        grid = (len(indices) * len(limbs) * (self.degree // 8 // CHACHA_THREADS),)
        key, where = struct.unpack("<8I", seed), self._integers(indices)
        constants = self._limbs(out, limbs)
        self._launch("uniform", grid, out, key, domain, where, len(limbs), *constants)
        return out

    # -- automorphisms ----------------------------------------------------------------------

    def _galois(self, galois_element: int) -> int:
        if galois_element % 2 == 0:
            raise BackendError(f"Galois element {galois_element} is even; X -> X^g needs an odd g")
        return galois_element % (2 * self.degree)

    def automorphism(self, x: Array, galois_element: int, out: Array | None = None) -> Array:
        """See `Ring.automorphism`."""
        out = self.empty(x.shape) if out is None else self._flat_out(out)
        x = self.device.contiguous(x)
        self._launch("automorphism", self._points(x, 1), out, x, self._galois(galois_element))
        return out

    def automorphism_multiply_add(
        self, acc: Array, x: Array, y: Array, limbs: Limbs, galois_element: int
    ) -> None:
        """See `Ring.automorphism_multiply_add`."""
        constants, g = self._limbs(x, limbs), self._galois(galois_element)
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        grid = self._points(x, 1)
        self._launch("automorphism_multiply_add", grid, self._flat_out(acc), x, y, g, *constants)

    # -- key switching ----------------------------------------------------------------------

    def _conversions(
        self, all_of_them: Sequence[tuple[BaseConversion, NDArray[Any], NDArray[Any]]]
    ) -> _Conversions:
        """Return conversions, each with the rows that it writes and reads."""
        address, upload = self.device.address, self.device.upload
        packed, keep = b"", []
        for c, dst_rows, src_rows in all_of_them:
            arrays = [
                *map(self._integers, (dst_rows, src_rows, c.targets)),
                upload(_transposed(c.matrix)),
                upload(np.append(c.quotient, np.uint32(0))),  # there may be none
            ]
            sizes = len(c.sources), len(c.targets), len(c.quotient) > 0, 0
            packed += struct.pack("<5Q4i", *map(address, arrays), *sizes)
            keep += arrays
        return _Conversions(upload(np.frombuffer(packed, np.int64)), len(all_of_them), keep)

    def _convert(
        self,
        dst: Array,
        dst_stride: int,
        src: Array,
        src_stride: int,
        conversions: _Conversions,
        polys: int,
    ) -> None:
        """Convert; strides are the rows of a polynomial."""
        grid = (polys * (self.degree // CONVERT_COLUMNS), conversions.digits)
        arguments = (dst, dst_stride, src, src_stride, conversions.array, self._table)
        self._launch("convert", grid, *arguments)

    def convert(self, x: Array, conversion: BaseConversion) -> Array:
        """See `Ring.convert`."""
        c, (sources, targets) = conversion, (len(conversion.sources), len(conversion.targets))
        out = self.empty((*x.shape[:-2], targets, self.degree))
        held = self._launcher.kept(
            c, "alone", lambda: self._conversions([(c, np.arange(targets), np.arange(sources))])
        )
        x = self.device.contiguous(x)
        self._convert(out, targets, x, sources, held, prod(x.shape[:-2]))
        return out

    def _raising(self, c: DigitRaise) -> _Raising:
        """Return what does not change between calls."""
        count, limbs, window = len(c.conversions), len(c.limbs), len(c.sources)
        others = c.digit_of != np.arange(count)[:, None]
        rows = np.flatnonzero(others)
        primes = self._integers(np.broadcast_to(c.limbs, others.shape).reshape(-1)[rows])
        return _Raising(
            self.device.upload(_factors(c.factors)),
            self._rows(self._integers(c.sources), window),
            self._rows(primes, len(rows), self._integers(rows), count * limbs),
            self._conversions(
                [
                    (
                        conversion,
                        d * limbs + np.flatnonzero(others[d]),
                        np.searchsorted(c.sources, conversion.sources),
                    )
                    for d, conversion in enumerate(c.conversions)
                ]
            ),
            self._integers(c.digit_of),
            self._integers(c.limbs),
        )

    def raise_digits(self, x: Array, constants: DigitRaise) -> Array:
        """See `Ring.raise_digits`."""
        c, batch = constants, x.shape[0]
        held = self._launcher.kept(c, "raise", lambda: self._raising(c))
        (x, step), y = self._batched(x), self.empty(x.shape)
        own = held.window._replace(value=(*held.window.value[:2], step))
        self._intt(y, x, batch, own, held.window, held.factors)
        out = self.empty((batch, len(c.conversions), len(c.limbs), self.degree))
        rows = len(c.conversions) * len(c.limbs)
        self._convert(out, rows, y, held.window.limbs, held.conversions, batch)
        return out

    def inner_product(
        self,
        x: Array,
        digits: Array,
        constants: DigitRaise,
        key_b: Array,
        key_a: Array,
        transform: bool,
        key_rows: NDArray[np.int64] | None = None,
    ) -> Array:
        """See `Ring.inner_product`."""
        out = self.empty((digits.shape[0], 2, *digits.shape[2:]))
        keys = [HoistedKey(key_b, key_a, 1, key_rows)]
        self._products(x, digits, constants, keys, transform, None, out[None])
        return out

    def turned_products(
        self,
        x: Array,
        digits: Array,
        constants: DigitRaise,
        keys: Sequence[HoistedKey],
        transform: bool,
        addend: Array,
        out: Array | None = None,
    ) -> Array:
        """See `Ring.turned_products`."""
        operands.check_turned(digits, len(keys), addend, out)
        batch, _, limbs, _ = digits.shape
        out = self.empty((len(keys), batch, 2, limbs, self.degree)) if out is None else out
        addend = self.device.contiguous(addend)
        self._products(x, digits, constants, keys, transform, addend, self._flat_out(out))
        return out

    def _products(
        self,
        x: Array,
        digits: Array,
        c: DigitRaise,
        keys: Sequence[HoistedKey],
        transform: bool,
        addend: Array | None,
        out: Array,
        some: Any = None,
    ) -> None:
        """Multiply with keys, as many at a time as a launch takes; all limbs, or some."""
        batch, count, limbs, _ = digits.shape
        held = self._launcher.kept(c, "raise", lambda: self._raising(c))
        prepared = [self._prepared_key(x, c, key) for key in keys]  # checked before any launch
        if transform:
            operands.check_contiguous(digits)
            self._ntt(digits, digits, batch, held.digits)
        (x, step), digits = self._batched(x), self.device.contiguous(digits)
        added = (addend, 0 if addend is None else addend.shape[1])
        grid = (batch, self.degree // (THREADS * VECTOR), out.shape[-2])
        sizes = (held.digit_of, count, limbs, held.primes)
        for first in range(0, len(keys), KEYS):
            now = prepared[first : first + KEYS]
            fields = sum((structure for _, structure in now), ()) + _NO_KEY * (KEYS - len(now))
            self._launch(
                "inner_products", grid, out[first : first + len(now)], digits, x, step,
                fields, len(now), *sizes, *added, some, self._table,
            )  # fmt: skip

    def _prepared_key(self, x: Array, c: DigitRaise, key: HoistedKey) -> tuple[Any, Structure]:
        """Return a key as `Key` of the sources, and the arrays that it points to."""
        index = self._key_index(x, c, key.b, key.a, key.rows)
        b, a = self._key_half(key.b), self._key_half(key.a)
        address = self.device.address
        inverse = pow(self._galois(key.galois_element), -1, 2 * self.degree)
        return (b, a), (address(b), address(a), address(index), inverse)

    def _key_index(
        self,
        x: Array,
        c: DigitRaise,
        key_b: Array,
        key_a: Array,
        key_rows: NDArray[np.int64] | None,
    ) -> Any:
        """Return the rows of a key on the device, checked once for operands of these shapes."""
        content = None if key_rows is None else key_rows.tobytes()
        name = (content, key_b.shape, key_a.shape, x.shape[1:])

        def make() -> Any:
            return self._integers(operands.key_index(self.chain, x, key_b, key_a, c, key_rows))

        return self._launcher.kept(c, name, make)

    def _key_half(self, x: Any) -> Array:
        if isinstance(x, KeptArray):
            return self.device.keys.on_device(x)
        return self.device.contiguous(x)

    def _inner_arguments(
        self, x: Array, digits: Array, held: _Raising, key_b: Array, key_a: Array, index: Any
    ) -> tuple[Any, ...]:
        x, step = self._batched(x)
        return (
            self.device.contiguous(digits),
            x,
            step,
            self._key_half(key_b),
            self._key_half(key_a),
            index,
            held.digit_of,
            digits.shape[1],
            digits.shape[2],
            held.primes,
        )

    def _dividing(self, c: ModDown, limbs: int) -> _Dividing:
        """Return what does not change between calls."""
        upload = self.device.upload
        primes, count = self._integers(c.conversion.sources), len(c.source_rows)
        targets = len(c.target_rows)
        return _Dividing(
            self._rows(primes, count, self._integers(c.source_rows), limbs),
            self._rows(primes, count),
            self._rows(self._integers(c.conversion.targets), targets),
            self._integers(c.target_rows),
            *(
                upload(_factors(pair))
                for pair in (
                    c.source_factors, c.source_addend, c.target_factors, c.addend_factors
                )
            ),
        )  # fmt: skip

    def mod_down(
        self,
        x: Array,
        constants: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
    ) -> Array:
        """See `Ring.mod_down`."""
        operands.check_addend(x, addend)
        c, (batch, components, limbs, _) = constants, x.shape
        held = self._launcher.kept(c, ("divide", limbs), lambda: self._dividing(c, limbs))
        polys = batch * components
        x = self.device.contiguous(x)
        addend, added = self._addend(addend)
        remainder = self._remainder(x, c, held, added)
        out = self.empty((batch, components, held.targets.limbs, self.degree))
        self._launch(
            "ntt_tails_divide",
            self._tail_grid(polys, held.targets),
            out,
            remainder,
            x,
            limbs,
            components,
            held.target_rows,
            held.target_factors,
            added,
            held.addend_factors,
            pow(self._galois(galois_element), -1, 2 * self.degree),
            held.targets.value,
            self._forward,
            self._table,
        )
        return out

    def _remainder(self, x: Array, c: ModDown, held: _Dividing, added: Structure) -> Array:
        """Return the limbs that leave, converted, up to the tails of the transform."""
        *lead, components, _, _ = x.shape
        polys = prod(lead) * components
        y = self.empty((polys, held.kept.limbs, self.degree))
        self._intt(
            y, x, polys, held.sources, held.kept, held.source_factors, added, components,
            held.source_addend,
        )  # fmt: skip
        remainder = self.convert(y, c.conversion)
        common = (held.targets.value, self._forward, self._table)
        grid = self._row_grid(polys, held.targets)
        self._launch("ntt_rows", grid, remainder, remainder, *common)
        return remainder

    def switch_hoisted(
        self,
        x: Array,
        digits: Array,
        raise_constants: DigitRaise,
        keys: Sequence[HoistedKey],
        down: ModDown,
        addend: Array,
    ) -> list[Array]:
        """See `Ring.switch_hoisted`."""
        operands.check_addend(x[:, None], addend)
        c, (batch, count, limbs, _) = raise_constants, digits.shape
        if int(min(down.conversion.sources)) < len(self.chain.primes):  # limbs of x leave too
            return switch_one_by_one(self, x, digits, c, keys, down, addend)
        held = self._launcher.kept(down, "hoisted", lambda: self._dividing_hoisted(down))
        polys = len(keys) * batch * 2
        # Products of limbs that leave are made alone; those of the others by the division.
        sums = self.empty((len(keys), batch, 2, held.kept.limbs, self.degree))
        plain = [key._replace(galois_element=1) for key in keys]
        leaving = self._integers(down.source_rows)
        self._products(x, digits, c, plain, True, None, sums, leaving)
        raising = self._launcher.kept(c, "raise", lambda: self._raising(c))
        x, step = self._batched(x)
        prepared = [self._prepared_key(x, c, key) for key in keys]
        packed = b"".join(struct.pack("<3QI4x", *structure) for _, structure in prepared)
        structures = self._launcher.content(np.frombuffer(packed, np.int64))
        kept, added = self._addend(addend)
        remainder = self._remainder(sums, down, held, added)
        common = (held.targets.value, self._forward, self._table)
        out = self.empty((len(keys), batch, 2, held.targets.limbs, self.degree))
        self._launch(
            "ntt_tails_divide_products",
            self._tail_grid(polys, held.targets),
            out,
            remainder,
            digits,
            x,
            step,
            structures,
            raising.digit_of,
            count,
            limbs,
            2,
            held.target_rows,
            held.target_factors,
            added,
            held.addend_factors,
            batch * 2,
            *common,
        )
        del kept  # its memory is in use up to here
        return [out[i] for i in range(len(keys))]

    def _dividing_hoisted(self, c: ModDown) -> _Dividing:
        """Return `_dividing` for what has no limbs but those that leave."""
        held = self._dividing(c, len(c.source_rows))
        primes = self._integers(c.conversion.sources)
        return held._replace(sources=self._rows(primes, held.kept.limbs))

    def switch_key(
        self,
        x: Array,
        raise_constants: DigitRaise,
        key_b: Array,
        key_a: Array,
        down: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
        key_rows: NDArray[np.int64] | None = None,
    ) -> Array:
        """See `Ring.switch_key`."""
        operands.check_addend(x[:, None], addend)
        c = raise_constants
        index = self._key_index(x, c, key_b, key_a, key_rows)
        held = self._launcher.kept(c, "raise", lambda: self._raising(c))
        digits = self.raise_digits(x, c)
        batch, _, limbs, _ = digits.shape
        arguments = self._inner_arguments(x, digits, held, key_b, key_a, index)
        grid = self._row_grid(batch, held.digits)
        common = (self._forward, self._table)
        self._launch("ntt_rows", grid, digits, digits, held.digits.value, *common)
        sums = self.empty((batch, 2, limbs, self.degree))
        grid = (batch, max(1, self.degree // TAIL // TAILS), limbs)
        self._launch("ntt_tails_inner", grid, sums, *arguments, *common)
        return self.mod_down(sums, down, addend, galois_element)

    # -- matrix products --------------------------------------------------------------------

    def _leading(self, x: Array, axes: int) -> tuple[Array, list[int]]:
        """Return x with its last axes contiguous, and the strides of the others in words."""
        tail = x[(0,) * axes]
        if not tail.flags.c_contiguous or any(s < 0 or s % 4 for s in x.strides[:axes]):
            x = self.device.contiguous(x)
        return x, [s // 4 for s in x.strides[:axes]]

    def contract(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """See `Ring.contract`."""
        constants = self._limbs(x, limbs)
        operands.check_contraction(x, y)
        left = x if x.ndim == 5 else x[None]
        rows, terms, outs = left.shape[0], left.shape[1], y.shape[0]
        out = self.empty((*x.shape[:-4], outs, 3, *x.shape[-2:]))
        left, steps_x = self._leading(left, 2)
        right, steps_y = self._leading(y, 2)
        pairs = -(-rows // PAIR) * -(-outs // PAIR)
        self._launch(
            "contract",
            (self.degree // (THREADS * PAIR), pairs, len(limbs)),
            out,
            left,
            *steps_x,
            right,
            *steps_y,
            rows,
            outs,
            terms,
            len(limbs),
            *constants,
        )
        return out

    def gemm(
        self, x: Array, weights: Array, limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """See `Ring.gemm`."""
        constants = self._limbs(x, limbs)
        shape = operands.product_shape(x, weights, len(limbs), accumulate)
        out = self.empty(shape) if accumulate is None else accumulate
        runs, outs = weights.shape[1:3]
        left, (step,) = self._leading(x, 1)
        right, steps = self._leading(weights, 4)
        polys = prod(x.shape[1:-2])
        if outs <= THIN * THIN_GROUPS:
            kernel = "gemm_thin"
            grid = (polys * (self.degree // (2 * THREADS)), -(-outs // THIN), len(limbs))
        else:
            kernel, columns = "gemm", self.degree // runs * polys
            grid = (-(-columns // TILE), -(-outs // TILE), len(limbs) * runs)
        self._launch(
            kernel,
            grid,
            self._flat_out(out),
            left,
            step,
            right,
            *steps,
            outs,
            x.shape[0],
            runs,
            polys,
            int(accumulate is not None),
            len(limbs),
            *constants,
        )
        return out

    def encode_weights(self, coefficients: NDArray[np.int64], limbs: Limbs) -> Array:
        """See `Ring.encode_weights`."""
        operands.check_coefficients(coefficients, self.degree)
        runs = coefficients.shape[0]
        out = self.empty((len(limbs), *coefficients.shape))
        primes = self._integers(limbs)
        count, columns = coefficients.size, prod(coefficients.shape[1:])
        signed: Any = coefficients
        if isinstance(coefficients, np.ndarray):
            signed = self.device.upload(np.ascontiguousarray(coefficients))
        grid = (-(-count // THREADS), len(limbs))
        last = int(runs == 1)
        self._launch("encode_residues", grid, out, signed, count, last, primes, self._table)
        groups = 1
        while groups < runs:
            self._launch(
                "encode_stage",
                (-(-count // 2 // THREADS), len(limbs)),
                out,
                columns,
                runs,
                groups,
                int(2 * groups == runs),
                primes,
                self._forward[0],
                self._table,
            )
            groups *= 2
        return out
