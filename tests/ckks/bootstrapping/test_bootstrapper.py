"""Refreshed ciphertexts: every step against float64, then the whole, then a thousand times."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper, split_parts
from aegis_dask.ckks.bootstrapping.evalmod import evaluate_mod
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.raising import mod_raise, to_sparse_secret
from aegis_dask.ckks.bootstrapping.transforms import apply_factor, sum_raised
from aegis_dask.ckks.encoder import embed
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.precision import precision_stats
from aegis_dask.errors import LevelError, MissingKeyError, ParameterError, ScaleError
from aegis_dask.ring.tables import bit_reversal
from tests.ckks.bootstrapping.conftest import VARIANTS, Context

WORST, MEAN = 21.5, 23.5
"""Bits for parts up to 1 and full slots at N = 2^10: the sine's cube is 2^-22.8 and, on average,
2^-24.4; noise is several bits below."""


def complex_coefficients(context: Context, values: np.ndarray) -> np.ndarray:
    """``m_k + i m_(k+n)`` of slots, in the order in which CoeffsToSlots leaves them."""
    n = context.params.params.slots
    m = embed(np.atleast_2d(values), 2 * n)
    f = m[:, :n] + 1j * m[:, n:]
    return f[:, bit_reversal(n)]


# -- steps --------------------------------------------------------------------------------------


def test_slots_to_coeffs_puts_slots_in_the_place_of_coefficients(
    context: Context, rng: np.random.Generator
) -> None:
    b = context.bootstrapper()
    z = context.message(rng, b.slots)
    x = context.encryptor.encrypt(z, level=b.input_level)
    ev = Evaluator(context.params.params, context.keys.evaluation)
    for f in b.slots_to_coeffs:
        x = apply_factor(ev, x, f)
    assert (x.level, x.scale) == (0, b.raised_scale)
    got = complex_coefficients(context, context.decryptor.decrypt(x))
    # Rounding at level 0: 2^4 of 2^37 in a coefficient.
    assert precision_stats(z, got).worst > 26


def test_the_message_survives_the_switch_to_the_sparse_secret(
    context: Context, rng: np.random.Generator
) -> None:
    # Back to the dense secret at the lowest raised level, where decryption can look at it.
    b = context.bootstrapper("exhausted")
    z = context.message(rng, b.slots)
    x = context.encryptor.encrypt(z, level=0)
    ev = Evaluator(context.params.params, context.keys.evaluation)
    raised = mod_raise(context.keys, x, b.raised_level)
    y = sum_raised(ev, context.keys, raised, context.params.modulus, [0])
    u = complex_coefficients(context, context.decryptor.decrypt(y))[0]
    parts = np.stack([u.real, u.imag])
    integers = np.round(parts)
    # A sum of 17 residues: at most 8.5 q_0, and hardly ever more than 6 standard deviations.
    assert 0 < np.max(np.abs(integers)) <= 8
    got = (parts - integers) * float(context.params.modulus / b.raised_scale)
    expected = complex_coefficients(context, z)[0]
    assert precision_stats(expected, got[0] + 1j * got[1]).worst > 26


def test_to_sparse_changes_the_secret_and_not_the_modulus(
    context: Context, rng: np.random.Generator
) -> None:
    b = context.bootstrapper("exhausted")
    x = context.encryptor.encrypt(context.message(rng, b.slots), level=0)
    y = to_sparse_secret(x, context.keys.to_sparse)
    assert (y.level, y.scale, y.data.shape) == (x.level, x.scale, x.data.shape)
    wrong = context.decryptor.decrypt(y)
    assert np.max(np.abs(wrong)) > 10  # the dense secret does not decrypt it


@pytest.mark.parametrize("variant", ["full", "exhausted", "64", "1"])
def test_coeffs_to_slots_puts_coefficients_in_slots(
    context: Context, variant: str, rng: np.random.Generator
) -> None:
    b = context.bootstrapper(variant)
    z = context.message(rng, b.slots)
    x = context.encryptor.encrypt(z, level=b.input_level)
    ev = b._evaluator
    if b.slots_first:
        for f in b.slots_to_coeffs:
            x = apply_factor(ev, x, f)
    parts = split_parts(ev, b._to_slots(x, context.keys), False)
    assert parts.level == context.params.sine_level
    assert parts.scale == context.params.sine_scales(b.raised_scale)[-1]
    u = context.decryptor.decrypt(parts).real * context.params.sine.half_width
    got = (u - np.round(u)) * float(context.params.modulus / b.raised_scale)
    expected = z[0] if b.slots_first else complex_coefficients(context, z)[0]
    # The scale there is 2^58, q_0 / Delta at most 2^13, and N is small.
    assert precision_stats(expected, got[0] + 1j * got[1]).worst > 24


def test_eval_mod_is_its_float64_reference(context: Context, rng: np.random.Generator) -> None:
    params = context.params
    scale = params.sine_scales(params.raised_scale)[-1]
    integers = rng.integers(-params.sine.bound, params.sine.bound + 1, params.params.slots)
    u = integers + rng.uniform(-1, 1, params.params.slots) * params.sine.deviation
    x = context.encryptor.encrypt(u / params.sine.half_width, params.sine_level, scale)
    ev = Evaluator(params.params, context.keys.evaluation)
    y = evaluate_mod(ev, params, x, params.raised_scale)
    assert y.level == params.output_level
    assert y.is_canonical
    expected = params.sine.evaluate(u) * 2.0**params.literal.ratio_bits
    assert precision_stats(expected, context.decryptor.decrypt(y).real).worst > 24


def test_eval_mod_takes_its_own_level_and_scale_only(context: Context) -> None:
    params = context.params
    x = context.encryptor.encrypt([0.5], level=params.sine_level)
    ev = Evaluator(params.params, context.keys.evaluation)
    with pytest.raises(ScaleError, match="no input of EvalMod"):
        evaluate_mod(ev, params, x, params.raised_scale)


# -- the whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_refreshed_batch_has_its_messages_levels_and_canonical_scale(
    context: Context, variant: str, rng: np.random.Generator
) -> None:
    b = context.bootstrapper(variant)
    z = context.message(rng, b.slots, batch=3)
    y = b.refresh(context.encryptor.encrypt(z, level=b.input_level))
    assert y.batch == 3
    assert y.level == b.output_level
    assert y.level - b.input_level >= context.params.usable_levels
    assert y.is_canonical
    stats = precision_stats(z, context.decryptor.decrypt(y))
    if b.slots_first:
        assert stats.worst > WORST
        assert stats.mean > MEAN
    else:
        # q_0 / Delta is 2^10: the cube of the largest coefficient, which is that of a slot where
        # there is one, is 2^-17.3.
        assert stats.worst > 17


@pytest.mark.parametrize("variant", ["full", "64", "1"])
def test_real_messages_take_half_of_eval_mod(
    context: Context, variant: str, rng: np.random.Generator
) -> None:
    b = context.bootstrapper(variant)
    z = context.message(rng, b.slots, batch=2).real
    y = b.refresh(context.encryptor.encrypt(z, level=b.input_level), real=True)
    assert (y.batch, y.level, y.is_canonical) == (2, b.output_level, True)
    assert precision_stats(z, context.decryptor.decrypt(y)).worst > WORST


@pytest.mark.parametrize("variant", ["full", "exhausted", "64"])
def test_two_real_messages_are_refreshed_as_one(
    context: Context, variant: str, rng: np.random.Generator
) -> None:
    b = context.bootstrapper(variant)
    z = context.message(rng, b.slots, batch=2).real
    x = context.encryptor.encrypt(z, level=b.input_level + 1)
    pair = b.refresh_pair(x[:1], b._evaluator.to_level(x[1:], b.input_level))
    for y, expected in zip(pair, z, strict=True):
        level = b.output_level if b.slots_first else b.output_level - 1
        assert (y.level, y.is_canonical) == (level, True)
        worst = precision_stats(expected, context.decryptor.decrypt(y)).worst
        assert worst > (WORST if b.slots_first else 17)


def test_messages_may_reach_the_stated_magnitude(
    context: Context, rng: np.random.Generator
) -> None:
    b, most = context.bootstrapper(), context.params.literal.max_magnitude
    z = context.message(rng, b.slots, magnitude=most)
    y = b.refresh(context.encryptor.encrypt(z, level=b.input_level))
    sine = context.params.sine.sine_error(context.params.sine.deviation)
    bound = np.sqrt(2) * sine * 2.0**context.params.literal.ratio_bits
    stats = precision_stats(z[0], context.decryptor.decrypt(y))
    assert stats.worst > -np.log2(bound) - 0.5
    assert stats.mean > 20


def test_any_level_above_is_taken(context: Context, rng: np.random.Generator) -> None:
    b = context.bootstrapper()
    z = context.message(rng, b.slots)
    y = b.refresh(context.encryptor.encrypt(z))
    assert y.level == b.output_level
    assert precision_stats(z[0], context.decryptor.decrypt(y)).worst > WORST


def test_products_can_follow_down_to_the_next_refresh(
    context: Context, rng: np.random.Generator
) -> None:
    b = context.bootstrapper()
    ev = Evaluator(context.params.params, context.keys.evaluation)
    z = context.message(rng, b.slots)
    x = b.refresh(context.encryptor.encrypt(z, level=b.input_level))
    while x.level > b.input_level:
        x, z = ev.multiply(x, 0.9), 0.9 * z
    y = b.refresh(x)
    assert precision_stats(z[0], context.decryptor.decrypt(y)).worst > WORST - 1


@pytest.mark.parametrize("variant", ["full", "exhausted", "64"])
def test_a_second_iteration_refreshes_the_error(
    context: Context, variant: str, rng: np.random.Generator
) -> None:
    b = context.bootstrapper(variant)
    z = context.message(rng, b.slots)
    x = context.encryptor.encrypt(z, level=max(b.input_level, 1))
    y = b.refresh_precise(x, bits=14)
    assert (y.level, y.is_canonical) == (b.output_level - 1, True)
    # What is left is the noise of the scale 2^40 at low levels, and that of 2^14 slots' inputs.
    assert precision_stats(z[0], context.decryptor.decrypt(y)).worst > 24.5


@pytest.mark.slow
def test_a_thousand_refreshes_drift_as_a_thousand_sines(
    context: Context, rng: np.random.Generator
) -> None:
    b = context.bootstrapper()
    ev = Evaluator(context.params.params, context.keys.evaluation)
    z = context.message(rng, b.slots, magnitude=0.5)
    x = context.encryptor.encrypt(z, level=b.input_level)
    errors = []
    for _ in range(1000):
        x = ev.to_level(b.refresh(x), b.input_level)
        error = context.decryptor.decrypt(x) - z[0]
        errors.append(np.concatenate([error.real, error.imag], axis=None))
    # Each refresh replaces a part m by the polynomial of I + m, which takes the integer I off: its
    # mean over I is a drift (the sine's cube, and what the fit is off on average), every time the
    # same; the rest is another number every time, and noise a tenth of it.
    parts = np.concatenate([z[0].real, z[0].imag], axis=None)
    weight = context.params.literal.sparse_weight
    taken_off, counts = np.unique(
        np.rint(rng.uniform(-0.5, 0.5, (weight, 400_000)).sum(axis=0)), return_counts=True
    )
    off = context.params.sine.evaluate(taken_off[:, None] + parts * 2.0**-13) * 2.0**13 - parts
    drift = np.average(off, axis=0, weights=counts)
    spread = np.sqrt(np.average((off - drift) ** 2, weights=np.tile(counts, (len(parts), 1)).T))
    assert np.max(np.abs(drift)) < 2.0**-26
    assert spread < 2.0**-26.8
    for i in (0, 9, 99, 999):
        rest = errors[i] - (i + 1) * drift
        assert np.max(np.abs(rest)) < 6 * spread * np.sqrt(i + 1)
        assert np.sqrt(np.mean(rest**2)) < 1.2 * spread * np.sqrt(i + 1)


# -- errors -------------------------------------------------------------------------------------


def test_an_exhausted_ciphertext_is_told_what_to_do(context: Context) -> None:
    x = context.encryptor.encrypt([1.0], level=2)
    with pytest.raises(LevelError, match="Refresh it at level 3 or above, or with order="):
        context.bootstrapper().refresh(x)


def test_a_bootstrapper_without_keys_says_how_to_make_them(context: Context) -> None:
    x = context.encryptor.encrypt([1.0], level=3)
    with pytest.raises(MissingKeyError, match="required_keys"):
        Bootstrapper(context.params).refresh(x)


def test_missing_keys_are_named(context: Context) -> None:
    b, keys = context.bootstrapper(), context.keys
    x = context.encryptor.encrypt([1.0], level=3)
    none = EvaluationKeys(context.params.params)
    with pytest.raises(MissingKeyError, match="rotates by 1 steps"):
        Bootstrapper(context.params, replace(keys, evaluation=none)).refresh(x)
    raised = {0: keys.raised[0]}
    assert b.required_keys.raised != (0,)
    with pytest.raises(MissingKeyError, match="rotates a raised ciphertext"):
        Bootstrapper(context.params, replace(keys, raised=raised)).refresh(x)


def test_three_components_and_other_scales_are_refused(context: Context) -> None:
    b = context.bootstrapper()
    ev = Evaluator(context.params.params, context.keys.evaluation)
    x = context.encryptor.encrypt([1.0], level=4)
    with pytest.raises(ScaleError, match="relinearise it first"):
        b.refresh(ev.multiply(x, x, relinearise=False))
    y = ev.to_level(x, 3)
    with pytest.raises(ScaleError, match="canonical scale"):
        b.refresh(ev.multiply(y, 0.5, rescale=False))
    with pytest.raises(ValueError, match="no pairs"):
        b.refresh_pair(y, context.encryptor.encrypt(np.ones((2, 4)), level=3))


@pytest.mark.parametrize("slots", [0, 3, 1024])
def test_slots_are_a_power_of_two(context: Context, slots: int) -> None:
    with pytest.raises(ParameterError, match="power of two"):
        Bootstrapper(context.params, None, slots)


def test_an_unknown_order_is_refused(context: Context) -> None:
    with pytest.raises(ParameterError, match="slots-first"):
        Bootstrapper(context.params, None, order="first")  # type: ignore[arg-type]


# -- keys ---------------------------------------------------------------------------------------


def test_keys_are_pickled_without_their_uniform_halves(
    context: Context, rng: np.random.Generator
) -> None:
    data = pickle.dumps(context.keys)
    assert len(data) < 0.6 * context.keys.nbytes
    keys: BootstrappingKeys = pickle.loads(data)
    b = Bootstrapper(context.params, keys)
    z = context.message(rng, b.slots)
    y = b.refresh(context.encryptor.encrypt(z, level=b.input_level))
    assert precision_stats(z[0], context.decryptor.decrypt(y)).worst > WORST


def test_fewer_baby_steps_need_fewer_keys(context: Context) -> None:
    few = Bootstrapper(context.params, None, baby_steps=2).required_keys
    many = Bootstrapper(context.params).required_keys
    assert len(few.rotations) < len(many.rotations) / 1.5


def test_each_key_holds_the_levels_of_its_use(context: Context) -> None:
    required = Bootstrapper(context.params).required_keys
    # Rotations of SlotsToCoeffs alone are for its levels.
    assert min(required.rotations.values()) <= context.params.input_level
    assert context.keys.evaluation.relinearisation is not None
    assert context.keys.evaluation.relinearisation.level == context.params.sine_level
