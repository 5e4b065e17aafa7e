"""Calibration: the ranges of a model's activations on sample texts, with margins.

Run on the client, in float64, on texts like those that will be encrypted. Two passes over the
texts: the first fits, for every head, the log-sum-exp of its scores as a linear function of the
query (and of the score at one fixed distance, where that explains much more); the second measures
what is left.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.packing import positions
from aegis_dask.circuits.ranges import (
    MAGNITUDES,
    TOKEN_CLASSES,
    AttentionRanges,
    LayerRanges,
    NormRanges,
    token_classes,
)
from aegis_dask.ckks.strict_json import read_object
from aegis_dask.errors import RangeError, SerializationError
from aegis_dask.models.checkpoint import BertConfig, BertModel
from aegis_dask.models.reference import encode
from aegis_dask.models.text import embed

Float = NDArray[np.float64]

DISTANCES = (-2, -1, 0, 1, 2)
DISTANCE_THRESHOLD = 1.0
"""Standard deviation of the log-sum-exp, beyond the query's part, from which a distance helps."""
CLASS_THRESHOLD = 1.0
"""What an offset per class of tokens must save of the range of the log-sum-exp."""
FORMAT = 2
MAX_FILE = 16 << 20
"""Bytes of a calibration file; that of a large model takes one million."""
MAX_NAME = 256
_SHA256 = re.compile(r"[0-9a-f]{64}")
MAGNITUDE_OF = {
    "input": "input",
    "norm1.input": "update1",
    "norm1.output": "hidden",
    "norm2.input": "update2",
    "output": "output",
}
"""What the reference observes -> name in `MAGNITUDES`."""


@dataclass(frozen=True)
class Margins:
    """How much ranges are widened.

    Attributes
    ----------
    log_sum
        Added at both ends of the log-sum-exp of the scores.
    score, gelu
        Relative widening, of the lowest score and at both ends of GELU's inputs.
    variance
        Factor at both ends of the variances.
    magnitude
        Factor of the largest hidden states.
    """

    log_sum: float = 1.5
    score: float = 0.25
    gelu: float = 0.2
    variance: float = 1.6
    magnitude: float = 1.5


