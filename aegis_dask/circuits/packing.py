"""Packing of a long sequence: slot = token * B + block.

With S slots and L tokens every ciphertext holds ``B = S / L`` features of every token, and a layout
says which. Rotations by multiples of B move tokens, exactly and without masks. What multiplies
ciphertexts by weights repeats every B slots, which makes it cheap (see `circuits.linear`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.errors import ProgramError
from aegis_dask.program.operations import Shape, Store

MIN_TOKENS = 32
"""A periodic plaintext repeats its residues over runs of L points; a modular GEMM needs 32."""

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Layout:
    """Which feature is in which block of which ciphertext.

    Attributes
    ----------
    features
        int ``[*shape, B]``: index of a feature, or -1 for an unused block, whose slots are 0.
    """

    features: NDArray[np.int64]

    @property
    def shape(self) -> Shape:
        """Shape of the array of ciphertexts."""
        return self.features.shape[:-1]

    @property
    def blocks(self) -> int:
        """B."""
        return int(self.features.shape[-1])

    @cached_property
    def count(self) -> int:
        """Number of features."""
        return int(self.features.max()) + 1

    @cached_property
    def holes(self) -> int:
        """Number of unused blocks."""
        return int((self.features < 0).sum())

    @cached_property
    def used_blocks(self) -> NDArray[np.int64]:
        """Blocks that hold a feature in any ciphertext."""
        return np.flatnonzero((self.features >= 0).reshape(-1, self.blocks).any(axis=0))

    def spread(self, values: ArrayLike, start: int, stop: int) -> Float:
        """Return ``[stop - start, *shape[1:], B]``: one value per feature; 0 in unused blocks."""
        v = np.append(np.asarray(values, np.float64), 0.0)
        return v[self.features[start:stop]]

    def __repr__(self) -> str:
        return f"Layout({self.count} features in {self.shape} ciphertexts of {self.blocks} blocks)"


def feature_layout(features: int, blocks: int) -> Layout:
    """Return the layout ``[m, 2]`` of hidden states: B consecutive features in each ciphertext.

    The last axis pairs the ciphertexts that linear layers put into real and imaginary parts; it has
    length 1 when one ciphertext holds everything.
    """
    count = ceil(features / blocks)
    width = 1 if count == 1 else 2
    pairs = ceil(count / width)
    index = np.arange(pairs * width * blocks).reshape(pairs, width, blocks)
    return Layout(np.where(index < features, index, -1))


def head_layout(heads: int, head_size: int, blocks: int) -> Layout:
    """Return the layout ``[groups * head_size]``: ciphertext j holds feature j of every head.

    With more heads than blocks there are several groups of heads.
    """
    groups = ceil(heads / blocks)
    g, j, b = np.meshgrid(np.arange(groups), np.arange(head_size), np.arange(blocks), indexing="ij")
    head = g * blocks + b
    index = np.where(head < heads, head * head_size + j, -1)
    return Layout(index.reshape(groups * head_size, blocks))


def paired(layout: Layout) -> Layout:
    """Return ``[n / 2, 2]`` of a layout ``[n]``: neighbours in real and imaginary part."""
    (n,) = layout.shape
    if n % 2:
        raise ProgramError(f"{n} ciphertexts cannot be paired")
    return Layout(layout.features.reshape(n // 2, 2, -1))


def positions(length: int) -> int:
    """Return the fewest positions that hold a text: a power of two, at least 32."""
    return max(MIN_TOKENS, 1 << (max(length, 1) - 1).bit_length())


@dataclass(frozen=True)
class Packing:
    """L tokens in S slots.

    Attributes
    ----------
    slots, tokens
        Powers of two, ``tokens`` from 32 to ``slots``.
    length
        Tokens of the text, 1 to `tokens`. The others repeat it from its start, which keeps every
        value in the range of real tokens; attention weighs them accordingly
        (`circuits.attention`).
    """

    slots: int
    tokens: int
    length: int

    def __post_init__(self) -> None:
        powers = not any(n & (n - 1) for n in (self.tokens, self.slots))
        if not powers or not MIN_TOKENS <= self.tokens <= self.slots:
            raise ProgramError(
                f"a packing has a power of two of slots and one of tokens, {MIN_TOKENS} to the "
                f"number of slots; {self.tokens} tokens in {self.slots} slots were given"
            )
        if not 1 <= self.length <= self.tokens:
            raise ProgramError(f"a text of {self.length} tokens does not fit {self.tokens}")

    @classmethod
    def for_length(cls, slots: int, length: int) -> Packing:
        """Return the packing with the fewest tokens that holds a text.

        Raises
        ------
        ProgramError
            If the slots are too few.
        """
        tokens = positions(length)
        if tokens > slots:
            raise ProgramError(
                f"a text of {length} tokens needs a ring of at least {tokens} slots; this one has "
                f"{slots}"
            )
        return cls(slots, tokens, length)

    @property
    def blocks(self) -> int:
        """B: features of one token in a ciphertext."""
        return self.slots // self.tokens

    @cached_property
    def source(self) -> NDArray[np.int64]:
        """``[tokens]``: the token of the text that each position holds."""
        return np.arange(self.tokens) % self.length

    @cached_property
    def multiplicity(self) -> NDArray[np.int64]:
        """``[tokens]``: how many positions hold the same token."""
        return np.bincount(self.source, minlength=self.length)[self.source]

    @property
    def is_full(self) -> bool:
        """Whether every position counts the same."""
        return self.tokens % self.length == 0

    def pack(self, x: ArrayLike, layout: Layout) -> Float:
        """Return ``[*shape, slots]`` of a matrix ``[length, features]``.

        Raises
        ------
        ProgramError
            If the matrix has another shape, or values that are not finite.
        """
        m = np.asarray(x, np.float64)
        if m.shape != (self.length, layout.count):
            raise ProgramError(
                f"a matrix of {self.length} tokens x {layout.count} features is needed; given was "
                f"{m.shape}"
            )
        if not np.isfinite(m).all():
            raise ProgramError("the matrix has values that are not finite")
        padded = np.concatenate([m, np.zeros((self.length, 1))], axis=1)[self.source]
        slots = padded[:, layout.features]  # [tokens, *shape, B]
        out: Float = np.moveaxis(slots, 0, -2).reshape(*layout.shape, self.slots)
        return out

    def unpack(self, slots: ArrayLike, layout: Layout) -> Float:
        """Return ``[length, features]`` of slots ``[*shape, slots]`` (real parts)."""
        features = layout.features.reshape(-1, self.blocks)
        v = np.asarray(slots).real.reshape(len(features), self.tokens, self.blocks)
        out = np.zeros((self.length, layout.count))
        ct, block = np.nonzero(features >= 0)
        out[:, features[ct, block]] = v[ct, : self.length, block].T
        return out

    def per_token(self, values: ArrayLike) -> Float:
        """Return ``[slots]`` of one value per token of the text, the same in every block."""
        return np.repeat(np.asarray(values, np.float64)[self.source], self.blocks)


@dataclass(frozen=True, eq=False)
class FeatureVector:
    """One number per feature, and perhaps a factor per token: a `PlainVectors`.

    Attributes
    ----------
    values
        ``[features]``.
    layout
        Layout of the array it applies to.
    factor
        ``[slots]`` from `Packing.per_token`, or None: then the vector has period B.
    """

    values: Float
    layout: Layout
    factor: Float | None = None

    @property
    def count(self) -> int | None:
        """Length of the leading axis."""
        return self.layout.shape[0]

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return ``[stop - start, *shape[1:], B]``, or all slots if there is a factor."""
        v = self.layout.spread(self.values, start, stop)
        if self.factor is not None:
            v = np.tile(v, len(self.factor) // self.layout.blocks) * self.factor
        return v.astype(np.complex128)


@dataclass(frozen=True, eq=False)
class SharedVector:
    """One vector for all ciphertexts of an array: a `PlainVectors`."""

    values: NDArray[np.complex128]

    @property
    def count(self) -> int | None:
        """None: shared."""
        return None

    def build(self, store: Store, start: int, stop: int) -> NDArray[np.complex128]:
        """Return ``[1, period]``."""
        return np.asarray(self.values, np.complex128)[None]
