from __future__ import annotations

from math import log, log2, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.ckks.parameters import PRESETS
from aegis_dask.errors import ParameterError
from aegis_dask.ring.chain import ModulusChain, Window, build_chain

CHAINS = {
    name: (1 << p.log_n, p.base_bits, p.level_bits, p.special_primes) for name, p in PRESETS.items()
} | {
    "rational 35": (1024, 50, (35,) * 24, 4),
    "rational 40": (1024, 50, (40,) * 24, 4),
    "rational 45": (1024, 60, (45,) * 24, 4),
    "rational mixture": (1024, 50, (40, 35, 45, 45, 35, 40, 35, 60, 60), 4),
    "single primes": (1024, 50, (25, 26, 27, 28, 29, 30), 4),
    "pairs": (1024, 60, (50, 52, 54, 56, 58, 60), 4),
    "longest ring": (1 << 17, 50, (40,) * 24 + (60,) * 3, 16),
}


@pytest.fixture(params=CHAINS.values(), ids=CHAINS.keys())
def request_and_chain(request: pytest.FixtureRequest) -> tuple[tuple, ModulusChain]:
    return request.param, build_chain(*request.param)


def check_structure(degree: int, special: int, chain: ModulusChain) -> None:
    everything = chain.primes + chain.special_primes
    assert chain.ring_degree == degree
    assert len(chain.special_primes) == special
    assert len(set(everything)) == len(everything)
    assert all(p % (2 * degree) == 1 and p < 2**30 for p in everything)
    assert all(0 <= w.start < w.stop <= len(chain.primes) for w in chain.windows)
    # No key carries a prime that no level uses.
    assert {i for w in chain.windows for i in w.limbs()} == set(range(len(chain.primes)))


def test_primes_are_distinct_and_each_is_in_some_window(
    request_and_chain: tuple[tuple, ModulusChain],
) -> None:
    (degree, _, _, special), chain = request_and_chain
    check_structure(degree, special, chain)


def test_every_level_divides_by_about_what_was_asked_for(
    request_and_chain: tuple[tuple, ModulusChain],
) -> None:
    # Terminals and mains deviate by fractions of a bit each, in opposite directions: up to three
    # terminals and two mains move at once.
    (_, base_bits, level_bits, _), chain = request_and_chain
    moduli = [log2(chain.modulus(l)) for l in range(chain.max_level + 1)]
    assert abs(moduli[0] - base_bits) < 1.5
    for bits, lower, upper in zip(level_bits, moduli[:-1], moduli[1:], strict=True):
        assert abs(upper - lower - bits) < 1.5


def test_moduli_grow_as_the_sum_of_the_levels(
    request_and_chain: tuple[tuple, ModulusChain],
) -> None:
    # A residue class modulo 2N has one prime in N ln 2^30 numbers, so the k-th prime below 2^30 is
    # about k times that smaller; half as much again for the irregularity of primes.
    (degree, base_bits, level_bits, special), chain = request_and_chain
    drift = degree * log(2**30) / 2**30 / log(2)
    for l, w in enumerate(chain.windows):
        loss = 1.5 * drift * sum(special + i for i in range(len(w)))
        wanted = base_bits + sum(level_bits[:l])
        assert wanted - 1.5 - loss < log2(chain.modulus(l)) < wanted + 1.5


def test_the_special_primes_are_the_largest(request_and_chain: tuple[tuple, ModulusChain]) -> None:
    _, chain = request_and_chain
    assert min(chain.special_primes) > max(chain.primes)


def test_moduli_are_products_over_windows(request_and_chain: tuple[tuple, ModulusChain]) -> None:
    _, chain = request_and_chain
    assert chain.modulus(1) == prod(chain.primes[i] for i in chain.windows[1].limbs())
    assert chain.key_modulus == prod(chain.primes) * prod(chain.special_primes)
    assert chain.special_modulus == prod(chain.special_primes)
    assert chain.log2_key_modulus == pytest.approx(log2(chain.key_modulus), abs=1e-9)
    assert chain.max_level == len(chain.windows) - 1


def test_at_most_five_terminals_serve_any_number_of_rational_levels() -> None:
    for base, bits in ((50, 35), (55, 35), (50, 40), (60, 40), (55, 45), (60, 45)):
        chain = build_chain(1024, base, (bits,) * 30, 4)
        assert sum(p < 2**27 for p in chain.primes) <= 5


def test_a_chain_is_the_same_every_time_and_hashable() -> None:
    first, second = (build_chain(1024, 50, (40, 40), 2) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != build_chain(1024, 50, (40, 40), 3)


@settings(max_examples=60, deadline=None)
@given(
    base=st.integers(8, 16).map(lambda k: 5 * k),
    levels=st.lists(st.sampled_from([25, 28, 30, 35, 40, 45, 50, 55, 60]), max_size=10),
    special=st.integers(1, 6),
)
def test_any_request_is_met_or_refused_with_a_parameter_error(
    base: int, levels: list[int], special: int
) -> None:
    try:
        chain = build_chain(1024, base, levels, special)
    except ParameterError:
        return
    check_structure(1024, special, chain)
    moduli = [log2(chain.modulus(l)) for l in range(chain.max_level + 1)]
    assert moduli == pytest.approx([base + sum(levels[:l]) for l in range(len(moduli))], abs=1.5)


@pytest.mark.parametrize(
    ("base", "levels", "message"),
    [
        (50, (34,), "level 1 has 34 bits; a level has 25 to 30, 35, 40, 45 or 50 to 60 bits"),
        (50, (40, 61), "level 2 has 61 bits"),
        (50, (28, 40), "put the rational levels"),
        (52, (40,), "the base may be too small"),
    ],
)
def test_impossible_levels_are_refused(base: int, levels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build_chain(1024, base, levels, 2)


def test_running_out_of_primes_is_refused() -> None:
    with pytest.raises(ParameterError, match="free NTT primes"):
        build_chain(1 << 17, 50, (26,) * 60, 2)


def test_a_window_is_a_range_of_limbs() -> None:
    window = Window(2, 5)
    assert len(window) == 3
    assert list(window.limbs()) == [2, 3, 4]
    assert [i in window for i in range(1, 7)] == [False, True, True, True, False, False]
    assert window.issubset(Window(2, 6))
    assert not window.issubset(Window(3, 6))
