"""The kernel interface on a GPU: launches, and constants that stay on the device."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import BackendError
from aegis_dask.ring import operands
from aegis_dask.ring.backend import Array, Limbs
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import BaseConversion, DigitRaise, ModDown
from aegis_dask.ring.cuda_backend.arguments import pack
from aegis_dask.ring.cuda_backend.sources import (
    CHACHA_THREADS,
    COLUMNS,
    CONVERT_COLUMNS,
    MAX_LOG_N,
    MIN_LOG_N,
    PAIR,
    TAIL,
    TAILS,
    THREADS,
    TILE,
)
from aegis_dask.ring.tables import Twiddles, shoup_pair, twiddles


class Device(Protocol):
    """Where arrays are and kernels run: a GPU, or its emulation in the tests."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised uint32 array."""

    def upload(self, x: NDArray[Any]) -> Any:
        """Copy a host array to the device."""

    def download(self, x: Array) -> NDArray[Any]:
        """Copy an array to the host."""

    def contiguous(self, x: Array) -> Array:
        """Return x, or a contiguous copy of it."""

    def address(self, x: Array) -> int:
        """Return the address of the first element."""

    def launch(self, kernel: str, log_n: int, grid: tuple[int, int, int], pointer: int) -> None:
        """Launch a kernel with the arguments at `pointer` (see `arguments.pack`)."""

    def synchronize(self) -> None:
        """Wait for all launches."""


