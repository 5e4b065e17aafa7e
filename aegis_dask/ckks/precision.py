"""Precision of results in bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class PrecisionStats:
    """Correct bits after the binary point: ``-log2 |error|`` over the slots.

    Attributes
    ----------
    worst, mean, median
        For the largest, the mean and the median absolute error.
    max_error
        Largest absolute error.
    """

    worst: float
    mean: float
    median: float
    max_error: float

    def __str__(self) -> str:
        return (
            f"{self.worst:.1f} bits at worst, {self.mean:.1f} on average "
            f"(largest error {self.max_error:.2e})"
        )


def precision_stats(expected: ArrayLike, got: ArrayLike) -> PrecisionStats:
    """Compare values with what they should be.

    Parameters
    ----------
    expected, got
        Real or complex arrays of one shape.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> precision_stats([1.0, 2.0], [1.0 + 2**-20, 2.0]).worst
    20.0
    """
    e, g = np.asarray(expected, np.complex128), np.asarray(got, np.complex128)
    if e.shape != g.shape:
        raise ValueError(f"expected values have shape {e.shape}, the result {g.shape}")
    error = np.abs(e - g)

    def bits(x: float) -> float:
        return float(-np.log2(x)) if x > 0 else float("inf")

    worst = float(error.max(initial=0.0))
    return PrecisionStats(
        bits(worst), bits(float(error.mean())), bits(float(np.median(error))), worst
    )
