from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.encoder import subring_ntt
from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Ring
from tests import reference

N = 1024
LIMBS = (0, 4, 15, 30)
LIMIT = 2**62 - 1


def exact(ring: Ring, coefficients: Any, limbs: tuple[int, ...]) -> Any:
    """Montgomery forms of the residues ``[limb, run, ...]``, by the definition of the transform."""
    degree, runs = ring.chain.ring_degree, coefficients.shape[0]
    out = np.empty((len(limbs), *coefficients.shape), np.uint32)
    for row, i in enumerate(limbs):
        p = ring.chain.all_primes[i]
        for where in np.ndindex(coefficients.shape[1:]):
            x = np.zeros(degree, object)  # a polynomial in X^(N/runs)
            x[:: degree // runs] = coefficients[(slice(None), *where)]
            first = range(0, degree, degree // runs)
            values = reference.ntt_points(x % p, p, first)
            out[(row, slice(None), *where)] = [(v << 32) % p for v in values]
    return out


def by_numpy(ring: Ring, coefficients: Any, limbs: tuple[int, ...]) -> Any:
    """The same by `subring_ntt`, which is compared with the definition elsewhere."""
    out = np.empty((len(limbs), *coefficients.shape), np.uint32)
    for row, i in enumerate(limbs):
        p = ring.chain.all_primes[i]
        # Residues first: float64 does not hold all integers below 2^62.
        small = np.moveaxis(coefficients % p, 0, -1).astype(np.float64)
        values = subring_ntt(small, ring.chain.ring_degree, p).astype(np.uint64)
        out[row] = np.moveaxis((values << np.uint64(32)) % np.uint64(p), -1, 0)
    return out


@pytest.mark.parametrize("runs", [1, 2, 4, 8, 16, 32, 64])
def test_weights_are_values_of_the_polynomial_in_montgomery_form(
    ring: Ring, rng: np.random.Generator, runs: int
) -> None:
    c = rng.integers(-LIMIT, LIMIT, (runs, 2), endpoint=True)
    assert np.array_equal(ring.encode_weights(c, LIMBS), exact(ring, c, LIMBS))


# Trailing axes that leave a part of a vector, of a block, or nothing.
@pytest.mark.parametrize(
    ("runs", "trailing"),
    [(32, (3, 5)), (32, (16,)), (32, (257,)), (32, (19, 27)), (1, (8200,)), (64, ()), (2, (1, 1))],
)
def test_weights_of_any_shape(
    ring: Ring, rng: np.random.Generator, runs: int, trailing: tuple[int, ...]
) -> None:
    c = rng.integers(-LIMIT, LIMIT, (runs, *trailing), endpoint=True)
    got = ring.encode_weights(c, LIMBS)
    assert got.shape == (4, runs, *trailing)
    assert np.array_equal(got, by_numpy(ring, c, LIMBS))


@pytest.mark.parametrize("value", [LIMIT, -LIMIT, 2**32, -(2**32), 1, -1, 0])
def test_weights_of_coefficients_at_the_ends_of_the_range(ring: Ring, value: int) -> None:
    c = np.full((16, 17), value, np.int64)
    assert np.array_equal(ring.encode_weights(c, LIMBS), by_numpy(ring, c, LIMBS))


@pytest.mark.parametrize("degree_bits", [11, 13, 16, 17])
def test_weights_in_every_large_ring(
    thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator, degree_bits: int
) -> None:
    ring = thirty_limb_ring(1 << degree_bits)
    for runs in (32, (1 << degree_bits) // 16):
        c = rng.integers(-LIMIT, LIMIT, (runs, 18), endpoint=True)
        assert np.array_equal(ring.encode_weights(c, (0, 30)), by_numpy(ring, c, (0, 30)))


def test_weights_may_have_gaps(ring: Ring, rng: np.random.Generator) -> None:
    c = rng.integers(-LIMIT, LIMIT, (6, 8)).T
    assert np.array_equal(ring.encode_weights(c, LIMBS), by_numpy(ring, c, LIMBS))


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (np.zeros((3, 2), np.int64), "a power of two as first axis"),
        (np.zeros((0, 2), np.int64), "a power of two as first axis"),
        (np.zeros((), np.int64), "a power of two as first axis"),
        (np.zeros((4, 2)), "int64 with a power of two"),
        (np.zeros((128, 2), np.int64), "128 runs of 1024 points are shorter than 16"),
    ],
    ids=str,
)
def test_coefficients_that_do_not_fit_are_refused(ring: Ring, c: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        ring.encode_weights(c, LIMBS)
