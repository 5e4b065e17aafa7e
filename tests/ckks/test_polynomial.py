from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.polynomial import chebyshev_coefficients, depth, divide
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError, LevelError, MissingKeyError
from tests.schemes import Scheme, presets

Schemes = Callable[[str], Scheme]
NAME = "insecure-n12-d40"
"""13 levels: enough for every degree below 8192."""


def sigmoid(t: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-3 * t))


def tolerance(scheme: Scheme, level: int, coefficients: np.ndarray) -> float:
    """Worst error of the value: what each T_k may carry, times its coefficient.

    An error at t is multiplied by T_k' <= k^2, and every level of the recursion adds the roundings
    of a quotient and a remainder. Four bits for the worst slot as in `Scheme.assert_close`.
    """
    noise = max(scheme.noise.rounding(l) for l in range(level))
    k = np.arange(len(coefficients))
    carried = np.maximum(k, 1) ** 2 * max(noise, scheme.noise.fresh_public(level))
    carried = np.linalg.norm(np.abs(coefficients) * carried)
    return float(2**4 * np.hypot(carried, noise * np.sqrt(2 * level)))


def check(
    scheme: Scheme, x: Ciphertext, t: np.ndarray, coefficients: np.ndarray, **options: object
) -> Ciphertext:
    got = scheme.evaluator.chebyshev(x, coefficients, **options)  # type: ignore[arg-type]
    low, high = options.get("interval", (-1, 1))  # type: ignore[misc]
    mapped = (2 * t - low - high) / (high - low)
    error = scheme.errors(chebyshev.chebval(mapped, coefficients), got)
    assert np.max(error) < tolerance(scheme, x.level, np.asarray(coefficients))
    assert got.is_canonical
    assert got.components == 2
    return got


@pytest.fixture
def scheme(schemes: Schemes) -> Scheme:
    return schemes(NAME)


@pytest.fixture
def t(scheme: Scheme, rng: np.random.Generator) -> np.ndarray:
    """Real slots in [-1, 1], the ends included."""
    t = rng.uniform(-1, 1, scheme.params.slots)
    t[:3] = -1, 1, 0
    return t


@pytest.fixture
def x(scheme: Scheme, t: np.ndarray) -> Ciphertext:
    return scheme.encryptor.encrypt(t)


# -- depth --------------------------------------------------------------------------------------


def test_depth_is_the_logarithm_of_the_degree_plus_one() -> None:
    assert depth(0) == 1  # a constant is made by a product with zero
    for degree in range(1, 5000):
        assert depth(degree) == ceil(log2(degree + 1))


@pytest.mark.parametrize("degree", [*range(1, 34), 47, 59, 63, 64, 100, 127, 128, 200, 255])
def test_every_degree_takes_its_optimal_depth(
    scheme: Scheme, x: Ciphertext, t: np.ndarray, rng: np.random.Generator, degree: int
) -> None:
    # Dense coefficients of size 1/(k + 1): the value is of order one.
    c = rng.uniform(-1, 1, degree + 1) / np.arange(1, degree + 2)
    c[degree] = 1 / (degree + 1)
    got = check(scheme, x, t, c)
    assert x.level - got.level == ceil(log2(degree + 1))


@pytest.mark.parametrize("degree", [1, 3, 7, 15, 31])
def test_depth_is_used_up_exactly(
    scheme: Scheme, t: np.ndarray, rng: np.random.Generator, degree: int
) -> None:
    c = rng.uniform(-1, 1, degree + 1) / np.arange(1, degree + 2)
    levels = depth(degree)
    got = check(scheme, scheme.encryptor.encrypt(t, levels), t, c)
    assert got.level == 0
    with pytest.raises(LevelError, match=f"degree {degree} takes {levels} levels"):
        scheme.evaluator.chebyshev(scheme.encryptor.encrypt(t, levels - 1), c)


@pytest.mark.parametrize("name", presets(small=["insecure-n10-d40", "insecure-n11-d35"]))
def test_polynomials_start_at_any_level(
    schemes: Schemes, rng: np.random.Generator, name: str
) -> None:
    s = schemes(name)
    t = rng.uniform(-1, 1, s.params.slots)
    c = chebyshev_coefficients(sigmoid, 7)
    for level in range(3, s.params.max_level + 1):
        assert check(s, s.encryptor.encrypt(t, level), t, c).level == level - 3


# -- kinds of polynomials -----------------------------------------------------------------------


@pytest.mark.parametrize("degree", [3, 7, 15, 31, 63])
def test_an_interpolated_function_is_as_precise_as_its_interpolation(
    scheme: Scheme, x: Ciphertext, t: np.ndarray, degree: int
) -> None:
    c = chebyshev_coefficients(sigmoid, degree)
    got = check(scheme, x, t, c)
    interpolation = np.max(np.abs(chebyshev.chebval(t, c) - sigmoid(t)))
    error = np.max(scheme.errors(sigmoid(t), got))
    assert error < interpolation + tolerance(scheme, x.level, c)


SPARSE = {
    "odd": [0, 1, 0, -0.5, 0, 0.25, 0, 0.125, 0, 0.1],
    "even": [0.5, 0, 1, 0, -0.5, 0, 0.25, 0, 0.125],
    "single term": [0] * 21 + [1.0],
    "two distant terms": [0, 0.5, *[0] * 28, 0.25],
    "power of two": [0] * 16 + [1.0],
    "just above a power of two": [0.25, *[0] * 15, 0.5, 0.5],
    "constant and top": [0.5, *[0] * 11, 0.5],
    "linear": [0.25, 0.5],
    "linear without constant": [0, 2.0],
    "constant": [0.75],
    "zero": [0.0],
    "zero of high degree": [0.0] * 40,
    "trailing zeros": [0.5, 0.25, 0.125, *[0.0] * 30],
    "large": [100.0, -300.0, 50.0, 1000.0],
    "tiny": [1e-6, 1e-7, -1e-6],
}


