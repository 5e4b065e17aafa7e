"""BERT-like checkpoints as programs on encrypted tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.attention import SelfAttention
from aegis_dask.circuits.encoder import EncoderLayer, encoder_layer
from aegis_dask.circuits.packing import Layout, Packing, feature_layout
from aegis_dask.circuits.ranges import Tolerances, fit_layer
from aegis_dask.circuits.tokens import Dense, TokenMatrix
from aegis_dask.models.calibration import Calibration
from aegis_dask.models.checkpoint import BertModel, Linear, Norm
from aegis_dask.program.graph import Capture, Program, capture

Float = NDArray[np.float64]
INPUT, OUTPUT = "hidden", "output"
"""Names of the input and the output of a model's programs."""

Body = Callable[[TokenMatrix, Sequence[EncoderLayer]], TokenMatrix]
"""A graph program: what a file in ``graphs/`` defines."""


def encoder_layers(
    model: BertModel, calibration: Calibration, tolerances: Tolerances | None = None
) -> list[EncoderLayer]:
    """Return the layers of a model with the polynomials fitted to their ranges.

    Raises
    ------
    RangeError
        If the calibration is of another model, or a range is too wide for any polynomial.
    """
    calibration.check_model(model)
    out = []
    for i, (weights, ranges) in enumerate(zip(model.layers, calibration.layers, strict=False)):
        name = f"layer.{i}"
        # Attention weights add up to 1, so the value bias goes through them unchanged.
        output_bias = _vector(weights.output.bias)
        if np.any(weights.value.bias):
            output_bias = output_bias + weights.output.weight.astype(np.float64) @ _vector(
                weights.value.bias
            )
        attention = SelfAttention(
            _dense(name, "query", weights.query),
            _dense(name, "key", weights.key),
            _dense(name, "value", weights.value),
            model.config.heads,
            model.config.head_size,
        )
        out.append(
            EncoderLayer(
                attention,
                Dense(f"{name}.output.weight", output_bias),
                _dense(name, "up", weights.up),
                _dense(name, "down", weights.down),
                _norm(weights.norm1),
                _norm(weights.norm2),
                ranges,
                fit_layer(ranges, model.config.norm_eps, tolerances),
                gate=None if weights.gate is None else _dense(name, "gate", weights.gate),
            )
        )
    return out


def _vector(x: NDArray[np.float32]) -> Float:
    return np.asarray(x, np.float64)


def _dense(layer: str, part: str, weights: Linear) -> Dense:
    return Dense(f"{layer}.{part}.weight", _vector(weights.bias))


def _norm(norm: Norm) -> tuple[Float, Float]:
    return _vector(norm.weight), _vector(norm.bias)


def all_layers(x: TokenMatrix, layers: Sequence[EncoderLayer]) -> TokenMatrix:
    """Apply all layers given, one after the other."""
    for i, layer in enumerate(layers):
        with x.capture.scope(f"layer{i}"):
            x = encoder_layer(x, layer)
    return x


def hidden_layout(model: BertModel, packing: Packing) -> Layout:
    """Return the layout of hidden states."""
    return feature_layout(model.config.hidden, packing.blocks)


def bert_program(
    model: BertModel, layers: Sequence[EncoderLayer], packing: Packing, body: Body = all_layers
) -> Program:
    """Capture a program on the hidden states of a model.

    Parameters
    ----------
    model
        For the width of its hidden states.
    layers
        What the body is given (see `encoder_layers`).
    packing
        Slots and tokens.
    body
        The program; all layers by default.
    """
    layout = hidden_layout(model, packing)

    def build(c: Capture) -> None:
        x = TokenMatrix(c.input(INPUT, layout.shape), layout, packing)
        c.output(OUTPUT, body(x, layers).tensor)

    return capture(packing.slots, build)