def _factors(pair: tuple[NDArray[np.uint32], NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """Constants and their Shoup companions next to each other, as the kernels read them."""
    return np.ascontiguousarray(np.stack(pair, axis=-1))


class CudaRing:
    """CKKS kernels on a GPU for the primes of one chain (see `backend.Ring`).

    Parameters
    ----------
    chain
        The primes.
    device
        Where to run.

    Attributes
    ----------
    launches
        How often each kernel has been launched.
    """

    def __init__(self, chain: ModulusChain, device: Device) -> None:
        n = chain.ring_degree
        self.log_n = n.bit_length() - 1
        if not MIN_LOG_N <= self.log_n <= MAX_LOG_N:
            raise BackendError(
                f"ring degree {n} is not supported by the GPU backend; use a power of two from "
                f"2^{MIN_LOG_N} to 2^{MAX_LOG_N}"
            )
        self.chain, self.degree, self.device = chain, n, device
        primes = chain.all_primes
        columns = [
            primes,
            [pow(p, -1, 1 << 32) for p in primes],
            [pow(2, 64, p) for p in primes],
            [(1 << 32) // p for p in primes],
            *shoup_pair([1 << 32] * len(primes), primes),
            *shoup_pair([pow(n, -1, p) for p in primes], primes),
        ]
        self._host_table = np.ascontiguousarray(np.array(columns, np.uint32).T)
        self._table = device.upload(self._host_table)
        self._keep: list[Any] = []
        self._forward = self._upload_twiddles(twiddles(n, primes, False))
        self._inverse = self._upload_twiddles(twiddles(n, primes, True))
        self.launches: Counter[str] = Counter()
        self._integers: dict[bytes, Any] = {}
        self._constants: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()

    def _upload_twiddles(self, t: Twiddles) -> tuple[int, int]:
        scalar = self.device.upload(_factors((t.scalar, t.scalar_shoup)))
        lanes = self.device.upload(_factors((t.vector, t.vector_shoup)))
        self._keep += [scalar, lanes]
        return self.device.address(scalar), self.device.address(lanes)

    # -- memory -----------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised array."""
        return self.device.empty(shape)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an array of zeros."""
        out = self.empty(shape)
        out[...] = 0
        return out

    def from_host(self, x: NDArray[np.uint32]) -> Array:
        """Copy a host array to the device."""
        out: Array = self.device.upload(x)
        return out

    def to_host(self, x: Array) -> NDArray[np.uint32]:
        """Copy a device array to the host."""
        return self.device.download(x)

    def synchronize(self) -> None:
        """See `Ring.synchronize`."""
        self.device.synchronize()

    # -- helpers ----------------------------------------------------------------------------

    def _launch(self, kernel: str, grid: tuple[int, ...], *arguments: Any) -> None:
        """Launch; arguments are arrays, None for none, integers, structures as tuples of them."""
        if 0 in grid:
            return
        self.launches[kernel] += 1
        values: list[int] = []
        for a in arguments:
            if a is None:
                values.append(0)
            elif isinstance(a, int):
                values.append(a)
            elif isinstance(a, tuple):
                values += a
            else:
                values.append(self.device.address(a))
        x, y, z = (*grid, 1, 1)[:3]
        self.device.launch(kernel, self.log_n, (x, y, z), pack(kernel, values))

    def _device_integers(self, values: Any) -> Any:
        """Return small integers as an int32 array of the device; each content is kept once."""
        host = np.ascontiguousarray(values, np.int32)
        key = host.tobytes()
        found = self._integers.get(key)
        if found is None:
            found = self._integers[key] = self.device.upload(host.reshape(-1))
        return found

    def _inverse_factors(self, limbs: Limbs) -> Any:
        """Return 1/N and its companion for each limb."""
        index = np.asarray(limbs, np.int64)
        return self._device_integers(self._host_table[index, 6:8].view(np.int32))

    def _device_constants(self, owner: Any, **arrays: Any) -> dict[str, Any]:
        """Return arrays of constants on the device, kept while their owner lives."""
        found = self._constants.get(owner)
        if found is None:
            found = self._constants[owner] = {
                k: self.device.upload(np.ascontiguousarray(v)) for k, v in arrays.items()
            }
        return found

    def _limbs(self, x: Array, limbs: Limbs) -> tuple[int, Any]:
        """Return the number of limbs and their primes on the device."""
        operands.check_limbs(x, len(limbs), self.degree)
        return len(limbs), self._device_integers(limbs)

    @staticmethod
    def _flat_out(x: Array) -> Array:
        operands.check_contiguous(x)
        return x

    def _which(self, x: Array, y: Array) -> Any:
        """Polynomial of y that goes with each polynomial of x; None where it is the same one."""
        operands.check_same_limbs(x, y)
        if y.shape == x.shape:
            return None
        own = np.arange(prod(y.shape[:-2])).reshape(y.shape[:-2])
        return self._device_integers(np.broadcast_to(own, x.shape[:-2]))

    def _rows(
        self, primes: Any, period: int, rows: Any = None, stride: int | None = None
    ) -> tuple[int, ...]:
        return (
            0 if rows is None else self.device.address(rows),
            self.device.address(primes),
            period,
            period if stride is None else stride,
        )

    def _addend(self, addend: Array | None) -> tuple[int, ...]:
        if addend is None:
            return 0, 0, 0
        return self.device.address(addend), *addend.shape[1:3]

    @property
    def _tail_grid(self) -> int:
        return max(1, self.degree // TAIL // TAILS)

    # -- transforms -------------------------------------------------------------------------

    def ntt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.ntt`."""
        count, primes = self._limbs(x, limbs)
        x, out = self.device.contiguous(x), self.empty(x.shape)
        self._ntt(out, x, prod(x.shape[:-1]), self._rows(primes, count))
        return out

    def _ntt(self, out: Array, x: Array, count: int, rows: Any) -> None:
        row_grid = (count, TAIL // COLUMNS)
        self._launch("ntt_rows", row_grid, out, x, rows, self._forward, self._table)
        grid = (count, self._tail_grid)
        self._launch("ntt_tails", grid, out, rows, self._forward, self._table)

    def intt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.intt`."""
        count, primes = self._limbs(x, limbs)
        factors = self._inverse_factors(limbs)
        x, out = self.device.contiguous(x), self.empty(x.shape)
        rows = self._rows(primes, count)
        self._intt(out, x, prod(x.shape[:-1]), rows, rows, factors)
        return out

    def _intt(
        self,
        out: Array,
        x: Array,
        count: int,
        source_rows: Any,
        rows: Any,
        factors: Any,
        addend: Array | None = None,
        components: int = 1,
        addend_factors: Any = None,
    ) -> None:
        grid, row_grid = (count, self._tail_grid), (count, TAIL // COLUMNS)
        extra = (self._addend(addend), components, addend_factors)
        common = (self._inverse, self._table)
        self._launch("intt_tails", grid, out, x, *extra, source_rows, *common)
        self._launch("intt_rows", row_grid, out, rows, factors, *common)

    # -- element-wise -----------------------------------------------------------------------

    def _points(self, x: Array) -> tuple[int]:
        return (prod(x.shape[:-1]) * (self.degree // THREADS),)

    def add(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """See `Ring.add`."""
        return self._binary("add", x, y, limbs, out)

    def sub(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """See `Ring.sub`."""
        return self._binary("sub", x, y, limbs, out)

    def _binary(self, kernel: str, x: Array, y: Array, limbs: Limbs, out: Array | None) -> Array:
        constants = (*self._limbs(x, limbs), self._table)
        out = self.empty(x.shape) if out is None else out
        which = self._which(x, y)
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        self._launch(kernel, self._points(x), self._flat_out(out), x, y, which, *constants)
        return out

    def negate(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.negate`."""
        constants, out = (*self._limbs(x, limbs), self._table), self.empty(x.shape)
        self._launch("negate", self._points(x), out, self.device.contiguous(x), *constants)
        return out

    def multiply(self, x: Array, y: Array, limbs: Limbs, accumulate: Array | None = None) -> Array:
        """See `Ring.multiply`."""
        constants = (*self._limbs(x, limbs), self._table)
        out = self.empty(x.shape) if accumulate is None else accumulate
        which, adds = self._which(x, y), accumulate is not None
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        grid = self._points(x)
        self._launch("multiply", grid, self._flat_out(out), x, y, which, adds, *constants)
        return out

    def multiply_runs(
        self, x: Array, w: NDArray[np.uint32], limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """See `Ring.multiply_runs`."""
        constants = (*self._limbs(x, limbs), self._table)
        operands.check_runs(w, len(limbs), self.degree)
        q = self._host_table[np.asarray(limbs, np.int64), 0].astype(np.uint64)[:, None]
        ws = ((w.astype(np.uint64) << np.uint64(32)) // q).astype(np.uint32)
        factors = self.device.upload(_factors((w, ws)))
        out = self.empty(x.shape) if accumulate is None else accumulate
        x, adds = self.device.contiguous(x), accumulate is not None
        arguments = (self._flat_out(out), x, factors, w.shape[1], adds, *constants)
        self._launch("multiply_runs", self._points(x), *arguments)
        return out

    def add_runs(self, x: Array, w: NDArray[np.uint32], limbs: Limbs) -> Array:
        """See `Ring.add_runs`."""
        constants, out = (*self._limbs(x, limbs), self._table), self.empty(x.shape)
        operands.check_runs(w, len(limbs), self.degree)
        x, values = self.device.contiguous(x), self.device.upload(np.ascontiguousarray(w))
        self._launch("add_runs", self._points(x), out, x, values, w.shape[1], *constants)
        return out

    def tensor(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """See `Ring.tensor`."""
        constants = (*self._limbs(x, limbs), self._table)
        out = self.empty((x.shape[0], 3, *x.shape[2:]))
        which = self._which(x[:, 0], y[:, 0])
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        self._launch("tensor", self._points(x[:, 0]), out, x, y, which, *constants)
        return out

    def from_signed(self, x: NDArray[np.int64], limbs: Limbs) -> Array:
        """See `Ring.from_signed`."""
        out = self.empty((*x.shape[:-1], len(limbs), self.degree))
        constants = (*self._limbs(out, limbs), self._table)
        signed = self.device.upload(np.ascontiguousarray(x))
        self._launch("from_signed", self._points(out), out, signed, *constants)
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
        key, where = struct.unpack("<8I", seed), self._device_integers(indices)
        constants = (*self._limbs(out, limbs), self._table)
        self._launch("uniform", grid, out, key, domain, where, *constants)
        return out

    # -- automorphisms ----------------------------------------------------------------------

    def _galois(self, galois_element: int) -> int:
        if galois_element % 2 == 0:
            raise BackendError(f"Galois element {galois_element} is even; X -> X^g needs an odd g")
        return galois_element % (2 * self.degree)

    def automorphism(self, x: Array, galois_element: int) -> Array:
        """See `Ring.automorphism`."""
        out, x = self.empty(x.shape), self.device.contiguous(x)
        self._launch("automorphism", self._points(x), out, x, self._galois(galois_element))
        return out

    def automorphism_multiply_add(
        self, acc: Array, x: Array, y: Array, limbs: Limbs, galois_element: int
    ) -> None:
        """See `Ring.automorphism_multiply_add`."""
        constants, g = (*self._limbs(x, limbs), self._table), self._galois(galois_element)
        x, y = self.device.contiguous(x), self.device.contiguous(y)
        grid = self._points(x)
        self._launch("automorphism_multiply_add", grid, self._flat_out(acc), x, y, g, *constants)

    # -- key switching ----------------------------------------------------------------------

    def _convert(
        self,
        dst: Array,
        dst_rows: Any,
        dst_stride: int,
        src: Array,
        src_rows: Any,
        src_stride: int,
        c: BaseConversion,
        polys: int,
    ) -> None:
        held = self._device_constants(c, matrix=c.matrix, quotient=c.quotient)
        self._launch(
            "convert",
            (polys * (self.degree // CONVERT_COLUMNS),),
            dst,
            self._device_integers(dst_rows),
            dst_stride,
            src,
            self._device_integers(src_rows),
            src_stride,
            held["matrix"],
            held["quotient"] if len(c.quotient) else None,
            len(c.sources),
            len(c.targets),
            self._device_integers(c.targets),
            self._table,
        )

    def convert(self, x: Array, conversion: BaseConversion) -> Array:
        """See `Ring.convert`."""
        sources, targets = len(conversion.sources), len(conversion.targets)
        out = self.empty((*x.shape[:-2], targets, self.degree))
        rows = (np.arange(targets), targets), (np.arange(sources), sources)
        x = self.device.contiguous(x)
        self._convert(out, *rows[0], x, *rows[1], conversion, prod(x.shape[:-2]))
        return out

    def raise_digits(self, x: Array, constants: DigitRaise) -> Array:
        """See `Ring.raise_digits`."""
        batch, window = x.shape[0], x.shape[1]
        c = constants
        digits, limbs = len(c.conversions), len(c.limbs)
        held = self._device_constants(c, factors=_factors(c.factors))
        rows = self._rows(self._device_integers(c.sources), window)
        x, y = self.device.contiguous(x), self.empty(x.shape)
        self._intt(y, x, batch * window, rows, rows, held["factors"])
        out = self.empty((batch, digits, limbs, self.degree))
        for d, conversion in enumerate(c.conversions):
            own = np.searchsorted(c.sources, conversion.sources)
            others = np.flatnonzero(c.digit_of != d)
            dst = (d * limbs + others, digits * limbs)
            self._convert(out, *dst, y, own, window, conversion, batch)
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
        c = constants
        batch, _, limbs, _ = digits.shape
        if transform:
            rows, number = self._digit_rows(c, batch)
            operands.check_contiguous(digits)
            self._ntt(digits, digits, number, rows)
        out = self.empty((batch, 2, limbs, self.degree))
        index = operands.key_index(self.chain, x, key_b, key_a, c, key_rows)
        self._launch(
            "inner_product",
            (batch * limbs * (self.degree // THREADS),),
            out,
            *self._inner_arguments(x, digits, c, key_b, key_a, index),
            self._table,
        )
        return out

    def _digit_rows(self, c: DigitRaise, batch: int) -> tuple[tuple[int, ...], int]:
        """Return rows of raised digits that are to be transformed, and how many there are."""
        count, limbs = len(c.conversions), len(c.limbs)
        others = c.digit_of != np.arange(count)[:, None]
        rows = np.flatnonzero(others)
        primes = self._device_integers(np.broadcast_to(c.limbs, others.shape).reshape(-1)[rows])
        places = self._device_integers(rows)
        return self._rows(primes, len(rows), places, count * limbs), batch * len(rows)

    def _inner_arguments(
        self,
        x: Array,
        digits: Array,
        c: DigitRaise,
        key_b: Array,
        key_a: Array,
        index: NDArray[np.int64],
    ) -> tuple[Any, ...]:
        batch, count, limbs, _ = digits.shape
        return (
            self.device.contiguous(digits),
            self.device.contiguous(x),
            x.shape[1],
            self.device.contiguous(key_b),
            self.device.contiguous(key_a),
            self._device_integers(index),
            self._device_integers(c.digit_of),
            count,
            limbs,
            batch,
            self._device_integers(c.limbs),
        )

    def mod_down(
        self,
        x: Array,
        constants: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
    ) -> Array:
        """See `Ring.mod_down`."""
        operands.check_addend(x, addend)
        c = constants
        batch, components, limbs, _ = x.shape
        polys, count, targets = batch * components, len(c.source_rows), len(c.target_rows)
        held = self._device_constants(
            c,
            source_factors=_factors(c.source_factors),
            source_addend=_factors(c.source_addend),
            target_factors=_factors(c.target_factors),
            addend_factors=_factors(c.addend_factors),
        )
        x = self.device.contiguous(x)
        if addend is not None:
            addend = self.device.contiguous(addend)
        primes = self._device_integers(c.conversion.sources)
        places = self._device_integers(c.source_rows)
        y = self.empty((polys, count, self.degree))
        self._intt(
            y,
            x,
            polys * count,
            self._rows(primes, count, places, limbs),
            self._rows(primes, count),
            held["source_factors"],
            addend,
            components,
            held["source_addend"],
        )
        remainder = self.convert(y, c.conversion)
        rows = self._rows(self._device_integers(c.conversion.targets), targets)
        common = (rows, self._forward, self._table)
        total = polys * targets
        self._launch("ntt_rows", (total, TAIL // COLUMNS), remainder, remainder, *common)
        out = self.empty((batch, components, targets, self.degree))
        inverse = pow(self._galois(galois_element), -1, 2 * self.degree)
        self._launch(
            "ntt_tails_divide",
            (total, self._tail_grid),
            out,
            remainder,
            x,
            limbs,
            components,
            self._device_integers(c.target_rows),
            held["target_factors"],
            self._addend(addend),
            held["addend_factors"],
            inverse,
            *common,
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
        operands.check_addend(x[:, None], addend)
        c = raise_constants
        index = operands.key_index(self.chain, x, key_b, key_a, c, key_rows)
        digits = self.raise_digits(x, c)
        batch, _, limbs, _ = digits.shape
        rows, number = self._digit_rows(c, batch)
        common = (self._forward, self._table)
        self._launch("ntt_rows", (number, TAIL // COLUMNS), digits, digits, rows, *common)
        sums = self.empty((batch, 2, limbs, self.degree))
        self._launch(
            "ntt_tails_inner",
            (batch * limbs, self._tail_grid),
            sums,
            *self._inner_arguments(x, digits, c, key_b, key_a, index),
            *common,
        )
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
        constants = (*self._limbs(x, limbs), self._table)
        operands.check_contraction(x, y)
        left = x if x.ndim == 5 else x[None]
        rows, terms, outs = left.shape[0], left.shape[1], y.shape[0]
        out = self.empty((*x.shape[:-4], outs, 3, *x.shape[-2:]))
        left, steps_x = self._leading(left, 2)
        right, steps_y = self._leading(y, 2)
        pairs = -(-rows // PAIR) * -(-outs // PAIR)
        self._launch(
            "contract",
            (self.degree // THREADS, pairs, len(limbs)),
            out,
            left,
            *steps_x,
            right,
            *steps_y,
            rows,
            outs,
            terms,
            *constants,
        )
        return out

    def gemm(
        self, x: Array, weights: Array, limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """See `Ring.gemm`."""
        constants = (*self._limbs(x, limbs), self._table)
        shape = operands.product_shape(x, weights, len(limbs), accumulate)
        out = self.empty(shape) if accumulate is None else accumulate
        runs, outs = weights.shape[1:3]
        left, (step,) = self._leading(x, 1)
        right, steps = self._leading(weights, 4)
        polys = prod(x.shape[1:-2])
        columns = self.degree // runs * polys
        self._launch(
            "gemm",
            (-(-columns // TILE), -(-outs // TILE), len(limbs) * runs),
            self._flat_out(out),
            left,
            step,
            right,
            *steps,
            outs,
            x.shape[0],
            runs,
            polys,
            accumulate is not None,
            *constants,
        )
        return out

    def encode_weights(self, coefficients: NDArray[np.int64], limbs: Limbs) -> Array:
        """See `Ring.encode_weights`."""
        operands.check_coefficients(coefficients, self.degree)
        runs = coefficients.shape[0]
        out = self.empty((len(limbs), *coefficients.shape))
        primes = self._device_integers(limbs)
        count, columns = coefficients.size, prod(coefficients.shape[1:])
        signed = self.device.upload(np.ascontiguousarray(coefficients))
        grid = (-(-count // THREADS), len(limbs))
        last = runs == 1
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
                2 * groups == runs,
                primes,
                self._forward[0],
                self._table,
            )
            groups *= 2
        return out
