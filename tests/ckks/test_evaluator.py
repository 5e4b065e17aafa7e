"""Every operation at every level: errors against the noise model (`Scheme.assert_close`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import hypot, log2, sqrt
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.galois import inner_sum_steps
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.precision import precision_stats
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import (
    EncodingError,
    IncompatibleError,
    LevelError,
    MissingKeyError,
    ScaleError,
)
from tests.arrays import equal
from tests.schemes import ROTATIONS, Scheme, every_level, presets

Schemes = Callable[[str], Scheme]

TINY = "insecure-n10-d40"
SIZE = sqrt(2 / 3)
"""Root mean square of slots that are uniform in the square [-1, 1] + [-1, 1] i."""

at_every_level = pytest.mark.parametrize(("name", "level"), every_level())
above_level_0 = pytest.mark.parametrize(("name", "level"), every_level(lowest=1))


class Operands:
    """Two encrypted vectors at one level, with their noise."""

    def __init__(self, scheme: Scheme, rng: np.random.Generator, level: int | None = None) -> None:
        self.s, self.ev, self.noise = scheme, scheme.evaluator, scheme.noise
        self.level = scheme.params.max_level if level is None else level
        self.z, self.w = scheme.slots(rng), scheme.slots(rng)
        self.x, self.y = (scheme.encryptor.encrypt(v, self.level) for v in (self.z, self.w))
        self.fresh = self.noise.fresh_public(self.level)
        self.encoding = self.noise.encoding(self.level)

    def check(
        self, expected: Any, got: Ciphertext, deviation: float, level: int, worst_bits: int = 4
    ) -> None:
        """Compare slots, level and scale, the canonical one."""
        assert (got.level, got.components) == (level, 2)
        assert got.is_canonical
        self.s.assert_close(expected, got, deviation, worst_bits)


# -- sums ---------------------------------------------------------------------------------------


@at_every_level
def test_add_sub_and_negate(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    both = hypot(o.fresh, o.fresh)
    o.check(o.z + o.w, o.ev.add(o.x, o.y), both, level)
    o.check(o.z - o.w, o.ev.sub(o.x, o.y), both, level)
    o.check(-o.z, o.ev.negate(o.x), o.fresh, level)
    o.check(2 * o.z + o.w, o.ev.sum([o.x, o.y, o.x]), sqrt(5) * o.fresh, level)


@at_every_level
def test_add_and_sub_of_plain_operands(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    short = o.w[:8].real
    operands = {
        "vector": (o.w, o.w),
        "plaintext": (o.s.encoder.encode(o.w, level), o.w),
        "short vector": (short, np.pad(short, (0, len(o.z) - 8))),
        "periodic plaintext": (
            o.s.encoder.encode(short, level, periodic=True),
            np.tile(short, len(o.z) // 8),
        ),
        "real number": (0.625, 0.625),
        "complex number": (0.5 - 2j, 0.5 - 2j),
        "NumPy number": (np.float64(-0.25), -0.25),
    }
    deviation = hypot(o.fresh, o.encoding)
    for operand, value in operands.values():
        o.check(o.z + value, o.ev.add(o.x, operand), deviation, level)
        o.check(o.z - value, o.ev.sub(o.x, operand), deviation, level)


@pytest.mark.parametrize("op", ["add", "sub"])
def test_sums_of_different_levels_go_to_the_lower_one(
    schemes: Schemes, rng: np.random.Generator, op: str
) -> None:
    s = schemes("insecure-n11-d35")
    ev, top = s.evaluator, s.params.max_level
    z, w = s.slots(rng), s.slots(rng)
    expected = z + w if op == "add" else z - w
    for level in range(top):
        x, y = s.encryptor.encrypt(z), s.encryptor.encrypt(w, level)
        deviation = hypot(
            s.noise.fresh_public(level), s.noise.to_level(level, s.noise.fresh_public(top))
        )
        got = getattr(ev, op)(x, y)
        assert (got.level, got.is_canonical) == (level, True)
        s.assert_close(expected, got, deviation)
        got = getattr(ev, op)(y, x)
        s.assert_close(expected if op == "add" else -expected, got, deviation)


def test_sums_align_a_fresh_ciphertext_with_a_product_that_is_not_rescaled(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng, 4)
    product = o.ev.multiply(o.x, o.y, rescale=False)
    for higher in (4, 5):
        fresh = o.s.encryptor.encrypt(o.z, higher)
        deviation = hypot(o.noise.multiply(4, o.fresh, o.fresh), o.noise.to_level(4, o.fresh))
        for got, expected in (
            (o.ev.add(product, fresh), o.z * o.w + o.z),
            (o.ev.sub(fresh, product), o.z - o.z * o.w),
        ):
            assert (got.level, got.scale) == (4, product.scale)
            o.s.assert_close(expected, got, deviation)
            o.check(expected, o.ev.rescale(got), deviation, 3)


# -- products -----------------------------------------------------------------------------------


@above_level_0
def test_products_of_ciphertexts(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    deviation = o.noise.multiply(level, o.fresh, o.fresh, SIZE, SIZE)
    o.check(o.z * o.w, o.ev.multiply(o.x, o.y), deviation, level - 1)
    # The two error terms of a square are the same: they add up.
    o.check(o.z * o.z, o.ev.square(o.x), hypot(deviation, sqrt(2) * SIZE * o.fresh), level - 1)


@above_level_0
def test_products_with_plain_operands(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    short = o.w[:8]
    operands = {
        "vector": (o.w, o.w, SIZE),
        "plaintext": (o.s.encoder.encode(o.w, level), o.w, SIZE),
        "periodic plaintext": (
            o.s.encoder.encode(short, level, periodic=True),
            np.tile(short, len(o.z) // 8),
            1.5,
        ),
        "real number": (-1.625, -1.625, 1.625),
        "complex number": (0.5 - 2j, 0.5 - 2j, 2.1),
        "integer": (3, 3, 3.0),
        "zero": (0, 0, 1.0),
    }
    for operand, value, magnitude in operands.values():
        deviation = o.noise.multiply_plain(level, o.fresh, SIZE, magnitude)
        o.check(o.z * value, o.ev.multiply(o.x, operand), deviation, level - 1)


@above_level_0
def test_a_product_may_be_relinearised_and_rescaled_later(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    deviation = o.noise.multiply(level, o.fresh, o.fresh, SIZE, SIZE)
    scale = o.x.scale * o.y.scale
    raw = o.ev.multiply(o.x, o.y, relinearise=False, rescale=False)
    assert (raw.components, raw.level, raw.scale) == (3, level, scale)
    o.s.assert_close(o.z * o.w, raw, deviation)
    linear = o.ev.relinearise(raw)
    assert (linear.components, linear.level, linear.scale) == (2, level, scale)
    o.check(
        o.z * o.w, o.ev.rescale(linear), hypot(deviation, o.noise.rounding(level - 1)), level - 1
    )
    o.check(o.z * o.w, o.ev.relinearise(raw, rescale=True), deviation, level - 1)
    low = o.ev.multiply(o.x, o.y, relinearise=False)
    assert (low.components, low.level, low.is_canonical) == (3, level - 1, True)
    three = hypot(deviation, o.noise.rounding(level - 1, components=3))
    o.s.assert_close(o.z * o.w, low, three, worst_bits=6)
    switched = hypot(three, o.noise.key_switch(level - 1))
    o.check(o.z * o.w, o.ev.relinearise(low), switched, level - 1, worst_bits=6)


def test_relinearising_and_rescaling_at_once_is_what_multiply_does(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    raw = o.ev.multiply(o.x, o.y, relinearise=False, rescale=False)
    assert equal(o.ev.relinearise(raw, rescale=True), o.ev.multiply(o.x, o.y))
    assert equal(
        o.ev.relinearise(o.ev.multiply(o.x, o.y, rescale=False), rescale=True),
        o.ev.rescale(o.ev.multiply(o.x, o.y, rescale=False)),
    )


@above_level_0
def test_products_are_summed_before_one_relinearisation(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)

    def raw(x: Ciphertext, y: Ciphertext) -> Ciphertext:
        return o.ev.multiply(x, y, relinearise=False, rescale=False)

    total = o.ev.sub(o.ev.sum([raw(o.x, o.y), raw(o.x, o.x)]), raw(o.y, o.y))
    expected = o.z * o.w + o.z * o.z - o.w * o.w
    deviation = sqrt(5) * o.noise.multiply(level, o.fresh, o.fresh, SIZE, SIZE)
    o.check(expected, o.ev.relinearise(total, rescale=True), deviation, level - 1)


@above_level_0
def test_contraction_sums_products_over_a_batch(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    s, terms = schemes(name), 3
    z, w = s.slots(rng, terms), s.slots(rng, 2 * terms)
    x, y = s.encryptor.encrypt(z, level), s.encryptor.encrypt(w, level)
    expected = (z * w.reshape(2, terms, -1)).sum(1)
    fresh = s.noise.fresh_public(level)
    deviation = sqrt(terms) * s.noise.multiply(level, fresh, fresh, SIZE, SIZE)
    got = s.evaluator.contract(x, y)
    assert (got.batch, got.components, got.level, got.is_canonical) == (2, 2, level - 1, True)
    s.assert_close(expected, got, deviation)
    raw = s.evaluator.contract(x, y, relinearise=False, rescale=False)
    assert (raw.components, raw.level, raw.scale) == (3, level, x.scale * y.scale)
    assert equal(s.evaluator.relinearise(raw, rescale=True), got)
    low = s.evaluator.contract(x, y, relinearise=False)
    assert equal(s.evaluator.rescale(raw), low)
    linear = s.evaluator.contract(x, y, rescale=False)
    assert equal(s.evaluator.relinearise(raw), linear)


def test_contraction_gives_the_residues_of_summed_products(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    s, rows, terms, outs = schemes(TINY), 2, 3, 4
    ev = s.evaluator
    x = s.encryptor.encrypt(s.slots(rng, rows * terms), 4)
    y = s.encryptor.encrypt(s.slots(rng, outs * terms))  # brought down to the level of x
    got = ev.contract(x, y, rows=rows)
    assert (got.batch, got.level) == (rows * outs, 3)
    for r in range(rows):
        one = ev.contract(x[r * terms : (r + 1) * terms], y)
        assert equal(got[r * outs : (r + 1) * outs], one)
        for o in range(outs):
            products = [
                ev.multiply(x[r * terms + k], y[o * terms + k], relinearise=False, rescale=False)
                for k in range(terms)
            ]
            assert equal(one[o], ev.relinearise(ev.sum(products), rescale=True))
    higher = ev.contract(y[:terms], x)
    assert (higher.batch, higher.level) == (rows, 3)


def test_contractions_that_do_not_fit_are_refused(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    s = schemes(TINY)
    x = s.encryptor.encrypt(s.slots(rng, 4))
    for left, right, rows in ((x[:3], x, 1), (x, x[:3], 1), (x, x, 3), (x, x, 0), (x, x, -4)):
        with pytest.raises(ValueError, match=r"batches of .* rows and any number of columns"):
            s.evaluator.contract(left, right, rows=rows)
    raw = s.evaluator.multiply(x, x, relinearise=False, rescale=False)
    with pytest.raises(ScaleError, match="2 components; relinearise them first"):
        s.evaluator.contract(x, raw)
    with pytest.raises(LevelError, match="no level left for a product"):
        s.evaluator.contract(s.evaluator.to_level(x, 0), x)
    other = schemes("insecure-n10-d54")
    with pytest.raises(IncompatibleError, match="one parameter set"):
        s.evaluator.contract(x, other.encryptor.encrypt(other.slots(rng, 4)))


def test_sums_of_two_and_three_components_have_three(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    raw = o.ev.multiply(o.x, o.y, relinearise=False, rescale=False)
    linear = o.ev.multiply(o.x, o.y, rescale=False)
    deviation = 2 * o.noise.multiply(o.level, o.fresh, o.fresh, SIZE, SIZE)
    for got, expected in (
        (o.ev.add(raw, linear), 2 * o.z * o.w),
        (o.ev.add(linear, raw), 2 * o.z * o.w),
        (o.ev.sub(linear, o.ev.add(raw, raw)), -o.z * o.w),
        (o.ev.sub(o.ev.add(raw, raw), linear), o.z * o.w),
    ):
        assert got.components == 3
        o.s.assert_close(expected, got, deviation)
        o.check(expected, o.ev.relinearise(got, rescale=True), deviation, o.level - 1)


@pytest.mark.parametrize("name", presets())
def test_products_of_different_levels_go_to_the_lower_one(
    schemes: Schemes, rng: np.random.Generator, name: str
) -> None:
    s = schemes(name)
    z, w, top = s.slots(rng), s.slots(rng), s.params.max_level
    for level in range(1, top):
        x, y = s.encryptor.encrypt(z), s.encryptor.encrypt(w, level)
        aligned = s.noise.to_level(level, s.noise.fresh_public(top))
        deviation = s.noise.multiply(level, aligned, s.noise.fresh_public(level), SIZE, SIZE)
        for got in (s.evaluator.multiply(x, y), s.evaluator.multiply(y, x)):
            assert (got.level, got.is_canonical) == (level - 1, True)
            s.assert_close(z * w, got, deviation)
        pt = s.encoder.encode(w, level)
        deviation = s.noise.multiply_plain(level, aligned, SIZE, SIZE)
        s.assert_close(z * w, s.evaluator.multiply(x, pt), deviation)


@pytest.mark.parametrize("name", presets())
def test_a_chain_of_products_ends_at_level_0_with_the_canonical_scale(
    schemes: Schemes, rng: np.random.Generator, name: str
) -> None:
    s = schemes(name)
    z, w = np.exp(1j * rng.uniform(0, 2 * np.pi, (2, s.params.slots)))  # magnitudes stay one
    x, level = s.encryptor.encrypt(z), s.params.max_level
    noise = s.noise.fresh_public(level)
    while level:
        y = s.encryptor.encrypt(w, level)  # a fresh error: the same one would add up linearly
        noise = s.noise.multiply(level, noise, s.noise.fresh_public(level))
        x, z, level = s.evaluator.multiply(x, y), z * w, level - 1
        assert (x.level, x.is_canonical) == (level, True)
        s.assert_close(z, x, noise)


def test_one_product_at_n16_keeps_25_bits() -> None:
    # Slow below; here the smallest smoke of the ring degree that is used in earnest: no rotation
    # keys, one product at a level with few limbs.
    from aegis_dask.ckks.encryptor import Decryptor, Encryptor
    from aegis_dask.ckks.keys import KeyGenerator

    params = Parameters.preset("n16-d54")
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    ev = Evaluator(params, generator.evaluation_keys(secret))
    z = np.linspace(-1, 1, params.slots)
    x = Encryptor(params, secret).encrypt(z, level=2)
    stats = precision_stats(z * z, Decryptor(params, secret).decrypt(ev.square(x)))
    assert stats.worst > 25


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("n16-d40", 25), ("n16-d45", 30), ("n15-d40", 25)])
def test_one_product_of_fresh_ciphertexts_keeps_most_bits(
    schemes: Schemes, rng: np.random.Generator, name: str, bits: int
) -> None:
    # On average over the slots; the worst of 2^15 is two bits worse.
    o = Operands(schemes(name), rng)
    stats = precision_stats(o.z * o.w, o.s.decryptor.decrypt(o.ev.multiply(o.x, o.y)))
    assert stats.mean > bits
    assert stats.worst > bits - 2


# -- multiplication by powers of i --------------------------------------------------------------


@at_every_level
def test_multiplication_by_i_is_exact(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    before = o.s.decryptor.decrypt(o.x)
    for power in range(-2, 6):
        got = o.ev.multiply_by_i(o.x, power)
        assert (got.level, got.scale) == (level, o.x.scale)
        # Only the float64 transforms of the two decryptions differ.
        assert np.max(np.abs(o.s.decryptor.decrypt(got) - 1j**power * before)) < 2.0**-44
    assert equal(o.ev.multiply_by_i(o.ev.multiply_by_i(o.x, 1), 3), o.x)
    assert equal(o.ev.multiply_by_i(o.ev.multiply_by_i(o.x)), o.ev.negate(o.x))


# -- levels and scales --------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_to_level_reaches_every_lower_level_from_every_level(
    schemes: Schemes, rng: np.random.Generator, name: str
) -> None:
    s = schemes(name)
    z = s.slots(rng)
    for level in range(1, s.params.max_level + 1):
        x = s.encryptor.encrypt(z, level)
        for lower in range(level):
            got = s.evaluator.to_level(x, lower)
            assert (got.level, got.is_canonical) == (lower, True)
            s.assert_close(z, got, s.noise.to_level(lower, s.noise.fresh_public(level)))


def test_to_level_of_the_level_it_has_returns_the_ciphertext(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    assert o.ev.to_level(o.x, o.level) is o.x


def test_to_level_takes_another_scale(schemes: Schemes, rng: np.random.Generator) -> None:
    o = Operands(schemes(TINY), rng)
    scale = Scale.from_int(1 << 45)
    got = o.ev.to_level(o.x, 3, scale)
    assert (got.level, got.scale) == (3, scale)
    o.s.assert_close(o.z, got, o.noise.to_level(3, o.fresh))


@pytest.mark.parametrize("level", [-1, 5, 7, 100])
def test_to_level_goes_only_down(schemes: Schemes, rng: np.random.Generator, level: int) -> None:
    o = Operands(schemes(TINY), rng, 4)
    with pytest.raises(
        LevelError, match=f"cannot be brought to level {level}; levels only go down"
    ):
        o.ev.to_level(o.x, level)


def test_a_scale_is_not_changed_without_a_level(schemes: Schemes, rng: np.random.Generator) -> None:
    o = Operands(schemes(TINY), rng)
    with pytest.raises(LevelError, match="a change of scale takes a level"):
        o.ev.to_level(o.x, o.level, Scale.from_int(1 << 45))


def test_to_level_refuses_a_scale_that_no_precise_constant_gives(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng, 1)
    with pytest.raises(ScaleError, match=r"would have only .* bits; rescale first"):
        o.ev.to_level(o.x, 0, Scale.from_int(1 << 15))


def test_rescale_needs_a_product_and_a_level(schemes: Schemes, rng: np.random.Generator) -> None:
    o = Operands(schemes(TINY), rng)
    with pytest.raises(ScaleError, match="rescale only after a product"):
        o.ev.rescale(o.x)
    with pytest.raises(LevelError, match="has no level left for a product"):
        o.ev.rescale(Operands(o.s, rng, 0).x)


# -- rotations ----------------------------------------------------------------------------------


@at_every_level
def test_rotations_with_a_key_and_composed_ones(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    switch = o.noise.key_switch(level)
    for step in (*ROTATIONS, -len(o.z) + 1):
        o.check(np.roll(o.z, -step), o.ev.rotate(o.x, step), hypot(o.fresh, switch), level)
    for step, switches in ((5, 2), (13, 3), (15, 3)):
        deviation = hypot(o.fresh, sqrt(switches) * switch)
        o.check(np.roll(o.z, -step), o.ev.rotate(o.x, step), deviation, level)


@at_every_level
def test_conjugation(schemes: Schemes, rng: np.random.Generator, name: str, level: int) -> None:
    o = Operands(schemes(name), rng, level)
    deviation = hypot(o.fresh, o.noise.key_switch(level))
    o.check(o.z.conj(), o.ev.conjugate(o.x), deviation, level)


@at_every_level
def test_hoisted_rotations_are_the_single_ones_bit_by_bit(
    schemes: Schemes, rng: np.random.Generator, name: str, level: int
) -> None:
    o = Operands(schemes(name), rng, level)
    steps = [3, 0, 5, 1, 8, 1, o.s.params.slots + 2]
    rotated = o.ev.rotate_many(o.x, steps)
    assert list(rotated) == list(dict.fromkeys(steps))
    for step, got in rotated.items():
        assert equal(got, o.ev.rotate(o.x, step))


def test_rotation_by_a_multiple_of_the_slots_is_free(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    keyless = Evaluator(o.s.params)
    assert equal(keyless.rotate(o.x, 0), o.x)
    assert equal(keyless.rotate(o.x, -3 * o.s.params.slots), o.x)


@pytest.mark.parametrize("name", presets(small=[TINY, "n13-d30"]))
@pytest.mark.parametrize(
    ("count", "stride"), [(1, 1), (2, 1), (3, 1), (5, 1), (7, 1), (8, 1), (3, 4)]
)
def test_inner_sums_of_any_count(
    schemes: Schemes, rng: np.random.Generator, name: str, count: int, stride: int
) -> None:
    o = Operands(schemes(name), rng)
    expected = sum(np.roll(o.z, -k * stride) for k in range(count))
    # Errors of `count` slots add up, each with those of at most 2 log2(count) key switches.
    switches = sqrt(2 * log2(count)) * o.noise.key_switch(o.level)
    deviation = sqrt(count) * hypot(o.fresh, switches)
    o.check(expected, o.ev.inner_sum(o.x, count, stride), deviation, o.level)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("count", range(1, 40))
def test_inner_sums_use_the_rotations_that_inner_sum_steps_announces(
    schemes: Schemes, monkeypatch: pytest.MonkeyPatch, count: int, stride: int
) -> None:
    s = schemes(TINY)
    used: set[int] = set()

    def rotate(self: Evaluator, x: Ciphertext, steps: int) -> Ciphertext:
        used.add(steps)
        return x

    monkeypatch.setattr(Evaluator, "rotate", rotate)
    got = s.evaluator.inner_sum(s.encryptor.encrypt([1.0]), count, stride)
    assert tuple(sorted(used - {0})) == inner_sum_steps(count, stride)
    # Without rotations every term is the same.
    assert np.max(s.errors(np.eye(1, s.params.slots)[0] * count, got)) < 2.0**-30


def test_an_inner_sum_of_nothing_is_refused(schemes: Schemes, rng: np.random.Generator) -> None:
    o = Operands(schemes(TINY), rng)
    with pytest.raises(ValueError, match="at least one term"):
        o.ev.inner_sum(o.x, 0)
    with pytest.raises(ValueError, match="at least one ciphertext"):
        o.ev.sum([])


# -- batches ------------------------------------------------------------------------------------

UNARY: dict[str, Callable[[Evaluator, Ciphertext], Ciphertext]] = {
    "add a number": lambda ev, x: ev.add(x, 0.5 - 1j),
    "subtract a vector": lambda ev, x: ev.sub(x, [1.0, 2.0]),
    "negate": lambda ev, x: ev.negate(x),
    "square": lambda ev, x: ev.square(x),
    "raw square": lambda ev, x: ev.multiply(x, x, relinearise=False, rescale=False),
    "raw square, rescaled": lambda ev, x: ev.multiply(x, x, relinearise=False),
    "multiply by a number": lambda ev, x: ev.multiply(x, 0.5 - 1j),
    "multiply by a vector": lambda ev, x: ev.multiply(x, [1.0, 2.0]),
    "multiply by a periodic plaintext": lambda ev, x: ev.multiply(
        x, ev.encoder.encode([1, 2j], periodic=True)
    ),
    "multiply by i": lambda ev, x: ev.multiply_by_i(x),
    "rotate": lambda ev, x: ev.rotate(x, 3),
    "rotate in two steps": lambda ev, x: ev.rotate(x, 5),
    "hoisted rotation": lambda ev, x: ev.rotate_many(x, [4, 1])[1],
    "conjugate": lambda ev, x: ev.conjugate(x),
    "to_level": lambda ev, x: ev.to_level(x, 2),
    "inner_sum": lambda ev, x: ev.inner_sum(x, 3),
    "chebyshev": lambda ev, x: ev.chebyshev(x, [0.5, 1, 0.25, 0.125]),
}


@pytest.mark.parametrize("operation", UNARY.values(), ids=UNARY.keys())
def test_a_batch_is_treated_like_its_members(
    schemes: Schemes, rng: np.random.Generator, operation: Callable[..., Ciphertext]
) -> None:
    s = schemes(TINY)
    batch = s.encryptor.encrypt(s.slots(rng, 3))
    got = operation(s.evaluator, batch)
    assert got.batch == 3
    for i in range(3):
        assert equal(got[i], operation(s.evaluator, batch[i]))


@pytest.mark.parametrize("operation", UNARY.values(), ids=UNARY.keys())
def test_operations_leave_their_operand_as_it_was(
    schemes: Schemes, rng: np.random.Generator, operation: Callable[..., Ciphertext]
) -> None:
    s = schemes(TINY)
    x = s.encryptor.encrypt(s.slots(rng, 2))
    before = replace(x, data=x.data.copy())
    operation(s.evaluator, x)
    assert equal(x, before)


BINARY: dict[str, tuple[Callable[..., Ciphertext], Callable[..., Any]]] = {
    "add": (lambda ev, x, y: ev.add(x, y), lambda z, w: z + w),
    "sub": (lambda ev, x, y: ev.sub(x, y), lambda z, w: z - w),
    "multiply": (lambda ev, x, y: ev.multiply(x, y), lambda z, w: z * w),
    "add, other level": (lambda ev, x, y: ev.add(x, ev.to_level(y, 3)), lambda z, w: z + w),
    "sub, other level": (lambda ev, x, y: ev.sub(ev.to_level(x, 3), y), lambda z, w: z - w),
    "sub of a product": (
        lambda ev, x, y: ev.sub(x, ev.multiply(y, y, relinearise=False)),
        lambda z, w: z - w * w,
    ),
    "sub from a product": (
        lambda ev, x, y: ev.sub(ev.multiply(x, x, relinearise=False), y),
        lambda z, w: z * z - w,
    ),
}


@pytest.mark.parametrize(("operation", "plain"), BINARY.values(), ids=BINARY.keys())
@pytest.mark.parametrize("batches", [(3, 3), (3, 1), (1, 3)], ids=str)
def test_a_single_ciphertext_goes_with_a_batch_on_either_side(
    schemes: Schemes,
    rng: np.random.Generator,
    operation: Callable[..., Ciphertext],
    plain: Callable[..., Any],
    batches: tuple[int, int],
) -> None:
    s = schemes(TINY)
    z, w = (s.slots(rng, b) for b in batches)
    x, y = s.encryptor.encrypt(z), s.encryptor.encrypt(w)
    kept = [replace(v, data=v.data.copy()) for v in (x, y)]
    got = operation(s.evaluator, x, y)
    assert got.batch == 3
    # A wrong sign or partner is an error of order one; these are roundings, up to 2^-22 where
    # three components are rounded.
    assert np.max(s.errors(plain(z, w), got)) < 2.0**-18
    assert equal(x, kept[0])
    assert equal(y, kept[1])


def test_batches_of_different_sizes_are_refused(schemes: Schemes, rng: np.random.Generator) -> None:
    s = schemes(TINY)
    x, y = (s.encryptor.encrypt(s.slots(rng, b)) for b in (2, 3))
    for operation in (s.evaluator.add, s.evaluator.sub, s.evaluator.multiply):
        with pytest.raises(ValueError, match=r"batches of \[2, 3\] ciphertexts do not match"):
            operation(x, y)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        lambda o: o.ev.multiply(o.x, o.y),
        lambda o: o.ev.multiply(o.x, 2.0),
        lambda o: o.ev.multiply(o.x, o.w),
        lambda o: o.ev.square(o.x),
        lambda o: o.ev.relinearise(
            o.ev.multiply(o.x, o.y, relinearise=False, rescale=False), rescale=True
        ),
    ],
    ids=["ciphertext", "number", "vector", "square", "relinearise"],
)
def test_products_at_level_0_are_refused(
    schemes: Schemes, rng: np.random.Generator, operation: Callable[[Operands], Any]
) -> None:
    o = Operands(schemes(TINY), rng, 0)
    with pytest.raises(LevelError, match="no level left for a product; choose parameters"):
        operation(o)


def test_operands_of_other_parameters_are_refused(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o, other = Operands(schemes(TINY), rng), Operands(schemes("insecure-n10-d54"), rng)
    message = "insecure-n10-d54.*use keys, plaintexts and ciphertexts of one parameter set"
    plaintext = other.s.encoder.encode(other.z)
    for operand in (other.x, plaintext):
        for operation in (o.ev.add, o.ev.sub, o.ev.multiply):
            with pytest.raises(IncompatibleError, match=message):
                operation(o.x, operand)
    for operation in (o.ev.negate, o.ev.conjugate, o.ev.rescale, lambda x: o.ev.rotate(x, 1)):
        with pytest.raises(IncompatibleError, match=message):
            operation(other.x)
    with pytest.raises(IncompatibleError, match=message):
        Evaluator(o.s.params, other.s.keys)


def test_equal_parameters_made_apart_are_compatible(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    twin = Parameters(replace(o.s.params.literal, name="twin"))
    moved = replace(o.y, params=twin)
    o.check(o.z + o.w, o.ev.add(o.x, moved), hypot(o.fresh, o.fresh), o.level)


def test_plaintexts_that_do_not_fit_are_refused_with_a_way_out(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng, 3)
    with pytest.raises(ScaleError, match=r"encode the plaintext with level=ct\.level"):
        o.ev.add(o.x, o.s.encoder.encode(o.w, 2))
    with pytest.raises(ScaleError, match=r"scale=ct\.scale"):
        o.ev.sub(o.x, o.s.encoder.encode(o.w, 3, scale=1 << 30))
    with pytest.raises(LevelError, match="encode it with level=3"):
        o.ev.multiply(o.x, o.s.encoder.encode(o.w, 4))


def test_scales_that_no_constant_aligns_are_refused(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng, 3)
    near = o.s.encryptor.encrypt(o.w, 3, scale=1 << 45)
    with pytest.raises(ScaleError, match="scales that no integer constant aligns"):
        o.ev.add(o.x, near)


def test_three_components_are_relinearised_first(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    raw = o.ev.multiply(o.x, o.y, relinearise=False)
    for operation in (
        lambda: o.ev.multiply(raw, o.x),
        lambda: o.ev.square(raw),
        lambda: o.ev.rotate(raw, 1),
        lambda: o.ev.rotate_many(raw, [1]),
        lambda: o.ev.conjugate(raw),
    ):
        with pytest.raises(ScaleError, match=r"2 components; relinearise"):
            operation()


def test_three_components_take_sums_plain_products_and_rescales(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    raw = o.ev.multiply(o.x, o.y, relinearise=False)
    changed = o.ev.multiply(o.ev.add(o.ev.negate(raw), 0.5), o.z)
    lower = o.ev.to_level(changed, 2)
    assert (lower.components, lower.level) == (3, 2)
    expected = (0.5 - o.z * o.w) * o.z
    deviation = 4 * o.noise.rounding(2, components=3)
    o.s.assert_close(expected, lower, deviation, worst_bits=6)
    o.check(expected, o.ev.relinearise(lower), deviation, 2, worst_bits=6)


def test_missing_keys_are_named_with_the_way_to_make_them(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng)
    keyless = Evaluator(o.s.params)
    with pytest.raises(MissingKeyError, match="relinearisation=True"):
        keyless.multiply(o.x, o.y)
    with pytest.raises(MissingKeyError, match=r"rotates by 3 steps.*\(none\).*rotations=\[3\]"):
        keyless.rotate(o.x, 3)
    with pytest.raises(MissingKeyError, match="conjugation=True"):
        keyless.conjugate(o.x)
    even = EvaluationKeys(
        o.s.params, galois={g: k for g, k in o.s.keys.galois.items() if g in (5**2, 5**4)}
    )
    with pytest.raises(MissingKeyError, match=r"\(2, 4\) do not add up.*rotations=\[7\]"):
        Evaluator(o.s.params, even).rotate(o.x, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), complex(0, float("-inf"))])
def test_operands_that_are_not_finite_are_refused(
    schemes: Schemes, rng: np.random.Generator, value: complex
) -> None:
    o = Operands(schemes(TINY), rng)
    for operation in (o.ev.add, o.ev.sub, o.ev.multiply):
        with pytest.raises(EncodingError, match="finite"):
            operation(o.x, value)
        with pytest.raises(EncodingError, match="finite"):
            operation(o.x, [1.0, value])


def test_constants_that_do_not_fit_the_modulus_are_refused(
    schemes: Schemes, rng: np.random.Generator
) -> None:
    o = Operands(schemes(TINY), rng, 0)
    limit = 2.0 ** (o.s.params.log2_moduli[0] - 1) / float(o.x.scale)
    o.ev.add(o.x, 0.99 * limit)
    for value in (1.01 * limit, -1.9 * limit, 1.01j * limit, 2.1 * limit):
        with pytest.raises(EncodingError, match="does not fit level 0"):
            o.ev.add(o.x, value)
