"""Lanes: what the blocks that one feature of every head leaves unused are good for.

With S slots and L tokens a ciphertext has B = S / L blocks of every token, and a feature of every
head takes `width` of them. Short texts leave room for several *lanes* of that width:

- Linear layers give queries, keys and values with a feature in every lane (`gathered`), few
  ciphertexts instead of one for each feature. `scatter` takes them apart, for one level.
- Attention does several giant steps at once, one in each lane. Queries are copied to all lanes,
  turned by the giant step of each, by rotations alone, since they are 0 outside the first lane
  (`together`); keys and values are copied likewise, not turned. Adding up the lanes turns the
  results back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isqrt

import numpy as np

from aegis_dask.circuits.packing import Layout, Packing, SharedVector
from aegis_dask.program.graph import EncryptedTensor


@dataclass(frozen=True)
class Steps:
    """How the L/2 shifts of the keys are divided: ``shift = (pass_ * lanes + lane) babies + baby``.

    Attributes
    ----------
    babies
        Rotations of keys and values, all held in memory.
    passes
        Giant steps that are done one after the other, or on different workers.
    lanes
        Giant steps that are done at once, in different blocks.
    width
        Blocks of a lane: a power of two, one at least for each head.
    """

    babies: int
    passes: int
    lanes: int
    width: int

    def turn(self, blocks: int) -> int:
        """Return the rotation that brings a lane to the one before and turns it back."""
        return self.babies * blocks + self.width


def split_tokens(packing: Packing, heads: int) -> Steps:
    """Return how to divide the shifts; few babies, since every worker holds their copies."""
    blocks, half = packing.blocks, packing.tokens // 2
    width = min(blocks, 1 << (heads - 1).bit_length())
    lanes = min(blocks // width, half)
    rest = half // lanes
    babies = min(16, 1 << (isqrt(rest).bit_length() - 1))
    if lanes > 1:  # passes are short then: more of them cost less than memory
        babies = max(1, babies // 2)
    return Steps(babies, rest // babies, lanes, width)


def together(x: EncryptedTensor, step: int, lanes: int) -> EncryptedTensor:
    """Return the sum of rotations by ``step * i`` for i below `lanes`, a power of two."""
    while lanes > 1:
        x = x + x.rotate(step)
        step, lanes = 2 * step, lanes // 2
    return x


@dataclass(frozen=True, eq=False)
class Gathered:
    """A layout that uses the first `width` blocks of each ciphertext, and one with full ones.

    Attributes
    ----------
    layout
        ``[m, *rest]``: a ciphertext of `scattered` in every lane.
    scattered
        ``[m * lanes, *rest]``: that given, filled up with unused ciphertexts.
    lanes, width
        Lanes of `layout` in use, and their blocks.
    """

    layout: Layout
    scattered: Layout
    lanes: int
    width: int

    @property
    def count(self) -> int:
        """Number of ciphertexts when they are scattered."""
        return self.scattered.shape[0]


def gathered(layout: Layout, width: int) -> Gathered:
    """Gather ciphertexts of a layout ``[n, *rest]`` that uses `width` blocks of each."""
    (n, *rest), blocks = layout.shape, layout.blocks
    lanes = min(blocks // width, 1 << (n - 1).bit_length())
    m = ceil(n / lanes)
    padded = np.full((m * lanes, *rest, blocks), -1)
    padded[:n] = layout.features
    full = np.full((m, *rest, blocks), -1)
    for lane in range(lanes):
        full[..., lane * width : (lane + 1) * width] = padded[lane::lanes, ..., :width]
    return Gathered(Layout(full), Layout(padded), lanes, width)


def first_lane(steps: Steps, packing: Packing) -> SharedVector:
    """Return the vector that is 1 in the first lane and 0 elsewhere."""
    return SharedVector((np.arange(packing.blocks) < steps.width).astype(np.complex128))


def scatter(x: EncryptedTensor, layout: Gathered, name: str) -> EncryptedTensor:
    """Return ``[m * lanes]`` with each lane of ``[m]`` in the first one, and others beside it.

    In a stage of its own; `first_lane` is to be multiplied in another, which can be split.
    """
    with x.capture.stage(name):
        return x.rotations([lane * layout.width for lane in range(layout.lanes)]).flatten()
