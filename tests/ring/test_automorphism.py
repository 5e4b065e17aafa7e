from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from aegis_dask.ring.automorphisms import automorphism_indices, automorphism_tables
from aegis_dask.ring.backend import Ring
from tests import reference

LIMBS = (0, 4, 30)
ELEMENTS = [1, 3, 5, 25, 5**7, 2047, 2045, 1023, 1025, 2047 * 5, -1, -5]
"""Identity, generators, conjugation (-1), rotations, their products, ends of the range."""


def primes_of(ring: Ring) -> list[int]:
    everything = ring.chain.primes + ring.chain.special_primes
    return [everything[i] for i in LIMBS]


@pytest.mark.parametrize("g", ELEMENTS)
def test_coefficients_are_those_of_the_polynomial_in_x_to_the_g(
    ring: Ring, rng: np.random.Generator, g: int
) -> None:
    primes = primes_of(ring)
    x = reference.random_residues(rng, primes, degree=1024)
    image = ring.intt(ring.automorphism(ring.ntt(x, LIMBS), g), LIMBS)
    expected = [reference.automorphism(c, g) % p for c, p in zip(x, primes, strict=True)]
    assert np.array_equal(image, np.array(expected, object))


def test_every_odd_element_permutes_the_points_by_its_definition(
    ring: Ring, rng: np.random.Generator
) -> None:
    x = rng.integers(0, 2**25, (1, 1024)).astype(np.uint32)
    for g in range(1, 2048, 2):
        assert np.array_equal(ring.automorphism(x, g)[0], x[0, automorphism_indices(1024, g)])


@pytest.mark.parametrize("log_degree", range(11, 18))
def test_values_of_the_image_are_values_at_powers_of_the_points(
    thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator, log_degree: int
) -> None:
    degree = 1 << log_degree
    ring = thirty_limb_ring(degree)
    primes = primes_of(ring)
    x = reference.random_residues(rng, primes, degree=degree)
    values = ring.ntt(x, LIMBS)
    points = [0, degree - 1, *(int(i) for i in rng.integers(0, degree, 2))]
    for g in (5, 2 * degree - 1, int(rng.integers(degree)) * 2 + 1):
        image = ring.automorphism(values, g)
        for l, p in enumerate(primes):
            # x(X^g) has the coefficients of x at permuted places, with signs
            coefficients = np.zeros(degree, np.int64)
            k = np.arange(degree) * g % (2 * degree)
            coefficients[k % degree] = np.where(
                k < degree, x[l].astype(np.int64), -x[l].astype(np.int64)
            )
            expected = reference.ntt_points(coefficients % p, p, points)
            assert list(image[l, points]) == expected


def test_automorphisms_compose(ring: Ring, rng: np.random.Generator) -> None:
    x = reference.random_residues(rng, primes_of(ring), 2, 2, degree=1024)
    g, h = (int(v) * 2 + 1 for v in rng.integers(0, 1024, 2))
    both = ring.automorphism(ring.automorphism(x, g), h)
    assert np.array_equal(both, ring.automorphism(x, g * h % 2048))
    assert np.array_equal(ring.automorphism(ring.automorphism(x, g), pow(g, -1, 2048)), x)


@pytest.mark.parametrize("log_degree", [10, 17])
@pytest.mark.parametrize("g", [3, 5, 5**20, -1])
def test_tables_take_whole_blocks_and_few_patterns(log_degree: int, g: int) -> None:
    degree = 1 << log_degree
    blocks, patterns, targets = automorphism_tables(degree, g)
    index = automorphism_indices(degree, g)
    lanes = patterns[blocks & 15]
    assert np.array_equal((blocks >> 4)[:, None] * 16 + lanes, index.reshape(-1, 16))
    # Block b of 256 points goes to block targets[b] as a whole.
    sources = index.reshape(-1, 256) // 256
    assert np.array_equal(sources[targets], np.arange(degree // 256)[:, None].repeat(256, 1))


@pytest.mark.parametrize("g", [1, 5, 2047, 5**9])
def test_multiply_add_permutes_the_first_factor_only(
    ring: Ring, rng: np.random.Generator, g: int
) -> None:
    primes = primes_of(ring)
    q = np.array(primes, object)[:, None]
    for make in (reference.random_residues, reference.extreme_residues):
        x, total = (make(rng, primes, 2, 2, degree=1024) for _ in "xt")
        y = make(rng, primes, degree=1024)
        expected = (total + ring.automorphism(x, g).astype(object) * y) % q
        ring.automorphism_multiply_add(total, x, ring.to_montgomery(y, LIMBS), LIMBS, g)
        assert np.array_equal(total, expected)
