from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_dask.ckks.encoder import Encoder, embed, imaginary_unit, project
from aegis_dask.ckks.objects import Plaintext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError, IncompatibleError, LevelError
from tests import reference
from tests.arrays import host, same

TINY = "insecure-n10-d40"
N = 1024
FLOAT_BITS = 47
"""Correct bits of the float64 transforms for slots of modulus one: 53, less the growth of rounding
over log2 N stages, less two bits for the worst of many slots."""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Parameters.preset(TINY))


def rounding(params: Parameters, level: int, scale: Scale | None = None) -> float:
    """Worst slot error of coefficients rounded to integers: six deviations of sqrt(N / 12)."""
    exact = params.scales[level] if scale is None else scale
    return 6 * (params.ring_degree / 12) ** 0.5 / float(exact)


def coefficients(encoder: Encoder, pt: Plaintext) -> np.ndarray:
    """Centred integer coefficients of a plaintext."""
    params, limbs = encoder.params, encoder.params.limbs(pt.level)
    data = params.ring.from_host(np.repeat(host(pt.data), N // pt.data.shape[1], axis=1))
    primes = [params.chain.primes[i] for i in limbs]
    x = reference.crt(params.ring.intt(data, limbs), primes)
    return reference.centered(x, params.chain.modulus(pt.level))


# -- the embedding ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16, 256])
def test_slots_are_the_values_at_powers_of_the_root_of_unity(
    rng: np.random.Generator, n: int
) -> None:
    m = rng.uniform(-1, 1, n)
    points = np.exp(1j * np.pi / n) ** np.array([pow(5, j, 2 * n) for j in range(n // 2)])
    expected = np.polynomial.polynomial.polyval(points, m)
    assert np.allclose(project(m, n), expected, rtol=0, atol=1e-12 * n)


@pytest.mark.parametrize("n", [2, 4, 16, 1 << 10, 1 << 17])
def test_embed_and_project_are_inverse(rng: np.random.Generator, n: int) -> None:
    z = rng.uniform(-1, 1, (2, n // 2)) + 1j * rng.uniform(-1, 1, (2, n // 2))
    assert np.max(np.abs(project(embed(z, n), n) - z)) < 2.0**-FLOAT_BITS


def test_multiplication_by_i_is_a_monomial() -> None:
    z = np.array([1j] * 512)
    expected = np.zeros(N)
    expected[N // 2] = 1
    assert np.allclose(embed(z, N), expected, rtol=0, atol=1e-12)


# -- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(7))
@pytest.mark.parametrize("kind", ["complex", "real", "integer", "short", "list"])
def test_decode_returns_what_was_encoded(
    encoder: Encoder, rng: np.random.Generator, level: int, kind: str
) -> None:
    params = encoder.params
    z = rng.uniform(-1, 1, params.slots) + 1j * rng.uniform(-1, 1, params.slots)
    values = {
        "complex": z,
        "real": z.real,
        "integer": rng.integers(-100, 100, params.slots),
        "short": z[:5],
        "list": [1, -2.5, 3j],
    }[kind]
    pt = encoder.encode(values, level)
    assert (pt.level, pt.scale, pt.period) == (level, params.scales[level], params.slots)
    expected = np.zeros(params.slots, complex)
    expected[: len(values)] = values
    tolerance = rounding(params, level) + 2.0**-FLOAT_BITS * np.max(np.abs(expected))
    assert np.max(np.abs(encoder.decode(pt) - expected)) < tolerance


def test_the_top_level_and_its_scale_are_the_default(encoder: Encoder) -> None:
    pt = encoder.encode([1.0])
    assert pt.level == encoder.params.max_level
    assert pt.scale == encoder.params.scales[-1]


def test_encoding_rounds_the_scaled_coefficients(
    encoder: Encoder, rng: np.random.Generator
) -> None:
    z = rng.uniform(-1, 1, 512) + 1j * rng.uniform(-1, 1, 512)
    pt = encoder.encode(z, level=2)
    expected = np.rint(embed(z, N) * float(pt.scale))
    assert np.array_equal(coefficients(encoder, pt), expected.astype(object))


@pytest.mark.parametrize("bits", [20, 30, 40, 52, 60, 62, 63, 64, 75, 90, 97])
def test_scales_up_to_two_to_the_97(encoder: Encoder, rng: np.random.Generator, bits: int) -> None:
    # From 2^62 on the coefficients no longer fit 64-bit integers.
    scale = Scale.from_int(1 << bits)
    z = rng.uniform(-1, 1, 512) + 1j * rng.uniform(-1, 1, 512)
    pt = encoder.encode(z, level=4, scale=1 << bits)
    assert pt.scale == scale
    tolerance = rounding(encoder.params, 4, scale) + 2.0**-FLOAT_BITS
    assert np.max(np.abs(encoder.decode(pt) - z)) < tolerance


def test_a_large_scale_keeps_every_bit_of_the_floats(encoder: Encoder) -> None:
    # A vector with a single monomial as its polynomial has coefficients without any rounding.
    value = 1 + 2.0**-40 + 2.0**-52
    pt = encoder.encode(np.full(512, value), level=4, scale=1 << 80)
    c = coefficients(encoder, pt)
    assert abs(c[0] - int(value * 2**80)) < 2**30  # the FFT of equal values adds exactly
    assert np.all(np.abs(c[1:]) < 2**32)


@pytest.mark.parametrize("magnitude", [2.0**-20, 1.0, 2.0**20, 2.0**40])
def test_relative_precision_does_not_depend_on_the_magnitude(
    encoder: Encoder, rng: np.random.Generator, magnitude: float
) -> None:
    # Decoding reads as many limbs as 48 bits above the scale need.
    params = encoder.params
    z = magnitude * rng.uniform(-1, 1, 512)
    error = np.max(np.abs(encoder.decode(encoder.encode(z, level=5)) - z))
    assert error < rounding(params, 5) + 2.0**-FLOAT_BITS * magnitude


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.lists(st.complex_numbers(max_magnitude=2.0**30), min_size=1, max_size=16),
    level=st.integers(2, 6),
)
def test_any_finite_vector_survives(encoder: Encoder, values: list[complex], level: int) -> None:
    expected = np.pad(np.array(values), (0, 512 - len(values)))
    decoded = encoder.decode(encoder.encode(values, level))
    # Rounding errors of chosen values may all have one sign: N / 2. Those of the transform are
    # relative to the norm of the vector.
    adverse = N / 2 / float(encoder.params.scales[level])
    tolerance = adverse + 2.0**-FLOAT_BITS * np.linalg.norm(expected)
    assert np.max(np.abs(decoded - expected)) < tolerance


# -- periodic vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2, 8, 32])
def test_a_periodic_vector_is_the_repeated_one_in_its_subring(
    encoder: Encoder, rng: np.random.Generator, period: int
) -> None:
    v = rng.uniform(-1, 1, period) + 1j * rng.uniform(-1, 1, period)
    scale = Scale.from_int(1 << 30)
    small = encoder.encode(v, level=3, scale=scale, periodic=True)
    full = encoder.encode(np.tile(v, 512 // period), level=3, scale=scale)
    assert small.is_periodic
    assert not full.is_periodic
    assert small.period == period
    assert small.data.shape == (len(encoder.params.limbs(3)), 2 * period)
    # Coefficients of about 2^30 are computed to 2^-20, so both round alike but once in 2^20.
    difference = coefficients(encoder, small) - coefficients(encoder, full)
    assert np.all(np.abs(difference) <= 1)
    assert np.count_nonzero(difference) <= 1
    stride = N // (2 * period)
    assert not np.any(np.delete(coefficients(encoder, small), np.arange(0, N, stride)))


def test_a_periodic_vector_decodes_to_its_repetition(
    encoder: Encoder, rng: np.random.Generator
) -> None:
    v = rng.uniform(-1, 1, 16)
    decoded = encoder.decode(encoder.encode(v, periodic=True))
    tolerance = rounding(encoder.params, encoder.params.max_level) + 2.0**-FLOAT_BITS
    assert np.max(np.abs(decoded - np.tile(v, 32))) < tolerance


@pytest.mark.parametrize("period", [64, 256, 512])
def test_long_periods_are_encoded_in_full(
    encoder: Encoder, rng: np.random.Generator, period: int
) -> None:
    # Runs of equal residues shorter than 16 points would not fill a vector register.
    v = rng.uniform(-1, 1, period)
    pt = encoder.encode(v, level=2, periodic=True)
    assert not pt.is_periodic
    assert same(pt.data, encoder.encode(np.tile(v, 512 // period), level=2).data)


@pytest.mark.parametrize("period", [6, 96])
def test_a_period_is_a_power_of_two(encoder: Encoder, period: int) -> None:
    with pytest.raises(EncodingError, match=f"power-of-two length, not {period}"):
        encoder.encode(np.ones(period), periodic=True)


# -- constants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, -1, 0.3, 1j, -0.7j, 0.25 - 0.5j, 123.456 + 7j])
def test_a_constant_is_the_vector_of_equal_values(encoder: Encoder, value: complex) -> None:
    params, level = encoder.params, 3
    scale = params.scales[level]
    runs = encoder.constant(complex(value), level, scale)
    assert runs.shape[1] == (1 if complex(value).imag == 0 else 2)
    pt = Plaintext(params, np.repeat(runs, 512 // runs.shape[1], axis=1), level, scale, 256)
    assert np.max(np.abs(encoder.decode(pt) - value)) < 2 / float(scale) + 1e-12 * abs(value)


def test_a_constant_is_rounded_to_the_nearest_integer_at_any_scale(encoder: Encoder) -> None:
    # 1/3 as a float times 2^70 is an integer that no float product would give exactly.
    assert encoder.rounded_constant(1 / 3 - 1j, 5, Scale.from_int(1 << 70)) == (
        6004799503160661 * 2**16,
        -(2**70),
    )


def test_the_imaginary_unit_squares_to_minus_one() -> None:
    for p in Parameters.preset(TINY).chain.primes:
        assert imaginary_unit(N, p) ** 2 % p == p - 1


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1j * np.inf, complex(0, np.nan)])
def test_values_that_are_not_finite_are_refused_by_index(
    encoder: Encoder, value: complex, periodic: bool
) -> None:
    with pytest.raises(EncodingError, match=r"at index \(2,\): only finite numbers encode"):
        encoder.encode([1, 2, value, 4], periodic=periodic)


@pytest.mark.parametrize("values", [[], np.ones(513)], ids=["none", "too many"])
def test_the_number_of_values_is_checked(encoder: Encoder, values: list[float]) -> None:
    message = f"a vector of {len(values)} values was given; {TINY} has 512 slots"
    with pytest.raises(EncodingError, match=message):
        encoder.encode(values)


@pytest.mark.parametrize("values", ["abc", [[1, 2], [3]], [object()], {"a": 1}])
def test_values_that_are_no_numbers_are_refused(encoder: Encoder, values: object) -> None:
    with pytest.raises(EncodingError, match="values must be numbers"):
        encoder.encode(values)  # type: ignore[arg-type]


def test_a_plaintext_encodes_one_vector(encoder: Encoder) -> None:
    with pytest.raises(EncodingError, match=r"one vector; shape \(2, 4\)"):
        encoder.encode(np.ones((2, 4)))


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("level", [0, 1, 6])
def test_values_too_large_for_the_level_are_refused(
    encoder: Encoder, level: int, periodic: bool
) -> None:
    params = encoder.params
    # Coefficients have to stay below Q / 2, and below 2^100.
    bits = min(params.log2_moduli[level] - 1, 100) - params.scales[level].log2
    encoder.encode(np.full(4, 2.0 ** (bits - 0.01)), level, periodic=True)
    values = np.full(4 if periodic else 512, 2.0 ** (bits + 0.01))
    with pytest.raises(EncodingError, match=f"level {level} holds less than"):
        encoder.encode(values, level, periodic=periodic)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("value", [1e200, 1.7e308, -1.7e308j])
def test_values_near_the_end_of_the_float_range_are_refused(
    encoder: Encoder, rng: np.random.Generator, value: complex, periodic: bool
) -> None:
    values = value * rng.choice([-1, 1], 64 if periodic else 512)
    with pytest.raises(EncodingError, match="holds less than"):
        encoder.encode(values, periodic=periodic)


@pytest.mark.parametrize("level", [-1, 7])
def test_levels_out_of_range_are_refused(encoder: Encoder, level: int) -> None:
    with pytest.raises(LevelError, match=f"level {level} was given; {TINY} has levels 0 to 6"):
        encoder.encode([1.0], level)


def test_a_plaintext_of_other_parameters_is_not_decoded(encoder: Encoder) -> None:
    other = Encoder(Parameters.preset("insecure-n10-d54"))
    with pytest.raises(IncompatibleError, match=r"the encoder belongs to .* the plaintext to"):
        encoder.decode(other.encode([1.0]))
