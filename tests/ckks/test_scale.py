from __future__ import annotations

import pickle
from fractions import Fraction
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.ckks.parameters import PRESETS, Parameters
from aegis_dask.ckks.scale import Scale

PRIMES = (1073735681, 1073724417, 33544193, 33540097)

exponents = st.fractions(-4, 4, max_denominator=8).filter(
    lambda e: e.denominator & (e.denominator - 1) == 0
)
scales = st.dictionaries(st.sampled_from([2, *PRIMES]), exponents, max_size=5).map(Scale)


@given(scales, scales, scales)
def test_scales_are_a_commutative_group(a: Scale, b: Scale, c: Scale) -> None:
    one = Scale({})
    assert a * b == b * a
    assert (a * b) * c == a * (b * c)
    assert a * one == a
    assert a / a == one
    assert (a / b) * b == a


@given(scales)
def test_the_square_root_is_exact(a: Scale) -> None:
    assert a.sqrt() * a.sqrt() == a
    assert (a * a).sqrt() == a


@given(scales, scales)
def test_equality_and_hash_are_those_of_the_value(a: Scale, b: Scale) -> None:
    # Distinct formal products have distinct values: primes are multiplicatively independent.
    product = a * b
    again = b * a
    assert product == again
    assert hash(product) == hash(again)
    assert (a == b) == (abs(a.log2 - b.log2) < 1e-12)


@given(scales)
def test_the_numerical_value_is_that_of_the_factors(a: Scale) -> None:
    expected = sum(log2(base) * float(exponent) for base, exponent in a.factors)
    assert a.log2 == pytest.approx(expected, abs=1e-9)
    assert float(a) == pytest.approx(2.0**expected, rel=1e-9)


@given(st.integers(1, 2**200))
def test_a_scale_of_an_integer_has_its_value(value: int) -> None:
    scale = Scale.from_int(value)
    assert abs(scale.to_fraction() - value) < Fraction(value, 10**50)
    assert float(scale) == pytest.approx(float(value), rel=1e-14)


def test_integers_and_powers_of_two_agree() -> None:
    assert Scale.from_int(1 << 40) == Scale({2: 40})
    assert Scale.from_int(3 << 10) == Scale({2: 10, 3: 1})
    assert Scale.from_int(1) == Scale({})
    assert Scale.from_int(9) == Scale.from_int(3) * Scale.from_int(3)


@pytest.mark.parametrize("value", [0, -1])
def test_a_scale_is_positive(value: int) -> None:
    with pytest.raises(ValueError, match="a scale is positive"):
        Scale.from_int(value)


def test_a_ratio_of_large_scales_is_precise_to_fifty_digits() -> None:
    # `to_level` rounds such ratios to integers of up to 2^100.
    ratio = Scale({PRIMES[0]: 30, PRIMES[1]: 20}) / Scale({PRIMES[2]: 10, PRIMES[0]: 25})
    exact = Fraction(PRIMES[0] ** 5 * PRIMES[1] ** 20, PRIMES[2] ** 10)
    assert abs(ratio.to_fraction() / exact - 1) < Fraction(1, 10**50)


@pytest.mark.parametrize("name", PRESETS)
def test_a_product_of_canonical_scales_rescales_to_the_canonical_scale(name: str) -> None:
    params = Parameters.preset(name)
    scales = params.scales
    assert scales[0] == Scale({2: params.literal.scale_bits})
    for level in range(1, params.max_level + 1):
        upper = params.window_scale(params.window(level))
        lower = params.window_scale(params.window(level - 1))
        assert scales[level] * scales[level] * lower / upper == scales[level - 1]


@given(scales)
def test_scales_survive_pickling(a: Scale) -> None:
    restored = pickle.loads(pickle.dumps(a))
    assert restored == a
    assert hash(restored) == hash(a)
    assert restored.log2 == a.log2
