"""The polynomial of EvalMod, and the probability that a value is outside its range."""

from __future__ import annotations

from math import comb, factorial, log2

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.parameters import BOOTSTRAPPING_PRESETS, BootstrappingParameters
from aegis_dask.ckks.bootstrapping.sine import Sine, log2_failure
from aegis_dask.errors import ParameterError


@pytest.mark.parametrize("name", BOOTSTRAPPING_PRESETS)
def test_the_fit_is_far_more_precise_than_the_scale_needs(name: str) -> None:
    params = BootstrappingParameters.preset(name)
    # As an error of the message; half a bit is lost to it at 2^-24 or better at Delta = 2^40.
    bits = -log2(params.sine.fit_error) - params.literal.ratio_bits
    assert bits > (24 if params.literal.scale_bits == 40 else 17)


@pytest.mark.parametrize("name", BOOTSTRAPPING_PRESETS)
def test_it_is_the_remainder_modulo_one(name: str, rng: np.random.Generator) -> None:
    sine = BootstrappingParameters.preset(name).sine
    remainder = rng.uniform(-sine.deviation, sine.deviation, 10_000)
    u = remainder + rng.integers(-sine.bound, sine.bound + 1, 10_000)
    error = np.abs(sine.evaluate(u) - remainder)
    assert np.max(error) < sine.fit_error * 1.01 + sine.sine_error(sine.deviation) + 2.0**-45


def test_sine_error_is_the_cube() -> None:
    sine = Sine(14, 30, 3, 2.0**-11)
    x = 2.0**-11
    assert sine.sine_error(x) == pytest.approx((2 * np.pi) ** 2 * x**3 / 6, rel=1e-4)


def test_failure_is_the_tail_of_the_sum_of_uniform_numbers(rng: np.random.Generator) -> None:
    # Few nonzero coefficients and a low bound, so that the tail can be counted.
    weight, bound, count = 4, 1, 400_000
    sums = rng.uniform(-0.5, 0.5, (count, weight + 1)).sum(axis=1)
    seen = np.mean(np.abs(sums) > bound + 0.5)
    assert 2 ** log2_failure(bound, weight, 1) == pytest.approx(seen, rel=0.1)


def test_failure_next_to_the_end_of_the_range_is_exact() -> None:
    # 32.5 / 2 - 15.5 = 1: the tail of 33 uniform numbers is 1 / 33!, two sides, 2^16 coefficients
    assert log2_failure(15, 32, 1 << 16) == pytest.approx(17 - log2(factorial(33)), abs=1e-9)
    assert log2_failure(16, 32, 1 << 16) == float("-inf")
    two = (2**33 - comb(33, 1)) / factorial(33)
    assert log2_failure(14, 32, 1 << 16) == pytest.approx(17 + log2(two), abs=1e-9)


@pytest.mark.parametrize("name", [n for n, p in BOOTSTRAPPING_PRESETS.items() if not p.insecure])
def test_secure_presets_fail_less_than_once_in_2_to_the_30(name: str) -> None:
    assert BootstrappingParameters.preset(name).log2_failure < -30


@pytest.mark.parametrize(
    ("bound", "degree", "deviation"), [(14, 31, 0.01), (0, 30, 0.01), (14, 30, 0.3)]
)
def test_impossible_polynomials_are_refused(bound: int, degree: int, deviation: float) -> None:
    with pytest.raises(ParameterError):
        Sine(bound, degree, 3, deviation)
