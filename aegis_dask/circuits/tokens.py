"""Encrypted matrices of tokens x features, and what is applied to them token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.approximation import REFRESH_ERROR, Polynomial
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


class Known(NamedTuple):
    """Largest absolute value, and the error that a refresh may make."""

    largest: float
    error: float


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
    known
        What is known of the results.
    """

    weight: Float
    bias: Float
    inverse_root: Polynomial
    scale: Float
    eps: float
    known: Known | None = None


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
        """Return the rotations that linear layers take (`linear.rotated_inputs`).

        In two stages: workers can send pairs, half as many ciphertexts, and rotate them themselves.
        """
        over = self.layout.shape[0]
        with self.capture.stage(name.replace("rotate", "pair"), over=over):
            pairs = self.tensor.pair()
        with self.capture.stage(name, over=over):
            return pairs.rotations(range(babies))


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
    scale
        What both are multiplied with: `layer_norm` does not see it, and small values can be
        refreshed.
    """

    matrix: TokenMatrix
    surplus: EncryptedTensor | None
    scale: float = 1.0


def centre(x: TokenMatrix, scale: float = 1.0) -> Centred:
    """Subtract from every token its mean over the features, and scale: one level."""
    c, layout, packing = x.capture, x.layout, x.packing
    m, d = layout.shape[0], layout.count
    with c.stage("mean-sum", over=m):
        partial = x.tensor.sum()
    with c.stage("mean"):
        summed = block_sum(partial, packing.blocks)
        mean = summed.multiply_plain(first_block(packing, scale / d))
        surplus = None
        if layout.holes:
            holes = scale * np.sqrt(layout.holes) / d
            surplus = summed.multiply_plain(first_block(packing, holes))
        mean = block_spread(mean, packing.blocks)
    with c.stage("centre", over=m):
        centred = (x.tensor if scale == 1 else x.tensor * scale) - mean
    return Centred(TokenMatrix(centred, layout, packing), surplus, scale)


def residual(
    centred: Centred,
    update: EncryptedTensor,
    matrix: BlockMatrix,
    bias: Float,
    known: Known | None = None,
) -> Centred:
    """Return the centred input plus a centred linear layer of `update` (rotated inputs).

    `known` is said of the result without its scale.
    """
    matrix = replace(matrix, row_scale=matrix.row_scale * centred.scale)
    return _projected(centred, lambda: linear.apply(update, matrix), bias, known)


def added(
    centred: Centred,
    product: EncryptedTensor,
    matrix: BlockMatrix,
    bias: Float,
    known: Known | None = None,
) -> Centred:
    """Return the same as `residual` from the product with the matrix, which has the scale."""
    return _projected(centred, lambda: product.rotate_sum(matrix.giants), bias, known)


def _projected(
    centred: Centred, product: Callable[[], EncryptedTensor], bias: Float, known: Known | None
) -> Centred:
    x, scale = centred.matrix, centred.scale
    layout = x.layout
    with x.capture.stage("project", over=layout.shape[0]):
        raw = product()
        b = scale * (bias - bias.mean())
        y = linear.real_part(raw).add_plain(FeatureVector(b, layout))
        u = _within(y + x.tensor, known, scale)
        return replace(centred, matrix=TokenMatrix(u, layout, x.packing))


def _within(x: EncryptedTensor, known: Known | None, scale: float = 1.0) -> EncryptedTensor:
    return x if known is None else x.within(known.largest * scale, known.error * scale)


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
            # Back to their own size, exactly: squares of small numbers would drown in the noise.
            squares = (x.tensor * (1 / u.scale)).sum_of_squares()
        with c.stage("root"):
            variance = squares.relinearise()
            if u.surplus is not None:
                variance = variance - (u.surplus * (1 / u.scale)).square()
            variance = block_sum(variance, packing.blocks)
            factor = 1.0 / (d * poly.half * norm.scale)
            offset = (norm.eps / norm.scale - poly.middle) / poly.half
            mask = first_block(packing, factor if per_token else float(factor[0]))
            t = block_spread(variance.multiply_plain(mask), packing.blocks)
            if per_token:
                t = t.add_plain(SharedVector(packing.per_token(offset).astype(np.complex128)))
            else:
                t = t + float(offset[0])
            # Relative to the smallest variance, of which the root is taken.
            t = t.within(1, REFRESH_ERROR * poly.low / poly.half)
            root = t.chebyshev(poly.coefficients)
        with c.stage("scale", over=m):
            # sqrt(scale) of the tokens goes with the weight.
            w = norm.weight / u.scale
            if per_token:
                weight = FeatureVector(w, layout, packing.per_token(norm.scale**-0.5))
            else:
                weight = FeatureVector(w * float(norm.scale[0]) ** -0.5, layout)
            y = x.tensor.multiply_plain(weight) * root
            y = _within(y.add_plain(FeatureVector(norm.bias, layout)), norm.known)
    return TokenMatrix(y, layout, packing)
