"""Polynomials in the Chebyshev basis, at optimal depth.

Paterson-Stockmeyer with baby steps ``T_1 .. T_{2^b - 1}`` and giant steps ``T_{2^i}`` (Bossuat et
al., ePrint 2020/1203, section 3): degree d takes ``ceil(log2(d + 1))`` levels on [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError, LevelError

if TYPE_CHECKING:
    from aegis_dask.ckks.evaluator import Evaluator

Coefficients = NDArray[np.complex128]


def chebyshev_coefficients(
    function: Callable[[NDArray[np.float64]], ArrayLike],
    degree: int,
    interval: tuple[float, float] = (-1.0, 1.0),
) -> NDArray[np.float64]:
    """Interpolate a real function at the Chebyshev nodes of `interval`.

    Returns
    -------
    ndarray
        ``degree + 1`` coefficients of ``T_0 .. T_degree``.

    Examples
    --------
    >>> chebyshev_coefficients(lambda x: 2 * x * x - 1, 2).round(12) + 0.0
    array([0., 0., 1.])
    """
    low, high = interval

    def mapped(t: NDArray[np.float64]) -> Any:
        return function((high - low) / 2 * t + (high + low) / 2)

    out: NDArray[np.float64] = np.polynomial.chebyshev.chebinterpolate(mapped, degree)
    return out


def depth(degree: int) -> int:
    """Return the levels that a polynomial of this degree takes on [-1, 1]."""
    return max(degree, 1).bit_length()


def evaluate_chebyshev(
    evaluator: Evaluator,
    x: Ciphertext,
    coefficients: ArrayLike,
    interval: tuple[float, float] = (-1.0, 1.0),
    scales: Sequence[Scale] | None = None,
) -> Ciphertext:
    """Evaluate ``sum_k c_k T_k(t)``, t being x mapped from `interval` to [-1, 1].

    Parameters
    ----------
    evaluator
        With a relinearisation key.
    x
        Slots within `interval`; outside it the value is meaningless.
    coefficients
        Real or complex ``[degree + 1]``.
    interval
        Another interval than [-1, 1] costs one more level.
    scales
        Scale per level, the canonical ones by default. They must follow the same rule from level to
        level: ``scales[l - 1] = scales[l]^2 Q_(l-1) / Q_l``.

    Raises
    ------
    LevelError
        If x has too few levels left.
    EncodingError
        If a coefficient is not finite.
    """
    c = np.atleast_1d(np.asarray(coefficients, np.complex128))
    if c.ndim != 1 or not len(c) or not np.isfinite(c).all():
        raise EncodingError(f"one or more finite coefficients are needed, got shape {c.shape}")
    last = np.flatnonzero(c)
    c = c[: last[-1] + 1] if len(last) else c[:1]
    low, high = interval
    if not low < high:
        raise EncodingError(f"the interval {interval} is empty")
    mapped = (low, high) != (-1.0, 1.0)
    levels = depth(len(c) - 1) + mapped
    if x.level < levels:
        raise LevelError(
            f"a polynomial of degree {len(c) - 1} takes {levels} levels"
            f"{' (one for the interval)' if mapped else ''}, {x!r} has {x.level}"
        )
    scales = evaluator.params.scales if scales is None else scales
    if mapped:
        x = evaluator.combinations([x], [[2.0 / (high - low)]], [0.0], scales[x.level])[0]
        x = evaluator.add(x, -(high + low) / (high - low))
    if x.scale != scales[x.level]:
        raise LevelError(f"{x!r} does not have the canonical scale of its level; rescale it first")
    baby = min(
        range(1, max(2, depth(len(c) - 1))),
        key=lambda b: (_Counter(len(c) - 1, b).products, b),
    )
    return _Evaluation(evaluator, x, baby, scales).run(c)


def divide(c: Coefficients, n: int) -> tuple[Coefficients, Coefficients]:
    """Return (q, r) with ``c = q T_n + r``, degree of r below n; the degree of c is below 2n."""
    q = np.zeros(len(c) - n, np.complex128)
    r = c[:n].copy()
    q[0] = c[n]
    for j in range(1, len(q)):
        q[j] = 2 * c[n + j]
        r[n - j] -= c[n + j]
    return q, r


def _split(degree: int) -> int:
    """Return the giant step for a degree: the largest power of two that does not exceed it."""
    return int(1 << (degree.bit_length() - 1))


class _Evaluation:
    """State of one evaluation: the powers made so far, and the leaves.

    Leaves are combinations of the baby steps ``T_1 .. T_{2^b - 1}`` by constants. All of them are
    one matrix product at the highest level that all baby steps reach; each is then brought to the
    level at which it is used.
    """

    def __init__(
        self, evaluator: Evaluator, x: Ciphertext, baby: int, scales: Sequence[Scale]
    ) -> None:
        self.evaluator = evaluator
        self.scales = scales
        self.top = x.level
        self.baby = baby
        self.powers: dict[int, Ciphertext] = {1: x}
        self.lowered: dict[tuple[int, int], Ciphertext] = {}
        self.leaves: dict[int, Ciphertext] = {}

    def run(self, c: Coefficients) -> Ciphertext:
        level = self.top - depth(len(c) - 1)
        self.combine(self.collect(c, level))
        self.order = iter(range(len(self.leaves)))
        return self.evaluate(c, level)

    def power(self, k: int) -> Ciphertext:
        """Return T_k, at level ``top - ceil(log2 k)``."""
        if k not in self.powers:
            ev = self.evaluator
            a, b = (k + 1) // 2, k // 2
            left, right = self.power(a), self.power(b)
            level = min(left.level, right.level)
            product = ev.multiply(self.lower(left, level), self.lower(right, level))
            product = ev.add(product, product)
            self.powers[k] = ev.sub(product, 1.0 if a == b else self.power(a - b))
        return self.powers[k]

    def power_at(self, k: int, level: int) -> Ciphertext:
        """Return T_k at a lower level; several uses share it."""
        if (k, level) not in self.lowered:
            self.lowered[k, level] = self.lower(self.power(k), level)
        return self.lowered[k, level]

    def lower(self, x: Ciphertext, level: int) -> Ciphertext:
        return self.evaluator.to_level(x, level, self.scales[level])

    def is_leaf(self, degree: int, level: int) -> bool:
        """Whether ``T_0 .. T_degree`` can be combined by constants directly to `level`."""
        return degree < 1 << self.baby and self.top - _deepest(degree) >= level + 1

    def collect(self, c: Coefficients, level: int) -> list[tuple[Coefficients, int]]:
        """Return the leaves, and their levels, in the order in which `evaluate` meets them."""
        if self.is_leaf(len(c) - 1, level):
            return [(c, level)]
        q, r = divide(c, _split(len(c) - 1))
        leaves = self.collect(q, level + 1) if len(q) > 1 else []
        return leaves + (self.collect(np.trim_zeros(r, "b"), level) if np.any(r[1:]) else [])

    def combine(self, leaves: list[tuple[Coefficients, int]]) -> None:
        """Compute all leaves, those of the highest degrees first."""

        def highest(i: int) -> int:
            return self.top - _deepest(len(leaves[i][0]) - 1) - 1

        groups: dict[int, list[int]] = {}
        for i in sorted(range(len(leaves)), key=highest):
            level = next((g for g in groups if g >= leaves[i][1]), highest(i))
            groups.setdefault(level, []).append(i)
        for level, members in groups.items():
            parts = [leaves[i][0] for i in members]
            widest = max(len(c) for c in parts)
            used = [k for k in range(1, widest) if any(len(c) > k and c[k] != 0 for c in parts)]
            used = used or [1]  # a constant
            weights = [[c[k] if k < len(c) else 0.0 for k in used] for c in parts]
            terms = [self.power_at(k, level + 1) for k in used]
            constants = [complex(c[0]) for c in parts]
            scale = self.scales[level + 1]
            combined = self.evaluator.combinations(terms, weights, constants, scale)
            self.leaves.update(zip(members, combined, strict=True))

    def evaluate(self, c: Coefficients, level: int) -> Ciphertext:
        """Return the value at `level`, canonical scale."""
        degree = len(c) - 1
        ev = self.evaluator
        if self.is_leaf(degree, level):
            return self.lower(self.leaves.pop(next(self.order)), level)
        n = _split(degree)
        q, r = divide(c, n)
        # q is evaluated one level higher, then both factors share that level.
        giant = self.power_at(n, level + 1)
        if len(q) == 1:
            out = ev.combinations([giant], [[q[0]]], [0.0], self.scales[level + 1])[0]
        else:
            out = ev.multiply(self.evaluate(q, level + 1), giant)
        if not np.any(r):
            return out
        if not np.any(r[1:]):
            return ev.add(out, complex(r[0]))
        return ev.add(out, self.evaluate(np.trim_zeros(r, "b"), level))


def _deepest(degree: int) -> int:
    """Return the levels below the top of the deepest of ``T_1 .. T_degree``."""
    return (degree - 1).bit_length() if degree > 1 else 0


class _Counter:
    """Counts the products of ciphertexts for a degree and a number of baby steps."""

    def __init__(self, degree: int, baby: int) -> None:
        self.baby, self.top = baby, depth(degree)
        self.made: set[int] = {1}
        self.products = 0
        self.visit(degree, 0)

    def power(self, k: int) -> None:
        if k not in self.made:
            self.made.add(k)
            self.products += 1
            for j in ((k + 1) // 2, k // 2):
                self.power(j)

    def visit(self, degree: int, level: int) -> None:
        if degree < 1 << self.baby and self.top - _deepest(degree) >= level + 1:
            for k in range(1, degree + 1):
                self.power(k)
            return
        n = _split(degree)
        self.power(n)
        if degree > n:
            self.products += 1
            self.visit(degree - n, level + 1)
        self.visit(n - 1, level)
