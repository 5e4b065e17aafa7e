"""Levels, scales and security of the parameter sets with bootstrapping."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from math import log2

import pytest

from aegis_dask.ckks.bootstrapping.parameters import (
    BOOTSTRAPPING_PRESETS,
    BootstrappingLiteral,
    BootstrappingParameters,
    parameters_from_dict,
)
from aegis_dask.ckks.parameters import PRESETS
from aegis_dask.ckks.scale import Scale
from aegis_dask.ckks.security import MAX_LOG2_MODULUS, check_sparse_key_modulus
from aegis_dask.errors import (
    InsecureParametersError,
    InsecureParametersWarning,
    ParameterError,
)

SECURE = [n for n, p in BOOTSTRAPPING_PRESETS.items() if not p.insecure]


@pytest.mark.parametrize("name", SECURE)
def test_the_moduli_of_all_keys_are_secure(name: str) -> None:
    params = BootstrappingParameters.preset(name)
    log_n = params.literal.log_n
    product = 1
    for p in params.params.chain.all_primes:
        product *= p
    assert log2(product) <= MAX_LOG2_MODULUS[log_n]
    sparse = 1
    for p in params.sparse_chain.all_primes:
        sparse *= p
    assert log2(sparse) <= {16: 121, 15: 80}[log_n]
    assert params.sparse_chain.modulus(0) == params.params.chain.modulus(0)


def test_usable_levels_are_what_was_promised() -> None:
    usable = {n: BootstrappingParameters.preset(n).usable_levels for n in SECURE}
    assert usable["n16-d40-b13"] >= 13
    assert usable["n16-d35-b15"] >= 15
    assert usable["n15-d35-b3"] >= 3


@pytest.mark.parametrize("name", BOOTSTRAPPING_PRESETS)
def test_levels_add_up(name: str) -> None:
    p = BootstrappingParameters.preset(name)
    assert p.output_level - p.input_level == p.usable_levels
    assert p.sine_level - p.output_level == len(p.literal.sine_bits)
    assert p.max_level - p.sine_level == len(p.literal.coeffs_to_slots)


@pytest.mark.parametrize("name", BOOTSTRAPPING_PRESETS)
def test_scales_of_eval_mod_follow_products_and_end_as_the_ratio(name: str) -> None:
    p = BootstrappingParameters.preset(name)
    scales = p.sine_scales(p.raised_scale)
    for level in range(p.output_level + 1, p.sine_level + 1):
        assert scales[level] * scales[level] / p.quotient(level) == scales[level - 1]
    ratio = scales[p.output_level] / p.params.scales[p.output_level]
    assert ratio == Scale({2: p.literal.ratio_bits})


def test_a_sparse_key_above_its_own_bound_is_refused() -> None:
    literal = replace(BOOTSTRAPPING_PRESETS["n16-d40-b13"], sparse_special_primes=3)
    with pytest.raises(InsecureParametersError, match=r"140\.0 bits and a secret with 32 nonzero"):
        BootstrappingParameters.from_literal(literal)


def test_a_weak_ephemeral_secret_makes_the_whole_set_insecure() -> None:
    literal = replace(BOOTSTRAPPING_PRESETS["n16-d40-b13"], sparse_weight=1, insecure=True)
    with pytest.warns(InsecureParametersWarning, match="secret with 1 nonzero coefficients has 80"):
        params = BootstrappingParameters(literal)
    assert params.params.is_secure
    assert not params.is_secure
    assert "INSECURE" in repr(params)


@pytest.mark.parametrize("name", BOOTSTRAPPING_PRESETS)
def test_presets_are_as_secure_as_their_names_say(name: str) -> None:
    params = BootstrappingParameters.preset(name)
    assert params.is_secure == ("insecure" not in name)
    assert params.is_secure == (not params.weakness)


def test_insecure_parameters_are_read_only_where_that_is_allowed() -> None:
    literal = replace(BOOTSTRAPPING_PRESETS["n16-d40-b13"], sparse_weight=1, insecure=True)
    written = asdict(literal.scheme), asdict(literal)
    with pytest.raises(InsecureParametersError, match="marked as insecure"):
        parameters_from_dict(*written)
    read = parameters_from_dict(*written, allow_insecure=True)
    assert isinstance(read, BootstrappingParameters)
    assert read.literal == replace(literal, name="")  # it is not the set of that name
    with pytest.raises(InsecureParametersError, match="marked as insecure"):
        parameters_from_dict(asdict(PRESETS["insecure-n10-d40"]), None)


def test_a_weight_without_a_known_bound_is_refused() -> None:
    check_sparse_key_modulus(16, 32, 110.0, "a key")
    with pytest.raises(InsecureParametersError, match="at most 0 bits"):
        check_sparse_key_modulus(16, 31, 110.0, "a key")


def test_eval_mod_needs_as_many_levels_as_it_takes() -> None:
    literal = replace(BOOTSTRAPPING_PRESETS["n16-d40-b13"], sine_bits=(58,) * 7)
    with pytest.raises(ParameterError, match=r"7 levels of EvalMod were given.* take 8"):
        BootstrappingParameters.from_literal(literal)


def test_unknown_presets_are_named() -> None:
    with pytest.raises(ParameterError, match="n16-d40-b13"):
        BootstrappingParameters.preset("n16")


def test_parameters_are_pickled_as_their_literal() -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")
    assert pickle.loads(pickle.dumps(params)) is params
    assert isinstance(params.literal, BootstrappingLiteral)


def test_the_top_levels_use_the_terminal_primes_that_are_there() -> None:
    params = BootstrappingParameters.preset("n16-d40-b13").params
    below, second, top = params.chain.windows[-3:]
    assert (below.start - second.start, second.start - top.start) == (2, 2)
    assert below.stop == second.stop == top.stop == len(params.chain.primes)
    assert (top.start, below.start) == (0, 4)
