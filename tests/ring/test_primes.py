from __future__ import annotations

from math import isqrt, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.errors import ParameterError
from aegis_dask.ring.primes import is_prime, ntt_primes, primitive_root_of_unity

DEGREES = [1 << k for k in range(10, 18)]


def divides(n: int) -> bool:
    """Whether a trial division finds a factor of n."""
    return any(n % d == 0 for d in range(2, isqrt(n) + 1))


def test_is_prime_agrees_with_trial_division_up_to_ten_thousand() -> None:
    assert [n for n in range(10_000) if is_prime(n)] == [
        n for n in range(2, 10_000) if not divides(n)
    ]


@given(st.integers(0, 2**30))
def test_is_prime_agrees_with_trial_division(n: int) -> None:
    assert is_prime(n) == (n > 1 and not divides(n))


# Strong pseudoprimes to the first bases, and Carmichael numbers (OEIS A014233, A002997).
@pytest.mark.parametrize("n", [2047, 1_373_653, 25_326_001, 561, 1105, 825_265, 321_197_185])
def test_is_prime_sees_through_pseudoprimes(n: int) -> None:
    assert not is_prime(n)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("bits", [25, 27, 30])
def test_ntt_primes_are_distinct_primes_one_modulo_2n_of_the_size_asked_for(
    degree: int, bits: int
) -> None:
    primes = ntt_primes(degree, bits, 8)
    assert len(set(primes)) == 8
    for p in primes:
        assert not divides(p)
        assert p % (2 * degree) == 1
        assert abs(log2(p) - bits) < 0.51  # within sqrt(2), beyond it they run out
        assert p < 2**30


def test_ntt_primes_are_the_nearest_to_the_target() -> None:
    degree, target = 1024, 2**27
    chosen = ntt_primes(degree, 27, 6)
    everything = [p for p in range(target // 2 + 1, 2 * target, 2 * degree) if is_prime(p)]
    assert sorted(chosen) == sorted(sorted(everything, key=lambda p: abs(p - target))[:6])


def test_ntt_primes_of_thirty_bits_lie_just_below_two_to_the_thirty() -> None:
    degree = 1024
    chosen = ntt_primes(degree, 30, 5)
    below = [p for p in range(2**30 - 2 * degree + 1, 2**29, -2 * degree) if is_prime(p)]
    assert list(chosen) == below[:5]


def test_ntt_primes_leave_out_those_that_are_taken() -> None:
    first = ntt_primes(1024, 30, 4)
    assert not set(ntt_primes(1024, 30, 4, exclude=first)) & set(first)


def test_no_primes_are_found_when_none_are_asked_for() -> None:
    assert ntt_primes(1024, 30, 0) == ()


@pytest.mark.parametrize("bits", [19.9, 30.1])
def test_a_size_out_of_range_is_refused(bits: float) -> None:
    with pytest.raises(ParameterError, match="uses primes of 25 to 30 bits"):
        ntt_primes(1024, bits, 1)


def test_running_out_of_primes_is_reported_with_both_numbers() -> None:
    with pytest.raises(ParameterError, match=r"only \d+ free NTT primes near 2\^25, 1000 are"):
        ntt_primes(1 << 17, 25, 1000)


@pytest.mark.parametrize("degree", DEGREES)
def test_roots_of_unity_have_exactly_the_order_asked_for(degree: int) -> None:
    for p in (*ntt_primes(degree, 25, 2), *ntt_primes(degree, 30, 2)):
        psi = primitive_root_of_unity(p, 2 * degree)
        assert pow(psi, degree, p) == p - 1  # so the order divides 2N, and not N
