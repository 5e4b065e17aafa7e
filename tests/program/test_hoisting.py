"""Rotations in two stages: the same rotations, fewer keys."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aegis_dask.program.hoisting import SINGLE_STAGE, two_stages

SLOTS = 4096


def expanded(outer: tuple[int, ...], inner: tuple[int, ...], count: int) -> list[int]:
    return [(outer[i // len(inner)] + inner[i % len(inner)]) % SLOTS for i in range(count)]


@example(129, 64)
@given(st.integers(1, 300), st.integers(1, 64))
def test_an_arithmetic_progression_is_the_sum_of_two(count: int, stride: int) -> None:
    steps = tuple(i * stride for i in range(count))
    outer, inner = two_stages(steps, SLOTS)
    assert expanded(outer, inner, count) == [s % SLOTS for s in steps]
    if count > SINGLE_STAGE:
        # Steps that wrap around may come more than once in a stage; a key serves them all.
        keys = {s % SLOTS for s in (*outer, *inner)} - {0}
        assert len(keys) <= 2 * count**0.5 + 2


@given(st.lists(st.integers(0, SLOTS - 1), min_size=1, max_size=40))
def test_any_steps_come_out_as_they_are(steps: list[int]) -> None:
    outer, inner = two_stages(tuple(steps), SLOTS)
    assert expanded(outer, inner, len(steps)) == steps


def test_values_of_attention_take_two_tokens_and_the_baby_steps() -> None:
    half = SLOTS // 2
    steps = tuple(b * 16 + h for b in range(16) for h in (0, half))
    outer, inner = two_stages(steps, SLOTS)
    assert len(outer) + len(inner) < 16
    assert expanded(outer, inner, 32) == [s % SLOTS for s in steps]


@pytest.mark.parametrize("count", [1, 2, SINGLE_STAGE])
def test_few_steps_have_keys_of_their_own(count: int) -> None:
    steps = tuple(range(count))
    assert two_stages(steps, SLOTS) == ((0,), steps)
