"""Calibrated ranges: what the polynomials of one encoder layer are fitted to.

Measured on sample texts with the model in float64 and widened by margins (`models.calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from reprlib import repr as shorten
from typing import Any

import numpy as np

from aegis_dask.circuits.approximation import (
    Exponential,
    Inverse,
    Polynomial,
    fit,
    fit_exponential,
    fit_inverse,
    gelu,
)
from aegis_dask.circuits.packing import MIN_TOKENS
from aegis_dask.errors import RangeError

TOKEN_CLASSES = ("first", "last", "other")
LARGEST = 1e9
"""Magnitude of a number of calibrated ranges: anything beyond is no range of a model."""
MAX_DISTANCES, MAX_DISTANCE = 64, 1 << 16
MAGNITUDES = ("input", "update1", "hidden", "update2", "output")
"""Values whose size is measured: hidden states that enter the layer, what the first LayerNorm takes
(centred) and gives, and what the second takes and gives."""


def token_classes(length: int) -> list[str]:
    """Return the class of every token of a text."""
    return ["first" if i == 0 else "last" if i == length - 1 else "other" for i in range(length)]


@dataclass(frozen=True)
class AttentionRanges:
    """Ranges of one self-attention.

    A softmax does not change when a number that depends on the query only is subtracted from its
    scores. Subtracted is an estimate of their log-sum-exp: ``q . centre[h]``, plus, for heads that
    look at a fixed distance, a multiple of the score at that distance, plus ``offset[c][h]`` for
    queries of class c, chosen so that ``log sum exp`` of what remains is in ``[-spread, 0]``.

    Attributes
    ----------
    score_low
        Smallest score after the subtraction; the largest is 0.
    spread
        Range of the log-sum-exp.
    offset
        Class of the query -> per head.
    centre
        ``[heads][head_size]``.
    distances
        Relative position -> factor per head.
    """

    score_low: float
    spread: float
    offset: dict[str, tuple[float, ...]]
    centre: tuple[tuple[float, ...], ...]
    distances: dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class NormRanges:
    """Ranges of one LayerNorm.

    Attributes
    ----------
    low, high
        Of the variances after division by the scale.
    scale
        Per class of tokens.
    """

    low: float
    high: float
    scale: dict[str, float]


@dataclass(frozen=True)
class LayerRanges:
    """All ranges of one encoder layer.

    Attributes
    ----------
    attention, norm1, norm2
        Of self-attention and of the LayerNorms after it and after the feed-forward network.
    gelu_low, gelu_high
        Inputs of GELU.
    magnitudes
        Largest absolute values, by the names in `MAGNITUDES`.
    """

    attention: AttentionRanges
    norm1: NormRanges
    norm2: NormRanges
    gelu_low: float
    gelu_high: float
    magnitudes: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        data = asdict(self)
        distances = data["attention"]["distances"]
        data["attention"]["distances"] = {str(k): v for k, v in distances.items()}
        return data

    def _check(self) -> None:
        a = self.attention
        numbers = [a.score_low, a.spread, self.gelu_low, self.gelu_high]
        numbers += self.magnitudes.values()
        numbers += [v for f in (*a.offset.values(), *a.centre, *a.distances.values()) for v in f]
        norms = (self.norm1, self.norm2)
        numbers += [v for n in norms for v in (n.low, n.high, *n.scale.values())]
        if not all(abs(v) <= LARGEST for v in numbers):  # neither does NaN
            raise ValueError(f"a number is not between -{LARGEST:g} and {LARGEST:g}")
        heads = {len(f) for f in (*a.offset.values(), *a.distances.values(), a.centre)}
        if len(heads) != 1 or len({len(row) for row in a.centre}) != 1:
            raise ValueError("heads differ")
        if len(a.distances) > MAX_DISTANCES or any(abs(r) > MAX_DISTANCE for r in a.distances):
            raise ValueError(f"more than {MAX_DISTANCES} distances, or one beyond {MAX_DISTANCE}")
        increasing = all(0 < n.low < n.high and min(n.scale.values()) > 0 for n in norms)
        if not (increasing and a.score_low < 0 < a.spread and self.gelu_low < self.gelu_high):
            raise ValueError("a range is empty")
        if min(self.magnitudes.values()) <= 0:
            raise ValueError("a magnitude is not positive")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerRanges:
        """Read what `to_dict` wrote.

        Raises
        ------
        RangeError
            If something is missing or not a finite number, or a range is empty.
        """
        try:
            a = data["attention"]
            attention = AttentionRanges(
                _number(a["score_low"]),
                _number(a["spread"]),
                {c: tuple(_number(v) for v in a["offset"][c]) for c in TOKEN_CLASSES},
                tuple(tuple(_number(v) for v in row) for row in a["centre"]),
                {_integer(k): tuple(_number(v) for v in f) for k, f in a["distances"].items()},
            )
            norm1, norm2 = (
                NormRanges(
                    _number(data[k]["low"]),
                    _number(data[k]["high"]),
                    {c: _number(data[k]["scale"][c]) for c in TOKEN_CLASSES},
                )
                for k in ("norm1", "norm2")
            )
            gelu_low, gelu_high = _number(data["gelu_low"]), _number(data["gelu_high"])
            magnitudes = {k: _number(data["magnitudes"][k]) for k in MAGNITUDES}
            ranges = cls(attention, norm1, norm2, gelu_low, gelu_high, magnitudes)
            ranges._check()
            return ranges
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
            raise RangeError(
                f"calibrated ranges are incomplete or malformed ({e!r}); calibrate again"
            ) from None


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{shorten(value)} is not a number")
    return float(value)


def _integer(text: str) -> int:
    value = int(text)
    if str(value) != text:  # "01" would be a second name of 1
        raise ValueError(f"{shorten(text)} is not an integer as it is written")
    return value


@dataclass(frozen=True)
class Tolerances:
    """How well each function is approximated.

    Attributes
    ----------
    exponential
        Of a softmax: absolute, its largest value being 1.
    inverse, norm
        Of ``1/x`` and ``1/sqrt(x)``: relative.
    gelu
        Absolute.
    """

    exponential: float = 1e-5
    inverse: float = 1e-3
    norm: float = 1e-3
    gelu: float = 1e-3


@dataclass(frozen=True)
class LayerFits:
    """The polynomials of one layer.

    Attributes
    ----------
    exponential, inverse
        Of the softmax.
    norm1, norm2
        ``1 / sqrt(v)`` of the LayerNorms for v = (variance + norm_eps) / scale.
    gelu
        GELU.
    norm_eps
        What the LayerNorms add to the variance.
    """

    exponential: Exponential
    inverse: Inverse
    norm1: Polynomial
    norm2: Polynomial
    gelu: Polynomial
    norm_eps: float


CAUSAL_MARGIN = 16.0
"""How far a masked score is put below a real one: exp(-16) is 1e-7."""


def fit_layer(
    ranges: LayerRanges,
    norm_eps: float,
    tolerances: Tolerances | None = None,
    causal: bool = False,
) -> LayerFits:
    """Fit every function of a layer on its ranges.

    Parameters
    ----------
    ranges
        Calibrated ranges.
    norm_eps
        What the LayerNorms add to the variance.
    tolerances
        Accuracy.
    causal
        Make room for masked scores (`attention.SelfAttention.causal`).

    Raises
    ------
    RangeError
        If a range is too wide for any polynomial.
    """
    tolerances = tolerances or Tolerances()
    inverse = fit_inverse(float(np.exp(ranges.attention.spread)), tolerances.inverse)
    # Scores are shifted so that the denominator lies in the interval of the inverse.
    shift = float(np.log(inverse.t0 + 1))
    # Repeated tokens lower scores by the logarithm of their multiplicity (`Packing`).
    low = ranges.attention.score_low + shift - float(np.log(MIN_TOKENS)) - CAUSAL_MARGIN * causal
    exponential = fit_exponential(low, shift, tolerances.exponential)

    def root(norm: NormRanges, what: str) -> Polynomial:
        eps = [norm_eps / s for s in norm.scale.values()]
        low, high = norm.low + min(eps), norm.high + max(eps)
        return fit(lambda v: 1 / np.sqrt(v), low, high, tolerances.norm, relative=True, what=what)

    return LayerFits(
        exponential,
        inverse,
        root(ranges.norm1, "1/sqrt of the first LayerNorm"),
        root(ranges.norm2, "1/sqrt of the second LayerNorm"),
        fit(gelu, ranges.gelu_low, ranges.gelu_high, tolerances.gelu, what="GELU"),
        norm_eps,
    )
