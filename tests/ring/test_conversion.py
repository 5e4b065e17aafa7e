from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import HoistedKey, Ring
from aegis_dask.ring.chain import ModulusChain, Window, build_chain
from aegis_dask.ring.conversion import (
    MAX_SOURCES,
    DigitRaise,
    ModDown,
    base_conversion,
    digit_raise,
    mod_down,
)
from aegis_dask.ring.registry import get_ring
from tests import reference

N = 1024
BOUNDARY = 2.0**-20
"""How close to 1/2 a remainder must be for the fixed-point quotient to round it the other way."""

CHAINS = {
    "rational 40": build_chain(N, 50, [40] * 6 + [60], 4),
    "rational 35": build_chain(N, 50, [35] * 6 + [60], 4),
    "rational 45 on mains": build_chain(N, 60, [45] * 6, 4),
    "pairs": build_chain(N, 60, [54] * 4, 3),
    "singles": build_chain(N, 50, [28] * 4, 2),
    "many special primes": build_chain(N, 50, [40] * 9, 40),
    "24 limbs": build_chain(N, 56, [28] * 22, 2),
}

Make = Any
MAKERS = [reference.random_residues, reference.extreme_residues]


def primes_of(chain: ModulusChain, limbs: Sequence[int]) -> list[int]:
    everything = chain.primes + chain.special_primes
    return [everything[i] for i in limbs]


def special_limbs(chain: ModulusChain) -> range:
    return range(len(chain.primes), len(chain.primes) + len(chain.special_primes))


# -- base conversion ----------------------------------------------------------------------------


