"""The CPU implementation of the `Ring` interface."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from math import prod
from typing import Any

import numba
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from aegis_dask.errors import BackendError
from aegis_dask.ring import operands
from aegis_dask.ring.automorphisms import automorphism_tables
from aegis_dask.ring.backend import (
    Array,
    HoistedKey,
    Limbs,
    contiguous,
    switch_one_by_one,
)
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import BaseConversion, DigitRaise, ModDown
from aegis_dask.ring.memory import BufferPool
from aegis_dask.ring.numba_backend import (
    automorphism,
    basis,
    chacha,
    contract,
    elementwise,
    gemm,
    jit,
    keyswitch,
    ntt,
    subring,
)
from aegis_dask.ring.tables import shoup_pair, twiddles
from aegis_dask.ring.threads import kernel_begins, max_threads

_PASSES = {
    10: (2, 0, 0),
    11: (3, 0, 0),
    12: (4, 0, 0),
    13: (3, 2, 0),
    14: (3, 3, 0),
    15: (4, 3, 0),
    16: (4, 4, 0),
    17: (3, 3, 3),
}
"""log2 radices of the row passes; the remaining eight stages are the tail."""

_Tables = tuple[NDArray[Any], ...]
_pool = BufferPool(limit=1 << 30)
_serial = threading.Lock()


def _guard() -> AbstractContextManager[Any]:
    """Serialise kernel calls where Numba's threads cannot take several callers at once."""
    return _serial if _threading_layer() == "workqueue" else nullcontext()


_layer: list[str] = []


def _threading_layer() -> str:
    if not _layer:
        try:
            _layer.append(numba.threading_layer())
        except ValueError:  # no parallel kernel has run yet
            return "workqueue"
    return _layer[0]


def _call(kernel: Any, *args: Any) -> None:
    args = tuple(_plain(a) if isinstance(a, np.ndarray) else a for a in args)
    kernel_begins()
    if kernel.signatures:
        with _guard():
            kernel(*args)
        return
    jit.announce(kernel)
    with _guard():
        kernel(*args)
    jit.announced_done()


class _Alias:
    """The memory of a read-only array, kept alive, offered as if it could be written."""

    __slots__ = ("__array_interface__", "_array")

    def __init__(self, x: NDArray[Any]) -> None:
        self._array = x
        self.__array_interface__ = {
            "version": 3,
            "typestr": x.dtype.str,
            "shape": x.shape,
            "strides": x.strides,
            "data": (x.ctypes.data, False),
        }


