"""Noise flooding: the right distribution, the predicted loss, refusal where too little is left."""

from __future__ import annotations

from math import exp, log2, sqrt

import numpy as np
import pytest

from aegis_dask.ckks import sharing
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.sharing import Sharing, discrete_gaussian, error_bound
from aegis_dask.errors import ParameterError
from tests.schemes import make_scheme

pytestmark = pytest.mark.filterwarnings("ignore::aegis_dask.errors.InsecureParametersWarning")


def test_a_small_gaussian_has_its_probabilities() -> None:
    count, sigma = 20_000, 2
    drawn = np.array([discrete_gaussian(sigma) for _ in range(count)])
    weights = {x: exp(-(x**2) / (2 * sigma**2)) for x in range(-40, 41)}
    total = sum(weights.values())
    for x in range(-4, 5):
        p = weights[x] / total
        deviation = sqrt(p * (1 - p) / count)
        assert abs((drawn == x).mean() - p) < 6 * deviation  # wrong once in 10^8 runs


@pytest.mark.parametrize("sigma", [1 << 10, 3 << 40, 5 << 70])
def test_a_wide_gaussian_has_its_moments(sigma: int) -> None:
    count = 20_000
    drawn = np.array([discrete_gaussian(sigma) / sigma for _ in range(count)])
    assert abs(drawn.mean()) < 6 / sqrt(count)
    assert abs((drawn**2).mean() - 1) < 6 * sqrt(2 / count)
    assert abs((drawn**4).mean() - 3) < 6 * sqrt(96 / count)
    assert abs((np.abs(drawn) < 1).mean() - 0.6827) < 6 * 0.47 / sqrt(count)


def test_noise_is_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.seed(1)
    values = np.zeros(50)
    flooded = Sharing(2.0**-40).flood(values)
    np.random.seed(1)
    assert not np.array_equal(flooded, Sharing(2.0**-40).flood(values))
    monkeypatch.setattr(sharing.secrets, "randbelow", lambda bound: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        Sharing(2.0**-40).flood(values)


@pytest.mark.parametrize(
    ("error", "bits", "queries", "count"), [(2.0**-40, 30, 1, 1), (1e-15, 40, 1000, 384)]
)
def test_the_divergence_is_what_the_theorem_asks_for(
    error: float, bits: float, queries: int, count: int
) -> None:
    """Over all queries: q t^2 / 2 sigma^2, t the distance of two rounded results, 2^-(s + 7)."""
    share = Sharing(error, bits, queries)
    distance = sqrt(count) * (error + share.grid)
    assert share.grid <= error / 16
    divergence = queries * distance**2 / (2 * share.deviation(count) ** 2)
    assert 0.99 * 2 ** -(bits + 7) < divergence <= 2 ** -(bits + 7)


def test_what_is_lost_is_what_was_predicted() -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (100, 80))
    share = Sharing(1e-12, bits=20, queries=4)
    flooded = share.flood(values)
    assert flooded.shape == values.shape
    measured = np.sqrt(np.mean((flooded - values) ** 2))
    assert abs(-log2(measured) - share.precision(values.size)) < 0.1
    assert abs(np.mean(flooded - values)) < 6 * share.deviation(values.size) / sqrt(values.size)
    # Every number is a multiple of the grid, as are those of any other values.
    assert (flooded / share.grid == np.rint(flooded / share.grid)).all()


def test_complex_values_count_twice() -> None:
    share = Sharing(1e-14)
    values = np.full(4000, 0.5 - 0.25j)
    difference = share.flood(values) - values
    for part in (difference.real, difference.imag):
        assert abs(part.std() / share.deviation(8000) - 1) < 0.1


def test_more_security_more_results_and_more_numbers_cost_precision() -> None:
    base = Sharing(1e-9, bits=30, queries=1)
    for other, count, lost in (
        (Sharing(1e-9, bits=40), 100, 5),
        (Sharing(1e-9, bits=30, queries=16), 100, 2),
        (base, 1600, 2),
        (Sharing(4e-9, bits=30), 100, 2),
    ):
        assert base.precision(100) - other.precision(count) == pytest.approx(lost, abs=0.1)


def test_too_little_precision_is_refused() -> None:
    values = np.zeros(384)
    with pytest.raises(ParameterError, match=r"leaves .* bits after the binary point"):
        Sharing(2.0**-22).flood(values)
    share = Sharing(2.0**-45)
    assert share.precision(384) > 20
    share.flood(values)
    with pytest.raises(ParameterError, match="at least 40"):
        Sharing(2.0**-45, least_precision=40).flood(values)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_value_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ParameterError, match="not finite"):
        Sharing(2.0**-90).flood(np.array([0.0, value]))


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0,),
        (-1.0,),
        (np.nan,),
        (np.inf,),
        (1e-9, 0),
        (1e-9, 1000),
        (1e-9, np.nan),
        (1e-9, 30, 0),
        (1e-9, 30, 2**41),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ParameterError):
        Sharing(*arguments)  # type: ignore[arg-type]


def test_a_decryption_is_flooded_beyond_its_error() -> None:
    """With the average-case bound of the noise model, which the measured errors do not reach."""
    scheme = make_scheme(Parameters.preset("insecure-n10-d54"))
    params = scheme.params
    values = np.linspace(-1, 1, params.slots)
    ciphertext = scheme.secret_encryptor.encrypt(values)
    noise = scheme.noise.fresh_secret(params.max_level)
    bound = error_bound(noise, params.slots)
    plain = scheme.decryptor.decrypt(ciphertext)
    assert np.max(np.abs(plain - values)) < bound
    share = Sharing(bound, bits=20, least_precision=10)
    shared = scheme.decryptor.decrypt(ciphertext, share)
    added = np.concatenate([(shared - plain).real, (shared - plain).imag])
    assert abs(added.std() / share.deviation(2 * params.slots) - 1) < 0.15
    assert not np.array_equal(shared, scheme.decryptor.decrypt(ciphertext, share))
    with pytest.raises(ParameterError, match="after the binary point"):
        scheme.decryptor.decrypt(ciphertext, Sharing(bound, bits=120))
