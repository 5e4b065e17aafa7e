"""Polynomials for the functions of a transformer, each with its error.

Degrees are of the form ``2^r - 1``, which is what r levels pay for. Sources: `exp` by one-sided
fits and squarings, research on encrypted softmax (arXiv 2410.11184); `inverse` is the relaxed
Goldschmidt iteration of THOR (ePrint 2024/1881) with minimax factors: the product form of the
Chebyshev residual polynomial (Saad, Iterative Methods, section 6.11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import acosh, atanh, ceil, cosh, inf, log2, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from aegis_dask.ckks.polynomial import chebyshev_coefficients
from aegis_dask.errors import RangeError
from aegis_dask.program.graph import EncryptedTensor

Float = NDArray[np.float64]
MAX_DEGREE_BITS = 9
LONGEST_CHAIN = 8
"""Factors of an inverse that are multiplied one after the other."""
REFRESH_ERROR = 1e-3
"""Relative error that refreshing a value may cause in what is computed from it: the tolerance of
the polynomials."""


@dataclass(frozen=True)
class Polynomial:
    """A Chebyshev interpolant on [low, high].

    Attributes
    ----------
    low, high
        The interval.
    coefficients
        Of T_0 .. T_degree on [-1, 1].
    error
        Largest error found on a fine grid of the interval.
    """

    low: float
    high: float
    coefficients: tuple[float, ...]
    error: float

    @property
    def middle(self) -> float:
        """Centre of the interval."""
        return (self.low + self.high) / 2

    @property
    def half(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def degree(self) -> int:
        """Degree."""
        return len(self.coefficients) - 1

    def __call__(self, x: NDArray[np.float64]) -> Float:
        """Evaluate in plain."""
        t = (np.asarray(x, np.float64) - self.middle) / self.half
        out: Float = np.polynomial.chebyshev.chebval(t, np.array(self.coefficients))
        return out


def fit(
    function: Callable[[Float], Float],
    low: float,
    high: float,
    tolerance: float,
    relative: bool = False,
    what: str = "function",
) -> Polynomial:
    """Return the interpolant of the lowest degree ``2^r - 1`` within a tolerance.

    Raises
    ------
    RangeError
        If no degree up to 511 reaches it.
    """
    if not low < high:
        raise RangeError(f"the interval [{low}, {high}] for {what} is empty")
    grid = np.concatenate(
        [np.linspace(low, high, 4001), low + (high - low) * np.geomspace(1e-7, 1e-2, 400)]
    )
    expected = np.asarray(function(grid))
    error = np.inf
    for bits in range(2, MAX_DEGREE_BITS + 1):
        c = chebyshev_coefficients(function, (1 << bits) - 1, (low, high))
        c = np.where(np.abs(c) < 1e-14 * np.max(np.abs(c)), 0.0, c)
        poly = Polynomial(low, high, tuple(float(v) for v in c), 0.0)
        difference = np.abs(poly(grid) - expected)
        error = float(np.max(difference / np.abs(expected) if relative else difference))
        if error <= tolerance:
            return Polynomial(low, high, poly.coefficients, error)
    raise RangeError(
        f"{what} on [{low:.4g}, {high:.4g}] needs a polynomial of degree above "
        f"{(1 << MAX_DEGREE_BITS) - 1} for an error of {tolerance:g} (it has {error:.2g})"
    )


def gelu(x: Float) -> Float:
    """Return ``x Phi(x)``, the exact GELU."""
    return np.asarray(x * (0.5 + 0.5 * erf(x * sqrt(0.5))))


@dataclass(frozen=True)
class Exponential:
    """``exp(x)`` on [low, high] as a polynomial of ``x / 2^squarings``, squared that often."""

    base: Polynomial
    squarings: int

    @property
    def depth(self) -> int:
        """Levels."""
        return len(self.base.coefficients).bit_length() - 1 + self.squarings

    def __call__(self, x: Float) -> Float:
        """Evaluate in plain."""
        y = self.base(np.asarray(x) / (1 << self.squarings))
        for _ in range(self.squarings):
            y = y * y
        return y


def fit_exponential(low: float, high: float, tolerance: float) -> Exponential:
    """Return the cheapest approximation whose error relative to exp(high) is within a tolerance.

    One squaring at least: the result is then a square, never negative.

    Raises
    ------
    RangeError
        If the interval is empty, or no degree up to 511 with up to 4 squarings reaches it.
    """
    if not low < high:
        raise RangeError(f"the interval [{low}, {high}] for exp is empty")
    best: Exponential | None = None
    for squarings in (1, 2, 3, 4):
        scale = 1 << squarings
        try:
            base = fit(
                lambda x, top=high / scale: np.exp(x - top),  # type: ignore[misc]
                low / scale,
                high / scale,
                tolerance / scale,
                what="exp",
            )
        except RangeError:
            continue
        factor = float(np.exp(high / scale))
        coefficients = tuple(c * factor for c in base.coefficients)
        base = Polynomial(base.low, base.high, coefficients, base.error * factor)
        found = Exponential(base, squarings)
        if best is None or (found.depth, squarings) < (best.depth, best.squarings):
            best = found
    if best is None:
        raise RangeError(f"exp on [{low:.4g}, {high:.4g}] is out of reach; the range is too wide")
    return best


@dataclass(frozen=True)
class Inverse:
    """``1 / y`` for y in ``[low, high]`` with ``high - low = 2``, as a product of factors.

    With ``t = t0 - y`` in [-1, 1], ``1 - T_m(t) / T_m(t0) = y p_m(y)`` and doubling m multiplies
    p by a factor in ``T_m(t0) + T_m(t)``: r levels give ``m = 2^r``.

    Attributes
    ----------
    t0
        Centre of the interval.
    doublings
        r.
    error
        Relative error.
    """

    t0: float
    doublings: int
    error: float

    @property
    def depth(self) -> int:
        """Levels from y to the result: the first factor takes none."""
        return self.doublings + (self.doublings > LONGEST_CHAIN) if self.doublings > 1 else 0

    @property
    def scale(self) -> float:
        """What the product of the factors must be multiplied with to be the inverse."""
        c, value = 1.0 / self.t0, self.t0
        for _ in range(self.doublings):
            following = 2 * value * value - 1
            c *= 2 * value / following
            value = following
        return c

    def factors(self) -> list[float]:
        """Return ``T_1(t0), T_2(t0), T_4(t0), ..``, one per doubling."""
        out, value = [], self.t0
        for _ in range(self.doublings):
            out.append(value)
            value = 2 * value * value - 1
        return out

    def __call__(self, y: Float) -> Float:
        """Evaluate in plain."""
        t, out = self.t0 - np.asarray(y, np.float64), np.ones_like(np.asarray(y, np.float64))
        for value in self.factors():
            out = out * (t + value)
            t = 2 * t * t - 1
        return out * self.scale


def fit_inverse(ratio: float, tolerance: float) -> Inverse:
    """Return the inverse on ``[a, a * ratio]``, scaled so that the interval has length 2.

    Raises
    ------
    RangeError
        If it takes more than 20 levels, or a number is out of range.
    """
    if not 1 < ratio < inf or not 0 < tolerance < 1:
        raise RangeError(
            "the range of an inverse has a finite ratio above 1 and its tolerance is between 0 and "
            f"1; {ratio} and {tolerance} were given"
        )
    t0 = (ratio + 1) / (ratio - 1)
    # acosh(t0), without the cancellation in t0 - 1.
    angle = 2 * atanh(1 / sqrt(ratio))
    doublings = max(1, ceil(log2(acosh(1 / tolerance) / angle)))
    if doublings > 20:
        raise RangeError(
            f"1/x over a range of ratio {ratio:.3g} takes {doublings} levels, at most 20 are "
            "supported"
        )
    error = 1 / cosh((1 << doublings) * angle)
    return Inverse(t0, doublings, error)


def encrypted_inverse(y: EncryptedTensor, inverse: Inverse) -> EncryptedTensor:
    """Return ``1 / (y scale)``: the caller folds `Inverse.scale` into a later constant."""
    t = inverse.t0 - y
    factors = []
    for i, value in enumerate(inverse.factors()):
        if i:
            t = t.square() * 2 - 1
        # What is left to compute is about 1 / (value - t). The ends of the interval are margin:
        # what occurs is some four times as far from 0.
        t = t.within(1, 4 * REFRESH_ERROR * (value - 1))
        factors.append(t + value)
    if len(factors) <= LONGEST_CHAIN:
        return _product(factors)
    # Two chains, so that a refresh of t between them serves the second. One level more.
    half = len(factors) // 2
    return _product(factors[:half]) * _product(factors[half:])


def _product(factors: Sequence[EncryptedTensor]) -> EncryptedTensor:
    out = factors[0]
    for factor in factors[1:]:
        out = out * factor
    return out


def encrypted_exponential(
    t: EncryptedTensor, exponential: Exponential, smallest_sum: float
) -> EncryptedTensor:
    """Return exp of x from ``t = (x / 2^squarings - middle) / half`` in [-1, 1].

    `smallest_sum` is the smallest sum of results that matters: a refresh may disturb it little.
    """
    y = t.chebyshev(exponential.base.coefficients)
    power = 1 << exponential.squarings
    largest = float(np.exp(exponential.base.high)) * 1.01
    y = y.within(largest, REFRESH_ERROR * smallest_sum ** (1 / power) / power)
    for _ in range(exponential.squarings):
        y = y.square()
    return y