def carrying_factors(x: Any, primes: Sequence[int]) -> Any:
    """Multiply residues by the source factors ``(D/d_i)^-1``."""
    D = prod(primes)
    rows = [r.astype(object) * pow(D // d, -1, d) % d for r, d in zip(x, primes, strict=True)]
    return np.array(rows, np.uint32)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(limbs=st.permutations(range(31)), count=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_conversion_between_any_bases(ring: Ring, limbs: list[int], count: int, seed: int) -> None:
    # From 1 to 30 sources: from 16 on the accumulators are cut.
    sources, targets = limbs[:count], limbs[count:]
    d, q = primes_of(ring.chain, sources), primes_of(ring.chain, targets)
    everything = ring.chain.primes + ring.chain.special_primes
    rng, D = np.random.default_rng(seed), prod(d)
    for make in (*MAKERS, lambda _, p, degree: reference.largest_residues(p, degree=degree)):
        x = make(rng, d, degree=N)
        y = carrying_factors(x, d)
        lifted = sum(r.astype(object) * (D // p) for r, p in zip(y, d, strict=True))
        approximate = ring.convert(y, base_conversion(everything, sources, targets, exact=False))
        assert np.array_equal(approximate, reference.residues(lifted, q))
        exact = base_conversion(everything, sources, targets, exact=True)
        assert_nearest(ring.convert(y, exact), reference.crt(x, d), D, q)


def assert_nearest(converted: Any, x: Any, D: int, q: Sequence[int]) -> None:
    """Check residues of x mod D in [-D/2, D/2), either sign very near the ends."""
    centered = reference.centered(x, D)
    ok = converted == reference.residues(centered, q)
    other = converted == reference.residues(centered - D * np.sign(centered), q)
    near = np.array([abs(abs(int(v)) / D - 0.5) < BOUNDARY for v in centered])
    assert np.all(np.all(ok, axis=0) | (near & np.all(other, axis=0)))


def test_division_by_the_source_modulus_is_folded_into_the_targets(
    ring: Ring, rng: np.random.Generator
) -> None:
    sources, targets = [0, 5, 30], [1, 2, 20]
    everything = ring.chain.primes + ring.chain.special_primes
    d, q = primes_of(ring.chain, sources), primes_of(ring.chain, targets)
    y = reference.random_residues(rng, d, 2, degree=N)
    plain = ring.convert(y, base_conversion(everything, sources, targets, exact=True))
    divided = base_conversion(everything, sources, targets, exact=True, divide=True)
    restored = ring.convert(y, divided).astype(object) * prod(d) % np.array(q, object)[:, None]
    assert np.array_equal(restored, plain)


def test_more_sources_than_the_quotient_allows_are_refused() -> None:
    chain = CHAINS["many special primes"]
    everything = chain.primes + chain.special_primes
    limbs = list(range(MAX_SOURCES + 1))
    with pytest.raises(ValueError, match="49 sources, at most 48"):
        base_conversion(everything, limbs, [50], exact=True)


# -- ModUp --------------------------------------------------------------------------------------

RAISES = [
    ("rational 40", 7, 3),
    ("rational 40", 2, 4),  # a window that starts inside a digit
    ("rational 40", 0, 4),
    ("rational 45 on mains", 1, 3),
    ("rational 45 on mains", 6, 5),
    ("pairs", 4, 4),
    ("singles", 4, 1),
    ("24 limbs", 22, 18),  # more than 16 sources: accumulators are cut
    ("24 limbs", 22, 3),  # eight digits, the most there may be
]


def raised(name: str, level: int, digit_size: int) -> tuple[ModulusChain, Window, DigitRaise]:
    chain = CHAINS[name]
    window, count = chain.windows[level], len(chain.primes)
    return chain, window, digit_raise(chain, window, [*range(0, count, digit_size), count])


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("name", "level", "digit_size"), RAISES)
def test_raised_digits_are_the_centred_lifts_of_the_digits(
    rng: np.random.Generator, name: str, level: int, digit_size: int, make: Make
) -> None:
    chain, window, constants = raised(name, level, digit_size)
    ring, primes = get_ring(chain), primes_of(chain, constants.limbs)
    own_primes = primes[: len(window)]
    coefficients = make(rng, own_primes, 2, degree=N)
    digits = ring.raise_digits(ring.ntt(coefficients, list(window.limbs())), constants)
    assert digits.shape == (2, len(constants.conversions), len(primes), N)
    for b, d in np.ndindex(digits.shape[:2]):
        own = np.flatnonzero(constants.digit_of == d)
        others = np.flatnonzero(constants.digit_of != d)
        D = prod(primes[i] for i in own)
        x = reference.crt(coefficients[b, own], [primes[i] for i in own])
        # The lift is x + u D with one u for all primes, -1 for the upper half.
        q = [primes[i] for i in others]
        u = [
            reference.centered((digits[b, d, i] - x) * pow(D, -1, p) % p, p)
            for i, p in zip(others, q, strict=True)
        ]
        assert np.all(np.array(u) == u[0])
        # Centred: a mean of its own would land in the slots near zeta = 1 (2^8 times more noise).
        centered = np.where(x > D // 2, -1, 0)
        near = np.array([abs(int(v) / D - 0.5) < BOUNDARY for v in x])
        assert np.all((u[0] == centered) | (near & (u[0] == -1 - centered)))


def test_digits_are_those_of_the_whole_key_cut_by_the_window() -> None:
    chain = CHAINS["rational 40"]
    bounds = [0, 3, 5, 9, len(chain.primes)]  # digits need not have the same length
    for window in chain.windows:
        constants = digit_raise(chain, window, bounds)
        owners = np.searchsorted(bounds, list(window.limbs()), side="right") - 1
        assert constants.first_digit == owners[0]
        assert np.array_equal(constants.digit_of[: len(window)], owners - owners[0])
        assert np.all(constants.digit_of[len(window) :] == -1)
        assert len(constants.conversions) == owners[-1] - owners[0] + 1


# -- key inner product --------------------------------------------------------------------------


def random_key(rng: np.random.Generator, chain: ModulusChain, digits: int, make: Make) -> Any:
    primes = list(chain.primes + chain.special_primes)
    return make(rng, primes, digits, degree=N)


def montgomery_sum(terms: Any, primes: Sequence[int]) -> Any:
    """Sum over the first axis, times 2^-32."""
    q = np.array(primes, object)[:, None]
    inverse = np.array([pow(1 << 32, -1, p) for p in primes], object)[:, None]
    return sum(terms) * inverse % q


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("name", "level", "digit_size"), RAISES)
def test_inner_product_sums_digits_times_the_key(
    rng: np.random.Generator, name: str, level: int, digit_size: int, make: Make
) -> None:
    chain, window, constants = raised(name, level, digit_size)
    ring, limbs = get_ring(chain), constants.limbs
    primes, count = primes_of(chain, limbs), len(constants.conversions)
    x = make(rng, primes[: len(window)], 2, degree=N)
    keys = [random_key(rng, chain, constants.first_digit + count, make) for _ in "ba"]
    digits = ring.raise_digits(x, constants)
    # On its own limbs a digit is x itself; those rows of `digits` are undefined.
    own = constants.digit_of == np.arange(count)[:, None]
    digits[:, own] = 0
    values = ring.ntt(digits, limbs)
    values[:, own] = x[:, constants.digit_of[: len(window)] >= 0]
    product = ring.inner_product(x, digits, constants, *keys, transform=True)
    for b, c in np.ndindex(2, 2):
        terms = [
            values[b, d].astype(object) * keys[c][constants.first_digit + d, limbs]
            for d in range(count)
        ]
        assert np.array_equal(product[b, c], montgomery_sum(terms, primes))
    # The digits were transformed in place: they serve another key as they are.
    again = ring.inner_product(x, digits, constants, *keys[::-1], transform=False)
    assert np.array_equal(again, product[:, ::-1])


def test_eight_lazy_digits_and_keys_of_largest_values_do_not_overflow() -> None:
    chain, window, constants = raised("24 limbs", 22, 3)
    ring = get_ring(chain)
    primes, count = primes_of(chain, constants.limbs), len(constants.conversions)
    assert count == 8
    x = reference.largest_residues(primes[: len(window)], 1, degree=N)
    key = reference.largest_residues(list(chain.primes + chain.special_primes), 8, degree=N)
    # An earlier transform left values in [0, 2q).
    lazy = np.array([2 * p - 1 for p in primes], np.uint32)[:, None]
    digits = np.broadcast_to(lazy, (1, count, len(primes), N)).copy()
    product = ring.inner_product(x, digits, constants, key, key, transform=False)
    terms = [
        np.where((constants.digit_of == d)[:, None], np.array(primes, object)[:, None] - 1, lazy)
        * key[d, constants.limbs].astype(object)
        for d in range(count)
    ]
    expected = montgomery_sum(terms, primes)
    assert np.array_equal(product[0, 0], np.broadcast_to(expected, (len(primes), N)))
    assert np.array_equal(product[0, 0], product[0, 1])


def test_more_than_eight_digits_are_refused() -> None:
    chain, window, constants = raised("24 limbs", 22, 2)
    ring = get_ring(chain)
    x = ring.zeros((1, len(window), N))
    digits = ring.zeros((1, len(constants.conversions), len(constants.limbs), N))
    key = ring.zeros((1, 1, N))
    with pytest.raises(BackendError, match="at most 8"):
        ring.inner_product(x, digits, constants, key, key, transform=False)


# -- ModDown ------------------------------------------------------------------------------------

DIVISIONS = [
    # chain, old level, new level, divide by P, factor
    ("rational 40", 6, 6, True, 1),
    ("rational 40", 7, 6, True, 1),
    ("rational 40", 6, 5, True, 1),  # merged with a rescale in which terminals enter
    ("rational 40", 5, 4, True, 1),
    ("rational 40", 4, 3, True, 1),
    ("rational 40", 6, 5, False, 1),
    ("rational 40", 5, 4, False, 1),
    ("rational 40", 4, 3, False, 1),
    ("rational 40", 7, 1, False, 12345678901234567),
    ("rational 40", 3, 0, True, 3**70),
    ("rational 35", 5, 4, True, 1),
    ("rational 35", 3, 2, False, 1),
    ("rational 45 on mains", 1, 0, False, 1),
    ("rational 45 on mains", 2, 1, True, 5),
    ("pairs", 4, 3, True, 1),
    ("pairs", 4, 0, False, 7),
    ("singles", 1, 0, False, 1),
    ("many special primes", 9, 9, True, 1),  # 40 sources
    ("many special primes", 9, 7, True, 3**50),
]

division = pytest.mark.parametrize(
    ("name", "old", "new", "special", "factor"), DIVISIONS, ids=lambda v: str(v)[:20]
)


class Division:
    """A division with its operands' primes, and what it must give."""

    def __init__(self, name: str, old: int, new: int, special: bool, factor: int) -> None:
        self.chain = CHAINS[name]
        self.ring = get_ring(self.chain)
        window, target = self.chain.windows[old], self.chain.windows[new]
        self.window, self.target = list(window.limbs()), list(target.limbs())
        self.limbs = [*self.window, *(special_limbs(self.chain) if special else [])]
        self.constants: ModDown = mod_down(self.chain, window, target, special, factor)
        self.primes = primes_of(self.chain, self.limbs)
        leaving = [i for i in self.limbs if i not in target]
        entering = [i for i in self.target if i not in window]
        self.M = prod(primes_of(self.chain, leaving))
        self.E = prod(primes_of(self.chain, entering)) * factor

    def run(self, x: Any, addend: Any = None, galois_element: int = 1) -> Any:
        """Divide coefficients, through the evaluation domain."""
        ring = self.ring
        values = None if addend is None else ring.ntt(addend, self.window)
        out = ring.mod_down(ring.ntt(x, self.limbs), self.constants, values, galois_element)
        return ring.intt(out, self.target)

    def check(self, x: Any, got: Any) -> None:
        """Compare residues with round(x E / M), x integers."""
        q = primes_of(self.chain, self.target)
        down, rest = x * self.E // self.M, x * self.E % self.M
        expected = reference.residues(down + (2 * rest >= self.M), q)
        other = reference.residues(down + (2 * rest < self.M), q)
        near = np.array([abs(int(r) / self.M - 0.5) < BOUNDARY for r in rest])
        equal, beside = (np.all(got == v, axis=0) for v in (expected, other))
        assert np.all(equal | (near & beside))


@pytest.mark.parametrize("make", MAKERS)
@division
def test_division_rounds_to_nearest(
    rng: np.random.Generator,
    name: str,
    old: int,
    new: int,
    special: bool,
    factor: int,
    make: Make,
) -> None:
    d = Division(name, old, new, special, factor)
    x = make(rng, d.primes, 2, 2, degree=N)
    got = d.run(x)
    for i in np.ndindex(2, 2):
        d.check(reference.crt(x[i], d.primes), got[i])


@division
def test_division_of_small_and_of_largest_integers(
    rng: np.random.Generator, name: str, old: int, new: int, special: bool, factor: int
) -> None:
    d = Division(name, old, new, special, factor)
    Q = prod(d.primes)
    integers = [0, 1, -1, d.M, -d.M, d.M + 1, d.M // 3, Q // 2, Q // 2 + 1, Q // 3, -Q // 3]
    x = np.resize(np.array(integers, object), N)
    d.check(x, d.run(reference.residues(x, d.primes)[None, None])[0, 0])


@division
def test_halves_round_to_one_neighbour_in_all_limbs_alike(
    rng: np.random.Generator, name: str, old: int, new: int, special: bool, factor: int
) -> None:
    # A remainder within 2^-20 of 1/2 may go either way: the quotient is in fixed point.
    d = Division(name, old, new, special, 1)
    k = [int(v) for v in rng.integers(-(2**40), 2**40, N)]
    half = d.M // 2 * pow(d.E, -1, d.M)  # times E it leaves about M / 2
    x = np.array(
        [d.M * a + half + b for a, b in zip(k, range(-N // 2, N // 2), strict=True)], object
    )
    d.check(x, d.run(reference.residues(x, d.primes)[None, None])[0, 0])


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("galois_element", [1, 5, 2047])
@pytest.mark.parametrize("make", MAKERS)
def test_addend_is_multiplied_by_the_special_modulus_and_the_result_permuted(
    rng: np.random.Generator, galois_element: int, components: int, make: Make
) -> None:
    for old, new in ((6, 6), (6, 5), (4, 3)):
        d = Division("rational 40", old, new, True, 1)
        x = make(rng, d.primes, 2, 2, degree=N)
        addend = make(rng, primes_of(d.chain, d.window), 2, components, degree=N)
        got = d.run(x, addend, galois_element)
        back = pow(galois_element, -1, 2 * N)
        for b, c in np.ndindex(2, 2):
            total = reference.crt(x[b, c], d.primes)
            if c < components:
                own = primes_of(d.chain, d.window)
                total = total + d.chain.special_modulus * reference.crt(addend[b, c], own)
            unpermuted = d.ring.automorphism(d.ring.ntt(got[b, c], d.target), back)
            d.check(total, d.ring.intt(unpermuted, d.target))


# -- all three at once --------------------------------------------------------------------------


@pytest.mark.parametrize("galois_element", [1, 5, 2047])
@pytest.mark.parametrize("components", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rational 40", 7, 7),
        ("rational 40", 6, 5),
        ("rational 40", 4, 3),
        ("rational 45 on mains", 1, 0),
        ("pairs", 4, 3),
        ("24 limbs", 22, 21),
        ("many special primes", 9, 9),
    ],
)
def test_switch_key_is_its_three_parts_bit_by_bit(
    rng: np.random.Generator, name: str, old: int, new: int, components: int, galois_element: int
) -> None:
    chain, window, constants = raised(name, old, 4 if name != "24 limbs" else 6)
    ring, own = get_ring(chain), primes_of(chain, list(window.limbs()))
    down = mod_down(chain, window, chain.windows[new], True)
    count = constants.first_digit + len(constants.conversions)
    for make in MAKERS:
        x = make(rng, own, 2, degree=N)
        addend = make(rng, own, 2, components, degree=N) if components else None
        b, a = (random_key(rng, chain, count, make) for _ in "ba")
        digits = ring.raise_digits(x, constants)
        inner = ring.inner_product(x, digits, constants, b, a, transform=True)
        expected = ring.mod_down(inner, down, addend, galois_element)
        before = [None if v is None else v.copy() for v in (x, addend, b, a)]
        got = ring.switch_key(x, constants, b, a, down, addend, galois_element)
        assert np.array_equal(got, expected)
        for kept, now in zip(before, (x, addend, b, a), strict=True):
            assert kept is None or np.array_equal(kept, now)


@pytest.mark.parametrize("count", [1, 3])
def test_several_keys_are_each_by_itself(rng: np.random.Generator, count: int) -> None:
    """`turned_products` and `switch_hoisted` beside the steps that they stand for."""
    chain, window, constants = raised("rational 40", 6, 4)
    ring, own = get_ring(chain), primes_of(chain, list(window.limbs()))
    limbs = [int(i) for i in constants.limbs]
    down = mod_down(chain, window, window, True)
    key_digits = constants.first_digit + len(constants.conversions)
    for make in MAKERS:
        x = make(rng, own, 2, degree=N)
        elements = [1, 5, 2047][-count:]
        keys = [
            HoistedKey(*(random_key(rng, chain, key_digits, make) for _ in "ba"), g)
            for g in elements
        ]
        for held in (len(window.limbs()), len(limbs)):
            addend = make(rng, primes_of(chain, limbs[:held]), 2, degree=N)
            digits = ring.raise_digits(x, constants)
            out = ring.empty((count, 2, 2, len(limbs), N))
            got = ring.turned_products(x, digits, constants, keys, True, addend, out)
            assert got is out
            again = ring.turned_products(x, digits, constants, keys, False, addend)
            assert np.array_equal(again, got)
            for key, found in zip(keys, got, strict=True):
                expected = ring.inner_product(x, digits, constants, key.b, key.a, False)
                first = ring.add(expected[:, 0, :held], addend, limbs[:held])
                expected[:, 0, :held] = first
                assert np.array_equal(found, ring.automorphism(expected, key.galois_element))
        addend = make(rng, own, 2, 1, degree=N)
        digits = ring.raise_digits(x, constants)
        for key, found in zip(
            keys, ring.switch_hoisted(x, digits, constants, keys, down, addend), strict=True
        ):
            g = key.galois_element
            expected = ring.switch_key(x, constants, key.b, key.a, down, addend, g)
            assert np.array_equal(found, expected)


def test_what_does_not_fit_several_keys_is_refused() -> None:
    chain, window, constants = raised("rational 40", 2, 3)
    ring, limbs = get_ring(chain), len(constants.limbs)
    x = ring.zeros((1, len(window.limbs()), N))
    keys = [HoistedKey(*(ring.zeros((8, len(chain.all_primes), N)) for _ in "ba"), 5)]
    digits = ring.raise_digits(x, constants)
    for shape in ((2, 1, N), (1, limbs + 1, N), (1, 1, 1, N)):
        with pytest.raises(BackendError, match="an addend of shape"):
            ring.turned_products(x, digits, constants, keys, True, ring.zeros(shape))
    for out in ((2, 1, 2, limbs, N), (1, 1, 2, limbs - 1, N)):
        with pytest.raises(BackendError, match="was given for"):
            ring.turned_products(x, digits, constants, keys, True, x, ring.empty(out))


def test_a_division_by_nothing_is_refused() -> None:
    chain = CHAINS["rational 40"]
    with pytest.raises(ValueError, match="at least one prime that leaves"):
        mod_down(chain, chain.windows[3], chain.windows[3], False)


def test_operands_of_wrong_shapes_are_refused() -> None:
    chain, window, constants = raised("rational 40", 2, 3)
    ring, n = get_ring(chain), chain.ring_degree
    limbs = list(window.limbs())
    x = ring.zeros((1, len(limbs), n))
    key = ring.zeros((8, len(chain.all_primes), n))
    down = mod_down(chain, window, window, True)
    with pytest.raises(BackendError, match="a key of shape"):
        ring.switch_key(x, constants, key[:, :-1], key, down)
    with pytest.raises(BackendError, match="was given for"):
        ring.switch_key(x[:, 1:], constants, key, key, down)
    with pytest.raises(BackendError, match="an addend of shape"):
        ring.switch_key(x, constants, key, key, down, addend=ring.zeros((2, 1, len(limbs), n)))
    with pytest.raises(BackendError, match="differ in limbs"):
        ring.add(x, x[:, 1:], limbs)
    with pytest.raises(BackendError, match="not contiguous"):
        ring.add(x, x, limbs, out=ring.zeros((1, len(limbs), 2 * n))[..., ::2])
    with pytest.raises(BackendError, match="is even"):
        ring.automorphism(x, 4)
