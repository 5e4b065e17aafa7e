"""The simulated interpreter is NumPy, with noise if asked for."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_dask.program.simulated import Simulated
from tests.program.machines import SLOTS, Matrix, random_slots


def test_a_matrix_product_is_the_sum_of_its_diagonals(rng: np.random.Generator) -> None:
    x, w = random_slots(rng, 3, 2, SLOTS), random_slots(rng, 4, 5, 3, 2, 8)
    found = Simulated().matrix_product(x, Matrix("w", (3, 2), (4, 5), 8), {"w": w}, 1, 3)
    tiled = np.tile(w[1:3], SLOTS // 8)
    np.testing.assert_allclose(found, (tiled * x).sum(axis=(2, 3)), atol=1e-12)


def test_noise_has_the_size_asked_for(rng: np.random.Generator) -> None:
    x = random_slots(rng, 64, SLOTS)
    for apply in (
        lambda e: e.multiply(x, x) - x * x,
        lambda e: e.rotate(x, 1) - np.roll(x, -1, axis=-1),
        lambda e: e.conjugate(x) - x.conj(),
        lambda e: e.relinearise(x) - x,
        lambda e: e.multiply_constant(x, 2j) - 2j * x,
        lambda e: e.chebyshev(x.real + 0j, [0, 1]) - x.real,
    ):
        error = apply(Simulated(noise_bits=20))
        for part in (error.real, error.imag):  # 32,768 samples: half a percent
            assert np.std(part) == pytest.approx(2.0**-20, rel=0.05)
    assert np.array_equal(Simulated().multiply(x, x), x * x)


def test_the_same_seed_gives_the_same_noise(rng: np.random.Generator) -> None:
    x = random_slots(rng, 2, SLOTS)
    a, b, c = (Simulated(20, seed).multiply(x, x) for seed in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_it_remembers_the_largest_input_of_a_polynomial() -> None:
    e = Simulated()
    e.chebyshev(np.array([[0.25, -0.5, 0.125j]]), np.array([0.0, 1.0]))
    e.chebyshev(np.array([[0.25]], complex), np.array([0.0, 1.0]))
    assert e.largest == 0.5
