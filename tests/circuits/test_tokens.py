"""What is done token by token: sums over features, centring, LayerNorm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.circuits import linear
from aegis_dask.circuits.approximation import Polynomial, fit
from aegis_dask.circuits.linear import BlockMatrix
from aegis_dask.circuits.packing import Packing, feature_layout
from aegis_dask.circuits.tokens import (
    Centred,
    Normalisation,
    TokenMatrix,
    block_spread,
    block_sum,
    centre,
    first_block,
    layer_norm,
    residual,
)
from aegis_dask.ckks.polynomial import depth
from aegis_dask.program.graph import Capture, EncryptedTensor, Program, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated

TOKENS = 32


def apply(
    x: np.ndarray,
    packing: Packing,
    function: Callable[[TokenMatrix], TokenMatrix],
    store: dict[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, Program]:
    """Return ``[tokens, features]``, all slots, and the program."""
    layout = feature_layout(x.shape[1], packing.blocks)

    def build(c: Capture) -> None:
        out = function(TokenMatrix(c.input("x", layout.shape), layout, packing))
        c.output("y", out.tensor)

    program = capture(packing.slots, build)
    slots = run(program, Simulated(), {"x": packing.pack(x, layout) + 0j}, store or {})["y"]
    return packing.unpack(slots, layout), slots.real, program


@pytest.mark.parametrize("blocks", [1, 2, 16])
def test_blocks_are_added_and_copied(blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    packing = Packing(TOKENS * blocks, TOKENS, 20)
    factor = rng.standard_normal(20)

    def build(c: Capture) -> None:
        total = block_sum(c.input("x", ()), blocks)
        masked = total.multiply_plain(first_block(packing, factor))
        c.output("y", block_spread(masked, blocks))
        c.output("z", total.multiply_plain(first_block(packing, 0.5)))

    x = rng.standard_normal((TOKENS, blocks))
    found = run(capture(packing.slots, build), Simulated(), {"x": x.reshape(-1) + 0j}, {})
    expected = x.sum(axis=1) * factor[np.arange(TOKENS) % 20]
    np.testing.assert_allclose(
        found["y"].real.reshape(TOKENS, blocks), np.tile(expected[:, None], blocks), atol=1e-12
    )
    z = found["z"].real.reshape(TOKENS, blocks)
    np.testing.assert_allclose(z[:, 0], 0.5 * x.sum(axis=1), atol=1e-12)
    assert not z[:, 1:].any()


@settings(deadline=None)
@given(blocks=st.sampled_from([1, 2, 16]), features=st.integers(1, 40))
def test_centring_subtracts_the_mean_over_the_features(blocks: int, features: int) -> None:
    x = np.random.default_rng(features).standard_normal((TOKENS, features))
    packing = Packing(TOKENS * blocks, TOKENS, TOKENS)
    found, _, program = apply(x, packing, lambda m: centre(m).matrix)
    np.testing.assert_allclose(found, x - x.mean(axis=1, keepdims=True), atol=1e-12)
    assert program.depth == 1


@settings(deadline=None)
@given(
    blocks=st.sampled_from([1, 2, 16]),
    features=st.integers(2, 40),
    length=st.sampled_from([20, TOKENS]),
    scales=st.booleans(),
    eps=st.sampled_from([1e-12, 0.1]),
)
def test_layer_norm_is_the_plain_one(
    blocks: int, features: int, length: int, scales: bool, eps: float
) -> None:
    """With unused blocks (features no multiple of the blocks) and scales per token."""
    rng = np.random.default_rng([blocks, features, length])
    packing = Packing(TOKENS * blocks, TOKENS, length)
    size = np.where(np.arange(length) == 0, 30.0, 1.0) if scales else np.ones(length)
    x = rng.standard_normal((length, features))
    x *= (size * rng.uniform(0.7, 1.4, length) / x.std(axis=1))[:, None]
    x += 3.0
    variance = x.var(axis=1)
    scale = size**2
    v = (variance + eps) / scale
    poly = fit(lambda t: 1 / np.sqrt(t), 0.9 * v.min(), 1.1 * v.max(), 1e-7, relative=True)
    norm = Normalisation(
        rng.uniform(0.5, 1, features), rng.standard_normal(features), poly, scale, eps
    )
    found, slots, program = apply(x, packing, lambda m: layer_norm(centre(m), norm))
    centred = x - x.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(variance + eps)[:, None] * norm.weight + norm.bias
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    layout = feature_layout(features, blocks)
    holes = slots.reshape(*layout.shape, TOKENS, blocks)
    assert not np.moveaxis(holes, -2, 0)[:, layout.features < 0].any()  # zero for what follows
    assert program.depth == 1 + 3 + depth(poly.degree)


def test_layer_norm_works_on_few_ciphertexts() -> None:
    """All rotations and the polynomial are on one ciphertext."""
    poly = Polynomial(0.5, 2.0, (1.0, -0.1, 0.1, -0.1), 0.0)
    norm = Normalisation(np.ones(64), np.zeros(64), poly, np.ones(TOKENS), 0.0)
    _, _, program = apply(
        np.ones((TOKENS, 64)), Packing(512, TOKENS, TOKENS), lambda m: layer_norm(centre(m), norm)
    )
    shapes = {
        (type(n.op).__name__, n.shape)
        for n in program.nodes
        if type(n.op).__name__ in ("Rotate", "Chebyshev", "Relinearise")
    }
    assert {shape for _, shape in shapes} == {()}


@pytest.mark.parametrize("features", [32, 37])
def test_a_residual_adds_a_centred_linear_layer(features: int) -> None:
    rng = np.random.default_rng(features)
    packing, layout = Packing(512, TOKENS, 25), feature_layout(features, 16)
    x, w = rng.standard_normal((25, features)), rng.standard_normal((features, features)) * 0.1
    bias = rng.standard_normal(features)
    matrix = BlockMatrix(("w",), layout, layout, 4, 0.5, centred=True)
    norm = Normalisation(np.ones(features), np.zeros(features), ROOT, np.ones(25), 1e-5)

    def update(m: TokenMatrix) -> Centred:
        rotated: EncryptedTensor = linear.rotated_inputs(m.tensor, matrix.babies)
        return residual(centre(m), rotated, matrix, bias)

    total = x + x @ w.T + bias
    centred = total - total.mean(axis=1, keepdims=True)
    found, _, _ = apply(x, packing, lambda m: update(m).matrix, {"w": w})
    np.testing.assert_allclose(found, centred, atol=1e-12)
    # unused blocks still hold what centring left there: the norm allows for it
    found, _, _ = apply(x, packing, lambda m: layer_norm(update(m), norm), {"w": w})
    expected = centred / np.sqrt(total.var(axis=1) + 1e-5)[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)


ROOT = fit(lambda t: 1 / np.sqrt(t), 0.3, 10, 1e-7, relative=True)


def test_matrices_of_tokens_are_added() -> None:
    x = np.random.default_rng(0).standard_normal((TOKENS, 21))
    found, _, program = apply(x, Packing(512, TOKENS, TOKENS), lambda m: m + m)
    np.testing.assert_allclose(found, 2 * x)
    assert program.depth == 0
