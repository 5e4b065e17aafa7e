from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Ring
from tests import reference

N = 1024
LIMBS = (0, 4, 30)


def primes_of(ring: Ring) -> list[int]:
    everything = ring.chain.primes + ring.chain.special_primes
    return [everything[i] for i in LIMBS]


def weights_like(
    rng: np.random.Generator, primes: list[int], runs: int, outs: int, inner: int, largest: bool
) -> Any:
    """Integer weights ``[limb, run, output, input]``."""
    shape = (runs, outs, inner)
    if largest:
        return np.stack([np.full(shape, p - 1, object) for p in primes])
    return np.stack([rng.integers(0, p, shape).astype(object) for p in primes])


def montgomery(weights: Any, primes: list[int]) -> Any:
    q = np.array(primes, object)[:, None, None, None]
    return ((weights << 32) % q).astype(np.uint32)


@pytest.mark.parametrize("largest", [False, True], ids=["random", "largest"])
# Inputs below, at and above the 16 and 24 products after which accumulators are cut; outputs in
# blocks of four and the rest.
@pytest.mark.parametrize(
    ("inner", "outs"), [(1, 1), (3, 4), (8, 5), (16, 2), (17, 7), (24, 4), (25, 9), (70, 3)]
)
@pytest.mark.parametrize("runs", [1, 2, N // 32, N // 16])
def test_gemm_is_a_matrix_product_modulo_every_prime_and_run(
    ring: Ring, rng: np.random.Generator, inner: int, outs: int, runs: int, largest: bool
) -> None:
    primes = primes_of(ring)
    weights = weights_like(rng, primes, runs, outs, inner, largest)
    make = reference.extreme_residues if largest else reference.random_residues
    x = make(rng, primes, inner, 2, degree=N)
    out = ring.gemm(x, montgomery(weights, primes), LIMBS)
    assert out.shape == (outs, 2, len(LIMBS), N)
    for l, p in enumerate(primes):
        for r in {0, runs // 2, runs - 1}:
            points = slice(r * N // runs, (r + 1) * N // runs)
            inputs = x[:, :, l, points].astype(object)
            expected = np.tensordot(weights[l, r], inputs, 1) % p
            assert np.array_equal(out[:, :, l, points], expected)


def test_gemm_of_largest_values_in_every_place(ring: Ring) -> None:
    primes = primes_of(ring)
    weights = np.stack([np.full((1, 4, 40), p - 1, object) for p in primes])
    x = reference.largest_residues(primes, 40, 1, degree=N)
    out = ring.gemm(x, montgomery(weights, primes), LIMBS)
    assert np.all(out == 40)  # 40 (-1)(-1)


@pytest.mark.parametrize("largest", [False, True], ids=["random", "largest"])
@pytest.mark.parametrize("runs", [1, 4, N // 16])
@pytest.mark.parametrize("outs", [1, 6])
def test_gemm_is_accumulated_over_parts_of_the_inputs(
    ring: Ring, rng: np.random.Generator, runs: int, outs: int, largest: bool
) -> None:
    primes = primes_of(ring)
    weights = montgomery(weights_like(rng, primes, runs, outs, 37, largest), primes)
    make = reference.extreme_residues if largest else reference.random_residues
    x = make(rng, primes, 37, 2, degree=N)
    expected = ring.gemm(x, weights, LIMBS)
    out = ring.zeros(expected.shape)
    for i, j in ((0, 1), (1, 20), (20, 37)):
        assert ring.gemm(x[i:j], weights[..., i:j], LIMBS, accumulate=out) is out
    assert np.array_equal(out, expected)
    top = reference.largest_residues(primes, outs, 2, degree=N)
    ring.gemm(x, weights, LIMBS, accumulate=top)
    assert np.array_equal(ring.add(top, np.ones_like(top), LIMBS), expected)


def test_gemm_of_views(ring: Ring, rng: np.random.Generator) -> None:
    primes = primes_of(ring)
    weights = montgomery(weights_like(rng, primes, 4, 5, 12, False), primes)
    x = reference.random_residues(rng, primes, 12, 2, degree=N)
    expected = ring.gemm(x[::3].copy(), weights[:, :, 1:4, ::3].copy(), LIMBS)
    assert np.array_equal(ring.gemm(x[::3], weights[:, :, 1:4, ::3], LIMBS), expected)
    turned = np.ascontiguousarray(weights.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert np.array_equal(ring.gemm(x, turned, LIMBS), ring.gemm(x, weights, LIMBS))


def test_accumulators_that_do_not_fit_are_refused(ring: Ring) -> None:
    x, weights = np.zeros((4, 1, 3, N), np.uint32), np.zeros((3, 1, 2, 4), np.uint32)
    with pytest.raises(BackendError, match="was given to add products of shape"):
        ring.gemm(x, weights, LIMBS, accumulate=ring.zeros((3, 1, 3, N)))
    with pytest.raises(BackendError, match="not contiguous"):
        ring.gemm(x, weights, LIMBS, accumulate=ring.zeros((2, 1, 3, 2 * N))[..., ::2])
    frozen = ring.zeros((2, 1, 3, N))
    frozen.flags.writeable = False
    with pytest.raises(BackendError, match="read-only"):
        ring.gemm(x, weights, LIMBS, accumulate=frozen)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 1, 2, 5), "do not fit 4 inputs of 3 limbs"),
        ((2, 1, 2, 4), "do not fit 4 inputs of 3 limbs"),
        ((3, 2, 4), "do not fit"),
        ((3, 128, 2, 4), "128 runs of 1024 points are shorter than 16"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    ring: Ring, shape: tuple[int, ...], message: str
) -> None:
    x = np.zeros((4, 1, 3, N), np.uint32)
    with pytest.raises(BackendError, match=message):
        ring.gemm(x, np.zeros(shape, np.uint32), LIMBS)
