"""Approximations keep the error they state, and need no more levels than others' at that error."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.circuits.approximation import (
    Inverse,
    encrypted_exponential,
    encrypted_inverse,
    fit,
    fit_exponential,
    fit_inverse,
    gelu,
)
from aegis_dask.ckks.polynomial import depth
from aegis_dask.errors import RangeError
from aegis_dask.program.graph import Capture, Program, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated

SLOTS = 1 << 14
BETWEEN = 1.1
"""The error is measured on a grid; between its points it is a little larger."""


def points(low: float, high: float) -> np.ndarray:
    """Points that are none of the grid of the fit, both ends among them."""
    return low + (high - low) * (1 - np.cos(np.linspace(0, np.pi, SLOTS))) / 2


def evaluate(function: Callable[[Capture], None], x: np.ndarray) -> tuple[np.ndarray, Program]:
    program = capture(SLOTS, function)
    return run(program, Simulated(), {"x": x + 0j}, {})["y"].real, program


# -- fits ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    low=st.floats(-40, 0), width=st.floats(0.5, 60), tolerance=st.sampled_from([1e-2, 1e-3, 1e-5])
)
def test_a_fit_keeps_its_error(low: float, width: float, tolerance: float) -> None:
    try:
        poly = fit(gelu, low, low + width, tolerance)
    except RangeError:
        assert width > 30  # degree 511 is about 4 R for R = 128
        return
    x = points(low, low + width)
    assert np.max(np.abs(poly(x) - gelu(x))) <= BETWEEN * poly.error
    assert poly.error <= tolerance


def test_the_degree_is_the_lowest_that_a_level_pays_for() -> None:
    for power, degree in ((1, 3), (3, 3), (4, 7), (7, 7), (8, 15), (15, 15), (16, 31)):
        poly = fit(lambda x, n=power: x**n, -1, 1, 1e-9)  # type: ignore[misc]
        assert poly.degree == degree


def test_a_relative_error_is_relative() -> None:
    x = points(0.01, 10)
    poly = fit(lambda v: 1 / np.sqrt(v), 0.01, 10, 1e-3, relative=True)
    assert np.max(np.abs(poly(x) * np.sqrt(x) - 1)) <= BETWEEN * poly.error <= BETWEEN * 1e-3


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_an_empty_interval_is_refused(low: float, high: float) -> None:
    with pytest.raises(RangeError, match="empty"):
        fit(np.exp, low, high, 1e-3)


def test_what_no_polynomial_reaches_is_refused_with_its_error() -> None:
    with pytest.raises(RangeError, match=r"1/sqrt on \[1e-06, 1\].*above 511.*it has"):
        fit(lambda v: 1 / np.sqrt(v), 1e-6, 1, 1e-3, relative=True, what="1/sqrt")
    with pytest.raises(RangeError, match="out of reach"):
        fit_exponential(-1e6, 0, 1e-9)
    with pytest.raises(RangeError, match=r"takes 2\d levels"):
        fit_inverse(1e13, 1e-3)
    for ratio, tolerance in ((1.0, 1e-3), (0.5, 1e-3), (float("inf"), 1e-3), (10, 0.0), (10, 1.0)):
        with pytest.raises(RangeError, match="above 1"):
            fit_inverse(ratio, tolerance)


# -- GELU ---------------------------------------------------------------------------------------


def test_gelu_is_the_exact_one() -> None:
    for x in (-9.0, -1.0, 0.0, 0.3, 5.0):
        assert gelu(np.array([x]))[0] == pytest.approx(x * (1 + erf(x / sqrt(2))) / 2, abs=1e-15)


@pytest.mark.parametrize(
    ("radius", "levels", "error"),
    # plain Chebyshev of degree about 4 R, with one or two digits of its error
    [(8, 5, 9.4e-5), (16, 6, 1.7e-4), (32, 7, 1.5e-4), (64, 8, 5.5e-5), (128, 9, 5.5e-5)],
)
def test_gelu_takes_the_levels_of_degree_4r(radius: float, levels: int, error: float) -> None:
    poly = fit(gelu, -radius, radius, error)
    assert depth(poly.degree) <= levels
    x = points(-radius, radius)
    assert np.max(np.abs(poly(x) - gelu(x))) <= error * BETWEEN


# -- exp ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    low=st.floats(-100, -1.1), high=st.floats(-1, 9), tolerance=st.sampled_from([1e-3, 1e-5, 1e-7])
)
def test_exp_keeps_its_error(low: float, high: float, tolerance: float) -> None:
    found = fit_exponential(low, high, tolerance)
    x = points(low, high)
    y = found(x)
    assert np.max(np.abs(y - np.exp(x))) <= 1.2 * tolerance * np.exp(high)
    assert np.min(y) >= 0  # a square
    assert found.squarings >= 1


@pytest.mark.parametrize(
    ("reach", "levels", "error"),
    # Chebyshev of degree 8 or 15 one-sided, then 1 to 3 squarings
    [(16, 6, 4.0e-6), (32, 7, 8.0e-6), (64, 7, 9.0e-4), (32, 6, 1.1e-6), (64, 7, 2.2e-6)],
)
def test_exp_is_as_accurate_as_published_at_equal_depth(
    reach: float, levels: int, error: float
) -> None:
    found = fit_exponential(-reach, 0.0, error)
    assert found.depth <= levels
    x = points(-reach, 0)
    assert np.max(np.abs(found(x) - np.exp(x))) <= error * BETWEEN


def test_exp_is_a_thousand_times_better_than_a_limit_of_equal_depth() -> None:
    """(1 + x / 2^r)^(2^r) is what NEXUS (ePrint 2024/136) and MOAI (2025/991) use."""
    x = points(-16, 0)
    limit = np.max(np.abs((1 + x / 128) ** 128 - np.exp(x)))  # 7 levels, one more for the factor
    assert limit == pytest.approx(2.1e-3, rel=0.05)
    found = fit_exponential(-16.0, 0.0, limit / 1000)
    assert found.depth <= 7


def test_an_encrypted_exponential_is_the_plain_one() -> None:
    found = fit_exponential(-30.0, 3.0, 1e-6)
    x = points(-30, 3)
    t = (x / (1 << found.squarings) - found.base.middle) / found.base.half
    y, program = evaluate(
        lambda c: c.output("y", encrypted_exponential(c.input("x", ()), found, 0.01)), t
    )
    np.testing.assert_allclose(y, found(x), rtol=1e-9, atol=1e-12)
    assert program.depth == found.depth


# -- 1/x ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(ratio=st.floats(1.05, 1e6), tolerance=st.sampled_from([1e-1, 1e-3, 1e-5, 1e-8]))
def test_an_inverse_keeps_its_error(ratio: float, tolerance: float) -> None:
    found = fit_inverse(ratio, tolerance)
    assert found.error <= tolerance
    low, high = found.t0 - 1, found.t0 + 1
    assert high / low == pytest.approx(ratio, rel=1e-6)
    y = points(low, high)
    # float64 keeps low = t0 - 1 to 2^-53 of t0
    assert np.max(np.abs(found(y) * y - 1)) <= found.error * 1.001 + 1e-15 * ratio * len(
        found.factors()
    )


@pytest.mark.parametrize(
    ("ratio", "for_3", "for_5"),
    # steps of the adaptive relaxed Goldschmidt iteration (THOR, ePrint 2024/1881), a level each
    [(10, 4, 5), (1e2, 6, 7), (1e3, 8, 8), (1e4, 9, 10), (1e5, 11, 11)],
)
def test_an_inverse_takes_no_more_levels_than_published(
    ratio: float, for_3: int, for_5: int
) -> None:
    for found, published in ((fit_inverse(ratio, 1e-3), for_3), (fit_inverse(ratio, 1e-5), for_5)):
        assert found.doublings <= published
        # A long product is made of two, so that it can be refreshed between them.
        assert found.depth == found.doublings + (found.doublings > 8)


@pytest.mark.parametrize("doublings", [1, 2, 3, 7, 8, 9])
def test_an_encrypted_inverse_is_the_plain_one(doublings: int) -> None:
    found = Inverse(1.02, doublings, 1.0)
    y = points(0.02, 2.02)
    x, program = evaluate(lambda c: c.output("y", encrypted_inverse(c.input("x", ()), found)), y)
    np.testing.assert_allclose(x * found.scale, found(y), rtol=1e-9)
    assert program.depth == found.depth


# -- 1/sqrt(x) ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "newton"),
    # Newton steps from the best line to 1e-3, at 2 levels each at least
    [(10, 3), (1e2, 6), (1e3, 8), (1e4, 11)],
)
def test_an_inverse_root_takes_fewer_levels_than_newton(ratio: float, newton: int) -> None:
    poly = fit(lambda v: 1 / np.sqrt(v), 1, ratio, 1e-3, relative=True)
    assert depth(poly.degree) <= 2 * newton
    x = points(1, ratio)
    assert np.max(np.abs(poly(x) * np.sqrt(x) - 1)) <= 1e-3 * BETWEEN
