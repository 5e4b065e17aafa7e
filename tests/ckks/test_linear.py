from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import hypot, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator
from aegis_dask.ckks.linear import LinearTransform
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import (
    EncodingError,
    IncompatibleError,
    LevelError,
    MissingKeyError,
    ScaleError,
)
from tests.arrays import same
from tests.schemes import Scheme, every_level

Schemes = Callable[[str], Scheme]
TINY = "insecure-n10-d40"


@pytest.fixture
def scheme(schemes: Schemes) -> Scheme:
    return schemes(TINY)


def evaluator(scheme: Scheme, transform: LinearTransform, more: tuple[int, ...] = ()) -> Evaluator:
    """An evaluator with exactly the keys that a transform asks for."""
    keys = KeyGenerator(scheme.params).evaluation_keys(
        scheme.secret_key, relinearisation=False, rotations=(*transform.rotations, *more)
    )
    return Evaluator(scheme.params, keys)


def matrix(rng: np.random.Generator, size: int) -> Any:
    """Complex entries of size 1/sqrt(size), so that results are of order one."""
    parts = rng.uniform(-1, 1, (2, size, size)) / sqrt(size)
    return parts[0] + 1j * parts[1]


def deviation(s: Scheme, t: LinearTransform, terms: int, size: float) -> float:
    """Noise of a transform with that many diagonals of root mean square `size`.

    Giant steps switch keys at the scale of the products: their noise vanishes in the rescale.
    """
    level, noise = t.level, s.noise
    rotated = hypot(noise.fresh_public(level), noise.key_switch(level))
    terms_noise = sqrt(terms) * hypot(
        size * rotated, noise.encoding(level), size * noise.encoding(level)
    )
    return hypot(terms_noise, noise.rounding(level - 1))


def check(
    s: Scheme,
    ev: Evaluator,
    t: LinearTransform,
    x: Ciphertext,
    expected: Any,
    terms: int,
    size: float = 1.0,
) -> None:
    got = ev.linear_transform(x, t)
    assert (got.level, got.is_canonical, got.batch) == (t.level - 1, True, x.batch)
    s.assert_close(expected, got, deviation(s, t, terms, size))


# -- matrices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_a_matrix_acts_on_repeated_vectors(
    scheme: Scheme, rng: np.random.Generator, size: int
) -> None:
    # Up to 32 the matrix is kept in its subring and applied by modular GEMMs.
    m, v = matrix(rng, size), rng.uniform(-1, 1, size) + 1j * rng.uniform(-1, 1, size)
    t = LinearTransform.from_matrix(scheme.params, m)
    assert isinstance(t.weights, dict) == (size > 32)
    repeats = scheme.params.slots // size
    x = scheme.encryptor.encrypt(np.tile(v, repeats))
    check(scheme, evaluator(scheme, t), t, x, np.tile(m @ v, repeats), size, sqrt(2 / 3 / size))


