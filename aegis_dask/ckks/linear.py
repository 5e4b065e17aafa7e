"""Matrix-vector products on slots: baby-step giant-step over diagonals, with double hoisting.

With diagonals ``M_k[j] = M[j, j + k]``, ``M x = sum_g rot_g(sum_b rot_-g(M_{g+b}) rot_b(x))``. The
baby rotations share one ModUp and stay over QP, the plaintext products are accumulated over QP, and
each giant step divides by P once (Bossuat et al., ePrint 2020/1203, section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    limbs = params.extended_limbs(t.level)
    sums = _plaintext_products(ev, t, Rotations(ev, x, t.level, t.rotations), limbs)
    total: Any = None
    for g, acc in zip(t.giants, sums, strict=True):
        term = acc if g == 0 else giant_step(ev, acc, t.level, g)
        total = term if total is None else ring.add(total, term, limbs)
    data = ring.mod_down(total, ev.levels.mod_down(t.level, t.level - 1))
    _, scale = ev.levels.rescale(t.level, x.scale * params.scales[t.level])
    return x.with_data(data, t.level - 1, scale)


class Rotations:
    """P times rotations of a ciphertext over QP, all of one decomposition.

    Parameters
    ----------
    ev, x, level
        The ciphertext, at this level.
    steps
        Rotations that may be asked for; each has a key.

    Raises
    ------
    MissingKeyError
        If one has none that serves the level.
    """

    def __init__(self, ev: Evaluator, x: Ciphertext, level: int, steps: Iterable[int]) -> None:
        params, ring, n = ev.params, ev.params.ring, ev.params.ring_degree
        self._keys = {}
        for k in filter(None, steps):
            key = ev.keys.for_element(rotation_element(k, n), level)
            rows = ev.levels.key_rows(key.level, level)
            self._keys[k] = HoistedKey(key.b, key.a, rotation_element(k, n), rows)
        self.batch, self._ring = x.batch, ring
        self._limbs, self._p = params.limbs(level), special_factors(params, level)
        self._plan = ev.levels.digit_raise(level)
        c0, self._c1 = (contiguous(ring, x.data[:, k]) for k in (0, 1))
        self._scaled0 = ring.multiply_runs(c0, self._p, self._limbs)
        self._digits, self._fresh = ring.raise_digits(self._c1, self._plan), True

    def write(self, steps: Sequence[int], out: Any, turn: bool = True) -> None:
        """Write ``[step, batch, 2, limb, N]``, 0 the first of the steps if it is one.

        Without `turn` the automorphisms are still to be applied.
        """
        ring, window = self._ring, len(self._limbs)
        if steps[0] == 0:
            out[0, :, :, window:] = 0
            out[0, :, 0, :window] = self._scaled0
            out[0, :, 1, :window] = ring.multiply_runs(self._c1, self._p, self._limbs)
            steps, out = steps[1:], out[1:]
        if not steps:
            return
        keys = [self._keys[k] for k in steps]
        if not turn:
            keys = [key._replace(galois_element=1) for key in keys]
        ring.turned_products(
            self._c1, self._digits, self._plan, keys, self._fresh, self._scaled0, out
        )
        self._fresh = False


def _plaintext_products(
    ev: Evaluator, t: LinearTransform, rotations: Rotations, limbs: list[int]
) -> list[Any]:
    """Return ``sum_b weight_{g,b} rot_b(x)`` over QP for every giant step g."""
    ring, n = ev.params.ring, ev.params.ring_degree
    shape = (rotations.batch, 2, len(limbs), n)
    if not isinstance(t.weights, dict):
        rotated = ring.empty((len(t.babies), *shape))
        rotations.write(t.babies, rotated)
        products = ring.gemm(rotated, t.weights, limbs)
        return [products[i] for i in range(len(t.giants))]
    sums = [ring.zeros(shape) for _ in t.giants]
    term = ring.empty((1, *shape))
    for b in t.babies:
        rotations.write([b], term, turn=False)
        for acc, g in zip(sums, t.giants, strict=True):
            if (g, b) in t.weights:
                weight, element = t.weights[g, b], rotation_element(b, n)
                ring.automorphism_multiply_add(acc, term[0], weight, limbs, element)
    return sums


def giant_step(ev: Evaluator, acc: Any, level: int, step: int) -> Any:
    """Return the rotation of ``[batch, 2, limb, N]`` over QP, over QP."""
    params, ring = ev.params, ev.params.ring
    plan, element = ev.levels.digit_raise(level), rotation_element(step, params.ring_degree)
    key = ev.keys.for_element(element, level)
    c1 = ring.mod_down(contiguous(ring, acc[:, 1:]), ev.levels.mod_down(level, level))[:, 0]
    c1 = contiguous(ring, c1)
    digits = ring.raise_digits(c1, plan)
    hoisted = [HoistedKey(key.b, key.a, element, ev.levels.key_rows(key.level, level))]
    return ring.turned_products(c1, digits, plan, hoisted, True, contiguous(ring, acc[:, 0]))[0]


def special_factors(params: Parameters, level: int) -> NDArray[np.uint32]:
    """Return ``[limb, 1]`` residues of P."""
    p = params.chain.special_modulus
    return np.array([[p % params.chain.primes[i]] for i in params.limbs(level)], np.uint32)
