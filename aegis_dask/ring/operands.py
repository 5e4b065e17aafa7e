"""What operands of the kernels must be, on every device: checked before anything is launched."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Array
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import DigitRaise

MIN_RUN = 16
"""Points over which the constants of a plaintext must repeat."""
MAX_DIGITS = 8


def check_limbs(x: Array, limbs: int, degree: int) -> None:
    """Raise unless the last axes of x are `limbs` limbs of `degree` points."""
    if x.shape[-2:] != (limbs, degree):
        raise BackendError(
            f"an array of shape {x.shape} was given for {limbs} limbs of {degree} points"
        )


def check_same_limbs(x: Array, y: Array) -> None:
    """Raise unless both have the same number of limbs and points."""
    if y.shape[-2:] != x.shape[-2:]:
        raise BackendError(f"operands of shapes {x.shape} and {y.shape} differ in limbs or N")


def check_contiguous(x: Array) -> None:
    """Raise unless x can be written: a copy would lose the result."""
    if not x.flags.c_contiguous:
        raise BackendError(
            f"an array of shape {x.shape} is to be written but is not contiguous; give a "
            "contiguous one or leave it out"
        )


def check_seed(seed: bytes) -> None:
    """Raise unless it has 32 bytes."""
    if len(seed) != 32:
        raise BackendError(f"a seed has 32 bytes, {len(seed)} were given")


def rows_of_runs(w: NDArray[np.uint32], x: Array) -> NDArray[np.uint32]:
    """Return constants as ``[limb, row, run]``, contiguous.

    Raises
    ------
    BackendError
        Unless they are ``[limb, run]`` or ``[limb, row, run]`` and fit x.
    """
    limbs, degree = x.shape[-2:]
    if (
        w.ndim not in (2, 3)
        or w.shape[0] != limbs
        or 0 in w.shape
        or degree % (MIN_RUN * w.shape[-1])
        or (w.ndim == 3 and prod(x.shape[:-2]) % w.shape[1])
    ):
        raise BackendError(
            f"constants of shape {w.shape} do not fit {limbs} limbs with runs of at least "
            f"{MIN_RUN} of {degree} points, of {prod(x.shape[:-2])} polynomials"
        )
    return np.ascontiguousarray(w[:, None] if w.ndim == 2 else w)


def check_contraction(x: Array, y: Array) -> None:
    """Raise unless these are operands of `Ring.contract`."""
    if (
        x.ndim not in (4, 5)
        or x.shape[-3] != 2
        or y.shape[1:] != x.shape[-4:]
        or 0 in (*x.shape, *y.shape)
    ):
        raise BackendError(
            f"operands of shapes {x.shape} and {y.shape} do not fit; [(row,) term, 2, limb, N] "
            "and [output, term, 2, limb, N] with at least one term are needed"
        )


def check_addend(x: Array, addend: Array | None) -> None:
    """Raise unless the addend of a division fits."""
    if addend is not None and (
        addend.shape[0] != x.shape[0]
        or addend.shape[2] > x.shape[2]
        or addend.shape[3] != x.shape[3]
    ):
        raise BackendError(f"an addend of shape {addend.shape} does not fit {x.shape}")


def check_turned(digits: Array, keys: int, addend: Array, out: Array | None) -> None:
    """Raise unless the addend of `Ring.turned_products`, and what it is written to, fit."""
    batch, _, limbs, degree = digits.shape
    if addend.ndim != 3 or addend.shape[::2] != (batch, degree) or addend.shape[1] > limbs:
        raise BackendError(
            f"an addend of shape {addend.shape} does not fit {batch} polynomials of {limbs} limbs"
        )
    shape = (keys, batch, 2, limbs, degree)
    if out is not None and out.shape != shape:
        raise BackendError(f"an array of shape {out.shape} was given for {shape}")


def product_shape(
    x: Array, weights: Array, limbs: int, accumulate: Array | None
) -> tuple[int, ...]:
    """Return the shape of ``gemm(x, weights)``.

    Raises
    ------
    BackendError
        If they do not fit, or what is accumulated to has another shape.
    """
    if weights.ndim != 4 or weights.shape[0] != limbs or weights.shape[3] != x.shape[0]:
        raise BackendError(
            f"weights of shape {weights.shape} do not fit {x.shape[0]} inputs of {limbs} limbs; "
            "expected [limb, run, output, input]"
        )
    runs, degree = weights.shape[1], x.shape[-1]
    if degree // runs < MIN_RUN:
        raise BackendError(f"{runs} runs of {degree} points are shorter than {MIN_RUN}")
    shape = (weights.shape[2], *x.shape[1:])
    if accumulate is not None and accumulate.shape != shape:
        raise BackendError(
            f"an array of shape {accumulate.shape} was given to add products of shape {shape} to"
        )
    return shape


def check_coefficients(coefficients: NDArray[np.int64], degree: int) -> None:
    """Raise unless these are coefficients ``[run, ...]`` of weights."""
    runs = coefficients.shape[0] if coefficients.ndim else 0
    if coefficients.dtype != np.int64 or runs < 1 or runs & (runs - 1):
        raise BackendError(
            f"coefficients {coefficients.dtype}{list(coefficients.shape)} were given; int64 "
            "with a power of two as first axis is needed"
        )
    if MIN_RUN * runs > degree:
        raise BackendError(f"{runs} runs of {degree} points are shorter than {MIN_RUN}")


def key_index(
    chain: ModulusChain,
    x: Array,
    key_b: Array,
    key_a: Array,
    constants: DigitRaise,
    rows: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Return the row of a key for every digit and limb, `rows` or those of a full key.

    Raises
    ------
    BackendError
        If there are more digits than kernels take, or x or the key do not fit.
    """
    digits, limbs, degree = len(constants.conversions), constants.limbs, chain.ring_degree
    if digits > MAX_DIGITS:
        raise BackendError(
            f"key switching with {digits} digits; at most {MAX_DIGITS} are supported"
        )
    window = int((limbs < len(chain.primes)).sum())
    if x.shape[1:] != (window, degree):
        raise BackendError(f"an array of shape {x.shape} was given for {window} limbs")
    if rows is None:
        count = len(chain.all_primes)
        shape = (constants.first_digit + digits, count, degree)
        for key in (key_b, key_a):
            if key.shape[0] < shape[0] or key.shape[1:] != shape[1:]:
                raise BackendError(f"a key of shape {key.shape} was given, {shape} is needed")
        first = constants.first_digit + np.arange(digits, dtype=np.int64)
        full: NDArray[np.int64] = first[:, None] * count + limbs
        return full
    held = prod(key_b.shape[:-1])
    if (
        key_a.shape != key_b.shape
        or key_b.shape[-1] != degree
        or rows.shape != (digits, len(limbs))
        or rows.min() < 0
        or rows.max() >= held
    ):
        raise BackendError(
            f"rows {rows.shape} up to {rows.max(initial=-1)} of keys of shapes {key_b.shape} "
            f"and {key_a.shape} were given; [{digits}, {len(limbs)}] existing rows are needed"
        )
    return np.ascontiguousarray(rows, np.int64)
