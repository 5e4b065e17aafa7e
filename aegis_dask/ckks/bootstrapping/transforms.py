"""Factored linear transforms on ciphertexts: one level per factor.

As in `ckks.linear`: baby steps share one decomposition, products are summed over QP, each giant
step divides one component by P (Bossuat et al., ePrint 2020/1203, section 4). Differences:

- Giant steps are taken by Horner's rule, ``rot(.. rot(s_2) + s_1) + s_0``: all of them use one
  rotation key.
- Rotations begin at 0 (`fourier.factors` moves them there).
- The first factor after ModRaise rotates a ciphertext under the ephemeral secret (`raising.Raised`)
  without a decomposition, with keys of one digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.fourier import Factor
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.raising import Raised
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.galois import rotation_element
from aegis_dask.ckks.linear import Rotations, encode_full, encode_runs, giant_step
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.ring.operands import MIN_RUN


class Babies(Protocol):
    """Writes P times rotations over QP, as `Rotations.write` does."""

    def __call__(self, steps: Sequence[int], out: Any, turn: bool = True) -> None:
        """Write ``[step, batch, 2, limb, N]``; without `turn` automorphisms are still to come."""


@dataclass(frozen=True, eq=False)
class EncodedFactor:
    """A factor encoded for one level.

    Attributes
    ----------
    params, level
        Parameters, and the level of the ciphertexts it applies to.
    scale
        Scale of the weights.
    stride
        Rotations are ``(giant babies + baby) stride``.
    babies, giants
        Numbers of steps.
    weights
        Residues over QP in Montgomery form: of short period ``[limb, run, giant, baby]``, else
        ``{(giant, baby): [limb, N]}``.
    """

    params: Parameters
    level: int
    scale: Scale
    stride: int
    babies: int
    giants: int
    weights: NDArray[np.uint32] | dict[tuple[int, int], Any]

    @property
    def baby_rotations(self) -> tuple[int, ...]:
        """Rotations of the baby steps."""
        return tuple(i * self.stride % self.params.slots for i in range(self.babies))

    @property
    def giant_rotation(self) -> int:
        """Rotation of one giant step."""
        return self.babies * self.stride % self.params.slots

    @property
    def rotations(self) -> frozenset[int]:
        """Rotations that need keys."""
        giant = {self.giant_rotation} if self.giants > 1 else set()
        return frozenset({*self.baby_rotations, *giant} - {0})

    @property
    def nbytes(self) -> int:
        """Size of the weights."""
        if isinstance(self.weights, dict):
            return sum(int(w.nbytes) for w in self.weights.values())
        return int(self.weights.nbytes)


def encode_factor(
    params: Parameters, factor: Factor, level: int, scale: Scale, babies: int
) -> EncodedFactor:
    """Encode a factor for ciphertexts of one level.

    Parameters
    ----------
    params
        The parameters of the scheme.
    factor
        The matrix.
    level
        Level of the ciphertexts.
    scale
        Scale of the weights.
    babies
        Number of baby steps; the giant steps follow.
    """
    count, period = factor.diagonals.shape
    babies = min(babies, count)
    giants = -(-count // babies)
    limbs = params.extended_limbs(level)
    rows: dict[tuple[int, int], NDArray[np.complex128]] = {}
    for i in range(count):
        g, b = divmod(i, babies)
        # The giant rotation comes after the product.
        rows[g, b] = np.roll(factor.diagonals[i], g * babies * factor.stride)
    numeric = float(scale)
    if 2 * period * MIN_RUN <= params.ring_degree:
        table = np.zeros((giants, babies, period), np.complex128)
        for (g, b), row in rows.items():
            table[g, b] = row
        weights: Any = encode_runs(params, table, limbs, numeric)
    else:
        repeats = params.slots // period
        weights = {
            at: encode_full(params, np.tile(row, repeats), limbs, numeric)
            for at, row in rows.items()
            if np.any(row)
        }
    return EncodedFactor(params, level, scale, factor.stride, babies, giants, weights)


def apply_factor(ev: Evaluator, x: Ciphertext, f: EncodedFactor) -> Ciphertext:
    """Return the product, rescaled: one level lower, of scale ``x.scale f.scale / q``."""
    rotations = Rotations(ev, x, f.level, f.baby_rotations)
    return _finish(ev, f, rotations.write, x.batch, x.scale)


def apply_raised(
    ev: Evaluator, keys: BootstrappingKeys, x: Raised, scale: Scale, f: EncodedFactor
) -> Ciphertext:
    """Apply the first factor to a raised ciphertext whose message has `scale`."""
    n = ev.params.ring_degree

    def babies(steps: Sequence[int], out: Any, turn: bool = True) -> None:
        elements = [rotation_element(k, n) if turn else 1 for k in steps]
        x.switched([keys.for_raised(k) for k in steps], elements, out)

    return _finish(ev, f, babies, x.batch, scale)


def sum_raised(
    ev: Evaluator, keys: BootstrappingKeys, x: Raised, scale: Scale, steps: Sequence[int]
) -> Ciphertext:
    """Return the sum of rotations of a raised ciphertext, under the dense secret."""
    params, ring = ev.params, ev.params.ring
    limbs, total = params.extended_limbs(x.level), None
    for step in steps:
        element = rotation_element(step, params.ring_degree)
        term = x.switched([keys.for_raised(step)], [element])[0]
        total = term if total is None else ring.add(total, term, limbs, out=total)
    assert total is not None
    data = ring.mod_down(total, ev.levels.mod_down(x.level, x.level))
    return Ciphertext(params, data, x.level, scale)


def _finish(
    ev: Evaluator, f: EncodedFactor, babies: Babies, batch: int, scale: Scale
) -> Ciphertext:
    params, ring = ev.params, ev.params.ring
    limbs = params.extended_limbs(f.level)
    sums = _products(f, babies, batch, limbs)
    total = sums[-1]
    for term in reversed(sums[:-1]):
        total = ring.add(giant_step(ev, total, f.level, f.giant_rotation), term, limbs)
    data = ring.mod_down(total, ev.levels.mod_down(f.level, f.level - 1))
    _, after = ev.levels.rescale(f.level, scale * f.scale)
    return Ciphertext(params, data, f.level - 1, after)


def _products(f: EncodedFactor, babies: Babies, batch: int, limbs: list[int]) -> list[Any]:
    """Return the sums over baby steps for every giant step, over QP."""
    ring, n = f.params.ring, f.params.ring_degree
    shape = (batch, 2, len(limbs), n)
    if not isinstance(f.weights, dict):
        rotated = ring.empty((f.babies, *shape))
        babies(f.baby_rotations, rotated)
        products = ring.gemm(rotated, f.weights, limbs)
        return [products[g] for g in range(f.giants)]
    sums = [ring.zeros(shape) for _ in range(f.giants)]
    term = ring.empty((1, *shape))
    for i, step in enumerate(f.baby_rotations):
        babies([step], term, turn=False)
        element = rotation_element(step, n)
        for g, acc in enumerate(sums):
            if (g, i) in f.weights:
                ring.automorphism_multiply_add(acc, term[0], f.weights[g, i], limbs, element)
    return sums