def _plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return an array over the same memory that Numba takes for a writable, aligned ndarray.

    Read-only arrays (memory maps, buffers that Dask received) are other types to Numba: each kernel
    would be compiled again for every combination. What kernels write has been checked by
    `_flat_out`, so they only read such an array.
    """
    if not x.flags.aligned:  # a buffer at an odd address
        return x.copy()
    if x.flags.writeable and type(x) is np.ndarray:
        return x
    return np.asarray(_Alias(x))


def _flat(x: Array) -> Array:
    if not x.flags.c_contiguous:
        x = np.ascontiguousarray(x)
    return x.reshape(-1)


def _flat_out(x: Array) -> Array:
    """Flatten an array that is written to: a copy would lose the result."""
    operands.check_contiguous(x)
    if not (x.flags.writeable and x.flags.aligned):
        raise BackendError(
            f"an array of shape {x.shape} is to be written but is read-only or not aligned; give "
            "a copy of it"
        )
    return x.reshape(-1)


def _leading(x: Array, axes: int) -> tuple[Array, tuple[int, ...]]:
    """Return a flat array that begins at x[0, ..] and the strides of its first `axes` axes.

    Strides are in elements. Views whose last axes are contiguous are not copied.
    """
    tail = x[(0,) * axes]
    strides = x.strides[:axes]
    if not tail.flags.c_contiguous or any(s < 0 or s % x.itemsize for s in strides):
        x = np.ascontiguousarray(x)
        strides = x.strides[:axes]
    steps = tuple(s // x.itemsize for s in strides)
    span = tail.size + sum((c - 1) * s for c, s in zip(x.shape, steps, strict=False))
    return as_strided(x, (span,), (x.itemsize,)), steps


class NumbaRing:
    """CKKS kernels on the CPU for the primes of one chain (see `backend.Ring`)."""

    part_bytes = 1 << 26  # temporaries then stay within the memory that is kept for reuse
    weight_bytes = 0  # to prepare them takes a few percent of the time of their products

    def __init__(self, chain: ModulusChain) -> None:
        n = chain.ring_degree
        if n.bit_length() - 1 not in _PASSES:
            raise BackendError(
                f"ring degree {n} is not supported by the CPU backend; use a power of two from "
                f"2^{min(_PASSES)} to 2^{max(_PASSES)}"
            )
        self.chain = chain
        self.degree = n
        primes = chain.all_primes
        self._q = np.array(primes, np.uint32)
        self._q_inv = np.array([pow(p, -1, 1 << 32) for p in primes], np.uint32)
        self._r2 = np.array([pow(2, 64, p) for p in primes], np.uint32)
        self._n_inv = shoup_pair([pow(n, -1, p) for p in primes], primes)
        self._one = shoup_pair([1] * len(primes), primes)
        self._r32 = shoup_pair([1 << 32] * len(primes), primes)

    # Hundreds of megabytes for the largest rings, which whoever only reads data of one must not
    # cost: they are made when a polynomial is transformed.

    @cached_property
    def _tables(self) -> _Tables:
        return self._make_tables(inverse=False)

    @cached_property
    def _inverse_tables(self) -> _Tables:
        return self._make_tables(inverse=True)

    def _make_tables(self, inverse: bool) -> _Tables:
        n = self.degree
        plan = np.array((*_PASSES[n.bit_length() - 1], n), np.int64)
        t = twiddles(n, self.chain.all_primes, inverse)
        arrays = (t.scalar, t.scalar_shoup, t.vector, t.vector_shoup)
        return plan, *(a.reshape(-1) for a in arrays)

    # -- memory -----------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised array from the pool."""
        return _pool.empty(shape)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an array of zeros."""
        out = self.empty(shape)
        out.fill(0)
        return out

    def from_host(self, x: NDArray[Any]) -> Array:
        """Return x."""
        return x

    def keep(self, x: NDArray[np.uint32]) -> Array:
        """Return x."""
        return x

    def to_host(self, x: Array) -> NDArray[np.uint32]:
        """Return x."""
        return x

    def synchronize(self) -> None:
        """Do nothing: kernels return when they are done."""

    # -- helpers ----------------------------------------------------------------------------

    def _limbs(self, x: Array, limbs: Limbs) -> NDArray[np.int64]:
        index = np.asarray(limbs, np.int64)
        operands.check_limbs(x, len(index), self.degree)
        return index

    @staticmethod
    def _poly_index(x: Array, y: Array) -> NDArray[np.int64]:
        """Index of the polynomial of y that goes with each polynomial of x."""
        operands.check_same_limbs(x, y)
        count = prod(y.shape[:-2])
        own = np.arange(count, dtype=np.int64).reshape(y.shape[:-2])
        return np.broadcast_to(own, x.shape[:-2]).reshape(-1)

    # -- transforms -------------------------------------------------------------------------

    def ntt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.ntt`."""
        index, out = self._limbs(x, limbs), self.empty(x.shape)
        polys = prod(x.shape[:-2])
        _call(
            ntt.forward_batch,
            _flat(out),
            _flat(x),
            polys,
            index,
            self._tables,
            self._q,
            self.degree,
        )
        return out

    def intt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.intt`."""
        index, out = self._limbs(x, limbs), self.empty(x.shape)
        factors = (self._n_inv[0][index], self._n_inv[1][index])
        self._intt(out, x, index, factors)
        return out

    def _intt(self, out: Array, x: Array, index: NDArray[np.int64], factors: Any) -> None:
        polys = prod(x.shape[:-2])
        _call(
            ntt.inverse_batch,
            _flat(out),
            _flat(x),
            polys,
            index,
            self._inverse_tables,
            self._q,
            *factors,
            self.degree,
        )

    # -- element-wise -----------------------------------------------------------------------

    def add(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """See `Ring.add`."""
        return self._binary(elementwise.add, x, y, limbs, out)

    def sub(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """See `Ring.sub`."""
        return self._binary(elementwise.sub, x, y, limbs, out)

    def _binary(self, kernel: Any, x: Array, y: Array, limbs: Limbs, out: Array | None) -> Array:
        index = self._limbs(x, limbs)
        out = self.empty(x.shape) if out is None else out
        which = self._poly_index(x, y)
        _call(kernel, _flat_out(out), _flat(x), _flat(y), which, self._q[index], self.degree)
        return out

    def negate(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.negate`."""
        index, out = self._limbs(x, limbs), self.empty(x.shape)
        polys = prod(x.shape[:-2])
        _call(elementwise.negate, _flat(out), _flat(x), polys, self._q[index], self.degree)
        return out

    def multiply(self, x: Array, y: Array, limbs: Limbs, accumulate: Array | None = None) -> Array:
        """See `Ring.multiply`."""
        index = self._limbs(x, limbs)
        out = self.empty(x.shape) if accumulate is None else accumulate
        _call(
            elementwise.multiply,
            _flat_out(out),
            _flat(x),
            _flat(y),
            self._poly_index(x, y),
            self._q[index],
            self._q_inv[index],
            self._r2[index],
            accumulate is not None,
            self.degree,
        )
        return out

    def multiply_runs(
        self, x: Array, w: NDArray[np.uint32], limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """See `Ring.multiply_runs`."""
        index = self._limbs(x, limbs)
        q = self._q[index]
        w = operands.rows_of_runs(w, x)
        ws = ((w.astype(np.uint64) << np.uint64(32)) // q.astype(np.uint64)[:, None, None]).astype(
            np.uint32
        )
        out = self.empty(x.shape) if accumulate is None else accumulate
        polys = prod(x.shape[:-2])
        _call(
            elementwise.scale_runs,
            _flat_out(out),
            _flat(x),
            w,
            ws,
            polys,
            q,
            accumulate is not None,
            self.degree,
        )
        return out

    def add_runs(self, x: Array, w: NDArray[np.uint32], limbs: Limbs) -> Array:
        """See `Ring.add_runs`."""
        index, out = self._limbs(x, limbs), self.empty(x.shape)
        w = operands.rows_of_runs(w, x)
        polys = prod(x.shape[:-2])
        q = self._q[index]
        _call(elementwise.add_runs, _flat(out), _flat(x), w, polys, q, self.degree)
        return out

    def tensor(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """See `Ring.tensor`."""
        index = self._limbs(x, limbs)
        out = self.empty((x.shape[0], 3, *x.shape[2:]))
        which = self._poly_index(x[:, 0], y[:, 0])
        q = (self._q[index], self._q_inv[index], self._r2[index])
        _call(elementwise.tensor, _flat(out), _flat(x), _flat(y), which, *q, self.degree)
        return out

    def contract(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """See `Ring.contract`."""
        index = self._limbs(x, limbs)
        operands.check_contraction(x, y)
        left = x if x.ndim == 5 else x[None]
        rows, terms, outs = *left.shape[:2], y.shape[0]
        out = self.empty((*x.shape[:-4], outs, 3, *x.shape[-2:]))
        flat_x, steps_x = _leading(left, 2)
        flat_y, steps_y = _leading(y, 2)
        size = contract.sums_size(self.degree)
        sums = self.empty((max_threads(), 2 * size)).reshape(-1).view(np.uint64)
        arrays = (sums, size, flat_x, *steps_x, flat_y, *steps_y, rows, outs, terms)
        q = (self._q[index], self._q_inv[index], self._r2[index])
        _call(contract.contract, _flat(out), *arrays, *q, self.degree)
        return out

    def from_signed(self, x: NDArray[np.int64], limbs: Limbs) -> Array:
        """See `Ring.from_signed`."""
        index = np.asarray(limbs, np.int64)
        out = self.empty((*x.shape[:-1], len(index), self.degree))
        polys = prod(x.shape[:-1])
        q = self._q[index]
        _call(
            elementwise.from_signed,
            _flat(out),
            np.ascontiguousarray(x).reshape(-1).view(np.uint64),
            polys,
            q,
            self._one[1][index],
            self._r32[0][index],
            self._r32[1][index],
            self._r2[index],
            self.degree,
        )
        return out

    def to_montgomery(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.to_montgomery`."""
        return self.multiply_runs(x, self._r32[0][np.asarray(limbs, np.int64)][:, None], limbs)

    # -- sampling ---------------------------------------------------------------------------

    def uniform(self, seed: bytes, domain: int, indices: Sequence[int], limbs: Limbs) -> Array:
        """See `Ring.uniform`."""
        operands.check_seed(seed)
        index = np.asarray(limbs, np.int64)
        out = self.empty((len(indices), len(index), self.degree))
        _call(
            chacha.uniform,
            _flat(out),
            np.array(struct.unpack("<8I", seed), np.uint32),
            domain,
            np.array(indices, np.int64),
            self._q[index],
            self._one[1][index],
            self._r32[0][index],
            self._r32[1][index],
            self.degree,
        )
        return out

    # -- automorphisms ----------------------------------------------------------------------

    def automorphism(self, x: Array, galois_element: int, out: Array | None = None) -> Array:
        """See `Ring.automorphism`."""
        out = self.empty(x.shape) if out is None else _flat_out(out).reshape(x.shape)
        tables = automorphism_tables(self.degree, galois_element)[:2]
        _call(automorphism.permute, _flat(out), _flat(x), prod(x.shape[:-1]), *tables, self.degree)
        return out

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
        x, addend = contiguous(self, x), contiguous(self, addend)
        return switch_one_by_one(self, x, digits, raise_constants, keys, down, addend)

    def automorphism_multiply_add(
        self, acc: Array, x: Array, y: Array, limbs: Limbs, galois_element: int
    ) -> None:
        """See `Ring.automorphism_multiply_add`."""
        index = self._limbs(x, limbs)
        _call(
            automorphism.permute_multiply_add,
            _flat_out(acc),
            _flat(x),
            _flat(y),
            prod(x.shape[:-2]),
            index,
            *automorphism_tables(self.degree, galois_element)[:2],
            self._q,
            self._q_inv,
            self.degree,
        )

    # -- key switching ----------------------------------------------------------------------

    def _convert(
        self,
        dst: Array,
        dst_rows: NDArray[np.int64],
        src: Array,
        src_rows: NDArray[np.int64],
        c: BaseConversion,
        lazy: bool,
    ) -> None:
        q = (self._q[c.targets], self._q_inv[c.targets])
        rows = (dst_rows * self.degree, src_rows * self.degree)
        _call(
            basis.convert,
            _flat(dst),
            rows[0],
            _flat(src),
            rows[1],
            c.matrix,
            c.quotient,
            *q,
            lazy,
            self.degree,
        )

    def convert(self, x: Array, conversion: BaseConversion) -> Array:
        """See `Ring.convert`."""
        return self._converted(x, conversion, lazy=False)

    def _converted(self, x: Array, conversion: BaseConversion, lazy: bool) -> Array:
        ni, nj = len(conversion.sources), len(conversion.targets)
        out = self.empty((*x.shape[:-2], nj, self.degree))
        polys = prod(x.shape[:-2])
        rows = np.arange(polys * nj).reshape(polys, nj), np.arange(polys * ni).reshape(polys, ni)
        self._convert(out, rows[0], x, rows[1], conversion, lazy)
        return out

    def raise_digits(self, x: Array, constants: DigitRaise) -> Array:
        """See `Ring.raise_digits`."""
        x = contiguous(self, x)
        batch, window = x.shape[0], x.shape[1]
        c = constants
        nd, nl = len(c.conversions), len(c.limbs)
        y = self.empty(x.shape)
        self._intt(y, x, c.sources, c.factors)
        out = self.empty((batch, nd, nl, self.degree))
        polys = np.arange(batch)[:, None]
        for d, conversion in enumerate(c.conversions):
            own = np.searchsorted(c.sources, conversion.sources)
            others = np.flatnonzero(c.digit_of != d)
            dst = (polys * nd + d) * nl + others
            self._convert(out, dst, y, polys * window + own, conversion, lazy=True)
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
        x = contiguous(self, x)
        batch, _, nl, _ = digits.shape
        key_index = operands.key_index(self.chain, x, key_b, key_a, constants, key_rows)
        out = self.empty((batch, 2, nl, self.degree))
        _call(
            keyswitch.inner_product,
            _flat(out),
            _flat(digits),
            _flat(x),
            x.shape[1],
            _flat(key_b),
            _flat(key_a),
            key_index,
            constants.digit_of,
            constants.limbs,
            batch,
            transform,
            self._tables,
            self._q,
            self._q_inv,
            self.degree,
        )
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
        count = addend.shape[1]
        for j, key in enumerate(keys):
            first = transform and j == 0
            product = self.inner_product(x, digits, constants, key.b, key.a, first, key.rows)
            for i in range(batch):
                part = product[i, 0, :count]
                self.add(part, addend[i], constants.limbs[:count], out=part)
            self.automorphism(product, key.galois_element, out[j])
        return out

    def mod_down(
        self,
        x: Array,
        constants: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
    ) -> Array:
        """See `Ring.mod_down`."""
        x = contiguous(self, x)
        addend = None if addend is None else contiguous(self, addend)
        c, n = constants, self.degree
        operands.check_addend(x, addend)
        batch, components, limbs, _ = x.shape
        polys = batch * components
        index = np.full((batch, components), -1, np.int64)
        if addend is None:
            addend, addend_limbs = x, 0
        else:
            used, addend_limbs = addend.shape[1], addend.shape[2]
            index[:, :used] = np.arange(batch * used).reshape(batch, used)
        common = (_flat(addend), index.reshape(-1), addend_limbs)
        count, targets = len(c.source_rows), len(c.target_rows)
        y = self.empty((polys, count, n))
        _call(
            keyswitch.divide_sources,
            _flat(y),
            _flat(x),
            limbs,
            c.source_rows,
            c.conversion.sources,
            polys,
            *c.source_factors,
            *common,
            *c.source_addend,
            self._inverse_tables,
            self._q,
            n,
        )
        remainder = self._converted(y, c.conversion, lazy=True)
        out = self.empty((batch, components, targets, n))
        tables = automorphism_tables(n, galois_element)
        _call(
            keyswitch.divide_targets,
            _flat(out),
            _flat(remainder),
            _flat(x),
            limbs,
            c.target_rows,
            c.conversion.targets,
            polys,
            *c.target_factors,
            *common,
            *c.addend_factors,
            galois_element != 1,
            *tables,
            self._tables,
            self._q,
            n,
        )
        return out

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
        x = contiguous(self, x)
        addend = None if addend is None else contiguous(self, addend)
        r, n, batch = raise_constants, self.degree, x.shape[0]
        key_index = operands.key_index(self.chain, x, key_b, key_a, r, key_rows)
        operands.check_addend(x[:, None], addend)
        digits = self.raise_digits(x, r)
        nd = digits.shape[1]
        used, addend_limbs = (0, 0) if addend is None else (addend.shape[1], addend.shape[2])
        extra = (_flat(x if addend is None else addend), used, addend_limbs)
        rows = max(3, nd)
        work = self.empty((max_threads(), rows, n))
        inner = (
            _flat(work),
            rows * n,
            _flat(digits),
            _flat(x),
            x.shape[1],
            _flat(key_b),
            _flat(key_a),
            key_index,
            r.digit_of,
            r.limbs,
            batch,
        )
        y = self.empty((2 * batch, len(down.source_rows), n))
        _call(
            keyswitch.switch_sources,
            _flat(y),
            *inner,
            down.source_rows,
            *down.source_factors,
            *extra,
            *down.source_addend,
            self._tables,
            self._inverse_tables,
            self._q,
            self._q_inv,
            n,
        )
        remainder = self._converted(y, down.conversion, lazy=True)
        out = self.empty((batch, 2, len(down.target_rows), n))
        _call(
            keyswitch.switch_targets,
            _flat(out),
            *inner,
            _flat(remainder),
            down.target_rows,
            down.conversion.targets,
            *down.target_factors,
            *extra,
            *down.addend_factors,
            galois_element != 1,
            *automorphism_tables(n, galois_element),
            self._tables,
            self._q,
            self._q_inv,
            n,
        )
        return out

    # -- matrix products --------------------------------------------------------------------

    def gemm(
        self, x: Array, weights: Array, limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """See `Ring.gemm`."""
        index = self._limbs(x, limbs)
        shape = operands.product_shape(x, weights, len(index), accumulate)
        out = self.empty(shape) if accumulate is None else accumulate
        flat_x, (step_x,) = _leading(x, 1)
        flat_weights, steps = _leading(weights, 4)
        _call(
            gemm.gemm,
            _flat_out(out),
            flat_x,
            step_x,
            flat_weights,
            weights.shape,
            steps,
            prod(x.shape[1:-2]),
            accumulate is not None,
            self._q[index],
            self._q_inv[index],
            self.degree,
        )
        return out

    def encode_weights(self, coefficients: NDArray[np.int64], limbs: Limbs) -> Array:
        """See `Ring.encode_weights`."""
        index = np.asarray(limbs, np.int64)
        operands.check_coefficients(coefficients, self.degree)
        runs = coefficients.shape[0]
        out = self.empty((len(index), *coefficients.shape))
        _call(
            subring.encode_runs,
            _flat(out),
            _flat(coefficients.view(np.uint64)),
            runs,
            prod(coefficients.shape[1:]),
            index,
            self._tables,
            self._q,
            self._one[1][index],
            self._r32[0][index],
            self._r32[1][index],
            self._r2[index],
        )
        return out
