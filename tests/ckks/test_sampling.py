"""Distributions of secrets and errors. Bounds are six standard deviations: once in 10^9."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from aegis_dask.ckks import sampling

COUNT = 1 << 20


def test_errors_have_the_stated_standard_deviation() -> None:
    e = sampling.error((COUNT,))
    assert pytest.approx(3.24, abs=0.001) == sampling.ERROR_STD
    assert sampling.ERROR_STD >= 3.19
    # The deviation of a sample deviates by 1 / sqrt(2 count).
    assert e.std() == pytest.approx(sampling.ERROR_STD, rel=6 / (2 * COUNT) ** 0.5)
    assert abs(e.mean()) < 6 * sampling.ERROR_STD / COUNT**0.5


def test_errors_are_centred_binomial() -> None:
    e = sampling.error((COUNT,))
    assert np.max(np.abs(e)) <= sampling.ERROR_BITS
    for value in range(-12, 13):
        p = comb(2 * sampling.ERROR_BITS, sampling.ERROR_BITS + value) / 4**sampling.ERROR_BITS
        deviation = (COUNT * p * (1 - p)) ** 0.5
        assert abs(np.count_nonzero(e == value) - COUNT * p) < 6 * deviation


def test_ternary_coefficients_are_uniform() -> None:
    # Enough of them to see the bias of a byte modulo 3, 1/256.
    count = 1 << 22
    s = sampling.ternary((count,))
    assert set(np.unique(s)) == {-1, 0, 1}
    for value in (-1, 0, 1):
        deviation = (count * 2 / 9) ** 0.5
        assert abs(np.count_nonzero(s == value) - count / 3) < 6 * deviation


@pytest.mark.parametrize("sample", [sampling.error, sampling.ternary])
def test_neighbouring_coefficients_are_uncorrelated(sample: object) -> None:
    x = sample((COUNT,)).astype(np.float64)  # type: ignore[operator]
    for lag in (1, 2, 16, 64):
        correlation = np.mean(x[lag:] * x[:-lag]) / x.var()
        assert abs(correlation) < 6 / COUNT**0.5


@pytest.mark.parametrize("sample", [sampling.error, sampling.ternary])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 1024), (0,)], ids=str)
def test_samples_have_the_shape_asked_for_and_differ(sample: object, shape: tuple) -> None:
    x, y = sample(shape), sample(shape)  # type: ignore[operator]
    assert x.shape == shape
    assert x.dtype == np.int64
    if x.size > 1000:
        assert not np.array_equal(x, y)


def test_seeds_are_32_bytes_and_never_repeat() -> None:
    seeds = {sampling.new_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert {len(s) for s in seeds} == {32}


def test_domains_differ() -> None:
    domains = [v for k, v in vars(sampling).items() if k.startswith("DOMAIN_")]
    assert len(set(domains)) == len(domains) == 3
