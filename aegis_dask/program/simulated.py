"""The simulated interpreter: the same operations on plain complex slots.

Same packing, rotations and polynomials as the encrypted one, no ring: it shows what the circuit
computes, in seconds. With `noise_bits` every product, rotation and rescale adds a Gaussian error of
that size, like CKKS at that precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import ProgramError
from aegis_dask.program.operations import PlainMatrix, Refresh, Shape, Store

Slots = NDArray[np.complex128]


class Simulated:
    """Arithmetic on arrays ``[*shape, slots]``.

    Parameters
    ----------
    noise_bits
        -log2 of the standard deviation of the error of an operation; none by default.
    seed
        Of the errors.
    refresh_bits
        The same of the error of a refresh; that of an operation by default.

    Attributes
    ----------
    largest
        Largest input of a Chebyshev polynomial so far, or value relative to its stated bound: above
        1 the result is meaningless.
    """

    def __init__(
        self, noise_bits: float | None = None, seed: int = 0, refresh_bits: float | None = None
    ) -> None:
        self.sigma = None if noise_bits is None else 2.0**-noise_bits
        self.refresh_sigma = self.sigma if refresh_bits is None else 2.0**-refresh_bits
        self.random = np.random.default_rng(seed)
        self.largest = 0.0

    def _noisy(self, x: Slots) -> Slots:
        return self._with_error(x, self.sigma)

    def _with_error(self, x: Slots, sigma: float | None) -> Slots:
        if sigma is None:
            return x
        error = self.random.standard_normal((*x.shape, 2)) * sigma
        noisy: Slots = x + (error[..., 0] + 1j * error[..., 1])
        return noisy

    def shape_of(self, x: Slots) -> Shape:
        """Return the shape of an array of ciphertexts."""
        return tuple(x.shape[:-1])

    def part(self, x: Slots, start: int, stop: int) -> Slots:
        """Return rows of the leading axis."""
        return x[start:stop]

    def join(self, parts: list[Slots]) -> Slots:
        """Put parts together along the leading axis."""
        return np.concatenate(parts)

    def add(self, x: Slots, y: Slots) -> Slots:
        """Return x + y; one of them may be a single ciphertext."""
        return x + y

    def subtract(self, x: Slots, y: Slots) -> Slots:
        """Return x - y; one of them may be a single ciphertext."""
        return x - y

    def times_i(self, x: Slots, power: int) -> Slots:
        """Return ``i**power`` x."""
        return x * (1, 1j, -1, -1j)[power % 4]

    def add_constant(self, x: Slots, c: complex) -> Slots:
        """Return x + c."""
        return x + c

    def multiply_integer(self, x: Slots, c: int) -> Slots:
        """Return c x."""
        return x * c

    def multiply_constant(self, x: Slots, c: complex) -> Slots:
        """Return c x."""
        return self._noisy(x * c)

    def _tiled(self, vectors: Slots, x: Slots) -> Slots:
        """Return vectors over all slots, with the axes of x: theirs are its leading ones."""
        lead, slots = vectors.shape[:-1], x.shape[-1]
        if lead not in ((1,), x.shape[: len(lead)]):
            raise ProgramError(f"{lead} plaintext vectors do not fit {x.shape[:-1]} ciphertexts")
        tiled = np.tile(vectors, slots // vectors.shape[-1])
        if x.ndim == 1:
            return tiled.reshape(slots)
        return tiled.reshape(*lead, *(1,) * (x.ndim - tiled.ndim), slots)

    def add_plain(self, x: Slots, vectors: Slots) -> Slots:
        """Return x plus vectors (see `PlainVectors`)."""
        return x + self._tiled(vectors, x)

    def multiply_plain(self, x: Slots, vectors: Slots) -> Slots:
        """Return x times vectors (see `PlainVectors`)."""
        return self._noisy(x * self._tiled(vectors, x))

    def multiply(self, x: Slots, y: Slots) -> Slots:
        """Return x y."""
        return self._noisy(x * y)

    def contract(self, x: Slots, y: Slots, transposed: bool) -> Slots:
        """Return ``sum_k x[k] y[o, k]`` (``y[k, o]`` if transposed)."""
        out: Slots = np.einsum("ks,kos->os" if transposed else "ks,oks->os", x, y, optimize=True)
        return out

    def sum_of_squares(self, x: Slots) -> Slots:
        """Return the sum of the squares of all ciphertexts."""
        total: Slots = (x * x).reshape(-1, x.shape[-1]).sum(axis=0)
        return total

    def relinearise(self, x: Slots) -> Slots:
        """Return x, with the error of an operation."""
        return self._noisy(x)

    def rotate(self, x: Slots, step: int) -> Slots:
        """Rotate the slots to the left."""
        return self._noisy(np.roll(x, -step, axis=-1))

    def rotations(self, x: Slots, steps: Sequence[int]) -> Slots:
        """Return ``[*s, len(steps)]``: every ciphertext rotated by every step."""
        return np.stack([self.rotate(x, s) if s else x for s in steps], axis=-2)

    def rotate_sum(self, x: Slots, steps: Sequence[int]) -> Slots:
        """Rotate each ciphertext of the last axis by its own step, and add them up."""
        terms = [self.rotate(x[..., i, :], s) if s else x[..., i, :] for i, s in enumerate(steps)]
        total: Slots = np.sum(terms, axis=0)
        return total

    def conjugate(self, x: Slots) -> Slots:
        """Return the complex conjugate of every slot."""
        return self._noisy(np.conj(x))

    def pair(self, x: Slots, sign: int) -> Slots:
        """Return ``x[..., 0] + i sign x[..., 1]``; a last axis of length 1 is dropped."""
        return x[..., 0, :] + 1j * sign * x[..., 1, :] if x.shape[-2] == 2 else x[..., 0, :]

    def stack(self, tensors: Sequence[Slots]) -> Slots:
        """Put arrays of one shape side by side in a new last axis."""
        return np.stack(tensors, axis=-2)

    def concatenate(self, tensors: Sequence[Slots]) -> Slots:
        """Put arrays one after the other."""
        return np.concatenate(tensors)

    def flatten(self, x: Slots) -> Slots:
        """Return the array with one axis, in C order."""
        return x.reshape(-1, x.shape[-1])

    def sum(self, x: Slots) -> Slots:
        """Return the sum of all ciphertexts."""
        total: Slots = self.flatten(x).sum(axis=0)
        return total

    def matrix_product(
        self, x: Slots, matrix: PlainMatrix, store: Store, start: int, stop: int
    ) -> Slots:
        """Multiply the whole array by rows ``start:stop`` of a matrix."""
        weights = matrix.build(store, start, stop)
        period = weights.shape[-1]
        inner = int(np.prod(matrix.inputs))
        w = weights.reshape(-1, inner, period).transpose(2, 0, 1)  # [period, outs, inner]
        z = self.flatten(x).reshape(inner, -1, period).transpose(2, 0, 1)  # [period, inner, tokens]
        y = np.matmul(w, z).transpose(1, 2, 0)  # [outs, tokens, period]
        return self._noisy(y.reshape(stop - start, *matrix.outputs[1:], x.shape[-1]))

    def chebyshev(self, x: Slots, coefficients: NDArray[np.float64]) -> Slots:
        """Return ``sum_k c_k T_k(x)`` for slots in [-1, 1]."""
        self.largest = max(self.largest, float(np.max(np.abs(x.real))))
        value: Any = np.polynomial.chebyshev.chebval(x, coefficients)
        return self._noisy(value)

    def within(self, x: Slots, bound: float) -> Slots:
        """Return x, and note how far it is within the bound."""
        largest = max(float(np.max(np.abs(x.real))), float(np.max(np.abs(x.imag))))
        self.largest = max(self.largest, largest / bound)
        return x

    def lower(self, x: Slots, by: int) -> Slots:
        """Return x: slots have no level."""
        return x

    def refresh(self, x: Slots, how: Refresh) -> Slots:
        """Return x, with the error of a refresh."""
        kept = x.real.astype(np.complex128) if how.real or how.merged else x
        sigma = self.refresh_sigma
        error = None if sigma is None else sigma * (1 << how.shrink)
        noisy = self._with_error(kept, error)
        return noisy.real.astype(np.complex128) if how.real or how.merged else noisy