@dataclass(frozen=True)
class Calibration:
    """Calibrated ranges of a model.

    Attributes
    ----------
    model
        Name of the model.
    sha256
        Of its weights, or None for generated ones.
    layers
        Ranges of every layer.
    texts, tokens
        How many were measured.
    longest
        Tokens of the longest text: longer ones have wider ranges.
    """

    model: str
    sha256: str | None
    layers: tuple[LayerRanges, ...]
    texts: int
    tokens: int
    longest: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "format": FORMAT,
            "model": self.model,
            "sha256": self.sha256,
            "texts": self.texts,
            "tokens": self.tokens,
            "longest": self.longest,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """Read what `to_dict` wrote.

        Raises
        ------
        RangeError
            If it is malformed or of another format.
        """
        try:
            if data["format"] != FORMAT:
                raise RangeError(f"format {shorten(data['format'])} is not read, only {FORMAT}")
            model, sha256, layers = data["model"], data["sha256"], data["layers"]
            counts = [data[name] for name in ("texts", "tokens", "longest")]
        except (KeyError, TypeError) as e:
            raise RangeError(f"malformed calibration: {type(e).__name__}: {e}") from None
        if not (isinstance(model, str) and model.isprintable() and len(model) <= MAX_NAME):
            raise RangeError(f"malformed calibration: the model's name is {shorten(model)}")
        if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise RangeError(f"malformed calibration: sha256 is {shorten(sha256)}")
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in counts):
            raise RangeError(f"malformed calibration: texts, tokens, longest are {shorten(counts)}")
        if not isinstance(layers, list):
            raise RangeError(f"malformed calibration: layers is {shorten(layers)}")
        ranges = tuple(LayerRanges.from_dict(layer) for layer in layers)
        return cls(model, sha256, ranges, *counts)

    def save(self, path: str | Path) -> None:
        """Write JSON, at once or not at all."""
        path, data = Path(path), self.to_dict()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as f:
                json.dump(data, f, indent=1)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises
        ------
        RangeError
            If the file is missing, damaged or of another format.
        """
        try:
            return cls.from_dict(read_object(path, MAX_FILE, floats=True))
        except (OSError, SerializationError, RangeError) as e:
            raise RangeError(
                f"{path} is not a calibration file ({e}); write one with `aegis calibrate`"
            ) from None

    def check_model(self, model: BertModel) -> None:
        """Refuse a model that was not the one calibrated.

        Raises
        ------
        RangeError
            If fewer layers are calibrated than it has, or the checksum or its heads differ.
        """
        heads = {(len(a.centre), len(a.centre[0])) for a in (r.attention for r in self.layers)}
        if heads != {(model.config.heads, model.config.head_size)}:
            raise RangeError(
                f"the calibration of {self.model} is for (heads, head size) of {sorted(heads)}, "
                f"{model.name} has {(model.config.heads, model.config.head_size)}; calibrate this "
                "model"
            )
        if len(self.layers) < len(model.layers) or self.sha256 != model.sha256:
            raise RangeError(
                f"the calibration is for {self.model} ({len(self.layers)} layers, sha256 "
                f"{self.sha256}), the model is {model.name} ({len(model.layers)} layers, sha256 "
                f"{model.sha256}); calibrate this model"
            )


def calibrate(
    model: BertModel,
    texts: Iterable[Sequence[int] | NDArray[np.int64]],
    margins: Margins | None = None,
) -> Calibration:
    """Measure the ranges of a model.

    Parameters
    ----------
    model
        With weights.
    texts
        Token ids of sample texts.
    margins
        How much to widen.

    Raises
    ------
    RangeError
        For fewer than 8 texts: ranges of so few say nothing about others.
    """
    margins = margins or Margins()
    texts = [np.asarray(t, np.int64) for t in texts]
    if len(texts) < 8:
        raise RangeError(f"calibration needs at least 8 texts, {len(texts)} were given")
    embedded = [embed(model, ids) for ids in texts]
    fits = [_LogSumFit(model, i) for i in range(len(model.layers))]
    for x, valid in embedded:
        encode(model, x, valid, _observer([f.observe for f in fits]))
    shifts = [f.solve() for f in fits]
    measured = [_Measured(model, i, s) for i, s in enumerate(shifts)]
    for x, valid in embedded:
        measured[0].start(x)
        encode(model, x, valid, _observer([m.observe for m in measured]))
    return Calibration(
        model.name,
        model.sha256,
        tuple(m.ranges(margins) for m in measured),
        len(texts),
        sum(len(t) for t in texts),
        max(len(t) for t in texts),
    )


def _observer(observers: Sequence[Any]) -> Any:
    def observe(name: str, values: Float) -> None:
        _, index, what = name.split(".", 2)
        observers[int(index)](what, values)
        if what == "output" and int(index) + 1 < len(observers):
            observers[int(index) + 1]("input", values)

    return observe


@dataclass(frozen=True)
class _Shift:
    """Estimate of the log-sum-exp: ``q . centre / sqrt(d) + factor * score at distance``."""

    centre: Float  # [heads, head_size]
    distances: dict[int, Float]  # distance -> [heads]

    def of(self, query: Float, scores: Float, source: NDArray[np.int64]) -> Float:
        """Return ``[heads, positions]``; scores ``[heads, rows, keys]`` without the key's bias."""
        d = query.shape[-1]
        out = np.einsum("hrd,hd->hr", query, self.centre)[:, source] / np.sqrt(d)
        for r, factor in self.distances.items():
            out = out + factor[:, None] * _at_distance(scores, r, source)
        return np.asarray(out)


def _packed(rows: int) -> NDArray[np.int64]:
    """Return the token at every position of a packed text (see `Packing.source`)."""
    return np.arange(positions(rows)) % rows


