"""One encoder layer of a BERT-like transformer, and its halves."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.approximation import REFRESH_ERROR
from aegis_dask.circuits.attention import SelfAttention, self_attention
from aegis_dask.circuits.linear import BlockMatrix, choose_babies
from aegis_dask.circuits.packing import FeatureVector, Layout, feature_layout
from aegis_dask.circuits.ranges import LayerFits, LayerRanges, token_classes
from aegis_dask.circuits.tokens import (
    Centred,
    Dense,
    Known,
    Normalisation,
    TokenMatrix,
    added,
    centre,
    layer_norm,
    residual,
)
from aegis_dask.program.graph import EncryptedTensor, total

Float = NDArray[np.float64]
MAX_SCALE_BITS = 5
HIDDEN_ERROR = 2.0**-12
"""Error that refreshing hidden states may make; LayerNorm has made them of size one."""


@dataclass(frozen=True, eq=False)
class EncoderLayer:
    """What a program needs of one layer: names of its weights, small vectors, ranges and fits.

    Attributes
    ----------
    attention, output
        Self-attention and the projection after it. The bias of `output` includes the value bias
        times the output weight, since attention weights add up to 1.
    up, down
        The feed-forward network.
    norm1, norm2
        (weight, bias) of the LayerNorms.
    ranges, fits
        Calibrated ranges and the polynomials fitted to them.
    shards
        In how many parts the feed-forward network is split, as other systems do it
        (`_column_row`).
    gate
        The gate of the feed-forward network, if it has one (Shazeer, GLU Variants Improve
        Transformer, 2020).
    """

    attention: SelfAttention
    output: Dense
    up: Dense
    down: Dense
    norm1: tuple[Float, Float]
    norm2: tuple[Float, Float]
    ranges: LayerRanges
    fits: LayerFits
    shards: int = 1
    gate: Dense | None = None


def attention_block(x: TokenMatrix, layer: EncoderLayer) -> TokenMatrix:
    """Return ``LayerNorm(x + Attention(x))``."""
    centred = centre(x, _scale_to_one(layer.ranges.magnitudes["update1"]))
    heads, layout, factor = self_attention(x, layer.attention, layer.ranges.attention, layer.fits)
    babies = choose_babies(layout, [x.layout])
    with x.capture.scope("output"):
        with x.capture.stage("rotate", over=layout.shape[0]):
            rotated = heads.rotations(range(babies))
        matrix = BlockMatrix(
            (layer.output.weight,), layout, x.layout, babies, 0.5 * factor, centred=True
        )
        u = residual(centred, rotated, matrix, layer.output.bias, _known_update(layer, 1))
    return layer_norm(u, _normalisation(x, layer, 1), "norm1")


def feed_forward_block(x: TokenMatrix, layer: EncoderLayer) -> TokenMatrix:
    """Return ``LayerNorm(x + down(GELU(up(x))))``, or with ``GELU(gate(x)) up(x)`` inside."""
    c = x.capture
    inner = feature_layout(layer.up.outputs, x.packing.blocks)
    with c.scope("feed-forward"):
        centred = centre(x, _scale_to_one(layer.ranges.magnitudes["update2"]))
        babies = choose_babies(x.layout, [inner])
        rotated = x.rotated(babies)
        if layer.shards > 1:
            partial, down = _column_row(rotated, inner, babies, layer, centred)
            u = added(centred, partial, down, layer.down.bias, _known_update(layer, 2))
            return layer_norm(u, _normalisation(x, layer, 2), "norm2")
        with c.stage("gelu", over=inner.shape[0]):
            h = _inner(rotated, x.layout, inner, babies, layer)
        babies = choose_babies(inner, [x.layout])
        # Apart, so that workers can send what is rotated instead of all rotations of it.
        with c.stage("inner-rotate", over=inner.shape[0]):
            rotated = h.rotations(range(babies))
        down = BlockMatrix((layer.down.weight,), inner, x.layout, babies, 0.5, centred=True)
        u = residual(centred, rotated, down, layer.down.bias, _known_update(layer, 2))
    return layer_norm(u, _normalisation(x, layer, 2), "norm2")


def _inner(
    rotated: EncryptedTensor, source: Layout, inner: Layout, babies: int, layer: EncoderLayer
) -> EncryptedTensor:
    """Return what goes into the matrix down, of the features of `inner`."""
    gelu = layer.fits.gelu
    first = layer.gate or layer.up
    matrix = BlockMatrix((first.weight,), source, inner, babies, 0.5 / gelu.half)
    t = linear.real_part(linear.apply(rotated, matrix))
    bias = FeatureVector((first.bias - gelu.middle) / gelu.half, inner)
    h = t.add_plain(bias).chebyshev(gelu.coefficients)
    if layer.gate is not None:
        up = BlockMatrix((layer.up.weight,), source, inner, babies, 0.5)
        value = linear.real_part(linear.apply(rotated, up))
        h = h * value.add_plain(FeatureVector(layer.up.bias, inner))
    return h.pair()


def _column_row(
    rotated: EncryptedTensor,
    inner: Layout,
    babies: int,
    layer: EncoderLayer,
    centred: Centred,
) -> tuple[EncryptedTensor, BlockMatrix]:
    """Return ``down(GELU(up(x)))`` before its giant rotations, from shards, and its matrix.

    Shard g has some of the inner features: columns of the matrix up, rows of the matrix down
    (Megatron-LM, Shoeybi et al., 2019). What it gives is a partial sum of all output features, and
    nothing of the inner ones leaves it. Every partial sum is rescaled before they are added. Baby
    steps cover all shifts, so that as few giant groups as there can be are exchanged.
    """
    x = centred.matrix
    c = x.capture
    partials = []
    parts = np.array_split(inner.features, min(layer.shards, len(inner.features)))
    for g, features in enumerate(parts):
        part = Layout(features)
        rows = part.shape[0]
        matrix = BlockMatrix(
            (layer.down.weight,),
            part,
            x.layout,
            inner.blocks,
            0.5 * centred.scale,
            centred=True,
            is_partial=True,
        )
        with c.scope(f"shard-{g}"):
            with c.stage("gelu", over=rows):
                h = _inner(rotated, x.layout, part, babies, layer)
            with c.stage("inner-rotate", over=rows):
                h = h.rotations(range(inner.blocks))
            with c.stage("partial", over=x.layout.shape[0]):
                partials.append(h.matrix_product(matrix))
    with c.stage("partial-sum", over=x.layout.shape[0]):
        return total(partials), matrix


def encoder_layer(x: TokenMatrix, layer: EncoderLayer) -> TokenMatrix:
    """Apply one whole layer."""
    return feed_forward_block(attention_block(x, layer), layer)


def _scale_to_one(largest: float) -> float:
    """Return the power of two, 1 at most, that makes values fit into [-1, 1].

    It saves a refresh of them the level that dividing them takes. Not where a few outliers would
    have all others scaled down to the noise.
    """
    bits = max(0, ceil(log2(largest)))
    return 2.0**-bits if bits <= MAX_SCALE_BITS else 1.0


def _normalisation(x: TokenMatrix, layer: EncoderLayer, which: int) -> Normalisation:
    weight, bias = layer.norm1 if which == 1 else layer.norm2
    ranges = layer.ranges.norm1 if which == 1 else layer.ranges.norm2
    poly = layer.fits.norm1 if which == 1 else layer.fits.norm2
    scale = np.array([ranges.scale[c] for c in token_classes(x.packing.length)])
    largest = layer.ranges.magnitudes["hidden" if which == 1 else "output"]
    known = Known(largest, HIDDEN_ERROR)
    return Normalisation(weight, bias, poly, scale, layer.fits.norm_eps, known)


def _known_update(layer: EncoderLayer, which: int) -> Known:
    """Return what is known of the input of a LayerNorm: tokens differ by its standard deviation."""
    norm = layer.ranges.norm1 if which == 1 else layer.ranges.norm2
    deviation = sqrt(norm.low * min(norm.scale.values()))
    return Known(layer.ranges.magnitudes[f"update{which}"], REFRESH_ERROR * deviation)