@pytest.mark.parametrize(("name", "level"), every_level(lowest=1))
def test_a_matrix_of_every_level(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    # Four diagonals: rotations 1, 2, 3 have keys.
    s = schemes(name)
    m, v = matrix(rng, 4), rng.uniform(-1, 1, 4)
    t = LinearTransform.from_matrix(s.params, m, level)
    repeats = s.params.slots // 4
    x = s.encryptor.encrypt(np.tile(v, repeats), level)
    check(s, s.evaluator, t, x, np.tile(m @ v, repeats), 4, sqrt(2 / 3 / 4))


@pytest.mark.parametrize(("name", "level"), every_level(lowest=1))
def test_diagonals_of_full_length_of_every_level(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    s = schemes(name)
    z, d = s.slots(rng), {k: s.slots(rng) for k in (0, 1, 2, 3, 4, 8)}
    t = LinearTransform.from_diagonals(s.params, d, level, baby_steps=4)
    expected = sum(v * np.roll(z, -k) for k, v in d.items())
    check(s, s.evaluator, t, s.encryptor.encrypt(z, level), expected, len(d))


def test_a_matrix_with_few_diagonals_takes_few_rotations(
    scheme: Scheme, rng: np.random.Generator
) -> None:
    m = np.diag(np.arange(1.0, 17.0)) / 16 + np.roll(np.eye(16), 5, axis=1)
    t = LinearTransform.from_matrix(scheme.params, m)
    assert len(t.rotations) <= 2
    v = rng.uniform(-1, 1, 16)
    x = scheme.encryptor.encrypt(np.tile(v, 32))
    check(scheme, evaluator(scheme, t), t, x, np.tile(m @ v, 32), 2)


@pytest.mark.parametrize("size", [8, 64])
def test_the_zero_matrix_gives_zero(scheme: Scheme, size: int) -> None:
    t = LinearTransform.from_matrix(scheme.params, np.zeros((size, size)))
    assert t.rotations == ()
    got = Evaluator(scheme.params).linear_transform(scheme.encryptor.encrypt([1.0, 2.0]), t)
    assert np.max(scheme.errors(np.zeros(512), got)) < 2.0**-24


# -- diagonals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [8, 16, 64, 512])
@pytest.mark.parametrize("steps", [[0], [5], [0, 1, 2, 3], [1, 6, 7], [-1, 2, 515]], ids=str)
def test_diagonals_are_factors_of_rotations(
    scheme: Scheme, rng: np.random.Generator, period: int, steps: list[int]
) -> None:
    z = scheme.slots(rng)
    d = {k: rng.uniform(-1, 1, period) for k in steps}
    t = LinearTransform.from_diagonals(scheme.params, d)
    assert all(0 < k < period for k in t.rotations)
    # Rotations act modulo the period, so the argument repeats with it.
    z = np.tile(z[:period], 512 // period)
    expected = sum(np.tile(v, 512 // period) * np.roll(z, -k) for k, v in d.items())
    check(scheme, evaluator(scheme, t), t, scheme.encryptor.encrypt(z), expected, len(d))


@pytest.mark.parametrize("period", [16, 512])
@pytest.mark.parametrize("baby_steps", [1, 2, 3, 4, 8, 16, 100])
def test_any_number_of_baby_steps_gives_the_same(
    scheme: Scheme, rng: np.random.Generator, period: int, baby_steps: int
) -> None:
    z = np.tile(scheme.slots(rng)[:period], 512 // period)
    d = {k: rng.uniform(-1, 1, period) for k in range(0, 16, 3)}
    t = LinearTransform.from_diagonals(scheme.params, d, baby_steps=baby_steps)
    assert all(b < baby_steps for b in t.babies)
    assert all(g % baby_steps == 0 for g in t.giants)
    expected = sum(np.tile(v, 512 // period) * np.roll(z, -k) for k, v in d.items())
    check(scheme, evaluator(scheme, t), t, scheme.encryptor.encrypt(z), expected, len(d))


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 511), min_size=1, max_size=64), st.sampled_from([64, 512]))
def test_babies_and_giants_cover_the_diagonals_with_few_rotations(
    steps: set[int], period: int
) -> None:
    params = Parameters.preset(TINY)
    t = LinearTransform.from_diagonals(params, {k: np.ones(period) for k in steps}, level=1)
    wanted = {k % period for k in steps}
    assert isinstance(t.weights, dict)
    assert {g + b for g, b in t.weights} == wanted
    assert set(t.rotations) == (set(t.babies) | set(t.giants)) - {0}
    assert len(t.rotations) <= 2 * len(wanted)


def test_a_dense_matrix_takes_about_three_roots_of_its_size_in_rotations(scheme: Scheme) -> None:
    # sqrt(2 n) babies and n / sqrt(2 n) giants, up to powers of two.
    for size in (16, 64, 256):
        t = LinearTransform.from_matrix(scheme.params, np.ones((size, size)), level=1)
        assert len(t.babies) * len(t.giants) == size
        assert len(t.rotations) <= 3 * sqrt(size)


def test_the_same_rotation_given_twice_is_added_up(
    scheme: Scheme, rng: np.random.Generator
) -> None:
    z = np.tile(rng.uniform(-1, 1, 8), 64)
    d = {1: np.ones(8), 9: np.full(8, 2.0)}
    t = LinearTransform.from_diagonals(scheme.params, d)
    x = scheme.encryptor.encrypt(z)
    check(scheme, evaluator(scheme, t), t, x, 3 * np.roll(z, -1), 1, 3.0)


# -- operands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [8, 512])
def test_a_batch_is_treated_like_its_members(
    scheme: Scheme, rng: np.random.Generator, period: int
) -> None:
    d = {k: rng.uniform(-1, 1, period) for k in (0, 1, 2, 5)}
    t = LinearTransform.from_diagonals(scheme.params, d, baby_steps=2)
    ev = evaluator(scheme, t)
    batch = scheme.encryptor.encrypt(scheme.slots(rng, 3))
    before = batch.data.copy()
    got = ev.linear_transform(batch, t)
    assert got.batch == 3
    for i in range(3):
        assert same(got[i].data, ev.linear_transform(batch[i], t).data)
    assert same(batch.data, before)


def test_a_ciphertext_of_a_higher_level_is_brought_down(
    scheme: Scheme, rng: np.random.Generator
) -> None:
    z = scheme.slots(rng)
    t = LinearTransform.from_diagonals(scheme.params, {0: np.ones(512), 1: np.ones(512)}, level=2)
    x = scheme.encryptor.encrypt(z)
    got = scheme.evaluator.linear_transform(x, t)
    assert (got.level, got.is_canonical) == (1, True)
    noise = hypot(deviation(scheme, t, 2, 1.0), sqrt(2) * scheme.noise.rounding(2))
    scheme.assert_close(z + np.roll(z, -1), got, noise)


def test_a_ciphertext_of_a_lower_level_is_refused(scheme: Scheme) -> None:
    t = LinearTransform.from_matrix(scheme.params, np.eye(4), level=3)
    with pytest.raises(LevelError, match="encode it with level=2"):
        scheme.evaluator.linear_transform(scheme.encryptor.encrypt([1.0], level=2), t)


def test_three_components_are_refused(scheme: Scheme) -> None:
    x = scheme.encryptor.encrypt([1.0])
    raw = scheme.evaluator.multiply(x, x, relinearise=False)
    t = LinearTransform.from_matrix(scheme.params, np.ones((4, 4)), level=raw.level)
    with pytest.raises(ScaleError, match=r"2 components; relinearise"):
        scheme.evaluator.linear_transform(raw, t)


def test_transforms_of_other_parameters_are_refused(scheme: Scheme, schemes: Schemes) -> None:
    other = schemes("insecure-n10-d54")
    t = LinearTransform.from_matrix(other.params, np.eye(4))
    with pytest.raises(IncompatibleError, match=r"the ciphertext belongs to .* the linear transf"):
        scheme.evaluator.linear_transform(scheme.encryptor.encrypt([1.0]), t)


@pytest.mark.parametrize("missing", [1, 2, 8])
def test_a_missing_rotation_key_is_named(
    scheme: Scheme, rng: np.random.Generator, missing: int
) -> None:
    d = {k: rng.uniform(-1, 1, 512) for k in (0, 1, 2, 8)}
    t = LinearTransform.from_diagonals(scheme.params, d, baby_steps=4)
    assert t.rotations == (1, 2, 8)
    galois = {g: k for g, k in scheme.keys.galois.items() if g != pow(5, missing, 2048)}
    ev = Evaluator(scheme.params, replace(scheme.keys, galois=galois))
    with pytest.raises(MissingKeyError, match=f"rotates by {missing} steps"):
        ev.linear_transform(scheme.encryptor.encrypt([1.0]), t)
    with pytest.raises(MissingKeyError):
        Evaluator(scheme.params, EvaluationKeys(scheme.params)).linear_transform(
            scheme.encryptor.encrypt([1.0]), t
        )


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (4,), (0, 0), (2, 2, 2), (1024, 1024)], ids=str)
def test_matrices_of_other_shapes_are_refused(scheme: Scheme, shape: tuple[int, ...]) -> None:
    with pytest.raises(EncodingError, match="square matrix with a power-of-two size up to 512"):
        LinearTransform.from_matrix(scheme.params, np.ones(shape))


@pytest.mark.parametrize(
    ("diagonals", "message"),
    [
        ({}, "at least one diagonal"),
        ({0: np.ones(4), 1: np.ones(8)}, "one power-of-two length"),
        ({0: np.ones(6)}, "one power-of-two length"),
        ({0: np.ones(513)}, "513 values"),
        ({0: [1.0, np.nan]}, "only finite numbers"),
        ({0: [1.0, np.inf]}, "only finite numbers"),
        ({0: np.full(512, 2.0**80)}, "too large"),
        ({0: np.full(4, 2.0**80)}, "too large"),
    ],
    ids=["none", "unequal", "six", "too many", "nan", "inf", "large", "large periodic"],
)
def test_diagonals_that_do_not_encode_are_refused(
    scheme: Scheme, diagonals: dict, message: str
) -> None:
    with pytest.raises(EncodingError, match=message):
        LinearTransform.from_diagonals(scheme.params, diagonals)


def test_level_0_has_no_level_for_a_transform(scheme: Scheme) -> None:
    with pytest.raises(LevelError, match="level 0 has none"):
        LinearTransform.from_matrix(scheme.params, np.eye(4), level=0)


def test_representation_and_size(scheme: Scheme) -> None:
    small = LinearTransform.from_matrix(scheme.params, np.ones((8, 8)), level=1)
    limbs = len(scheme.params.limbs(1)) + len(scheme.params.chain.special_primes)
    assert small.nbytes == limbs * 16 * 8 * 4  # 2 period residues per limb and entry
    assert "level 1, 4 baby and 2 giant steps" in repr(small)
    large = LinearTransform.from_diagonals(scheme.params, {0: np.ones(512)}, level=1)
    assert large.nbytes == limbs * 1024 * 4
