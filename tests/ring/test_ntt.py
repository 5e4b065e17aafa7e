from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Ring
from tests import reference

LOG_DEGREES = range(10, 18)
LIMBS = (0, 3, 4, 15, 26, 30)
"""First and last terminal, first, middle and last main prime, last special prime."""


@pytest.fixture(params=LOG_DEGREES, ids=lambda k: f"N=2^{k}")
def any_ring(request: pytest.FixtureRequest, thirty_limb_ring: Callable[[int], Ring]) -> Ring:
    return thirty_limb_ring(1 << request.param)


def primes_of(ring: Ring, limbs: Sequence[int] = LIMBS) -> list[int]:
    everything = ring.chain.primes + ring.chain.special_primes
    return [everything[i] for i in limbs]


def delta_functions(rng: np.random.Generator, primes: Sequence[int], degree: int) -> Any:
    """One nonzero coefficient per limb, p - 1, at either end and elsewhere."""
    out = np.zeros((len(primes), degree), np.uint32)
    places = [0, degree - 1, *rng.integers(0, degree, len(primes) - 2)]
    out[np.arange(len(primes)), places] = np.array(primes) - 1
    return out


def inputs(rng: np.random.Generator, primes: Sequence[int], degree: int) -> Any:
    """``[kind, limb, N]``: random, extreme and degenerate coefficients."""
    return np.stack(
        [
            reference.random_residues(rng, primes, degree=degree),
            reference.extreme_residues(rng, primes, degree=degree),
            reference.largest_residues(primes, degree=degree),
            delta_functions(rng, primes, degree),
            np.zeros((len(primes), degree), np.uint32),
        ]
    )


@pytest.mark.parametrize("log_degree", [10, 11, 12])
def test_transform_equals_the_textbook_transform(
    thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator, log_degree: int
) -> None:
    ring = thirty_limb_ring(1 << log_degree)
    limbs = LIMBS if log_degree == 10 else (0, 15, 30)
    primes = primes_of(ring, limbs)
    x = inputs(rng, primes, 1 << log_degree)[:2]
    expected = [[reference.ntt(c, p) for c, p in zip(k, primes, strict=True)] for k in x]
    assert np.array_equal(ring.ntt(x, limbs), expected)


def test_transform_equals_the_values_of_the_polynomial_at_its_points(
    any_ring: Ring, rng: np.random.Generator
) -> None:
    degree, primes = any_ring.chain.ring_degree, primes_of(any_ring)
    x = inputs(rng, primes, degree)
    points = [0, degree - 1, *(int(i) for i in rng.integers(0, degree, 2))]
    values = any_ring.ntt(x, LIMBS)
    assert values.dtype == np.uint32
    for kind in range(len(x)):
        for l, p in enumerate(primes):
            expected = reference.ntt_points(x[kind, l], p, points)
            assert list(values[kind, l, points]) == expected


def test_values_are_canonical(any_ring: Ring, rng: np.random.Generator) -> None:
    primes = primes_of(any_ring)
    x = inputs(rng, primes, any_ring.chain.ring_degree)
    bound = np.array(primes)[:, None]
    assert np.all(any_ring.ntt(x, LIMBS) < bound)
    assert np.all(any_ring.intt(x, LIMBS) < bound)


def test_inverse_undoes_the_transform_both_ways(any_ring: Ring, rng: np.random.Generator) -> None:
    x = inputs(rng, primes_of(any_ring), any_ring.chain.ring_degree)
    assert np.array_equal(any_ring.intt(any_ring.ntt(x, LIMBS), LIMBS), x)
    assert np.array_equal(any_ring.ntt(any_ring.intt(x, LIMBS), LIMBS), x)


def test_every_limb_of_a_thirty_limb_list_uses_its_own_prime(
    any_ring: Ring, rng: np.random.Generator
) -> None:
    limbs = list(range(31))
    primes, degree = primes_of(any_ring, limbs), any_ring.chain.ring_degree
    x = reference.random_residues(rng, primes, degree=degree)
    point = [int(rng.integers(degree))]
    values = any_ring.ntt(x, limbs)
    for l, p in enumerate(primes):
        assert list(values[l, point]) == reference.ntt_points(x[l], p, point)
    assert np.array_equal(any_ring.intt(values, limbs), x)


def test_transform_is_linear(any_ring: Ring, rng: np.random.Generator) -> None:
    primes, degree = primes_of(any_ring), any_ring.chain.ring_degree
    x, y = (reference.random_residues(rng, primes, degree=degree).astype(np.uint64) for _ in "xy")
    q = np.array(primes, np.uint64)[:, None]
    factor = np.uint64(rng.integers(2**25))
    combined = ((x + factor * y) % q).astype(np.uint32)
    fx, fy = (any_ring.ntt(v.astype(np.uint32), LIMBS).astype(np.uint64) for v in (x, y))
    assert np.array_equal(any_ring.ntt(combined, LIMBS), (fx + factor * fy) % q)


@pytest.mark.parametrize("log_degree", [10, 13])
def test_products_of_values_are_negacyclic_convolutions(
    thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator, log_degree: int
) -> None:
    ring, degree = thirty_limb_ring(1 << log_degree), 1 << log_degree
    primes = primes_of(ring)
    x, y = (reference.random_residues(rng, primes, degree=degree) for _ in "xy")
    product = ring.multiply(ring.ntt(x, LIMBS), ring.ntt(y, LIMBS), LIMBS)
    expected = [reference.product(x[l], y[l]) % p for l, p in enumerate(primes)]
    assert np.array_equal(ring.intt(product, LIMBS), np.array(expected, object))


def test_batches_of_any_shape_are_transformed_polynomial_by_polynomial(
    ring: Ring, rng: np.random.Generator
) -> None:
    x = reference.random_residues(rng, primes_of(ring), 2, 3, degree=1024)
    values, coefficients = ring.ntt(x, LIMBS), ring.intt(x, LIMBS)
    for i in np.ndindex(2, 3):
        assert np.array_equal(values[i], ring.ntt(x[i], LIMBS))
        assert np.array_equal(coefficients[i], ring.intt(x[i], LIMBS))


def test_views_with_gaps_are_transformed_like_copies(ring: Ring, rng: np.random.Generator) -> None:
    x = reference.random_residues(rng, primes_of(ring), 4, degree=1024)
    assert np.array_equal(ring.ntt(x[::2], LIMBS), ring.ntt(x[::2].copy(), LIMBS))


def test_the_input_is_left_as_it_was(ring: Ring, rng: np.random.Generator) -> None:
    x = reference.random_residues(rng, primes_of(ring), degree=1024)
    before = x.copy()
    ring.ntt(x, LIMBS)
    ring.intt(x, LIMBS)
    assert np.array_equal(x, before)


def test_arrays_that_do_not_fit_the_limbs_are_refused(ring: Ring) -> None:
    with pytest.raises(BackendError, match=r"shape \(2, 1024\) was given for 3 limbs"):
        ring.ntt(np.zeros((2, 1024), np.uint32), [0, 1, 2])
    with pytest.raises(BackendError, match="of 1024 points"):
        ring.intt(np.zeros((2, 2048), np.uint32), [0, 1])
