"""The modular reduction as a polynomial: a cosine of low degree and double angles.

After ModRaise a coefficient is ``x = m + q_0 I`` with a small integer I. EvalMod returns
``sin(2 pi x / q_0) / 2 pi``, which is ``m / q_0`` up to the cube of that number. With
``u = x / q_0`` the sine is ``cos(2 pi (u - 1/4))``, made of ``cos(2 pi (u - 1/4) / 2^r)`` by r
double angles (Han and Ki, ePrint 2019/688). That cosine is an even function, so its polynomial is
one of half the degree in T_2.

The polynomial only has to be right near integers u. It is the weighted least-squares fit there (the
idea of Han and Ki's choice of nodes), each point weighted with what the double angles make of its
error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import comb, factorial, log2, pi

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray

from aegis_dask.errors import ParameterError

_POINTS = 7  # per integer: the cosine is nearly linear over one


@dataclass(frozen=True)
class Sine:
    """A polynomial for the sine.

    Attributes
    ----------
    bound
        K: the polynomial is right for ``|I| <= K``.
    degree
        Degree of the cosine's polynomial, even.
    doublings
        r, the number of double angles.
    deviation
        Largest ``|u - I|`` for which it is fitted.
    """

    bound: int
    degree: int
    doublings: int
    deviation: float

    def __post_init__(self) -> None:
        if self.degree % 2 or self.degree < 4 or self.doublings < 0 or self.bound < 1:
            raise ParameterError(
                f"a cosine of degree {self.degree} with {self.doublings} double angles for |I| up "
                f"to {self.bound} was asked for; the degree is even and at least 4, the bound at "
                "least 1"
            )
        if not 0 < self.deviation < 0.25:
            raise ParameterError(
                f"values up to {self.deviation:.3g} of q_0 were asked for; they must stay below a "
                "quarter of it"
            )

    @property
    def half_width(self) -> float:
        """Half the width of the interval of ``u - 1/4`` that is mapped to [-1, 1]."""
        return self.bound + 0.25 + self.deviation

    @property
    def amplitude(self) -> float:
        """Factor of the cosine: squared r times it is 1 / (2 pi)."""
        return float((2 * pi) ** -(0.5**self.doublings))

    @property
    def constants(self) -> tuple[float, ...]:
        """What each double angle ``2 c^2 - constant`` subtracts."""
        return tuple(self.amplitude ** (2 << i) for i in range(self.doublings))

    @cached_property
    def coefficients(self) -> NDArray[np.float64]:
        """Chebyshev coefficients in ``T_2(t)``, ``t = (u - 1/4) / half_width``."""
        nodes = np.cos(pi * (np.arange(_POINTS) + 0.5) / _POINTS)
        integers = np.arange(-self.bound, self.bound + 1)
        v = (integers[:, None] + self.deviation * nodes - 0.25).ravel()
        angle = 2 * pi * v / 2**self.doublings
        basis = chebyshev.chebvander(v / self.half_width, self.degree)[:, ::2]
        # An error d of the cosine becomes about d / |sin(angle)| times 2^r / 2 pi. The floor
        # matters where the slope vanishes, far from the points.
        weight = 1 / np.maximum(np.abs(np.sin(angle)), 0.05)
        target = self.amplitude * np.cos(angle)
        fit = np.linalg.lstsq(basis * weight[:, None], target * weight, rcond=1e-16)[0]
        return np.asarray(fit, np.float64)

    def evaluate(self, u: ArrayLike) -> NDArray[np.float64]:
        """Return what EvalMod computes of ``u = x / q_0``, in float64."""
        t = (np.asarray(u, np.float64) - 0.25) / self.half_width
        c = np.asarray(chebyshev.chebval(2 * t * t - 1, self.coefficients), np.float64)
        for constant in self.constants:
            c = 2 * c * c - constant
        return c

    @cached_property
    def fit_error(self) -> float:
        """Largest distance from ``sin(2 pi u) / 2 pi`` where it is fitted."""
        integers = np.arange(-self.bound, self.bound + 1)[:, None]
        u = integers + np.linspace(-self.deviation, self.deviation, 33)
        return float(np.max(np.abs(self.evaluate(u) - np.sin(2 * pi * u) / (2 * pi))))

    def sine_error(self, deviation: float) -> float:
        """Return ``|sin(2 pi u) / 2 pi - u|`` at distance `deviation` from an integer."""
        return float(abs(np.sin(2 * pi * deviation) / (2 * pi) - deviation))


def log2_failure(bound: int, weight: int, coefficients: int) -> float:
    """Return log2 of a bound on the probability that some ``|I|`` exceeds `bound`.

    ``x / q_0`` is a sum of ``weight + 1`` independent uniform numbers on [-1/2, 1/2) (the residues
    of c0, and of c1 under the nonzero coefficients of the secret): Irwin and Hall's distribution.
    I exceeds K when the sum exceeds K + 1/2. The union bound is over all coefficients.

    Returns
    -------
    float
        ``-inf`` if it cannot happen.
    """
    terms = weight + 1
    reach = Fraction(terms, 2) - Fraction(2 * bound + 1, 2)  # from the end of the distribution
    if reach <= 0:
        return float("-inf")
    count = reach.numerator // reach.denominator + 1
    tail = sum(
        ((-1) ** k * comb(terms, k) * (reach - k) ** terms for k in range(count)), Fraction(0)
    ) / factorial(terms)
    return log2(2 * coefficients) + log2(tail.numerator) - log2(tail.denominator)
