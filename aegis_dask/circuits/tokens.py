"""Encrypted matrices of tokens x features, and what is applied to them token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.approximation import Polynomial
from aegis_dask.circuits.linear import BlockMatrix
from aegis_dask.circuits.packing import FeatureVector, Layout, Packing, SharedVector
from aegis_dask.program.graph import Capture, EncryptedTensor

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer: the name of its weight ``[out, in]`` in the store, and its bias."""

    weight: str
    bias: Float

    @property
    def outputs(self) -> int:
        """Number of output features."""
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Weight, bias and the calibrated function of one LayerNorm.

    Attributes
    ----------
    weight, bias
        ``[features]``.
    inverse_root
        ``1 / sqrt(v)`` for v = (variance + eps) / scale.
    scale
        ``[length]``: scale of every token of the text.
    eps
        What is added to the variance.
    """

    weight: Float
    bias: Float
    inverse_root: Polynomial
    scale: Float
    eps: float


@dataclass(frozen=True, eq=False)
class TokenMatrix:
    """An encrypted matrix ``[tokens, features]``.

    Attributes
    ----------
    tensor
        Its ciphertexts, in the shape of the layout.
    layout, packing
        Where the features and the tokens are.
    """

    tensor: EncryptedTensor
    layout: Layout
    packing: Packing

    @property
    def capture(self) -> Capture:
        """The program being captured."""
        return self.tensor.capture

    def _with(self, tensor: EncryptedTensor) -> TokenMatrix:
        return TokenMatrix(tensor, self.layout, self.packing)

    def __add__(self, other: TokenMatrix) -> TokenMatrix:
        """Add by entries."""
        with self.capture.stage("add", over=self.layout.shape[0]):
            return self._with(self.tensor + other.tensor)

    def rotated(self, babies: int, name: str = "rotate") -> EncryptedTensor:
        """Return the rotations that linear layers take (`linear.rotated_inputs`)."""
        with self.capture.stage(name, over=self.layout.shape[0]):
            return linear.rotated_inputs(self.tensor, babies)


def block_sum(x: EncryptedTensor, blocks: int) -> EncryptedTensor:
    """Add the blocks of every token; the sum is right in block 0 only."""
    step = 1
    while step < blocks:
        x = x + x.rotate(step)
        step *= 2
    return x


def block_spread(x: EncryptedTensor, blocks: int) -> EncryptedTensor:
    """Copy block 0 to all blocks; the others must be 0."""
    step = 1
    while step < blocks:
        x = x + x.rotate(-step)
        step *= 2
    return x


def first_block(packing: Packing, factor: Float | float) -> SharedVector:
    """Return the vector that is `factor` (of each token, or one for all) in block 0, else 0."""
    mask = np.zeros(packing.blocks)
    mask[0] = 1.0
    if np.ndim(factor) == 0:
        return SharedVector((mask * factor).astype(np.complex128))
    slots = np.tile(mask, packing.tokens) * packing.per_token(factor)
    return SharedVector(slots.astype(np.complex128))


@dataclass(frozen=True, eq=False)
class Centred:
    """A token matrix minus its mean over the features, and what that leaves in unused blocks.

    Attributes
    ----------
    matrix
        The centred matrix. Its unused blocks hold minus the mean.
    surplus
        An encrypted vector whose square, in block 0, is what the unused blocks would add to the sum
        of squares; None without unused blocks.
    """

    matrix: TokenMatrix
    surplus: EncryptedTensor | None


def centre(x: TokenMatrix) -> Centred:
    """Subtract from every token its mean over the features: one level."""
    c, layout, packing = x.capture, x.layout, x.packing
    m, d = layout.shape[0], layout.count
    with c.stage("mean-sum", over=m):
        partial = x.tensor.sum()
    with c.stage("mean"):
        summed = block_sum(partial, packing.blocks)
        mean = summed.multiply_plain(first_block(packing, 1.0 / d))
        surplus = None
        if layout.holes:
            surplus = summed.multiply_plain(first_block(packing, np.sqrt(layout.holes) / d))
        mean = block_spread(mean, packing.blocks)
    with c.stage("centre", over=m):
        centred = x.tensor - mean
    return Centred(TokenMatrix(centred, layout, packing), surplus)


def residual(
    centred: Centred, update: EncryptedTensor, matrix: BlockMatrix, bias: Float
) -> Centred:
    """Return the centred input plus a centred linear layer of `update` (rotated inputs)."""
    x = centred.matrix
    layout = x.layout
    with x.capture.stage("project", over=layout.shape[0]):
        raw = linear.apply(update, matrix)
        y = linear.real_part(raw).add_plain(FeatureVector(bias - bias.mean(), layout))
        return Centred(TokenMatrix(y + x.tensor, layout, x.packing), centred.surplus)


def layer_norm(u: Centred, norm: Normalisation, name: str = "norm") -> TokenMatrix:
    """Return LayerNorm of centred values: square, masked sum, 1/sqrt, product.

    Takes ``3 + depth(1/sqrt)`` levels, all rotations on one ciphertext.
    """
    x = u.matrix
    c, layout, packing = x.capture, x.layout, x.packing
    m, d, poly = layout.shape[0], layout.count, norm.inverse_root
    per_token = bool(np.any(norm.scale != norm.scale[0]))
    with c.scope(name):
        with c.stage("squares", over=m):
            squares = x.tensor.sum_of_squares()
        with c.stage("root"):
            variance = squares.relinearise()
            if u.surplus is not None:
                variance = variance - u.surplus.square()
            variance = block_sum(variance, packing.blocks)
            factor = 1.0 / (d * poly.half * norm.scale)
            offset = (norm.eps / norm.scale - poly.middle) / poly.half
            mask = first_block(packing, factor if per_token else float(factor[0]))
            t = block_spread(variance.multiply_plain(mask), packing.blocks)
            if per_token:
                t = t.add_plain(SharedVector(packing.per_token(offset).astype(np.complex128)))
            else:
                t = t + float(offset[0])
            root = t.chebyshev(poly.coefficients)
        with c.stage("scale", over=m):
            # sqrt(scale) of the tokens goes with the weight.
            if per_token:
                weight = FeatureVector(norm.weight, layout, packing.per_token(norm.scale**-0.5))
            else:
                weight = FeatureVector(norm.weight * float(norm.scale[0]) ** -0.5, layout)
            y = x.tensor.multiply_plain(weight) * root
            y = y.add_plain(FeatureVector(norm.bias, layout))
    return TokenMatrix(y, layout, packing)
