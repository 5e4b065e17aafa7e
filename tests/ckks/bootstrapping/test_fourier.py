"""The factored map between slots and coefficients against the encoder's transform."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.fourier import factors, split_stages
from aegis_dask.ckks.encoder import project
from aegis_dask.errors import ParameterError
from aegis_dask.ring.tables import bit_reversal

CASES = [(1, [0]), (2, [1]), (16, [2, 2]), (64, [2, 2, 2]), (64, [6]), (512, [3, 3, 3]),
         (512, [2, 3, 2, 2]), (4096, [5, 4, 3])]  # fmt: skip


def random(slots: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=slots) + 1j * rng.normal(size=slots)


@pytest.mark.parametrize(("slots", "runs"), CASES)
def test_factors_take_bit_reversed_coefficients_to_slots(
    slots: int, runs: list[int], rng: np.random.Generator
) -> None:
    x = f = random(slots, rng)
    for factor in factors(slots, runs, inverse=False):
        x = factor.apply(x)
    natural = f[bit_reversal(slots)]
    expected = project(np.concatenate([natural.real, natural.imag]), 2 * slots)
    # float64: log2(slots) stages of rounding
    assert np.max(np.abs(x - expected)) < 2.0**-44 * slots


@pytest.mark.parametrize(("slots", "runs"), CASES)
def test_the_inverse_factors_undo_them_times_the_constant(
    slots: int, runs: list[int], rng: np.random.Generator
) -> None:
    x = f = random(slots, rng)
    for factor in factors(slots, runs, inverse=False):
        x = factor.apply(x)
    for factor in factors(slots, runs[::-1], inverse=True, constant=0.25j):
        x = factor.apply(x)
    assert np.max(np.abs(x - 0.25j * f)) < 2.0**-44


@pytest.mark.parametrize("inverse", [False, True])
def test_rotations_begin_at_zero_and_only_the_longest_blocks_are_cyclic(inverse: bool) -> None:
    made = factors(512, [3, 3, 3], inverse)
    made = made[::-1] if inverse else made
    assert [f.stride for f in made] == [1, 8, 64]
    assert [f.period for f in made] == [8, 64, 512]
    assert [len(f.diagonals) for f in made] == [16, 15, 8]


def test_stages_are_cut_so_that_one_factor_at_most_has_a_long_period() -> None:
    # N = 2^16: plaintexts up to period 2^11 are stored by their distinct residues
    assert split_stages(1 << 15, 1 << 16, 4) == [4, 4, 3, 4]
    assert split_stages(1 << 15, 1 << 16, 3) == [5, 5, 5]
    assert split_stages(1, 1 << 16, 1) == [0]
    for count in range(1, 9):
        assert sum(split_stages(512, 1 << 10, count)) == 9


def test_more_factors_than_stages_are_refused() -> None:
    with pytest.raises(ParameterError, match="3 stages of 8 slots"):
        split_stages(8, 1 << 10, 4)
