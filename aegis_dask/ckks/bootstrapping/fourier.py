"""The map between slots and coefficients as a few sparse matrices.

Slot j of a polynomial with coefficients ``m`` is ``sum_k f_k zeta^(5^j k)`` with
``f_k = m_k + i m_(k+n)``, n the number of slots. That matrix is a product of log2(n) butterfly
stages and a bit reversal (Cheon, Han, Hhan, ePrint 2018/1073; Chen, Chillotti, Song, ePrint
2018/1043). Runs of stages are multiplied out: a factor of b stages has at most ``2^(b+1) - 1``
diagonals at multiples of one stride and takes one level. The bit reversal is left out: between the
two maps everything acts on each slot alone, so the order does not matter.

Stages of short blocks have short periods, so most factors are plaintexts of short period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import ParameterError
from aegis_dask.ring.operands import MIN_RUN
from aegis_dask.ring.tables import powers

Diagonals = dict[int, NDArray[np.complex128]]
"""Rotation -> factor of each slot, one period of it."""


@dataclass(frozen=True, eq=False)
class Factor:
    """A sparse matrix ``sum_i diagonals[i] rotate(x, i stride)`` on vectors of n slots.

    Attributes
    ----------
    slots
        n; vectors repeat after n slots.
    stride
        All rotations are multiples of it.
    diagonals
        ``[count, period]``.
    """

    slots: int
    stride: int
    diagonals: NDArray[np.complex128]

    @property
    def period(self) -> int:
        """Slots after which the diagonals repeat."""
        return int(self.diagonals.shape[1])

    def apply(self, x: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """Multiply a vector ``[..., slots]`` (the reference for tests)."""
        total = np.zeros_like(x)
        for i, row in enumerate(self.diagonals):
            tiled = np.tile(row, self.slots // self.period)
            total += tiled * np.roll(x, -i * self.stride, axis=-1)
        return total


def _stage(length: int, inverse: bool) -> Diagonals:
    """Return the butterflies of blocks of `length` slots; the inverse is doubled (no halving)."""
    half = length // 2
    w = np.exp(2j * np.pi * powers(5, half, 4 * length).astype(np.float64) / (4 * length))
    one, zero = np.ones(half), np.zeros(half)
    if inverse:
        own, up, down = (one, -1 / w), (one, zero), (zero, 1 / w)
    else:
        own, up, down = (one, -w), (w, zero), (zero, one)
    parts = {0: own, half: up, -half: down}
    return {k: np.concatenate(v).astype(np.complex128) for k, v in parts.items()}


def _product(a: Diagonals, b: Diagonals) -> Diagonals:
    """Return the matrix a b (b is applied first)."""
    period = max(len(v) for d in (a, b) for v in d.values())
    out: Diagonals = {}
    for k, x in a.items():
        for j, y in b.items():
            term = np.resize(x, period) * np.roll(np.resize(y, period), -k)
            out[k + j] = out.get(k + j, 0) + term
    return out


def split_stages(slots: int, ring_degree: int, count: int, largest_last: int = 4) -> list[int]:
    """Cut log2(slots) stages into `count` runs, shortest blocks first.

    Sizes are as even as possible. The last run (the longest blocks) has diagonals of full length,
    so it is kept small; where it can, the run before it ends at a period of N/32 slots, up to which
    diagonals are stored by their distinct residues.
    """
    stages = slots.bit_length() - 1
    if not 1 <= count <= max(stages, 1):
        raise ParameterError(
            f"{stages} stages of {slots} slots cannot be cut into {count} factors; give 1 to "
            f"{max(stages, 1)} levels"
        )
    even = [stages // count + (i < stages % count) for i in range(count)]
    short = (ring_degree // (2 * MIN_RUN)).bit_length() - 1  # log2 of the longest short period
    last = stages - short
    if count >= 2 and 0 < last <= largest_last and (short + count - 2) // (count - 1) <= 5:
        rest = [short // (count - 1) + (i < short % (count - 1)) for i in range(count - 1)]
        if max(rest) <= max(even) + 1:
            return [*rest, last]
    return even


def factors(
    slots: int, runs: Sequence[int], inverse: bool, constant: complex = 1.0
) -> list[Factor]:
    """Return the factors in the order in which they are applied.

    Parameters
    ----------
    slots
        n, a power of two.
    runs
        Stages per factor, shortest blocks first (`split_stages`).
    inverse
        Slots to coefficients' place (CoeffsToSlots) instead of coefficients to slots.
    constant
        Multiplies the whole map; the factors share it evenly.

    Returns
    -------
    list of Factor
        Their rotations are shifted to nonnegative multiples of the strides.
    """
    merged: list[tuple[int, int, Diagonals]] = []  # stride, period
    length = 1
    for run in runs:
        stride = length
        total: Diagonals | None = None
        for _ in range(run):
            length *= 2
            stage = _stage(length, inverse)
            if total is None:
                total = stage
            else:
                total = _product(total, stage) if inverse else _product(stage, total)
        merged.append((stride, length, total or {0: np.ones(1, np.complex128)}))
    share = complex(constant) / 2 ** (sum(runs) if inverse else 0)
    magnitude = abs(share) ** (1 / len(merged))
    out = []
    for i, (stride, period, diagonals) in enumerate(merged):
        scaled = {k: v * magnitude for k, v in diagonals.items()}
        if i == 0:
            scaled = {k: v * (share / abs(share)) for k, v in scaled.items()}
        last = i == len(merged) - 1
        # Rotations of a factor reach from -(period - stride) to period - stride. They are shifted
        # to begin at 0; the shifts of all factors pass through each other, since the period of a
        # factor divides the shift of every longer one, and cancel in the last, which is cyclic.
        shift = -stride if last else period - (stride if i else 0)
        if len(merged) == 1:
            shift = 0
        if inverse and shift:
            scaled = {k + shift: np.roll(v, -shift) for k, v in scaled.items()}
        else:
            scaled = {k + shift: v for k, v in scaled.items()}
        if last:
            folded: Diagonals = {}
            for k, v in scaled.items():
                folded[k % slots] = folded.get(k % slots, 0) + v
            scaled = folded
        table = np.zeros((max(scaled) // stride + 1, period), np.complex128)
        for k, v in scaled.items():
            table[k // stride] = v
        out.append(Factor(slots, stride, table))
    return out[::-1] if inverse else out