def _at_distance(scores: Float, r: int, source: NDArray[np.int64]) -> Float:
    """Return scores ``[heads, p]`` of the tokens at positions p and p + r, cyclic."""
    return np.asarray(scores[:, source, np.roll(source, -r)])


def _log_sum_exp(scores: Float) -> Float:
    top = scores.max(axis=-1)
    return np.asarray(top + np.log(np.exp(scores - top[..., None]).sum(axis=-1)))


class _Scores:
    """Scores of one layer without the key's bias, which softmax does not see."""

    def __init__(self, model: BertModel, index: int) -> None:
        heads = model.config.heads
        self.key_bias = model.layers[index].key.bias.astype(np.float64).reshape(heads, 1, -1)
        self.query: Float = np.zeros(0)

    def see(self, what: str, values: Float) -> Float | None:
        if what == "query":
            self.query = values
        if what != "scores":
            return None
        self.query = self.query[:, : values.shape[1]]
        constant = np.einsum("hrd,hkd->hr", self.query, self.key_bias)
        return np.asarray(values - constant[..., None] / np.sqrt(self.query.shape[-1]))


class _LogSumFit(_Scores):
    """Normal equations of the log-sum-exp on query, scores at distances, and 1."""

    def __init__(self, model: BertModel, index: int) -> None:
        super().__init__(model, index)
        heads, self.size = model.config.heads, model.config.head_size
        n = self.size + len(DISTANCES) + 2  # and the target itself
        self.moments = np.zeros((heads, n, n))

    def observe(self, what: str, values: Float) -> None:
        scores = self.see(what, values)
        if scores is None:
            return
        columns = [self.query / np.sqrt(self.size)]
        rows = np.arange(scores.shape[1])
        columns += [_at_distance(scores, r, rows)[..., None] for r in DISTANCES]
        one = np.ones((*scores.shape[:2], 1))
        a = np.concatenate([*columns, one, _log_sum_exp(scores)[..., None]], axis=-1)
        if a.shape[1] > 1:
            a = a[:, 1:]  # the first token is unlike all others, and has an offset of its own
        self.moments += np.swapaxes(a, 1, 2) @ a

    def solve(self) -> _Shift:
        heads, size = len(self.moments), self.size
        centre = np.zeros((heads, size))
        distances: dict[int, Float] = {}
        one = self.moments.shape[1] - 2
        for h, m in enumerate(self.moments):
            basis = [*range(size), one]
            w, deviation = _least_squares(m, basis)
            if deviation > DISTANCE_THRESHOLD:
                tried = [(*_least_squares(m, [one, size + k]), r) for k, r in enumerate(DISTANCES)]
                best, reached, r = min(tried, key=lambda item: item[1])
                if reached < 0.7 * deviation:
                    distances.setdefault(r, np.zeros(heads))[h] = best[-1]
                    continue
            centre[h] = w[:size]
        return _Shift(centre, distances)


def _least_squares(m: Float, columns: list[int]) -> tuple[Float, float]:
    """Return weights of `columns` for the last one, and the standard deviation that is left."""
    count = m[-2, -2]
    gram = m[np.ix_(columns, columns)]
    ridge = 1e-4 * np.trace(gram) / len(columns) * np.eye(len(columns))
    w = np.linalg.solve(gram + ridge, m[columns, -1])
    left = m[-1, -1] - 2 * w @ m[columns, -1] + w @ gram @ w
    return w, float(np.sqrt(max(left, 0.0) / count))


