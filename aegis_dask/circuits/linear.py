"""Linear layers on packed tokens: complex pairing, folded zeros, one level, no masks.

Two features ride in the real and imaginary part of a ciphertext. Output block b' needs input block
b = b' + s: a rotation by s brings it there; where b would be in the next token the weight is zero
(*folded zeros*), so that shifts from -(B-1) to B-1 do without masks. All weights repeat every B
slots: the products are one modular GEMM (`Ring.gemm`). Shifts are split as giant + baby steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.packing import Layout
from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import EncryptedTensor
from aegis_dask.program.operations import Shape, Store

HOISTED = 0.7
"""Cost of a rotation that shares its decomposition, in rotations of its own."""

MEMORY_WORTH = 1.15
"""How much more rotations may cost to halve the copies that are held."""


@dataclass(frozen=True, eq=False)
class BlockMatrix:
    """A weight matrix for packed tokens, in diagonal form: a `PlainMatrix`.

    Attributes
    ----------
    weights
        Names of matrices ``[out, in]`` in the store, stacked along `out`.
    source
        Layout ``[pairs, 2 or 1]`` of the input.
    target
        Layout of the output, any shape.
    babies
        Number of baby steps, a power of two.
    row_scale
        Factor per output feature, or one for all.
    centred
        Subtract the mean over the output features, so that the result has mean 0 in every token.
    is_partial
        The source has a part of the layer's input features, and the result is a partial sum.

    Raises
    ------
    ProgramError
        If the source is no array of pairs, or the layouts have different numbers of blocks.
    """

    weights: tuple[str, ...]
    source: Layout
    target: Layout
    babies: int
    row_scale: NDArray[np.float64] | float = 1.0
    centred: bool = False
    is_partial: bool = False

    def __post_init__(self) -> None:
        if len(self.source.shape) != 2 or self.source.blocks != self.target.blocks:
            raise ProgramError(f"{self.source!r} and {self.target!r} do not fit a linear layer")

    @cached_property
    def shifts(self) -> tuple[int, int]:
        """Smallest and largest shift with a weight."""
        i, o = self.source.used_blocks, self.target.used_blocks
        return int(i.min() - o.max()), int(i.max() - o.min())

    @cached_property
    def giants(self) -> tuple[int, ...]:
        """Giant steps: multiples of the number of babies that cover all shifts."""
        low, high = self.shifts
        p = self.babies
        return tuple(range(low // p * p, high // p * p + 1, p))

    @property
    def inputs(self) -> Shape:
        """``[pairs, babies]``: rotated inputs."""
        return (self.source.shape[0], self.babies)

    @property
    def outputs(self) -> Shape:
        """``[*target, giants]``: results before their giant rotations."""
        return (*self.target.shape, len(self.giants))

    @property
    def period(self) -> int:
        """B: weights are the same for all tokens."""
        return self.source.blocks

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return diagonals ``[stop - start, *outputs[1:], *inputs, B]``.

        With features x0 + i x1 in a slot, a weight w0 - i w1 makes the real part of the product
        the sum of w0 x0 and w1 x1.

        Raises
        ------
        ProgramError
            If the weights have too few rows, or another number of columns than input features.
        """
        w = np.concatenate([np.asarray(store[name], np.float64) for name in self.weights])
        columns = w.shape[1] if self.is_partial else self.source.count
        if w.shape[0] < self.target.count or not self.source.count <= columns == w.shape[1]:
            raise ProgramError(
                f"weights {', '.join(self.weights)} of shape {w.shape} do not fit a linear layer "
                f"from {self.source!r} to {self.target!r}"
            )
        w = w * np.reshape(self.row_scale, (-1, 1))
        if self.centred:
            w = w - w.mean(axis=0)
        w = np.pad(w, ((0, 1), (0, 1)))  # the last row and column stand for unused blocks
        blocks, babies = self.period, self.babies
        rows = self.target.features[start:stop].reshape(-1, blocks)  # [outs, block]
        g, b, out = np.ix_(self.giants, range(babies), range(blocks))
        # Before its giant rotation the vector of shift g + b is turned back by g.
        block = (out - g) % blocks
        source = block + g + b
        inside = (source >= 0) & (source < blocks)
        columns = self.source.features[:, :, np.where(inside, source, 0)]  # [pair, part, g, b, out]
        columns = np.where(inside, columns, -1)
        row = rows[:, np.broadcast_to(block, inside.shape)]  # [outs, g, b, out]
        # A negative index stands for the last, as it does in indexing.
        at = row[:, None, None] % w.shape[0] * w.shape[1] + columns % w.shape[1]
        values = w.reshape(-1).take(at)  # [outs, pair, part, g, b, out]
        real = values[:, :, 0]
        mixed = real - 1j * values[:, :, 1] if values.shape[2] == 2 else real.astype(np.complex128)
        result = mixed.transpose(0, 2, 1, 3, 4)  # [outs, g, pair, b, out]
        shape = (stop - start, *self.outputs[1:], *self.inputs, blocks)
        return np.ascontiguousarray(result).reshape(shape)


def choose_babies(source: Layout, targets: Sequence[Layout]) -> int:
    """Return the number of baby steps with the cheapest rotations for layers that share them."""
    pairs = source.shape[0]

    def cost(p: int) -> float:
        total = HOISTED * (p - 1) * pairs
        for target in targets:
            giants = BlockMatrix((), source, target, p).giants
            total += (len(giants) - 1) * prod(target.shape)
        return total

    choices = [1 << i for i in range((2 * source.blocks).bit_length())]
    best = min(map(cost, choices))
    # Every worker holds all rotated copies: of choices that cost about the same, the fewest.
    return next(p for p in choices if cost(p) <= MEMORY_WORTH * best)


def rotated_inputs(x: EncryptedTensor, babies: int) -> EncryptedTensor:
    """Return ``[pairs, babies]`` of real features ``[pairs, 2]``: what `apply` takes."""
    return x.pair().rotations(range(babies))


def apply(rotated: EncryptedTensor, matrix: BlockMatrix) -> EncryptedTensor:
    """Return the raw product: its real part is half the result (see `real_part`)."""
    return rotated.matrix_product(matrix).rotate_sum(matrix.giants)


def real_part(x: EncryptedTensor) -> EncryptedTensor:
    """Return twice the real part."""
    return x + x.conjugate()


def packed_real_parts(x: EncryptedTensor) -> EncryptedTensor:
    """Return twice ``Re x[..., 0] + i Re x[..., 1]``: one conjugation for two."""
    return x.pair() + x.pair(-1).conjugate()
