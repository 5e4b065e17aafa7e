from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from math import log2, prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.ckks.parameters import (
    PRESETS,
    Parameters,
    ParametersLiteral,
    balanced_digits,
    check_same,
)
from aegis_dask.ckks.security import MAX_LOG2_MODULUS, check_key_modulus, max_log2_modulus
from aegis_dask.errors import (
    IncompatibleError,
    InsecureParametersError,
    InsecureParametersWarning,
    ParameterError,
)

SECURE = [name for name in PRESETS if "insecure" not in name]
INSECURE = [name for name in PRESETS if "insecure" in name]
TINY = PRESETS["insecure-n10-d40"]


# -- security -----------------------------------------------------------------------------------


def test_the_table_is_the_published_one() -> None:
    # ePrint 2024/463, Table 5.2: classical, uniform ternary secret, 128 bits.
    published = {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747, 17: 3523}
    assert published == MAX_LOG2_MODULUS


@pytest.mark.parametrize("name", SECURE)
def test_evaluation_keys_of_secure_presets_are_within_the_table(name: str) -> None:
    params = Parameters.preset(name)
    assert params.log2_key_modulus <= MAX_LOG2_MODULUS[params.literal.log_n]
    assert params.is_secure
    assert not params.literal.insecure
    assert "128-bit secure" in repr(params)


@pytest.mark.parametrize("name", INSECURE)
def test_presets_above_the_table_say_so_in_name_and_representation(name: str) -> None:
    params = Parameters.preset(name)
    assert params.log2_key_modulus > max_log2_modulus(params.literal.log_n)
    assert not params.is_secure
    assert params.literal.insecure
    assert "INSECURE" in repr(params)


@pytest.mark.parametrize("name", INSECURE)
def test_insecure_parameters_warn_with_both_numbers(name: str) -> None:
    literal = PRESETS[name]
    message = rf"{name} are insecure: log2 QP is \d+, at most {MAX_LOG2_MODULUS[literal.log_n]} "
    with pytest.warns(InsecureParametersWarning, match=message):
        Parameters(literal)


@pytest.mark.parametrize("name", SECURE)
def test_secure_parameters_do_not_warn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Parameters(PRESETS[name])


def test_a_secure_set_may_carry_the_insecure_flag_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Parameters(replace(PRESETS["n13-d30"], insecure=True)).is_secure


@pytest.mark.parametrize("name", INSECURE)
def test_a_modulus_over_the_table_is_refused_with_both_numbers(name: str) -> None:
    literal = replace(PRESETS[name], insecure=False)
    message = (
        rf"modulus of \d+\.\d bits; at ring degree 2\^{literal.log_n} at most "
        rf"{MAX_LOG2_MODULUS[literal.log_n]} bits give 128-bit security"
    )
    with pytest.raises(InsecureParametersError, match=message):
        Parameters.from_literal(literal)


def test_one_level_more_than_a_secure_preset_is_refused() -> None:
    literal = PRESETS["n13-d30"]
    longer = replace(literal, level_bits=(*literal.level_bits, 30), digits=6)
    with pytest.raises(InsecureParametersError):
        Parameters.from_literal(longer)


def test_special_primes_count_towards_the_modulus() -> None:
    literal = PRESETS["n13-d30"]
    with pytest.raises(InsecureParametersError):
        Parameters.from_literal(replace(literal, special_primes=literal.special_primes + 1))


def test_the_table_is_sharp_and_unknown_degrees_allow_nothing() -> None:
    for log_n, limit in MAX_LOG2_MODULUS.items():
        check_key_modulus(log_n, limit, "a key")
        with pytest.raises(InsecureParametersError, match="a key has a modulus"):
            check_key_modulus(log_n, limit + 0.1, "a key")
    assert max_log2_modulus(9) == 0
    assert max_log2_modulus(18) == 0


# -- what is refused ----------------------------------------------------------------------------


def test_an_unknown_preset_is_answered_with_the_list_of_presets() -> None:
    with pytest.raises(ParameterError, match=r"no preset 'n12'; there are .*n16-d40"):
        Parameters.preset("n12")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_n": 9}, "log_n is 9, it must be 10 to 17"),
        ({"log_n": 18}, "log_n is 18"),
        ({"digits": 0}, "digits is 0, it must be 1 to 8"),
        ({"digits": 9}, "digits is 9"),
        ({"special_primes": 0}, "special_primes is 0"),
        ({"scale_bits": 19}, "scale_bits is 19, it must be at least 20"),
        ({"scale_bits": 50}, r"below base_bits \(50\)"),
        (
            {"base_bits": 45, "scale_bits": 30, "level_bits": (54,)},
            "the base has 45 bits; it has 50",
        ),
        ({"level_bits": (34,)}, "a level has 25 to 30"),
        (
            {"special_primes": 2},
            "largest of 4 digits has 90 bits, P only 60; P must be 8 bits larger",
        ),
        ({"log_n": 9, "digits": 0}, "log_n is 9.*; digits is 0"),
    ],
)
def test_contradictions_are_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Parameters.from_literal(replace(TINY, **changes))


