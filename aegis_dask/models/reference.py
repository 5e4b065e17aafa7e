"""What a BERT encoder computes, in float64: the reference for every encrypted result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.approximation import gelu
from aegis_dask.models.checkpoint import BertLayer, BertModel, Linear, Norm

Float: TypeAlias = NDArray[np.float64]
Observer: TypeAlias = Callable[[str, Float], Any]
"""Called with the name of an intermediate result and its values; see `layer`."""


def softmax(scores: Float) -> Float:
    """Softmax over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def layer_norm(x: Float, norm: Norm) -> Float:
    """Normalise the last axis, by the variance over all its entries (not one less)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + norm.eps) * norm.weight + norm.bias)


def linear(x: Float, weights: Linear) -> Float:
    """Apply a linear map to the last axis."""
    return np.asarray(x @ weights.weight.astype(np.float64).T + weights.bias)


def layer(
    weights: BertLayer,
    x: Float,
    valid: NDArray[np.bool_],
    heads: int,
    observe: Observer | None = None,
    name: str = "",
) -> Float:
    """Apply one encoder layer.

    Parameters
    ----------
    weights
        The layer.
    x
        Hidden states, [length, hidden].
    valid
        Which rows are tokens, [length]; the others are padding. Padding takes no part, and its
        rows in the result are 0.
    heads
        Number of attention heads.
    observe
        Called with intermediate results, under the name given here after ``name.``, of v tokens
        where the length is L: ``query``, ``key``, ``value`` [heads, L, hidden / heads] (padding
        rows 0), ``scores`` [heads, v, v] (query by key, scaled, before the softmax),
        ``norm1.input`` and ``norm1.output`` [v, hidden], ``gelu.input`` [v, intermediate],
        ``norm2.input`` [v, hidden], ``output`` [v, hidden]. The arrays must not be changed.
    name
        Prefix of those names, such as ``layer.0``.

    Returns
    -------
    array
        Hidden states after the layer, float64 [length, hidden].
    """
    _check_rows(x, valid)
    length, hidden = x.shape
    rows = np.flatnonzero(valid)
    tokens = np.asarray(x[rows], np.float64)
    prefix = f"{name}." if name else ""

    def note(what: str, values: Float) -> None:
        if observe is not None:
            observe(prefix + what, values)

    def split(part: str, projection: Linear) -> Float:
        values = linear(tokens, projection).reshape(len(rows), heads, -1).swapaxes(0, 1)
        if observe is not None:
            padded = np.zeros((heads, length, values.shape[2]))
            padded[:, rows] = values
            note(part, padded)
        return values

    query, key = split("query", weights.query), split("key", weights.key)
    value = split("value", weights.value)
    scores = query @ key.swapaxes(1, 2) / math.sqrt(hidden // heads)
    note("scores", scores)
    attended = (softmax(scores) @ value).swapaxes(0, 1).reshape(len(rows), hidden)
    summed = linear(attended, weights.output) + tokens
    note("norm1.input", summed)
    middle = layer_norm(summed, weights.norm1)
    note("norm1.output", middle)
    raised = linear(middle, weights.gate or weights.up)
    note("gelu.input", raised)
    inner = gelu(raised)
    if weights.gate is not None:
        inner *= linear(middle, weights.up)
    summed = linear(inner, weights.down) + middle
    note("norm2.input", summed)
    final = layer_norm(summed, weights.norm2)
    note("output", final)
    result = np.zeros((length, hidden))
    result[rows] = final
    return result


def encode(
    model: BertModel, x: Float, valid: NDArray[np.bool_], observe: Observer | None = None
) -> Float:
    """Apply all layers of a model.

    Parameters
    ----------
    model
        The model.
    x, valid
        Embedded text, [length, hidden], and which rows are tokens (see `models.text.embed`).
    observe
        As for `layer`, with the names prefixed by ``layer.0.``, ``layer.1.`` and so on.

    Returns
    -------
    array
        Last hidden states, float64 [length, hidden], 0 in rows of padding.
    """
    for i, weights in enumerate(model.layers):
        x = layer(weights, x, valid, model.config.heads, observe, f"layer.{i}")
    return x


def _check_rows(x: Float, valid: NDArray[np.bool_]) -> None:
    if x.ndim != 2 or valid.shape != x.shape[:1] or valid.dtype != np.bool_ or not valid.any():
        raise ValueError(
            f"hidden states of shape {x.shape} come with a validity mask of shape "
            f"{valid.shape} and type {valid.dtype}; expected [length, hidden] and bool [length], "
            "at least one true"
        )