@pytest.mark.parametrize("coefficients", SPARSE.values(), ids=SPARSE.keys())
def test_polynomials_with_zeros_and_extremes(
    scheme: Scheme, x: Ciphertext, t: np.ndarray, coefficients: list[float]
) -> None:
    got = check(scheme, x, t, np.array(coefficients))
    degree = max(np.flatnonzero(coefficients), default=0)
    assert x.level - got.level == depth(int(degree))


@pytest.mark.parametrize("degree", [1, 4, 13])
def test_complex_coefficients(
    scheme: Scheme, x: Ciphertext, t: np.ndarray, rng: np.random.Generator, degree: int
) -> None:
    parts = rng.uniform(-1, 1, (2, degree + 1)) / np.arange(1, degree + 2)
    check(scheme, x, t, parts[0] + 1j * parts[1])


def test_complex_arguments_inside_the_unit_disc(scheme: Scheme, rng: np.random.Generator) -> None:
    # T_k grows outside [-1, 1]: |T_3| <= 7 on the disc.
    z = rng.uniform(0, 1, scheme.params.slots) * np.exp(
        2j * np.pi * rng.uniform(0, 1, scheme.params.slots)
    )
    c = np.array([0.5, 1, 0.25, 0.125])
    got = scheme.evaluator.chebyshev(scheme.encryptor.encrypt(z), c)
    error = np.max(scheme.errors(chebyshev.chebval(z, c), got))
    assert error < 2**3 * tolerance(scheme, scheme.params.max_level, c)


@pytest.mark.parametrize("interval", [(-8.0, 8.0), (0.0, 1.0), (-3.0, 5.0), (-1.0, 2.0)])
def test_another_interval_costs_one_level(
    scheme: Scheme, rng: np.random.Generator, interval: tuple[float, float]
) -> None:
    t = rng.uniform(*interval, scheme.params.slots)
    t[:2] = interval
    c = chebyshev_coefficients(sigmoid, 15, interval)
    x = scheme.encryptor.encrypt(t)
    got = check(scheme, x, t, c, interval=interval)
    assert x.level - got.level == 5
    with pytest.raises(LevelError, match=r"takes 5 levels \(one for the interval\)"):
        scheme.evaluator.chebyshev(scheme.encryptor.encrypt(t, 4), c, interval)


def test_arguments_of_a_product_are_taken_as_they_come(
    scheme: Scheme, x: Ciphertext, t: np.ndarray
) -> None:
    ev = scheme.evaluator
    c = chebyshev_coefficients(sigmoid, 7)
    check(scheme, ev.multiply(x, x), t * t, c)
    check(scheme, ev.rotate(ev.to_level(x, 5), 3), np.roll(t, -3), c)


# -- parts --------------------------------------------------------------------------------------


@given(st.data())
def test_division_by_a_chebyshev_polynomial(data: st.DataObject) -> None:
    n = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    degree = data.draw(st.integers(n, 2 * n - 1))
    c = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=degree + 1, max_size=degree + 1)))
    q, r = divide(c.astype(complex), n)
    assert len(r) == n
    restored = chebyshev.chebadd(chebyshev.chebmul(q, [0] * n + [1]), r)
    assert np.allclose(np.pad(restored, (0, degree + 1 - len(restored))), c)


@pytest.mark.parametrize("interval", [(-1.0, 1.0), (2.0, 7.0)])
def test_interpolation_is_exact_for_polynomials(interval: tuple[float, float]) -> None:
    def cubic(t: np.ndarray) -> np.ndarray:
        return t**3 - 2 * t + 0.5

    c = chebyshev_coefficients(cubic, 5, interval)
    t = np.linspace(*interval, 50)
    low, high = interval
    assert np.allclose(chebyshev.chebval((2 * t - low - high) / (high - low), c), cubic(t))
    assert np.allclose(c[4:], 0, atol=1e-12 * np.abs(c).max())


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("coefficients", [[], [1, np.nan], [np.inf, 1], [[1, 2], [3, 4]]], ids=str)
def test_coefficients_must_be_a_finite_vector(
    scheme: Scheme, x: Ciphertext, coefficients: list
) -> None:
    with pytest.raises(EncodingError, match="one or more finite coefficients are needed"):
        scheme.evaluator.chebyshev(x, coefficients)


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)])
def test_an_empty_interval_is_refused(
    scheme: Scheme, x: Ciphertext, interval: tuple[float, float]
) -> None:
    with pytest.raises(EncodingError, match="is empty"):
        scheme.evaluator.chebyshev(x, [1, 2], interval)


def test_an_argument_that_is_not_rescaled_is_refused(scheme: Scheme, x: Ciphertext) -> None:
    raw = scheme.evaluator.multiply(x, x, rescale=False)
    with pytest.raises(LevelError, match="canonical scale of its level; rescale it first"):
        scheme.evaluator.chebyshev(raw, [1, 2, 3])
    other = scheme.encryptor.encrypt([0.5], level=5, scale=Scale.from_int(1 << 45))
    with pytest.raises(LevelError, match="canonical"):
        scheme.evaluator.chebyshev(other, [1, 2, 3])


def test_a_missing_relinearisation_key_is_named(scheme: Scheme, x: Ciphertext) -> None:
    keyless = Evaluator(scheme.params, EvaluationKeys(scheme.params))
    with pytest.raises(MissingKeyError, match="relinearisation"):
        keyless.chebyshev(x, [1, 2, 3])