class _Measured(_Scores):
    """Extremes of one layer."""

    def __init__(self, model: BertModel, index: int, shift: _Shift) -> None:
        super().__init__(model, index)
        self.shift = shift
        heads = model.config.heads
        self.log_low = {c: np.full(heads, np.inf) for c in TOKEN_CLASSES}
        self.log_high = {c: np.full(heads, -np.inf) for c in TOKEN_CLASSES}
        self.score_low = {c: np.full(heads, np.inf) for c in TOKEN_CLASSES}
        self.variances: dict[tuple[str, str], list[float]] = {
            (norm, c): [np.inf, -np.inf] for norm in ("norm1", "norm2") for c in TOKEN_CLASSES
        }
        self.gelu = [np.inf, -np.inf]
        self.magnitudes = dict.fromkeys(MAGNITUDES, 0.0)

    def start(self, x: Float) -> None:
        """Take the input of the first layer."""
        self.observe("input", x)

    def observe(self, what: str, values: Float) -> None:
        scores = self.see(what, values)
        if scores is not None:
            source = _packed(scores.shape[1])
            shift = self.shift.of(self.query, scores, source)
            log_sum = _log_sum_exp(scores)[:, source] - shift
            low = scores.min(axis=2)[:, source] - shift
            classes = np.array(token_classes(scores.shape[1]))[source]
            for c in TOKEN_CLASSES:
                if (rows := classes == c).any():
                    self.log_low[c] = np.minimum(self.log_low[c], log_sum[:, rows].min(axis=1))
                    self.log_high[c] = np.maximum(self.log_high[c], log_sum[:, rows].max(axis=1))
                    self.score_low[c] = np.minimum(self.score_low[c], low[:, rows].min(axis=1))
        elif what in ("norm1.input", "norm2.input"):
            variance = values.var(axis=1)
            for v, c in zip(variance, token_classes(len(variance)), strict=True):
                seen = self.variances[what[:5], c]
                seen[0], seen[1] = min(seen[0], v), max(seen[1], v)
        elif what == "gelu.input":
            self.gelu = [
                min(self.gelu[0], float(values.min())),
                max(self.gelu[1], float(values.max())),
            ]
        if what in MAGNITUDE_OF:
            name = MAGNITUDE_OF[what]
            self.magnitudes[name] = max(self.magnitudes[name], _magnitude(what, values))

    def ranges(self, margins: Margins) -> LayerRanges:
        """Return the widened ranges."""
        seen = [c for c in TOKEN_CLASSES if np.isfinite(self.log_low[c]).all()]
        highs, lows = (np.array([v[c] for c in seen]) for v in (self.log_high, self.log_low))
        together = highs.max(axis=0) - lows.min(axis=0)
        apart = (highs - lows).max(axis=0)
        # An offset per class makes plaintexts as long as the sequence: only where it pays.
        top = np.where(together - apart > CLASS_THRESHOLD, highs, highs.max(axis=0))
        offset = dict.fromkeys(TOKEN_CLASSES, top.max(axis=0) + margins.log_sum)
        offset.update({c: top[i] + margins.log_sum for i, c in enumerate(seen)})
        spread = float(max(np.max(offset[c] - self.log_low[c]) for c in seen)) + margins.log_sum
        low = float(min(np.min(self.score_low[c] - offset[c]) for c in seen))
        attention = AttentionRanges(
            low * (1 + margins.score),
            spread,
            {c: tuple(float(v) for v in offset[c]) for c in TOKEN_CLASSES},
            tuple(tuple(float(v) for v in row) for row in self.shift.centre),
            {r: tuple(float(v) for v in f) for r, f in self.shift.distances.items()},
        )
        width = margins.gelu * (self.gelu[1] - self.gelu[0])
        return LayerRanges(
            attention,
            self._norm("norm1", margins),
            self._norm("norm2", margins),
            self.gelu[0] - width,
            self.gelu[1] + width,
            {name: margins.magnitude * v for name, v in self.magnitudes.items()},
        )

    def _norm(self, norm: str, margins: Margins) -> NormRanges:
        seen = {c: self.variances[norm, c] for c in TOKEN_CLASSES}
        scale = {
            c: float(np.sqrt(low * high)) if low <= high else 1.0 for c, (low, high) in seen.items()
        }
        low = min(v[0] / scale[c] for c, v in seen.items() if v[0] <= v[1])
        high = max(v[1] / scale[c] for c, v in seen.items() if v[0] <= v[1])
        return NormRanges(float(low / margins.variance), float(high * margins.variance), scale)


