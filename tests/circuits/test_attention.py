"""Simulated attention is softmax attention, for every relation of heads, blocks and tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aegis_dask.circuits.attention import ScoreOffsets, SelfAttention, self_attention
from aegis_dask.circuits.lanes import Steps, split_tokens
from aegis_dask.circuits.packing import Packing, feature_layout
from aegis_dask.circuits.ranges import LayerRanges, Tolerances, fit_layer
from aegis_dask.circuits.tokens import Dense, TokenMatrix
from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import Capture, Program, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from tests.circuits.plain import Attention, Float

TIGHT = Tolerances(exponential=1e-9, inverse=1e-8)


def attend(
    plain: Attention,
    x: Float,
    packing: Packing,
    ranges: LayerRanges,
    tolerances: Tolerances | None = TIGHT,
    unpacked: Packing | None = None,
) -> tuple[Float, Simulated, Program]:
    """Return the simulated result ``[tokens, heads * size]``, perhaps of more positions."""
    fits = fit_layer(ranges, 1e-12, tolerances, causal=plain.causal)
    b = plain.biases
    layer = SelfAttention(
        Dense("q", b["q"]),
        Dense("k", b["k"]),
        Dense("v", np.zeros(0)),  # neither is the value's bias used
        plain.heads,
        plain.size,
        plain.causal,
    )
    layout = feature_layout(plain.features, packing.blocks)
    known: dict[str, Any] = {}

    def build(c: Capture) -> None:
        matrix = TokenMatrix(c.input("x", layout.shape), layout, packing)
        y, known["layout"], known["factor"] = self_attention(matrix, layer, ranges.attention, fits)
        c.output("y", y)

    program, e = capture(packing.slots, build), Simulated()
    y = run(program, e, {"x": packing.pack(x, layout) + 0j}, plain.weights)["y"]
    y = np.stack([y.real, y.imag], axis=1) * known["factor"]
    return (unpacked or packing).unpack(y, known["layout"]), e, program


def text(plain: Attention, length: int, seed: int = 3) -> Float:
    return np.random.default_rng(seed).standard_normal((length, plain.features))


@pytest.mark.parametrize(
    ("heads", "blocks"), [(1, 1), (3, 8), (8, 8), (5, 4), (9, 4), (3, 1), (12, 16)]
)
@pytest.mark.parametrize("length", [32, 20, 64])
def test_attention_is_softmax_attention(heads: int, blocks: int, length: int) -> None:
    plain = Attention(heads, 4, features=24)
    x = text(plain, length)
    packing = Packing.for_length(blocks * (64 if length == 64 else 32), length)
    found, e, program = attend(plain, x, packing, plain.ranges(x))
    expected = plain(x)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    assert e.largest <= 1  # nothing leaves the interval of the exponential
    fits = fit_layer(plain.ranges(x), 1e-12, TIGHT)
    # projection, scores, exp, values; the denominators, then the division; masks with lanes
    mask = int(split_tokens(packing, heads).lanes > 1)
    bottom = 2 + fits.exponential.depth + mask + fits.inverse.depth
    longest = max(3 + fits.exponential.depth, bottom)
    assert program.depth == longest + 1 + mask


@settings(deadline=None, max_examples=20)
@given(length=st.integers(2, 64), seed=st.integers(0, 100))
def test_texts_that_do_not_fill_the_positions_are_weighted(length: int, seed: int) -> None:
    """Most tokens are then held by one position more, or less, than others."""
    plain = Attention(2, 2, features=6, seed=seed)
    x = text(plain, length, seed)
    ranges = plain.ranges(x)
    assume(ranges.attention.spread < 10)  # denominators over a ratio of e^10
    found, e, _ = attend(plain, x, Packing.for_length(256, length), ranges)
    np.testing.assert_allclose(found, plain(x), atol=1e-5)
    assert e.largest <= 1


def test_positions_that_repeat_a_token_get_the_same_result() -> None:
    """What follows attention sees them as keys again."""
    plain = Attention(2, 2, features=6)
    x = text(plain, 20)
    everywhere = Packing(128, 32, 32)
    found, _, _ = attend(plain, x, Packing(128, 32, 20), plain.ranges(x), unpacked=everywhere)
    np.testing.assert_allclose(found, np.resize(plain(x), found.shape), atol=1e-6)


@pytest.mark.parametrize("length", [32, 27])
def test_the_default_tolerances_bound_the_error(length: int) -> None:
    plain = Attention(6, 8, features=48)
    x = text(plain, length)
    ranges = plain.ranges(x)
    fits = fit_layer(ranges, 1e-12)
    found, _, _ = attend(plain, x, Packing(512, 32, length), ranges, Tolerances())
    # A relative error of exp at the smallest likely scores, and that of the inverse.
    low = np.exp((ranges.attention.spread + 2) / (1 << fits.exponential.squarings))
    worst = Tolerances().exponential * low + fits.inverse.error
    bound = 2 * worst * np.abs(plain.project(x, "v")).max()
    assert np.max(np.abs(found - plain(x))) < bound < 0.02


@pytest.mark.parametrize("length", [32, 21, 64])
@pytest.mark.parametrize("heads", [3, 6])
def test_causal_attention_sees_earlier_tokens_only(length: int, heads: int) -> None:
    plain = Attention(heads, 4, features=24, causal=True)
    x = text(plain, length)
    found, e, _ = attend(plain, x, Packing.for_length(256, length), plain.ranges(x))
    expected = plain(x)
    # exp(-16) of a masked score is left, times the ratio of denominators
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(found[0], plain.project(x, "v")[:, 0].reshape(-1), atol=1e-3)
    assert e.largest <= 1


def test_the_estimate_of_the_denominator_changes_nothing_but_the_ranges() -> None:
    """A centre, multiples of scores at a distance, and offsets per class are all taken out."""
    plain = Attention(5, 4, features=24)
    x, rng = text(plain, 32), np.random.default_rng(1)
    packing = Packing(256, 32, 32)
    centre = rng.standard_normal((5, 4)) * 0.5
    distances = {-1: rng.uniform(0, 1, 5), 2: np.array([0.0, 0.5, 0.0, 0.0, 0.0])}
    expected = plain(x)
    for chosen in (
        {"centre": centre},
        {"distances": distances},
        {"by_class": True},
        {"centre": centre, "distances": distances, "by_class": True},
    ):
        ranges = plain.ranges(x, **chosen)  # type: ignore[arg-type]
        found, e, _ = attend(plain, x, packing, ranges)
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=str(chosen))
        assert e.largest <= 1


def test_distances_of_heads_in_another_group_cost_nothing() -> None:
    plain = Attention(6, 2, features=24)
    x = text(plain, 32)
    ranges = plain.ranges(x, distances={1: np.array([0.0, 0, 0, 0, 0.7, 0])})
    found, _, program = attend(plain, x, Packing(128, 32, 32), ranges)  # 4 + 2 heads
    np.testing.assert_allclose(found, plain(x), atol=1e-5)
    distance = [s.name for s in program.stages if "distance" in s.name]
    assert distance == ["attention-1/distance", "attention-1/distance-scores"]


def test_scores_are_never_all_alive() -> None:
    """A giant group is a stage of its own: scores, exp, products with values, partial sums."""
    plain = Attention(4, 4, features=16)
    x = text(plain, 64)
    _, _, program = attend(plain, x, Packing(256, 64, 64), plain.ranges(x))
    steps = split_tokens(Packing(256, 64, 64), 4)
    babies = steps.babies
    groups = [s for s in program.stages if "/group-" in s.name]
    assert len(groups) == steps.passes
    for stage in groups:
        crossing = [program.nodes[i].shape for i in program.results(stage)]
        assert crossing == [(2,), ()]  # two pairs of values, one denominator
        inside = [program.nodes[i].shape for i in stage.nodes if program.nodes[i].shape]
        assert max(np.prod(s) for s in inside) == 2 * babies


@pytest.mark.parametrize(
    ("slots", "tokens", "expected"),
    [
        (32768, 2048, Steps(16, 64, 1, 16)),
        (32768, 1024, Steps(8, 32, 2, 16)),
        (32768, 128, Steps(1, 4, 16, 16)),
        (32768, 32, Steps(1, 1, 16, 16)),
        (512, 128, Steps(8, 8, 1, 4)),
    ],
)
def test_shifts_are_divided_for_the_memory(slots: int, tokens: int, expected: Steps) -> None:
    steps = split_tokens(Packing(slots, tokens, tokens), 12)
    assert steps == expected
    assert steps.babies * steps.passes * steps.lanes == tokens // 2


def test_unused_blocks_take_giant_steps_of_their_own() -> None:
    plain = Attention(2, 4, features=16)
    rng = np.random.default_rng()
    # No larger: an estimate far off makes a range of which the inverse takes 20 levels.
    centre = 0.3 * rng.normal(size=(2, 4))
    distances = {-1: 0.3 * rng.normal(size=2), 2: 0.3 * rng.normal(size=2)}
    for slots, length in ((512, 32), (1024, 32), (1024, 21), (4096, 40)):
        x = text(plain, length)
        packing = Packing.for_length(slots, length)
        assert split_tokens(packing, 2).lanes > 1
        estimates = {"centre": centre, "distances": distances if packing.is_full else {}}
        for chosen in ({}, {"by_class": True}, estimates):
            ranges = plain.ranges(x, **chosen)  # type: ignore[arg-type]
            found, e, _ = attend(plain, x, packing, ranges)
            np.testing.assert_allclose(found, plain(x), atol=1e-5, err_msg=str((slots, chosen)))
            assert e.largest <= 1 + 1e-9


def test_offsets_are_short_plaintexts_where_they_can_be() -> None:
    same = {c: np.array([1.0, 2.0]) for c in ("first", "last", "other")}
    apart = {**same, "first": np.array([3.0, 2.0])}

    def offsets(length: int, per_class: dict[str, Float], causal: bool = False) -> ScoreOffsets:
        steps = Steps(4, 4, 1, 2)
        return ScoreOffsets(per_class, 0.0, 0.5, Packing(64, 32, length), steps, 1, causal)

    short = offsets(16, same)
    assert short.count is None
    expected = (0.5 + 0.5j) * (np.array([1.0, 2.0]) - 0.5 * np.log(2))
    np.testing.assert_allclose(short.build({}, 0, 1), expected[None])
    for long in (offsets(20, same), offsets(16, apart), offsets(16, same, causal=True)):
        assert long.count == 4
        assert long.build({}, 1, 3).shape == (2, 64)
        np.testing.assert_array_equal(long.build({}, 1, 3), long.build({}, 0, 4)[1:3])


def test_texts_repeated_too_often_are_refused() -> None:
    plain = Attention(2, 2, features=6)
    x = text(plain, 1)
    found, e, _ = attend(plain, x, Packing(64, 32, 1), plain.ranges(x))
    np.testing.assert_allclose(found, plain(x), atol=1e-5)
    assert e.largest <= 1
    with pytest.raises(ProgramError, match=r"repeated 64 times.*texts of at least 2 tokens"):
        attend(plain, x, Packing(64, 64, 1), plain.ranges(x))


def test_groups_of_heads_are_concatenated() -> None:
    plain = Attention(3, 2, features=4)
    x = text(plain, 32)
    packing = Packing(64, 32, 32)  # 2 blocks: two groups of heads
    found, _, program = attend(plain, x, packing, plain.ranges(x))
    np.testing.assert_allclose(found, plain(x), atol=1e-5)
    names = {s.name.split("/")[0] for s in program.stages}
    assert {"attention-0", "attention-1", "attention-heads"} <= names
