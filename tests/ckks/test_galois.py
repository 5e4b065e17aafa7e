from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.ckks.galois import (
    conjugation_element,
    decompose,
    inner_sum_steps,
    normalize,
    power_of_two_steps,
    rotation_element,
    rotation_step,
)

degrees = st.integers(10, 17).map(lambda k: 1 << k)


@given(st.integers(-(10**9), 10**9), degrees)
def test_rotation_step_inverts_rotation_element(steps: int, degree: int) -> None:
    element = rotation_element(steps, degree)
    assert element == pow(5, steps % (degree // 2), 2 * degree)
    assert rotation_step(element, degree) == steps % (degree // 2)


def test_every_rotation_of_the_smallest_ring_has_its_element() -> None:
    elements = [rotation_element(k, 1024) for k in range(512)]
    assert sorted(elements) == list(range(1, 2048, 4))
    assert [rotation_step(g, 1024) for g in elements] == list(range(512))


@pytest.mark.parametrize("element", [3, 2047, 2048 - 5])
def test_a_conjugation_is_no_rotation(element: int) -> None:
    with pytest.raises(ValueError, match="is not a rotation"):
        rotation_step(element, 1024)


def test_conjugation_is_an_involution_outside_the_rotations() -> None:
    assert conjugation_element(1024) == 2047
    assert conjugation_element(1024) ** 2 % 2048 == 1
    assert conjugation_element(1024) % 4 == 3


def test_powers_of_two_reach_every_rotation_with_one_step_per_bit() -> None:
    steps = frozenset(power_of_two_steps(512))
    assert steps == {1 << k for k in range(9)}
    for k in range(512):
        path = decompose(k, steps, 512)
        assert path is not None
        assert sum(path) % 512 == k
        assert len(path) <= k.bit_count()


@given(
    steps=st.integers(-40, 40),
    available=st.frozensets(st.integers(1, 15), max_size=4),
)
def test_decompose_finds_a_shortest_path_or_none(steps: int, available: frozenset[int]) -> None:
    slots = 16
    path = decompose(steps, available, slots)

    def reachable(length: int) -> bool:
        choices = product(sorted(available), repeat=length)
        return any(sum(c) % slots == steps % slots for c in choices)

    if path is None:
        # 15 steps visit every sum that can be reached at all
        sums = {0}
        for _ in range(slots):
            sums |= {(s + k) % slots for s in sums for k in available}
        assert steps % slots not in sums
    else:
        assert set(path) <= available
        assert sum(path) % slots == steps % slots
        assert not any(reachable(length) for length in range(min(len(path), 4)))


@given(st.integers(1, 200), st.integers(1, 5))
def test_inner_sum_steps_are_few(count: int, stride: int) -> None:
    steps = inner_sum_steps(count, stride)
    assert len(steps) <= 2 * np.log2(count)
    assert all(s % stride == 0 and 0 < s < count * stride for s in steps)


def test_inner_sum_steps_of_a_power_of_two_are_the_powers_below() -> None:
    assert inner_sum_steps(8) == (1, 2, 4)
    assert inner_sum_steps(8, 3) == (3, 6, 12)
    assert inner_sum_steps(1) == ()


def test_normalize_drops_zero_and_doubles() -> None:
    assert normalize([0, 3, -1, 515, 512], 512) == (3, 511)
