"""Keys that hold what the levels up to one use give the same residues as full ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from aegis_dask.ckks import sampling
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.galois import conjugation_element, rotation_element
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, KeyGenerator
from aegis_dask.ckks.linear import LinearTransform
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import IncompatibleError, LevelError, MissingKeyError
from tests.arrays import equal, host, same
from tests.schemes import LITERALS, SMALL, Scheme

Schemes = Callable[[str], Scheme]

TINY = "insecure-n10-d40"
NAMES = ("insecure-n10-d40", "insecure-n10-d45", "insecure-n10-d54", "insecure-n11-d35", "n13-d30")


def levels_of(name: str) -> list[object]:
    top = len(LITERALS[name].level_bits)
    return [pytest.param(name, level, id=f"{name}-level{level}") for level in range(top + 1)]


at_every_level = pytest.mark.parametrize(
    ("name", "level"), [case for name in NAMES for case in levels_of(name)]
)


def truncated(keys: EvaluationKeys, level: int) -> EvaluationKeys:
    assert keys.relinearisation is not None
    galois = {g: key.truncated(level) for g, key in keys.galois.items()}
    return EvaluationKeys(keys.params, keys.relinearisation.truncated(level), galois)


# -- what they hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITERALS)
def test_key_limbs_are_those_of_all_levels_below(name: str) -> None:
    params = Parameters.from_literal(LITERALS[name])
    special = list(range(len(params.chain.primes), len(params.chain.all_primes)))
    bounds = params.digit_bounds
    for level in range(params.max_level + 1):
        used = {i for l in range(level + 1) for i in params.limbs(l)}
        assert params.key_limbs(level) == sorted(used) + special
        digits = {d for d, (a, b) in enumerate(pairwise(bounds)) for i in used if a <= i < b}
        assert list(params.key_digits(level)) == sorted(digits)
    assert params.key_limbs(params.max_level) == list(range(len(params.chain.all_primes)))
    assert params.key_digits(params.max_level) == range(params.digits)
    sizes = [params.key_bytes(level) for level in range(params.max_level + 1)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == params.evaluation_key_bytes


@at_every_level
def test_both_halves_are_rows_of_the_full_key(schemes: Schemes, name: str, level: int) -> None:
    s = schemes(name)
    full = s.keys.relinearisation
    assert full is not None
    key = full.truncated(level)
    rows = np.ix_(s.params.key_digits(level), s.params.key_limbs(level))
    assert (key.level, key.seed) == (level, full.seed)
    assert same(key.b, host(full.b)[rows])
    assert same(key.a, host(full.a)[rows])
    assert key.nbytes == key.a.nbytes + key.b.nbytes == s.params.key_bytes(level)
    assert key.b.flags.c_contiguous
    if level == s.params.max_level:
        assert key is full
    else:
        assert not np.shares_memory(host(key.b), host(full.b))  # the full key can be let go
    again = key.truncated(level // 2)
    assert same(again.b, full.truncated(level // 2).b)


def test_sizes_follow_the_levels(schemes: Schemes) -> None:
    s = schemes(TINY)
    key = truncated(s.keys, 2)
    assert key.nbytes == 7 * s.params.key_bytes(2) < s.keys.nbytes
    assert repr(key.relinearisation).startswith(f"EvaluationKey({TINY}, levels up to 2, ")
    params = Parameters.preset("n16-d40")
    assert params.key_bytes(3) < params.evaluation_key_bytes / 7


# -- results ------------------------------------------------------------------------------------


@at_every_level
def test_results_are_those_of_full_keys(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    s = schemes(name)
    ev = Evaluator(s.params, truncated(s.keys, level))
    for used in {level, level // 2, 0}:
        x, y = (s.encryptor.encrypt(s.slots(rng, 2), used) for _ in "xy")
        assert equal(ev.rotate(x, 3), s.evaluator.rotate(x, 3))
        assert equal(ev.rotate(x, 7), s.evaluator.rotate(x, 7))
        assert equal(ev.conjugate(x), s.evaluator.conjugate(x))
        hoisted, expected = (e.rotate_many(x, [1, 2, 8, 5]) for e in (ev, s.evaluator))
        assert all(equal(hoisted[k], expected[k]) for k in expected)
        square = ev.multiply(x, y, rescale=False)
        assert equal(square, s.evaluator.multiply(x, y, rescale=False))
        if used:
            assert equal(ev.multiply(x, y), s.evaluator.multiply(x, y))


@pytest.mark.parametrize("name", [TINY, "insecure-n11-d35"])
def test_linear_transforms_are_those_of_full_keys(
    schemes: Schemes, rng: np.random.Generator, name: str
) -> None:
    s = schemes(name)
    level = s.params.max_level - 2
    ev = Evaluator(s.params, truncated(s.keys, level))
    for size in (4, s.params.slots):
        diagonals = {k: rng.normal(size=size) for k in range(4)}
        transform = LinearTransform.from_diagonals(s.params, diagonals, level, baby_steps=2)
        x = s.encryptor.encrypt(s.slots(rng))
        assert equal(ev.linear_transform(x, transform), s.evaluator.linear_transform(x, transform))


def test_keys_of_different_levels_work_together(schemes: Schemes, rng: np.random.Generator) -> None:
    s = schemes(TINY)
    levels = {1: 5, 2: 1, 3: 3, 4: 0, 8: 2}
    galois = {
        rotation_element(k, 1024): s.keys.galois[rotation_element(k, 1024)].truncated(level)
        for k, level in levels.items()
    }
    ev = Evaluator(s.params, replace(s.keys, galois=galois))
    assert ev.keys.steps == set(levels)
    assert ev.keys.steps_at(2) == {1, 3, 8}
    for level in range(4):
        x = s.encryptor.encrypt(s.slots(rng), level)
        wanted = [k for k in levels if levels[k] >= level]
        got, expected = (e.rotate_many(x, wanted) for e in (ev, s.evaluator))
        assert all(equal(got[k], expected[k]) for k in wanted)
    # A rotation without a key that serves the level is composed of those that do.
    x = s.encryptor.encrypt(s.slots(rng), 3)
    assert ev.keys.path(4, 3) == (3, 1)
    assert equal(ev.rotate(x, 4), s.evaluator.rotate(s.evaluator.rotate(x, 3), 1))
    assert equal(ev.rotate_many(x, [4])[4], ev.rotate(x, 4))


# -- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_generated_keys_have_the_levels_asked_for_and_work(
    schemes: Schemes, rng: np.random.Generator, name: str
) -> None:
    s = schemes(name)
    top, n = s.params.max_level, s.params.ring_degree
    keys = KeyGenerator(s.params).evaluation_keys(
        s.secret_key, rotations={1: 1, -1: top, s.params.slots + 1: 2}, conjugation=True, level=2
    )
    assert keys.relinearisation is not None
    assert keys.relinearisation.level == 2
    assert keys.galois[conjugation_element(n)].level == 2
    assert keys.galois[rotation_element(1, n)].level == 2  # the higher of 1 and 2
    assert keys.galois[rotation_element(-1, n)].level == top
    assert keys.nbytes == 3 * s.params.key_bytes(2) + s.params.evaluation_key_bytes
    ev, z = Evaluator(s.params, keys), s.slots(rng)
    for level in (1, 2):
        x = s.encryptor.encrypt(z, level)
        fresh = s.noise.fresh_public(level)
        switched = np.hypot(fresh, s.noise.key_switch(level))
        s.assert_close(np.roll(z, -1), ev.rotate(x, 1), switched)
        s.assert_close(z.conj(), ev.conjugate(x), switched)
        y = s.encryptor.encrypt(z, level)
        s.assert_close(z * z, ev.multiply(x, y), s.noise.multiply(level, fresh, fresh))
    s.assert_close(
        np.roll(z, 1),
        ev.rotate(s.encryptor.encrypt(z), -1),
        np.hypot(s.noise.fresh_public(top), s.noise.key_switch(top)),
    )


def test_one_level_for_every_key(schemes: Schemes) -> None:
    s = schemes(TINY)
    generator = KeyGenerator(s.params)
    keys = generator.evaluation_keys(s.secret_key, rotations=[1, 2], level=0)
    assert {key.level for key in keys.galois.values()} == {0}
    top = generator.evaluation_keys(s.secret_key, rotations="powers-of-two")
    assert {key.level for key in top.galois.values()} == {s.params.max_level}
    for bad in (-2, 7):
        with pytest.raises(LevelError, match=f"up to {bad} was asked for.*levels 0 to 6"):
            generator.evaluation_keys(s.secret_key, level=bad)
        with pytest.raises(LevelError, match=f"up to {bad} was asked for"):
            generator.evaluation_keys(s.secret_key, rotations={1: bad})


def test_the_uniform_half_of_a_generated_key_is_that_of_its_digits_and_primes(
    schemes: Schemes,
) -> None:
    s = schemes(TINY)
    key = KeyGenerator(s.params).galois_key(s.secret_key, 5, level=1)
    everything = list(range(len(s.params.chain.all_primes)))
    digits = range(s.params.digits)
    full = s.params.ring.uniform(key.seed, sampling.DOMAIN_EVALUATION_KEY, digits, everything)
    rows = np.ix_(s.params.key_digits(1), s.params.key_limbs(1))
    assert same(key.a, host(full)[rows])


# -- what is refused ----------------------------------------------------------------------------


def test_a_key_above_its_level_is_refused_with_both_levels(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    s = schemes(TINY)
    ev = Evaluator(s.params, truncated(s.keys, 2))
    x = s.encryptor.encrypt(s.slots(rng), 4)
    message = "{} serves levels up to 2, it is used at level 4; .*level=4"
    with pytest.raises(MissingKeyError, match=message.format("for products of ciphertexts")):
        ev.multiply(x, x)
    with pytest.raises(MissingKeyError, match=message.format("that rotates by 3 steps")):
        ev.rotate(x, 3)
    with pytest.raises(MissingKeyError, match=message.format("that rotates by 3 steps")):
        ev.rotate_many(x, [3, 1])
    with pytest.raises(MissingKeyError, match=message.format("for complex conjugation")):
        ev.conjugate(x)
    transform = LinearTransform.from_matrix(s.params, np.ones((4, 4)), level=4)
    with pytest.raises(MissingKeyError, match="serves levels up to 2, it is used at level 4"):
        ev.linear_transform(x, transform)
    with pytest.raises(MissingKeyError, match=r"\(none; 5 more serve levels below 4 only\)"):
        ev.rotate(x, 5)


def test_a_key_cannot_be_extended(schemes: Schemes) -> None:
    key = schemes(TINY).keys.galois[5]
    with pytest.raises(MissingKeyError, match="levels up to 2 has no part for level 3"):
        key.truncated(2).truncated(3)
    with pytest.raises(LevelError, match="levels up to 9 was asked for"):
        key.truncated(9)


def test_the_level_and_the_array_must_agree(schemes: Schemes) -> None:
    key = schemes(TINY).keys.galois[5]
    with pytest.raises(IncompatibleError, match="no evaluation key of insecure-n10-d40 for levels"):
        replace(key, level=1)
    with pytest.raises(IncompatibleError, match="no evaluation key"):
        EvaluationKey(key.params, key.b[:, :-1], key.seed)


def test_truncated_keys_survive_pickling(schemes: Schemes) -> None:
    key = schemes(TINY).keys.galois[5].truncated(1)
    again: EvaluationKey = pickle.loads(pickle.dumps(key))
    assert again.level == 1
    assert same(again.a, key.a)
    assert same(again.b, key.b)
