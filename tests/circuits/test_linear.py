"""Linear layers in diagonal form are x W^T, for every shape and number of baby steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.circuits import linear
from aegis_dask.circuits.linear import BlockMatrix, choose_babies
from aegis_dask.circuits.packing import Layout, Packing, feature_layout, head_layout, paired
from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated

TOKENS = 32


def multiply(
    x: Any, packing: Packing, matrix: BlockMatrix, store: Any, packed: bool = False
) -> Any:
    """Run a linear layer simulated and return the result ``[tokens, features]``."""

    def build(c: Capture) -> None:
        rotated = linear.rotated_inputs(c.input("x", matrix.source.shape), matrix.babies)
        raw = linear.apply(rotated, matrix)
        c.output("y", linear.packed_real_parts(raw) if packed else linear.real_part(raw))

    program = capture(packing.slots, build)
    assert program.depth == 1  # no masks
    slots = packing.pack(x, matrix.source) + 0j
    return run(program, Simulated(), {"x": slots}, store)["y"]


@given(
    blocks=st.sampled_from([1, 2, 4, 16]),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    babies=st.integers(0, 5),
    length=st.integers(1, TOKENS),
    kind=st.sampled_from(["features", "heads"]),
    centred=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_linear_layer_is_a_matrix_product(
    blocks: int, sizes: tuple[int, int], babies: int, length: int, kind: str, centred: bool
) -> None:
    rng = np.random.default_rng(sizes)
    inputs, outputs = sizes
    packing, source = Packing(TOKENS * blocks, TOKENS, length), feature_layout(inputs, blocks)
    if kind == "features":
        target = feature_layout(outputs, blocks)
    else:
        target = head_layout(1 + outputs % 5, 1 + outputs // 5, blocks)
    outputs = target.count
    w, scale = rng.standard_normal((outputs, inputs)), rng.uniform(0.5, 2, outputs)
    x = rng.standard_normal((length, inputs))
    matrix = BlockMatrix(("w",), source, target, 1 << babies, 0.5 * scale, centred)
    found = packing.unpack(multiply(x, packing, matrix, {"w": w}), target)
    expected = x @ (w * scale[:, None]).T
    if centred:
        expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-11)


def test_unused_blocks_stay_zero() -> None:
    rng = np.random.default_rng(1)
    packing, layout = Packing(512, 32, 20), feature_layout(21, 16)
    matrix = BlockMatrix(("w",), layout, layout, 4)
    x, w = rng.standard_normal((20, 21)), rng.standard_normal((21, 21))
    y = multiply(x, packing, matrix, {"w": w}).reshape(1, 2, 32, 16)
    assert np.abs(y[0, 1, :, 5:]).max() < 1e-13
    assert np.abs(y[0, 1, :, :5]).max() > 0.1


def test_inputs_in_unused_blocks_do_not_matter() -> None:
    """After GELU, and in centred values, they are not zero."""
    rng = np.random.default_rng(1)
    packing, layout = Packing(512, 32, 32), feature_layout(21, 16)
    matrix = BlockMatrix(("w",), layout, layout, 4, 0.5)
    x, w = rng.standard_normal((32, 21)), rng.standard_normal((21, 21))

    def build(c: Capture) -> None:
        rotated = linear.rotated_inputs(c.input("x", layout.shape), 4)
        c.output("y", linear.real_part(linear.apply(rotated, matrix)))

    slots = packing.pack(x, layout) + 0j
    slots.reshape(2, 32, 16)[:, :, :][1, :, 5:] = 7.0
    y = run(capture(512, build), Simulated(), {"x": slots}, {"w": w})["y"]
    np.testing.assert_allclose(packing.unpack(y, layout), x @ w.T, atol=1e-12)


def test_pairs_of_outputs_share_a_conjugation() -> None:
    rng = np.random.default_rng(2)
    packing, source = Packing(512, 32, 32), feature_layout(40, 16)
    target = paired(head_layout(5, 8, 16))
    matrix = BlockMatrix(("w",), source, target, 8, 0.5)
    x, w = rng.standard_normal((32, 40)), rng.standard_normal((40, 40))
    y = multiply(x, packing, matrix, {"w": w}, packed=True)
    both = np.stack([y.real, y.imag], axis=1)
    np.testing.assert_allclose(packing.unpack(both, target), x @ w.T, atol=1e-12)


def test_weights_are_stacked() -> None:
    rng = np.random.default_rng(3)
    packing, source = Packing(256, 32, 32), feature_layout(10, 8)
    a, b = rng.standard_normal((7, 10)), rng.standard_normal((5, 10))
    x, target = rng.standard_normal((32, 10)), feature_layout(12, 8)
    matrix = BlockMatrix(("a", "b"), source, target, 2, 0.5)
    found = packing.unpack(multiply(x, packing, matrix, {"a": a, "b": b}), target)
    np.testing.assert_allclose(found, x @ np.concatenate([a, b]).T, atol=1e-12)


@given(
    blocks=st.sampled_from([2, 16]),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    babies=st.integers(0, 5),
)
@settings(deadline=None)
def test_rows_are_built_alone(blocks: int, sizes: tuple[int, int], babies: int) -> None:
    source, target = (feature_layout(n, blocks) for n in sizes)
    matrix = BlockMatrix(("w",), source, target, 1 << babies)
    w = {"w": np.random.default_rng(0).standard_normal(sizes[::-1])}
    rows = target.shape[0]
    whole = matrix.build(w, 0, rows)
    assert whole.shape == (*matrix.outputs, *matrix.inputs, blocks)
    for start in range(rows):
        assert np.array_equal(matrix.build(w, start, start + 1)[0], whole[start])


def test_shifts_reach_from_every_used_block_to_every_other() -> None:
    full, heads = feature_layout(768, 16), head_layout(12, 64, 16)
    assert BlockMatrix((), full, heads, 1).shifts == (-11, 15)
    assert BlockMatrix((), full, full, 1).shifts == (-15, 15)
    assert BlockMatrix((), paired(heads), full, 1).shifts == (-15, 11)
    assert BlockMatrix((), full, heads, 16).giants == (-16, 0)
    assert BlockMatrix((), full, heads, 4).giants == (-12, -8, -4, 0, 4, 8, 12)
    assert BlockMatrix((), full, heads, 32).giants == (-32, 0)


def test_the_number_of_baby_steps_is_the_cheapest() -> None:
    full, inner = feature_layout(768, 16), feature_layout(3072, 16)
    assert choose_babies(full, [inner]) == 16  # many outputs: few giants
    assert choose_babies(inner, [full]) == 4  # many inputs: few babies
    assert choose_babies(feature_layout(1, 1), [feature_layout(1, 1)]) == 1


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ProgramError, match="do not fit a linear layer"):
        BlockMatrix(("w",), feature_layout(8, 4), feature_layout(8, 8), 2)
    with pytest.raises(ProgramError, match="do not fit a linear layer"):
        BlockMatrix(("w",), head_layout(4, 2, 4), feature_layout(8, 4), 2)


@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (8, 9)])
def test_weights_that_do_not_fit_the_layouts_are_refused(shape: tuple[int, int]) -> None:
    layout: Layout = feature_layout(8, 4)
    with pytest.raises(ProgramError, match=r"weights w of shape .* do not fit"):
        BlockMatrix(("w",), layout, layout, 2).build({"w": np.zeros(shape)}, 0, 1)