def _magnitude(what: str, values: Float) -> float:
    """Return the largest absolute value; what LayerNorm takes is centred in the program."""
    if what in ("norm1.input", "norm2.input"):
        values = values - values.mean(axis=1, keepdims=True)
    return float(np.abs(values).max())


def check_inside(
    model: BertModel, calibration: Calibration, x: Float, valid: NDArray[np.bool_]
) -> Float:
    """Run the model in float64 and refuse a text whose values leave the calibrated ranges.

    Returns
    -------
    ndarray
        The hidden states of the reference, which is what this costs.

    Raises
    ------
    RangeError
        Naming the layer, the function, the value and the range.
    """
    layers = zip(model.layers, calibration.layers, strict=False)
    checks = [_Checked(model, i, ranges) for i, (_, ranges) in enumerate(layers)]
    checks[0].observe("input", x[valid])
    return encode(model, x, valid, _observer([c.observe for c in checks]))


class _Checked(_Scores):
    def __init__(self, model: BertModel, index: int, ranges: LayerRanges) -> None:
        super().__init__(model, index)
        self.index, self.limits = index, ranges
        a = ranges.attention
        self.shift = _Shift(np.array(a.centre), {r: np.array(f) for r, f in a.distances.items()})

    def observe(self, what: str, values: Float) -> None:
        scores = self.see(what, values)
        if scores is not None:
            a, source = self.limits.attention, _packed(scores.shape[1])
            offset = np.array([a.offset[c] for c in token_classes(scores.shape[1])]).T
            shift = self.shift.of(self.query, scores, source) + offset[:, source]
            log_sum = _log_sum_exp(scores)[:, source] - shift
            self._within("the logarithm of a softmax denominator", log_sum, -a.spread, 0.0)
            self._within("a score", scores.min(axis=2)[:, source] - shift, a.score_low, 0.0)
        elif what in ("norm1.input", "norm2.input"):
            norm = self.limits.norm1 if what[4] == "1" else self.limits.norm2
            variance = values.var(axis=1)
            scale = np.array([norm.scale[c] for c in token_classes(len(variance))])
            self._within(f"the variance before {what[:5]}", variance / scale, norm.low, norm.high)
        elif what == "gelu.input":
            self._within("an input of GELU", values, self.limits.gelu_low, self.limits.gelu_high)
        if what in MAGNITUDE_OF:
            limit = self.limits.magnitudes[MAGNITUDE_OF[what]]
            largest = np.array([_magnitude(what, values)])
            self._within(f"the magnitude of {what.replace('.', ', ')}", largest, 0.0, limit)

    def _within(self, what: str, values: Float, low: float, high: float) -> None:
        smallest, largest = float(values.min()), float(values.max())
        if smallest < low or largest > high:
            value = smallest if smallest < low else largest
            raise RangeError(
                f"layer {self.index}: {what} is {value:.4g} for this text, outside the calibrated "
                f"range {low:.4g} to {high:.4g}; the encrypted result would be meaningless. "
                "Calibrate with texts like this one"
            )


def typical_calibration(config: BertConfig) -> Calibration:
    """Return plausible ranges for a shape without weights, to count what a model would cost."""
    heads = config.heads
    layer = LayerRanges(
        AttentionRanges(
            -40.0,
            8.0,
            dict.fromkeys(TOKEN_CLASSES, (8.0,) * heads),
            ((0.0,) * config.head_size,) * heads,
            {},
        ),
        NormRanges(0.3, 3.0, dict.fromkeys(TOKEN_CLASSES, 1.0)),
        NormRanges(0.1, 10.0, dict.fromkeys(TOKEN_CLASSES, 1.0)),
        -16.0,
        16.0,
        dict.fromkeys(MAGNITUDES, 10.0),
    )
    return Calibration("typical", None, (layer,) * config.layers, 0, 0, config.max_positions)
