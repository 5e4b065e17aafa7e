"""Parameters are chosen by depth: a secure preset where one fits, else insecure ones if allowed."""

from __future__ import annotations

import pytest

from aegis_dask.ckks.parameters import PRESETS, Parameters
from aegis_dask.errors import ParameterError
from aegis_dask.program.parameters import digits_at, parameters_for


@pytest.mark.parametrize(
    ("depth", "log_n", "scale_bits", "name"),
    [
        (2, 14, 40, "n14-d40"),
        (6, 14, 40, "n14-d40"),
        (13, 15, 40, "n15-d40"),
        (30, 16, 40, "n16-d40"),
        (34, 16, 35, "n16-d35"),
    ],
)
def test_a_secure_preset_is_chosen(depth: int, log_n: int, scale_bits: int, name: str) -> None:
    assert parameters_for(depth, 1 << (log_n - 1), scale_bits).name == name


def test_insecure_parameters_are_made_only_when_allowed() -> None:
    with pytest.raises(ParameterError, match="--insecure"):
        parameters_for(31, 1 << 15)
    with pytest.raises(ParameterError, match="--insecure"):
        parameters_for(3, 1 << 9)  # there are presets of this size, insecure ones
    params = parameters_for(31, 1 << 15, allow_insecure=True)
    assert params.literal.insecure
    assert "insecure" in params.name
    assert params.max_level == 31
    assert parameters_for(30, 1 << 15, allow_insecure=True).name == "n16-d40"


@pytest.mark.parametrize("scale_bits", [35, 40, 45])
@pytest.mark.parametrize("depth", [2, 3, 12, 45])
def test_there_are_insecure_parameters_of_every_depth(depth: int, scale_bits: int) -> None:
    params = parameters_for(depth, 512, scale_bits, allow_insecure=True)
    assert params.max_level == depth
    assert params.slots == 512
    assert params.scales[1].log2 == pytest.approx(scale_bits, abs=0.5)


@pytest.mark.parametrize("slots", [0, 1, 500, 1 << 8, 1 << 17])
def test_rings_that_do_not_exist_are_refused(slots: int) -> None:
    with pytest.raises(ParameterError, match=f"{slots} was given"):
        parameters_for(2, slots, allow_insecure=True)


@pytest.mark.parametrize("name", PRESETS)
def test_digits_cover_the_window(name: str) -> None:
    params = Parameters.preset(name)
    for level in range(params.max_level + 1):
        bounds = params.digit_bounds
        used = {
            d
            for i in params.window(level).limbs()
            for d in range(len(bounds) - 1)
            if bounds[d] <= i < bounds[d + 1]
        }
        assert digits_at(params, level) == len(used)
