"""Packing: every feature of every token has its slot, and tokens that repeat are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.circuits.packing import (
    MIN_TOKENS,
    FeatureVector,
    Layout,
    Packing,
    SharedVector,
    feature_layout,
    head_layout,
    paired,
    positions,
)
from aegis_dask.errors import ProgramError


@st.composite
def packings(draw: st.DrawFn) -> Packing:
    tokens = 1 << draw(st.integers(5, 8))
    blocks = 1 << draw(st.integers(0, 5))
    return Packing(tokens * blocks, tokens, draw(st.integers(1, tokens)))


def layouts(blocks: int) -> st.SearchStrategy[Layout]:
    features = st.integers(1, 70).map(lambda d: feature_layout(d, blocks))
    heads = st.tuples(st.integers(1, 9), st.integers(1, 6)).map(lambda s: head_layout(*s, blocks))
    even = st.tuples(st.integers(1, 9), st.sampled_from([2, 4, 6]))
    pairs = even.map(lambda s: paired(head_layout(*s, blocks)))
    return st.one_of(features, heads, pairs)


@given(data=st.data(), packing=packings())
@settings(max_examples=150, deadline=None)
def test_what_is_packed_is_unpacked(data: st.DataObject, packing: Packing) -> None:
    layout = data.draw(layouts(packing.blocks))
    x = np.random.default_rng(0).standard_normal((packing.length, layout.count))
    slots = packing.pack(x, layout)
    assert slots.shape == (*layout.shape, packing.slots)
    assert np.array_equal(packing.unpack(slots, layout), x)
    assert np.array_equal(packing.unpack(slots + 3j, layout), x)  # real parts


@given(data=st.data(), packing=packings())
@settings(max_examples=100, deadline=None)
def test_slot_t_b_plus_block_holds_a_feature_of_token_t(
    data: st.DataObject, packing: Packing
) -> None:
    layout = data.draw(layouts(packing.blocks))
    x = np.random.default_rng(0).uniform(1, 2, (packing.length, layout.count))
    slots = packing.pack(x, layout).reshape(-1, packing.slots)
    features = layout.features.reshape(-1, packing.blocks)
    for ct, block in np.ndindex(features.shape):
        for t in (0, packing.length - 1, packing.tokens - 1):
            value = slots[ct, t * packing.blocks + block]
            feature = features[ct, block]
            assert value == (x[t % packing.length, feature] if feature >= 0 else 0.0)


@given(data=st.data(), blocks=st.sampled_from([1, 2, 16, 32]))
@settings(deadline=None)
def test_a_layout_holds_every_feature_once(data: st.DataObject, blocks: int) -> None:
    layout = data.draw(layouts(blocks))
    used = layout.features[layout.features >= 0]
    assert sorted(used) == list(range(layout.count))
    assert layout.holes == layout.features.size - layout.count
    assert layout.blocks == blocks
    in_any = {b for b in range(blocks) if (layout.features[..., b] >= 0).any()}
    assert set(layout.used_blocks) == in_any


@pytest.mark.parametrize(
    ("features", "blocks", "shape"),
    [
        (768, 16, (24, 2)),
        (384, 16, (12, 2)),
        (16, 16, (1, 1)),  # one ciphertext has no partner
        (17, 16, (1, 2)),
        (40, 16, (2, 2)),  # 2.5 ciphertexts: the last one is empty
        (3, 1, (2, 2)),
        (1, 1, (1, 1)),
    ],
)
def test_hidden_states_are_pairs_of_ciphertexts(
    features: int, blocks: int, shape: tuple[int, int]
) -> None:
    layout = feature_layout(features, blocks)
    assert layout.shape == shape
    assert layout.count == features


def test_heads_beyond_the_blocks_make_groups() -> None:
    layout = head_layout(heads=5, head_size=3, blocks=2)
    assert layout.shape == (9,)
    assert layout.features.tolist() == [
        *([0, 3], [1, 4], [2, 5]),  # heads 0 and 1
        *([6, 9], [7, 10], [8, 11]),
        *([12, -1], [13, -1], [14, -1]),
    ]
    with pytest.raises(ProgramError, match="9 ciphertexts cannot be paired"):
        paired(layout)


@given(st.integers(1, 5000))
def test_the_fewest_positions_are_taken(length: int) -> None:
    tokens = positions(length)
    assert tokens & (tokens - 1) == 0
    assert max(length, MIN_TOKENS) <= tokens
    assert tokens == MIN_TOKENS or tokens < 2 * length
    assert Packing.for_length(1 << 14, length) == Packing(1 << 14, tokens, length)


@given(packing=packings())
@settings(deadline=None)
def test_repeated_tokens_are_counted(packing: Packing) -> None:
    source = [t % packing.length for t in range(packing.tokens)]
    assert packing.source.tolist() == source
    assert packing.multiplicity.tolist() == [source.count(s) for s in source]
    assert packing.is_full == (len(set(packing.multiplicity)) == 1)
    # what attention relies on: weights 1 / multiplicity make every token count once
    weights = np.bincount(packing.source, 1 / packing.multiplicity)
    np.testing.assert_allclose(weights, np.ones(packing.length))


@given(data=st.data(), packing=packings(), per_token=st.booleans())
@settings(deadline=None)
def test_vectors_of_features_fit_their_layout(
    data: st.DataObject, packing: Packing, per_token: bool
) -> None:
    layout = data.draw(layouts(packing.blocks))
    rng = np.random.default_rng(0)
    values, tokens = rng.standard_normal(layout.count), rng.uniform(1, 2, packing.length)
    factor = packing.per_token(tokens) if per_token else None
    vector = FeatureVector(values, layout, factor)
    assert vector.count == layout.shape[0]
    whole = vector.build({}, 0, layout.shape[0])
    x = np.ones((packing.length, 1)) * values
    expected = packing.pack(x * tokens[:, None] if per_token else x, layout)
    assert np.array_equal(np.tile(whole, packing.slots // whole.shape[-1]), expected)
    assert np.array_equal(vector.build({}, 0, 1), whole[:1])


def test_a_shared_vector_is_one_for_all() -> None:
    vector = SharedVector(np.arange(4) * 1j)
    assert vector.count is None
    assert vector.build({}, 0, 5).tolist() == [[0j, 1j, 2j, 3j]]


@pytest.mark.parametrize(
    ("slots", "tokens", "length", "message"),
    [
        (512, 48, 40, "48 tokens"),
        (512, 16, 16, "16 tokens"),
        (512, 1024, 16, "1024 tokens"),
        (768, 32, 16, "768 slots"),
        (512, 32, 33, "33 tokens does not fit 32"),
        (512, 32, 0, "0 tokens does not fit 32"),
    ],
)
def test_packings_that_do_not_work_are_refused(
    slots: int, tokens: int, length: int, message: str
) -> None:
    with pytest.raises(ProgramError, match=message):
        Packing(slots, tokens, length)


def test_a_text_that_is_too_long_names_the_ring_it_needs() -> None:
    with pytest.raises(ProgramError, match="at least 1024 slots; this one has 512"):
        Packing.for_length(512, 513)


@pytest.mark.parametrize("shape", [(20, 6), (21, 5), (20,), (6, 20)])
def test_a_matrix_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProgramError, match="20 tokens x 5 features"):
        Packing(128, 32, 20).pack(np.zeros(shape), feature_layout(5, 4))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    x = np.zeros((20, 5))
    x[3, 2] = bad
    with pytest.raises(ProgramError, match="not finite"):
        Packing(128, 32, 20).pack(x, feature_layout(5, 4))
