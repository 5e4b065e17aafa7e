"""Self-attention in float64, and the ranges of its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.ranges import (
    MAGNITUDES,
    TOKEN_CLASSES,
    AttentionRanges,
    LayerRanges,
    NormRanges,
    token_classes,
)

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Attention:
    """Random projections ``[heads * size, features]`` of one self-attention."""

    heads: int
    size: int
    features: int
    causal: bool = False
    seed: int = 0

    @property
    def weights(self) -> dict[str, Float]:
        rng = np.random.default_rng(self.seed)
        shape = (self.heads * self.size, self.features)
        return {k: rng.standard_normal(shape) * 1.2 / np.sqrt(self.features) for k in "qkv"}

    @property
    def biases(self) -> dict[str, Float]:
        rng = np.random.default_rng(self.seed + 1)
        return {k: rng.standard_normal(self.heads * self.size) * 0.3 for k in "qk"}

    def project(self, x: Float, part: str) -> Float:
        """Return ``[heads, tokens, size]``; keys and values without a bias."""
        y = x @ self.weights[part].T
        y = y + self.biases["q"] if part == "q" else y
        return y.reshape(len(x), self.heads, self.size).swapaxes(0, 1)

    def scores(self, x: Float) -> Float:
        """Return ``[heads, query, key]`` without the key's bias, later keys at -inf if causal."""
        s = self.project(x, "q") @ self.project(x, "k").swapaxes(1, 2) / np.sqrt(self.size)
        hidden = np.triu(np.full(s.shape[1:], np.inf), 1) if self.causal else 0.0
        return np.asarray(s - hidden)

    def __call__(self, x: Float) -> Float:
        """Return ``[tokens, heads * size]``; with the key's bias, which changes nothing."""
        key = self.project(x, "k") + self.biases["k"].reshape(self.heads, 1, self.size)
        s = self.project(x, "q") @ key.swapaxes(1, 2) / np.sqrt(self.size)
        s = np.where(np.isfinite(self.scores(x)), s, -np.inf)
        p = np.exp(s - s.max(axis=2, keepdims=True))
        out = p / p.sum(axis=2, keepdims=True) @ self.project(x, "v")
        return np.asarray(out.swapaxes(0, 1).reshape(len(x), -1))

    def ranges(
        self,
        x: Float,
        centre: Float | None = None,
        distances: dict[int, Float] | None = None,
        by_class: bool = False,
    ) -> LayerRanges:
        """Return ranges that hold for this text, tight up to 0.1."""
        s, distances, length = self.scores(x), distances or {}, len(x)
        centre = np.zeros((self.heads, self.size)) if centre is None else centre
        shift = np.einsum("htd,hd->ht", self.project(x, "q"), centre) / np.sqrt(self.size)
        rows = np.arange(length)
        for r, factor in distances.items():
            shift = shift + factor[:, None] * s[:, rows, (rows + r) % length]
        top = s.max(axis=2)
        log_sum = top + np.log(np.exp(s - top[..., None]).sum(axis=2)) - shift
        classes = np.array(token_classes(length))
        offset = {c: log_sum.max(axis=1) + 0.1 for c in TOKEN_CLASSES}
        if by_class:
            offset |= {c: log_sum[:, classes == c].max(axis=1) + 0.1 for c in set(classes)}
        shifts = shift + np.array([offset[c] for c in classes]).T
        low = np.where(np.isfinite(s), s, np.inf).min(axis=2) - shifts
        attention = AttentionRanges(
            float(low.min()) - 0.1,
            float(-(log_sum + shift - shifts).min()) + 0.1,
            {c: tuple(v.tolist()) for c, v in offset.items()},
            tuple(tuple(row) for row in centre.tolist()),
            {r: tuple(f.tolist()) for r, f in distances.items()},
        )
        norm = NormRanges(0.5, 2.0, dict.fromkeys(TOKEN_CLASSES, 1.0))
        return LayerRanges(attention, norm, norm, -1.0, 1.0, dict.fromkeys(MAGNITUDES, 10.0))
