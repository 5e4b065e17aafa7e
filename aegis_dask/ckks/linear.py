"""Matrix-vector products on slots: baby-step giant-step over diagonals, with double hoisting.

With diagonals ``M_k[j] = M[j, j + k]``, ``M x = sum_g rot_g(sum_b rot_-g(M_{g+b}) rot_b(x))``. The
baby rotations share one ModUp and stay over QP, the plaintext products are accumulated over QP, and
each giant step divides by P once (Bossuat et al., ePrint 2020/1203, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks.encoder import Encoder, embed
from aegis_dask.ckks.galois import rotation_element
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.errors import EncodingError, LevelError, ScaleError
from aegis_dask.ring.backend import HoistedKey, contiguous
from aegis_dask.ring.operands import MIN_RUN

if TYPE_CHECKING:
    from aegis_dask.ckks.evaluator import Evaluator


@dataclass(frozen=True, eq=False)
class LinearTransform:
    """A matrix encoded for one level.

    Attributes
    ----------
    params, level
        Parameters, and the level of the ciphertexts it applies to.
    babies, giants
        Rotations of the baby and giant steps.
    weights
        Residues over QP in Montgomery form. Periodic matrices: one array
        ``[limb, run, giant, baby]``. Others: ``{(giant, baby): [limb, N]}``.
    """

    params: Parameters
    level: int
    babies: tuple[int, ...]
    giants: tuple[int, ...]
    weights: NDArray[np.uint32] | dict[tuple[int, int], Any]

    @classmethod
    def from_matrix(
        cls,
        params: Parameters,
        matrix: ArrayLike,
        level: int | None = None,
        baby_steps: int | None = None,
    ) -> LinearTransform:
        """Encode a square matrix ``[d, d]``, d a power of two.

        It acts on vectors of d values repeated over all slots; the result is repeated too.
        """
        m = np.asarray(matrix, np.complex128)
        d = m.shape[0] if m.ndim == 2 else 0
        if m.ndim != 2 or m.shape != (d, d) or d & (d - 1) or not 1 <= d <= params.slots:
            raise EncodingError(
                f"a square matrix with a power-of-two size up to {params.slots} is needed; shape "
                f"{m.shape} was given"
            )
        rows = np.arange(d)
        diagonals = {k: m[rows, (rows + k) % d] for k in range(d)}
        nonzero = {k: v for k, v in diagonals.items() if np.any(v)} or {0: diagonals[0]}
        return cls.from_diagonals(params, nonzero, level, baby_steps)

    @classmethod
    def from_diagonals(
        cls,
        params: Parameters,
        diagonals: Mapping[int, ArrayLike],
        level: int | None = None,
        baby_steps: int | None = None,
    ) -> LinearTransform:
        """Encode ``sum_k diagonals[k] * rotate(x, k)``.

        Parameters
        ----------
        params
            The parameters.
        diagonals
            Rotation -> factor of each slot. All have one power-of-two length: `params.slots`, or
            less, the period with which they repeat.
        level
            Level of the ciphertexts, at least 1; the top one by default.
        baby_steps
            Rotations are split as ``giant + baby`` with babies below this number; about the square
            root of the number of diagonals by default.

        Raises
        ------
        EncodingError
            For no diagonals, unequal lengths, or values that are not finite.
        """
        encoder = Encoder(params)
        level = encoder._level(level)
        if level == 0:
            raise LevelError("a linear transform takes one level; level 0 has none")
        if not diagonals:
            raise EncodingError("a linear transform needs at least one diagonal")
        vectors = {int(k) % params.slots: encoder._check(v) for k, v in diagonals.items()}
        lengths = {len(v) for v in vectors.values()}
        if len(lengths) != 1 or (period := lengths.pop()) & (period - 1):
            raise EncodingError("diagonals must be vectors of one power-of-two length")
        # Rotations act modulo the period: fewer keys.
        folded: dict[int, Any] = {}
        for k, v in vectors.items():
            folded[k % period] = folded.get(k % period, 0) + v
        n1 = baby_steps or _default_baby_steps(list(folded), period)
        giants = tuple(sorted({k // n1 * n1 for k in folded}))
        babies = tuple(sorted({k % n1 for k in folded}))
        limbs, scale = params.extended_limbs(level), float(params.scales[level])
        zero = np.zeros(period, np.complex128)
        runs = 2 * period
        if runs * MIN_RUN <= params.ring_degree:
            rolled = [[np.roll(folded.get(g + b, zero), g) for b in babies] for g in giants]
            weights = encode_runs(params, np.array(rolled), limbs, scale)
            return cls(params, level, babies, giants, weights)
        table = {}
        for g in giants:
            for b in babies:
                if g + b in folded:
                    v = np.tile(np.roll(folded[g + b], g), params.slots // period)
                    table[g, b] = encode_full(params, v, limbs, scale)
        return cls(params, level, babies, giants, table)

    @property
    def rotations(self) -> tuple[int, ...]:
        """Rotations that need evaluation keys."""
        return tuple(sorted((set(self.babies) | set(self.giants)) - {0}))

    @property
    def nbytes(self) -> int:
        """Size of the encoded matrix."""
        if isinstance(self.weights, dict):
            return sum(int(w.nbytes) for w in self.weights.values())
        return int(self.weights.nbytes)

    def __repr__(self) -> str:
        return (
            f"LinearTransform({self.params.name}, level {self.level}, {len(self.babies)} baby and "
            f"{len(self.giants)} giant steps, {self.nbytes / 1e6:.1f} MB)"
        )


def _default_baby_steps(steps: list[int], period: int) -> int:
    """Return a power of two near sqrt(2 x diagonals): baby steps cost less than giant ones."""
    target = max(1, isqrt(2 * len(steps)))
    return min(1 << target.bit_length() - 1 if target & (target - 1) else target, period)


def _coefficients(values: NDArray[np.complex128], n: int, scale: float) -> NDArray[np.float64]:
    """Return the scaled and rounded coefficients ``[..., n]`` of slots ``[..., n/2]``."""
    c = np.rint(embed(values, n) * scale)
    largest = float(np.max(np.abs(c)))
    if largest >= 2.0**62:
        raise EncodingError(
            f"the scaled diagonals reach 2^{np.log2(largest):.1f}, they must stay below 2^62; they "
            "are too large for the scale of the level"
        )
    return c


def encode_runs(
    params: Parameters, vectors: NDArray[np.complex128], limbs: list[int], scale: float
) -> NDArray[np.uint32]:
    """Return ``[limb, 2 period, ...]`` residues of ``[..., period]`` in Montgomery form."""
    period = vectors.shape[-1]
    c = np.moveaxis(_coefficients(vectors, 2 * period, scale), -1, 0)
    return params.ring.encode_weights(c.astype(np.int64, order="C"), limbs)


def encode_full(
    params: Parameters, values: NDArray[np.complex128], limbs: list[int], scale: float
) -> Any:
    """Return ``[limb, N]`` residues in Montgomery form."""
    ring = params.ring
    c = _coefficients(values, params.ring_degree, scale)
    residues = ring.ntt(ring.from_signed(c.astype(np.int64), limbs), limbs)
    return ring.to_montgomery(residues, limbs)


def apply_linear_transform(ev: Evaluator, x: Ciphertext, t: LinearTransform) -> Ciphertext:
    """Return the product, rescaled: one level below `t.level`.

    Raises
    ------
    LevelError
        If x is below the level of the transform.
    ScaleError
        If x has three components.
    MissingKeyError
        If a rotation of `t.rotations` has no key of its own that serves the level.
    """
    check_same(x, t, names=("the ciphertext", "the linear transform"))
    if x.level < t.level:
        raise LevelError(f"{t!r} does not apply to {x!r}; encode it with level={x.level}")
    if x.components != 2:
        raise ScaleError("linear transforms take ciphertexts of 2 components; relinearise first")
    x = ev.to_level(x, t.level) if x.level > t.level else x
    params, ring = ev.params, ev.params.ring
    limbs, n = params.extended_limbs(t.level), params.ring_degree
    window = len(params.window(t.level))
    keys = {k: ev.keys.for_element(rotation_element(k, n), t.level) for k in t.rotations}
    rows = {k: ev.levels.key_rows(key.level, t.level) for k, key in keys.items()}
    plan = ev.levels.digit_raise(t.level)
    c0, c1 = (contiguous(ring, x.data[:, k]) for k in (0, 1))
    p_mod = special_factors(params, t.level)
    scaled0 = ring.multiply_runs(c0, p_mod, limbs[:window])
    digits = ring.raise_digits(c1, plan)

    first = True

    def babies(wanted: Sequence[int], turn: bool, out: Any) -> None:
        """Write P times x, or its rotations if `turn`, over QP: ``[baby, batch, 2, limb, N]``."""
        nonlocal first
        hoisted, start = [], 0
        for b in wanted:
            if b == 0:  # always the first
                out[0, :, :, window:] = 0
                out[0, :, 0, :window] = scaled0
                out[0, :, 1, :window] = ring.multiply_runs(c1, p_mod, limbs[:window])
                start = 1
                continue
            element = rotation_element(b, n) if turn else 1
            hoisted.append(HoistedKey(keys[b].b, keys[b].a, element, rows[b]))
        if hoisted:
            ring.turned_products(c1, digits, plan, hoisted, first, scaled0, out[start:])
            first = False

    sums = _plaintext_products(ev, t, babies, x.batch, limbs)
    total: Any = None
    for g, acc in zip(t.giants, sums, strict=True):
        term = acc if g == 0 else _giant_step(ev, acc, t.level, g, keys[g])
        total = term if total is None else ring.add(total, term, limbs)
    data = ring.mod_down(total, ev.levels.mod_down(t.level, t.level - 1))
    _, scale = ev.levels.rescale(t.level, x.scale * params.scales[t.level])
    return x.with_data(data, t.level - 1, scale)


def _plaintext_products(
    ev: Evaluator, t: LinearTransform, babies: Any, batch: int, limbs: list[int]
) -> list[Any]:
    """Return ``sum_b weight_{g,b} rot_b(x)`` over QP for every giant step g."""
    ring, n = ev.params.ring, ev.params.ring_degree
    shape = (batch, 2, len(limbs), n)
    if not isinstance(t.weights, dict):
        rotated = ring.empty((len(t.babies), *shape))
        babies(t.babies, True, rotated)
        products = ring.gemm(rotated, t.weights, limbs)
        return [products[i] for i in range(len(t.giants))]
    sums = [ring.zeros(shape) for _ in t.giants]
    term = ring.empty((1, *shape))
    for b in t.babies:
        babies([b], False, term)
        for acc, g in zip(sums, t.giants, strict=True):
            if (g, b) in t.weights:
                weight, element = t.weights[g, b], rotation_element(b, n)
                ring.automorphism_multiply_add(acc, term[0], weight, limbs, element)
    return sums


def _giant_step(ev: Evaluator, acc: Any, level: int, g: int, key: Any) -> Any:
    """Return rot_g of ``[batch, 2, limb, N]`` over QP, over QP."""
    params, ring = ev.params, ev.params.ring
    plan = ev.levels.digit_raise(level)
    c1 = ring.mod_down(contiguous(ring, acc[:, 1:]), ev.levels.mod_down(level, level))[:, 0]
    c1 = contiguous(ring, c1)
    digits = ring.raise_digits(c1, plan)
    rows = ev.levels.key_rows(key.level, level)
    addend, element = contiguous(ring, acc[:, 0]), rotation_element(g, params.ring_degree)
    hoisted = [HoistedKey(key.b, key.a, element, rows)]
    return ring.turned_products(c1, digits, plan, hoisted, True, addend)[0]


def special_factors(params: Parameters, level: int) -> NDArray[np.uint32]:
    """Return ``[limb, 1]`` residues of P."""
    p = params.chain.special_modulus
    return np.array([[p % params.chain.primes[i]] for i in params.limbs(level)], np.uint32)
