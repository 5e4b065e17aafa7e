"""Plaintexts and ciphertexts: residues with their level and scale."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Array


@dataclass(frozen=True, eq=False)
class Plaintext:
    """An encoded vector at one level.

    Attributes
    ----------
    params
        The parameters.
    data
        ``uint32[limb, N]`` in the evaluation domain, or ``uint32[limb, 2 * period]`` for a vector
        of period ``period`` slots: its residues are constant over runs of N / (2 period) points,
        and they stay on the host.
    level, scale
        Level and exact scale.
    period
        Number of slots after which the vector repeats (`params.slots` when it does not).
    """

    params: Parameters
    data: Array
    level: int
    scale: Scale
    period: int

    @property
    def is_periodic(self) -> bool:
        """Whether the plaintext is stored in its subring."""
        return self.period < self.params.slots

    def expanded(self) -> Array:
        """Return all residues ``[limb, N]``, the runs of a periodic plaintext written out."""
        if not self.is_periodic:
            return self.data
        runs = self.params.ring_degree // self.data.shape[1]
        return self.params.ring.from_host(np.repeat(self.data, runs, axis=1))

    def __repr__(self) -> str:
        return f"Plaintext({self.params.name}, level {self.level}, scale 2^{self.scale.log2:.2f})"


@dataclass(frozen=True, eq=False)
class Ciphertext:
    """A batch of ciphertexts at one level.

    Attributes
    ----------
    params
        The parameters.
    data
        ``uint32[batch, component, limb, N]`` in the evaluation domain: 2 components, or 3 between
        a product and its relinearisation.
    level, scale
        Level and exact scale of all of them.
    seed
        For fresh secret-key ciphertexts, the seed of component 1 (written instead of it).
    """

    params: Parameters
    data: Array
    level: int
    scale: Scale
    seed: bytes | None = None

    @property
    def batch(self) -> int:
        """Number of ciphertexts."""
        return int(self.data.shape[0])

    @property
    def components(self) -> int:
        """Number of polynomials of each: 2, or 3 before relinearisation."""
        return int(self.data.shape[1])

    @property
    def nbytes(self) -> int:
        """Size of the residues in bytes."""
        return int(self.data.nbytes)

    @property
    def is_canonical(self) -> bool:
        """Whether the scale is the canonical one of the level."""
        return self.scale == self.params.scales[self.level]

    def with_data(
        self, data: Array, level: int | None = None, scale: Scale | None = None
    ) -> Ciphertext:
        """Return a ciphertext with other residues, and perhaps another level and scale."""
        return replace(
            self,
            data=data,
            level=self.level if level is None else level,
            scale=self.scale if scale is None else scale,
            seed=None,
        )

    def __getitem__(self, index: SupportsIndex | slice) -> Ciphertext:
        """Select from the batch."""
        if not isinstance(index, slice):
            index = operator.index(index)
            if not -self.batch <= index < self.batch:
                raise IndexError(f"index {index} of a batch of {self.batch} ciphertexts")
            index = slice(index, index + 1 or None)
        return replace(self, data=self.data[index], seed=None)

    def __len__(self) -> int:
        return self.batch

    def __sizeof__(self) -> int:
        return self.nbytes + 256

    def __repr__(self) -> str:
        batch = f"{self.batch} x " if self.batch != 1 else ""
        return (
            f"Ciphertext({batch}{self.params.name}, level {self.level} of "
            f"{self.params.max_level}, scale 2^{self.scale.log2:.2f}, {self.components} components)"
        )
