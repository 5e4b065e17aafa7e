"""The kernel interface on a GPU: element-wise kernels, sampling, matrix products."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ring import operands
from aegis_dask.ring.backend import Array, Limbs
from aegis_dask.ring.cuda_backend.core import with_companions
from aegis_dask.ring.cuda_backend.keyswitch import KeySwitching
from aegis_dask.ring.cuda_backend.sources import CHACHA_THREADS, PAIR, THIN, THREADS, TILE, VECTOR

THIN_GROUPS = 2
"""Groups of THIN outputs, up to which a matrix product takes the kernel for few outputs."""


class CudaRing(KeySwitching):
    """CKKS kernels on a GPU for the primes of one chain (see `backend.Ring`)."""

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
        factors = self._launcher.content(with_companions((w, ws)))
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
            (pairs, self.degree // (THREADS * PAIR), len(limbs)),
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
            grid = (-(-columns // TILE) * -(-outs // TILE) * runs, 1, len(limbs))
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