# -- structure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_the_special_modulus_exceeds_every_digit_by_eight_bits(name: str) -> None:
    params = Parameters.preset(name)
    bounds = params.digit_bounds
    assert params.digits <= params.literal.digits
    assert bounds[0] == 0
    assert bounds[-1] == len(params.chain.primes)
    for i, j in pairwise(bounds):
        assert i < j
        digit = prod(params.chain.primes[i:j])
        assert log2(digit) + 8 <= log2(params.chain.special_modulus)


@given(st.lists(st.integers(2**20, 2**30), min_size=1, max_size=9), st.integers(1, 5))
def test_digits_are_balanced(primes: list[int], count: int) -> None:
    def largest(bounds: Sequence[int]) -> int:
        return max(prod(primes[i:j]) for i, j in pairwise(bounds))

    bounds = balanced_digits(primes, count)
    inner = range(1, len(primes))
    alternatives = [
        (0, *cuts, len(primes)) for k in range(count) for cuts in combinations(inner, k)
    ]
    assert bounds in alternatives
    assert log2(largest(bounds)) == pytest.approx(log2(min(map(largest, alternatives))))


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_follow_from_the_literal(name: str) -> None:
    params, literal = Parameters.preset(name), PRESETS[name]
    assert params.name == name
    assert params.ring_degree == 1 << literal.log_n
    assert params.slots == params.ring_degree // 2
    assert params.max_level == len(literal.level_bits)
    limbs = len(params.chain.primes) + len(params.chain.special_primes)
    assert params.evaluation_key_bytes == 2 * params.digits * limbs * params.ring_degree * 4
    for level in range(params.max_level + 1):
        assert params.limbs(level) == list(params.window(level).limbs())


@pytest.mark.parametrize("name", PRESETS)
def test_values_have_room_above_the_canonical_scale_at_every_level(name: str) -> None:
    # The gap between modulus and scale at level 0 is base_bits - scale_bits; it never shrinks much.
    params, literal = Parameters.preset(name), PRESETS[name]
    for modulus, scale in zip(params.log2_moduli, params.scales, strict=True):
        assert modulus - scale.log2 > literal.base_bits - literal.scale_bits - 1


@pytest.mark.parametrize("name", PRESETS)
def test_canonical_scales_are_near_the_literal_except_below_a_wider_top(name: str) -> None:
    params, literal = Parameters.preset(name), PRESETS[name]
    for level, scale in enumerate(params.scales):
        if level == 0 or literal.level_bits[level - 1] == literal.scale_bits:
            assert abs(scale.log2 - literal.scale_bits) < 1
        else:
            assert scale.log2 > literal.scale_bits


# -- identity -----------------------------------------------------------------------------------


def test_parameters_are_made_once_per_literal() -> None:
    assert Parameters.preset("n13-d30") is Parameters.from_literal(PRESETS["n13-d30"])


def test_name_and_flag_do_not_take_part_in_equality() -> None:
    params = Parameters.preset("n13-d30")
    twin = Parameters(replace(PRESETS["n13-d30"], name="twin", insecure=True))
    assert params == twin
    assert hash(params) == hash(twin)
    assert params.fingerprint == twin.fingerprint
    assert params != "n13-d30"


@pytest.mark.parametrize(
    "changes",
    [
        {"log_n": 11},
        {"base_bits": 55, "level_bits": (45,) * 5},
        {"level_bits": (40,) * 5},
        {"special_primes": 5},
        {"digits": 6},
        {"scale_bits": 39},
    ],
    ids=lambda c: ",".join(c),
)
def test_everything_else_does(changes: dict) -> None:
    params, other = Parameters.from_literal(TINY), Parameters.from_literal(replace(TINY, **changes))
    assert params != other
    assert params.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", PRESETS)
def test_presets_differ_from_each_other(name: str) -> None:
    params = Parameters.preset(name)
    assert [other for other in PRESETS if Parameters.preset(other) == params] == [name]


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from aegis_dask.ckks.parameters import Parameters\n"
        "print(Parameters.preset('insecure-n10-d40').fingerprint)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == Parameters.from_literal(TINY).fingerprint


def test_pickling_keeps_identity_within_a_process() -> None:
    params = Parameters.from_literal(TINY)
    assert pickle.loads(pickle.dumps(params)) is params
    assert len(pickle.dumps(params)) < 1000  # the literal, not the primes


def test_to_dict_is_json_and_gives_the_literal_back() -> None:
    for literal in PRESETS.values():
        data = json.loads(json.dumps(Parameters.from_literal(literal).to_dict()))
        data["level_bits"] = tuple(data["level_bits"])
        assert ParametersLiteral(**data) == literal


def test_check_same_names_both_sides() -> None:
    class Thing:
        def __init__(self, name: str) -> None:
            self.params = Parameters.preset(name)

    a, b = Thing("n13-d30"), Thing("insecure-n10-d40")
    check_same(a, Thing("n13-d30"))
    with pytest.raises(IncompatibleError, match=r"the key belongs to .*n13-d30.* and the box to"):
        check_same(a, a, b, names=("the key", "another key", "the box"))
    with pytest.raises(IncompatibleError, match="Thing belongs to"):
        check_same(a, b)
