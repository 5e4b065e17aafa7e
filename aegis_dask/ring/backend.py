"""The kernel interface: what a device must provide. Nothing above this module knows a device.

Polynomials are arrays ``uint32[..., limb, N]`` of canonical residues (below their primes), in the
evaluation domain in bit-reversed order unless said. Limb positions are tied to primes by a list of
prime indices into the ring's primes (ciphertext primes, then special primes). Every implementation
returns the same residues, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import BaseConversion, DigitRaise, ModDown

Array = NDArray[np.uint32]
"""A device array. The CPU backend's are NumPy arrays; a GPU backend's have the same interface."""

Limbs = Sequence[int] | NDArray[np.int64]


class HoistedKey(NamedTuple):
    """A key with which one of several automorphisms is switched.

    Attributes
    ----------
    b, a
        Its halves ``[digit, prime, N]``.
    galois_element
        The automorphism.
    rows
        ``[digit, limb]``: see `Ring.inner_product`.
    """

    b: Array
    a: Array
    galois_element: int
    rows: NDArray[np.int64] | None = None


class Ring(Protocol):
    """Kernels over the primes of one modulus chain."""

    chain: ModulusChain
    part_bytes: int
    """Ciphertexts on which an operation with large temporaries works at a time, in bytes."""
    weight_bytes: int
    """Prepared weights that a worker keeps between runs, in bytes, unless it is configured."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised array."""

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an array of zeros."""

    def from_host(self, x: NDArray[Any]) -> Array:
        """Copy a host array of any kind to the device (no copy on the CPU)."""

    def keep(self, x: NDArray[np.uint32]) -> Array:
        """Return a key of the host as kernels take it: on the device, as long as there is room."""

    def to_host(self, x: Array) -> NDArray[np.uint32]:
        """Copy a device array to the host (no copy on the CPU)."""

    def synchronize(self) -> None:
        """Wait until everything that was launched is done; errors of kernels are raised here."""

    def ntt(self, x: Array, limbs: Limbs) -> Array:
        """Transform coefficients to the evaluation domain."""

    def intt(self, x: Array, limbs: Limbs) -> Array:
        """Transform back to coefficients."""

    def add(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """Return x + y; y may lack leading axes of x or have length 1 there."""

    def sub(self, x: Array, y: Array, limbs: Limbs, out: Array | None = None) -> Array:
        """Return x - y, broadcast as in `add`."""

    def negate(self, x: Array, limbs: Limbs) -> Array:
        """Return -x."""

    def multiply(self, x: Array, y: Array, limbs: Limbs, accumulate: Array | None = None) -> Array:
        """Return the product by points, or add it to `accumulate`; broadcast as in `add`."""

    def multiply_runs(
        self, x: Array, w: NDArray[np.uint32], limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """Multiply by ``w[limb, run]``, constant over N / runs points (a power-of-two count).

        Or by ``w[limb, row, run]``: the polynomials of x, in order, are shared out evenly among the
        rows.
        """

    def add_runs(self, x: Array, w: NDArray[np.uint32], limbs: Limbs) -> Array:
        """Add ``w[limb, run]`` or ``w[limb, row, run]``, as in `multiply_runs`."""

    def tensor(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """Return ``[b, 3]`` products of ciphertexts ``[b, 2]``; y may have batch 1."""

    def contract(self, x: Array, y: Array, limbs: Limbs) -> Array:
        """Return ``out[o] = sum_k x[k] y[o, k]``, sums of products of ciphertexts as by `tensor`.

        x is ``[k, 2, limb, N]``, y ``[o, k, 2, limb, N]``, out ``[o, 3, limb, N]``; or with a
        leading axis of rows, x ``[r, k, ..]`` and out ``[r, o, ..]``, a matrix product in which the
        rows share the reading of y. Leading axes may have any strides (a transpose, a part) without
        being copied.
        """

    def automorphism(self, x: Array, galois_element: int, out: Array | None = None) -> Array:
        """Apply X -> X^g, into `out` if it is given."""

    def from_signed(self, x: NDArray[np.int64], limbs: Limbs) -> Array:
        """Return residues ``[..., limb, N]`` of signed integers ``[..., N]`` (coefficients)."""

    def uniform(self, seed: bytes, domain: int, indices: Sequence[int], limbs: Limbs) -> Array:
        """Return ``[index, limb, N]`` uniform residues of a 32-byte seed (see the CPU kernel)."""

    def to_montgomery(self, x: Array, limbs: Limbs) -> Array:
        """Return x 2^32, the form of keys and of plaintexts in `automorphism_multiply_add`."""

    def convert(self, x: Array, conversion: BaseConversion) -> Array:
        """Convert coefficients that carry the source factors (see `BaseConversion`)."""

    def raise_digits(self, x: Array, constants: DigitRaise) -> Array:
        """ModUp ``[b, window, N]``: digits ``[b, digit, limb, N]`` in coefficient form.

        Rows of a digit's own limbs are left undefined: they are those of x.
        """

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
        """Return ``[b, 2, limb, N]``, sums over digits times a key ``[digit, prime, N]``.

        With `transform` the digits come from `raise_digits` and are transformed in place; without,
        they have been by an earlier call. A key that holds a part of the digits and primes comes
        with `key_rows` ``[digit, limb]``: the row for each digit and limb of `constants`, counted
        over both leading axes of the key.
        """

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
        """Return ``[key, b, 2, limb, N]``: `inner_product` with several keys, and what follows it.

        The addend ``[b, k, N]`` is added to the first component, on the first k limbs; then comes
        the automorphism of the key. The same residues as one by one, with less traffic. They are
        written to `out`, if given.
        """

    def mod_down(
        self,
        x: Array,
        constants: ModDown,
        addend: Array | None = None,
        galois_element: int = 1,
    ) -> Array:
        """Divide ``[b, c, limb, N]`` with rounding (see `ModDown`).

        `addend` ``[b, c', window, N]`` times P is added to the first c' components before. The
        result goes through an automorphism.
        """

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
        """Return `raise_digits`, `inner_product` and `mod_down` of ``[b, window, N]`` in one.

        The same residues with less traffic: sums need not leave the cache of a device.
        """

    def switch_hoisted(
        self,
        x: Array,
        digits: Array,
        raise_constants: DigitRaise,
        keys: Sequence[HoistedKey],
        down: ModDown,
        addend: Array,
    ) -> list[Array]:
        """Return `switch_key` with several keys of digits that have been raised once.

        The digits come from `raise_digits` and are transformed in place.
        """

    def automorphism_multiply_add(
        self, acc: Array, x: Array, y: Array, limbs: Limbs, galois_element: int
    ) -> None:
        """Add ``automorphism(x) y`` to acc, y ``[limb, N]`` in Montgomery form."""

    def gemm(
        self, x: Array, weights: Array, limbs: Limbs, accumulate: Array | None = None
    ) -> Array:
        """Return ``out[o] = sum_k weights[l, run, o, k] x[k]``, weights in Montgomery form.

        x is ``[k, ..., limb, N]``, out ``[o, ..., limb, N]``; runs of at least 16 points. With
        `accumulate` the sums are added to that array, so that k can be processed in parts: neither
        ``x[i:j]`` nor ``weights[..., i:j]`` is copied.
        """

    def encode_weights(self, coefficients: NDArray[np.int64], limbs: Limbs) -> Array:
        """Return residues ``[limb, run, ...]`` in Montgomery form, the weights of `gemm`.

        They are the values of polynomials in ``X^(N/run)`` with integer coefficients
        ``[run, ...]``, a power of two of them, at most N/16.
        """


def switch_one_by_one(
    ring: Ring,
    x: Array,
    digits: Array,
    constants: DigitRaise,
    keys: Sequence[HoistedKey],
    down: ModDown,
    addend: Array,
) -> list[Array]:
    """Do what `Ring.switch_hoisted` does by its parts."""
    out = []
    for i, key in enumerate(keys):
        inner = ring.inner_product(x, digits, constants, key.b, key.a, i == 0, key.rows)
        out.append(ring.mod_down(inner, down, addend, key.galois_element))
    return out


def concatenate(ring: Ring, arrays: Sequence[Array]) -> Array:
    """Return arrays that differ in their first axis only, one after the other."""
    out = ring.empty((sum(len(x) for x in arrays), *arrays[0].shape[1:]))
    start = 0
    for x in arrays:
        out[start : start + len(x)] = x
        start += len(x)
    return out


def take(ring: Ring, x: Array, rows: Limbs) -> Array:
    """Return rows of the first axis, in memory of their own."""
    out = ring.empty((len(rows), *x.shape[1:]))
    for i, row in enumerate(rows):
        out[i] = x[int(row)]
    return out


def contiguous(ring: Ring, x: Array) -> Array:
    """Return x if it is contiguous, else a copy in memory of the ring, which is reused.

    Memory fresh from the system costs several times the copy in page faults.
    """
    if x.flags.c_contiguous:
        return x
    out = ring.empty(x.shape)
    out[...] = x
    return out
