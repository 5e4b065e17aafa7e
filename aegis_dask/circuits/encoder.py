"""One encoder layer of a BERT-like transformer, and its halves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.attention import SelfAttention, self_attention
from aegis_dask.circuits.linear import BlockMatrix, choose_babies
from aegis_dask.circuits.packing import FeatureVector, feature_layout
from aegis_dask.circuits.ranges import LayerFits, LayerRanges, token_classes
from aegis_dask.circuits.tokens import (
    Dense,
    Normalisation,
    TokenMatrix,
    centre,
    layer_norm,
    residual,
)

Float = NDArray[np.float64]


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
    """

    attention: SelfAttention
    output: Dense
    up: Dense
    down: Dense
    norm1: tuple[Float, Float]
    norm2: tuple[Float, Float]
    ranges: LayerRanges
    fits: LayerFits


def attention_block(x: TokenMatrix, layer: EncoderLayer) -> TokenMatrix:
    """Return ``LayerNorm(x + Attention(x))``."""
    centred = centre(x)
    heads, layout, factor = self_attention(x, layer.attention, layer.ranges.attention, layer.fits)
    babies = choose_babies(layout, [x.layout])
    with x.capture.scope("output"):
        with x.capture.stage("rotate", over=layout.shape[0]):
            rotated = heads.rotations(range(babies))
        matrix = BlockMatrix(
            (layer.output.weight,), layout, x.layout, babies, 0.5 * factor, centred=True
        )
        u = residual(centred, rotated, matrix, layer.output.bias)
    return layer_norm(u, _normalisation(x, layer, 1), "norm1")


def feed_forward_block(x: TokenMatrix, layer: EncoderLayer) -> TokenMatrix:
    """Return ``LayerNorm(x + down(GELU(up(x))))``."""
    c, gelu = x.capture, layer.fits.gelu
    inner = feature_layout(layer.up.outputs, x.packing.blocks)
    with c.scope("feed-forward"):
        centred = centre(x)
        babies = choose_babies(x.layout, [inner])
        rotated = x.rotated(babies)
        up = BlockMatrix((layer.up.weight,), x.layout, inner, babies, 0.5 / gelu.half)
        babies = choose_babies(inner, [x.layout])
        with c.stage("gelu", over=inner.shape[0]):
            t = linear.real_part(linear.apply(rotated, up))
            bias = (layer.up.bias - gelu.middle) / gelu.half
            h = t.add_plain(FeatureVector(bias, inner)).chebyshev(gelu.coefficients)
            rotated = linear.rotated_inputs(h, babies)
        down = BlockMatrix((layer.down.weight,), inner, x.layout, babies, 0.5, centred=True)
        u = residual(centred, rotated, down, layer.down.bias)
    return layer_norm(u, _normalisation(x, layer, 2), "norm2")


def encoder_layer(x: TokenMatrix, layer: EncoderLayer) -> TokenMatrix:
    """Apply one whole layer."""
    return feed_forward_block(attention_block(x, layer), layer)


def _normalisation(x: TokenMatrix, layer: EncoderLayer, which: int) -> Normalisation:
    weight, bias = layer.norm1 if which == 1 else layer.norm2
    ranges = layer.ranges.norm1 if which == 1 else layer.ranges.norm2
    poly = layer.fits.norm1 if which == 1 else layer.fits.norm2
    scale = np.array([ranges.scale[c] for c in token_classes(x.packing.length)])
    return Normalisation(weight, bias, poly, scale, layer.fits.norm_eps)
