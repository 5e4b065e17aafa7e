"""Exact scales: formal products of integers with dyadic exponents.

A float scale drifts with every rescale. Here a scale is ``prod b_i^e_i`` with integer bases (primes
of the chain and 2) and rational exponents, so equality is decided exactly. The canonical scale of
level l is ``Delta_l = sqrt(Delta_{l-1} Q_l / Q_{l-1})`` with ``Delta_0 = 2^b``: multiplying two
ciphertexts of canonical scale and rescaling gives exactly the canonical scale one level below, and
deviations of the primes are halved at every level upwards instead of doubled downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cached_property, lru_cache

_DIGITS = 60  # decimal digits of numerical values: far beyond any modulus ratio that is rounded


@lru_cache(maxsize=4096)
def _ln(base: int) -> Decimal:
    with localcontext() as ctx:
        ctx.prec = _DIGITS + 10
        return Decimal(base).ln()


class Scale:
    """A positive real number ``prod base^exponent``, immutable and hashable."""

    __slots__ = ("__dict__", "_hash", "factors")

    def __init__(self, factors: Mapping[int, Fraction | int]) -> None:
        items = ((b, Fraction(e)) for b, e in factors.items())
        self.factors: tuple[tuple[int, Fraction], ...] = tuple(
            sorted((b, e) for b, e in items if e != 0 and b != 1)
        )
        self._hash = hash(self.factors)

    @classmethod
    def from_int(cls, value: int) -> Scale:
        """Return the scale of a positive integer.

        Prime factors below 1000 are split off; what remains is one base.
        """
        if value <= 0:
            raise ValueError(f"a scale is positive, {value} was given")
        factors: dict[int, int] = {}
        for p in (2, *range(3, 1000, 2)):
            while value % p == 0:
                factors[p] = factors.get(p, 0) + 1
                value //= p
        return cls({**factors, value: 1})

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, Scale) and self._hash == other._hash and self.factors == other.factors
        )

    def __hash__(self) -> int:
        return self._hash

    def __mul__(self, other: Scale) -> Scale:
        return _combine(self, other, 1)

    def __truediv__(self, other: Scale) -> Scale:
        return _combine(self, other, -1)

    def sqrt(self) -> Scale:
        """Return the exact square root."""
        return Scale({b: e / 2 for b, e in self.factors})

    @cached_property
    def _decimal(self) -> Decimal:
        with localcontext() as ctx:
            ctx.prec = _DIGITS + 10
            total = Decimal(0)
            for b, e in self.factors:
                total += _ln(b) * e.numerator / e.denominator
            return total.exp()

    @cached_property
    def log2(self) -> float:
        """log2 of the value."""
        with localcontext() as ctx:
            ctx.prec = _DIGITS
            return float(self._decimal.ln() / _ln(2))

    def __float__(self) -> float:
        return float(self._decimal)

    def to_fraction(self) -> Fraction:
        """Return a rational approximation to about 60 digits (exact values are irrational)."""
        return Fraction(self._decimal)

    def __repr__(self) -> str:
        return f"Scale(2^{self.log2:.4f})"


@lru_cache(maxsize=65536)
def _combine(x: Scale, y: Scale, sign: int) -> Scale:
    factors = dict(x.factors)
    for b, e in y.factors:
        factors[b] = factors.get(b, Fraction(0)) + sign * e
    return Scale(factors)
