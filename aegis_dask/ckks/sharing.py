"""Noise flooding of decrypted values that leave the client.

The error of a decrypted value depends on the secret key, so whoever sees many values can compute
the key (IND-CPA-D; Li and Micciancio, ePrint 2020/1533). `Sharing` adds Gaussian noise that hides
the error, as Li, Micciancio, Schultz and Sorrell propose (ePrint 2022/816, Gaussian mechanism and
Kullback-Leibler differential privacy).

Of q shared results of d real numbers, each within `error` of what the circuit gives without
encryption, two discrete Gaussians of standard deviation sigma around either differ by a divergence
of at most ``t^2 / (2 sigma^2)`` with ``t = sqrt(d) error`` (Canonne, Kamath,
Steinke, arXiv:2004.00010: the same as for continuous ones). Divergences of q results, chosen
adaptively, add up. With

    ``sigma = 8 sqrt(q) t 2^(s/2)``

the whole is at most ``2^-(s + 7)``, what the paper asks for s bits of statistical security. The
noise is added to the numbers that are shared, not to the N coefficients they come from: to decode
and to leave numbers out changes nothing about the argument, and d is smaller than N.

Sampling is exact, in integers from the operating system's generator: floating-point noise has
gaps that tell what it was added to. It is not in constant time.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from math import ceil, floor, log, log2, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import ParameterError

MAX_BITS = 128
MAX_QUERIES = 1 << 40
GRID_BITS = 4
"""Values are rounded to multiples of the error bound over two to this many, at most."""


def error_bound(noise: float, count: int, log2_failure: float = -40) -> float:
    """Return what no error of `count` slots exceeds, but with a small probability.

    Parameters
    ----------
    noise
        Standard deviation of a slot by `NoiseModel`: an average-case estimate, for programs whose
        every operation was followed with it.
    count
        Number of slots.
    log2_failure
        log2 of the probability.
    """
    # |error|^2 of a complex Gaussian slot is exponentially distributed with mean noise^2.
    return noise * sqrt(log(count) - log2_failure * log(2))


@dataclass(frozen=True)
class Sharing:
    """How results are flooded before others get them.

    Attributes
    ----------
    error
        Bound on the absolute error of each number against the circuit without encryption, in units
        of the message. The security holds for results within it, no others.
    bits
        Statistical security s.
    queries
        How many results are ever shared under one secret key, all together. Nobody counts but you.
    least_precision
        Refuse if the noise would have a standard deviation above 2 to minus this.

    Raises
    ------
    ParameterError
        If a number is out of range.
    """

    error: float
    bits: float = 30
    queries: int = 1
    least_precision: float = 4

    def __post_init__(self) -> None:
        if not (2.0**-100 < self.error < 2.0**100):
            raise ParameterError(
                f"the bound on the error is {self.error}; a positive number is needed, in units of "
                "the message"
            )
        if not 1 <= self.bits <= MAX_BITS:
            raise ParameterError(
                f"{self.bits} bits of statistical security were asked for; 1 to {MAX_BITS} can be"
            )
        if not 1 <= self.queries <= MAX_QUERIES:
            raise ParameterError(f"{self.queries} shared results were asked for; 1 to 2^40 can be")

    @property
    def grid(self) -> float:
        """What values are rounded to multiples of, a power of two: the error may grow by it."""
        return 2.0 ** (floor(log2(self.error)) - GRID_BITS)

    def _steps(self, count: int) -> int:
        """Return the standard deviation for `count` numbers, in multiples of the grid."""
        difference = (self.error + self.grid) / self.grid  # of two values, each of them rounded
        return ceil(8 * sqrt(self.queries * count) * difference * 2 ** (self.bits / 2))

    def deviation(self, count: int) -> float:
        """Return the standard deviation of the noise of each of `count` numbers."""
        return self._steps(count) * self.grid

    def precision(self, count: int) -> float:
        """Return the bits after the binary point that it leaves, ``-log2`` of the deviation."""
        return -log2(self.deviation(count))

    def check(self, count: int) -> None:
        """Refuse to share `count` numbers if too little would be left of them.

        Raises
        ------
        ParameterError
            If the noise would exceed what `least_precision` allows.
        """
        left = self.precision(count)
        if left < self.least_precision:
            raise ParameterError(
                f"to hide errors up to {self.error:.3g} of {count} numbers in {self.queries} "
                f"shared results with {self.bits:g} bits of statistical security takes noise of "
                f"standard deviation {self.deviation(count):.3g}, which leaves {left:.1f} bits "
                f"after the binary point; at least {self.least_precision:g} were asked for. Share "
                "fewer numbers or fewer results, compute with a larger scale, or ask for less"
            )

    def flood(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values with noise, to be given to others instead of them.

        Each call is one of the `queries`, also for values that were shared before.

        Parameters
        ----------
        values
            Real or complex numbers of any shape, one or more; a complex one counts as two.

        Raises
        ------
        ParameterError
            If the noise would exceed what `least_precision` allows, or a value is not finite.
        """
        array = np.asarray(values)
        if np.iscomplexobj(array):
            parts = self.flood(np.stack([array.real, array.imag]))
            return np.asarray(parts[0] + 1j * parts[1])
        self.check(array.size)
        steps, grid = self._steps(array.size), self.grid
        with np.errstate(over="ignore"):
            scaled = np.rint(array.ravel() / grid)  # exact: a power of two
        if not np.isfinite(scaled).all():
            raise ParameterError("a value to be shared is not finite; the result is meaningless")
        out = [(int(v) + discrete_gaussian(steps)) * grid for v in scaled]
        return np.array(out, np.float64).reshape(array.shape)


# -- exact sampling (Canonne, Kamath, Steinke, algorithms 1 to 3) ------------------------------


def discrete_gaussian(sigma: int) -> int:
    """Return an integer x with a probability proportional to ``exp(-x^2 / (2 sigma^2))``."""
    t, square = sigma + 1, sigma * sigma
    while True:
        y = _discrete_laplace(t)
        if _bernoulli_exp((abs(y) * t - square) ** 2, 2 * square * t * t):
            return y


def _discrete_laplace(t: int) -> int:
    """Return an integer x with a probability proportional to ``exp(-|x| / t)``."""
    while True:
        u = secrets.randbelow(t)
        if not _bernoulli_exp(u, t):
            continue
        v = 0
        while _bernoulli_exp(1, 1):
            v += 1
        x = u + t * v
        if secrets.randbits(1):
            return x
        if x:
            return -x


def _bernoulli_exp(numerator: int, denominator: int) -> bool:
    """Return True with probability ``exp(-numerator / denominator)``."""
    while numerator > denominator:
        if not _bernoulli_exp(1, 1):
            return False
        numerator -= denominator
    k = 1
    while secrets.randbelow(k * denominator) < numerator:
        k += 1
    return k % 2 == 1
