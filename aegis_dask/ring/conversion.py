"""Constants of base conversions: ModUp, and ModDown merged with rational rescaling.

Residues x_i modulo primes d_i with product D determine x. With ``y_i = x_i (D/d_i)^-1 mod d_i``,
``x = sum_i y_i D/d_i - v D`` for a small integer v (Halevi, Polyakov, Shoup, ePrint 2018/117).
Rounding ``sum_i y_i/d_i`` to the nearest v makes x centred in [-D/2, D/2): division by D then
rounds to nearest. v is computed in fixed point, ``floor(2^56/d_i)`` per source: an error below
2^-20 in the fraction only moves the rounding boundary by that much.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from aegis_dask.ring.chain import ModulusChain, Window
from aegis_dask.ring.tables import U32, shoup_pair

QUOTIENT_BITS = 56
MAX_SOURCES = 48
"""More source limbs than any parameter set needs; bounds the quotient v."""
_R = 1 << 32


@dataclass(frozen=True, eq=False)
class BaseConversion:
    """Conversion from source to target primes, both indices into the ring's list of primes.

    Attributes
    ----------
    sources, targets
        Prime indices, int64.
    matrix
        ``[target, source (+1)]`` in Montgomery form: ``D/d_i mod q_j`` times a target factor; the
        last column, for an exact conversion, is that of -v.
    quotient
        ``floor(2^56/d_i)`` per source, empty for an approximate conversion (the result is then
        x + u D with 0 <= u < number of sources).
    """

    sources: np.ndarray
    targets: np.ndarray
    matrix: U32
    quotient: U32

    def restricted(self, primes: Collection[int]) -> BaseConversion:
        """Return the conversion to some of the target primes only."""
        kept = np.array([int(j) in primes for j in self.targets], bool)
        return replace(self, targets=self.targets[kept], matrix=self.matrix[kept])


def base_conversion(
    primes: Sequence[int],
    sources: Sequence[int],
    targets: Sequence[int],
    exact: bool,
    divide: bool = False,
) -> BaseConversion:
    """Build the constants; with `divide` the result is multiplied by D^-1 modulo each target."""
    d = [primes[i] for i in sources]
    modulus = prod(d)
    rows = []
    for j in targets:
        q = primes[j]
        factor = pow(modulus, -1, q) if divide else 1
        row = [modulus // di * factor * _R % q for di in d]
        if exact:
            row.append(-modulus * factor * _R % q)
        rows.append(row)
    if len(d) > MAX_SOURCES:
        raise ValueError(f"a base conversion has {len(d)} sources, at most {MAX_SOURCES} fit")
    return BaseConversion(
        np.array(sources, np.int64),
        np.array(targets, np.int64),
        np.array(rows, np.uint32).reshape(len(targets), len(d) + exact),
        np.array([(1 << QUOTIENT_BITS) // di for di in d] if exact else [], np.uint32),
    )


@dataclass(frozen=True, eq=False)
class DigitRaise:
    """ModUp of one level: every digit is extended to all limbs of the window and of P.

    Attributes
    ----------
    limbs
        Prime indices of the extended polynomial: the window, then the special primes.
    digit_of
        Digit (0-based within this level) that owns each of `limbs`, -1 for special primes.
    first_digit
        Index of the level's first digit in the evaluation key.
    factors
        ``(D/d_i)^-1`` per window limb, times 1/N, with Shoup companions: the constant that the
        inverse transform multiplies by.
    conversions
        One exact conversion per digit: raised digits are centred.
    sources
        Prime indices of the window, the limbs of what is raised.
    """

    limbs: np.ndarray
    digit_of: np.ndarray
    first_digit: int
    factors: tuple[U32, U32]
    conversions: tuple[BaseConversion, ...]
    sources: np.ndarray

    def restricted(self, primes: Collection[int]) -> DigitRaise:
        """Return the constants that give the limbs of some primes only."""
        kept = np.array([int(i) in primes for i in self.limbs], bool)
        return replace(
            self,
            limbs=self.limbs[kept],
            digit_of=self.digit_of[kept],
            conversions=tuple(c.restricted(primes) for c in self.conversions),
        )


def digit_raise(chain: ModulusChain, window: Window, bounds: Sequence[int]) -> DigitRaise:
    """Build the constants of ModUp at `window`; digit d is the limbs from bounds[d] on."""
    primes = chain.all_primes
    special = range(len(chain.primes), len(primes))
    limbs = [*window.limbs(), *special]
    first = bisect_right(bounds, window.start) - 1
    digit_of = [bisect_right(bounds, i) - 1 - first for i in window.limbs()] + [-1] * len(special)
    factors, conversions = [0] * len(window), []
    for digit in range(max(digit_of) + 1):
        own = [i for i, d in zip(limbs, digit_of, strict=True) if d == digit]
        modulus = prod(primes[i] for i in own)
        for i in own:
            p = primes[i]
            factors[i - window.start] = pow(modulus // p * chain.ring_degree, -1, p)
        others = [i for i, d in zip(limbs, digit_of, strict=True) if d != digit]
        # Centred digits: an approximate conversion leaves a multiple of the all-ones polynomial,
        # which is large in the slots next to the real axis, and 4 times the noise elsewhere.
        conversions.append(base_conversion(primes, own, others, exact=True))
    return DigitRaise(
        np.array(limbs, np.int64),
        np.array(digit_of, np.int64),
        first,
        shoup_pair(factors, [primes[i] for i in window.limbs()]),
        tuple(conversions),
        np.array(window.limbs(), np.int64),
    )


@dataclass(frozen=True, eq=False)
class ModDown:
    """Division with rounding by special and dropped primes, with entering primes and a factor.

    ``out = round(x c E / M) mod Q_new``: x over the old window (and P if `has_special`), E the
    product of the primes that enter, M that of the primes that leave (and P), c an integer.

    Attributes
    ----------
    source_rows
        Rows of the input (limb positions) that leave.
    source_factors
        ``c E (M/d_i)^-1 / N mod d_i`` with Shoup companions, applied by the inverse transform.
    source_addend
        ``P mod d_i`` with Shoup companions for sources in the old window (the addend of
        `Ring.mod_down` is multiplied by P), 0 for special primes.
    conversion
        Exact conversion to the new window, divided by M.
    target_rows
        Row of the input for each limb of the new window, -1 where the prime enters.
    target_factors
        ``c E / M mod q_j`` (0 where the prime enters) with Shoup companions.
    addend_factors
        ``c E P / M mod q_j``, likewise.
    """

    source_rows: np.ndarray
    source_factors: tuple[U32, U32]
    source_addend: tuple[U32, U32]
    conversion: BaseConversion
    target_rows: np.ndarray
    target_factors: tuple[U32, U32]
    addend_factors: tuple[U32, U32]

    def restricted(
        self, primes: Collection[int], source_rows: np.ndarray, target_rows: np.ndarray
    ) -> ModDown:
        """Return the constants that give the limbs of some primes only, from other rows.

        Parameters
        ----------
        primes
            Those of the new window that are wanted.
        source_rows
            Row of the input for every prime that leaves.
        target_rows
            Row of the input for every wanted prime, -1 where it enters.
        """
        kept = np.array([int(j) in primes for j in self.conversion.targets], bool)
        return replace(
            self,
            source_rows=source_rows,
            conversion=self.conversion.restricted(primes),
            target_rows=target_rows,
            target_factors=(self.target_factors[0][kept], self.target_factors[1][kept]),
            addend_factors=(self.addend_factors[0][kept], self.addend_factors[1][kept]),
        )


def mod_down(
    chain: ModulusChain, old: Window, new: Window, has_special: bool, factor: int = 1
) -> ModDown:
    """Build the constants of a division from window `old` (and P) to window `new`."""
    primes = chain.all_primes
    special = list(range(len(chain.primes), len(primes))) if has_special else []
    dropped = [i for i in old.limbs() if i not in new]
    sources = dropped + special
    if not sources:
        raise ValueError("a division needs at least one prime that leaves")
    entering = prod(primes[i] for i in new.limbs() if i not in old) * factor
    leaving = prod(primes[i] for i in sources)
    p_mod = chain.special_modulus if has_special else 1

    def row(i: int) -> int:
        return i - old.start if i in old else len(old) + i - len(chain.primes)

    src_primes = [primes[i] for i in sources]
    new_primes = [primes[i] for i in new.limbs()]
    keep = [i if i in old else None for i in new.limbs()]
    scale = [
        0 if i is None else entering * pow(leaving, -1, q)
        for i, q in zip(keep, new_primes, strict=True)
    ]
    return ModDown(
        source_rows=np.array([row(i) for i in sources], np.int64),
        source_factors=shoup_pair(
            [entering * pow(leaving // d * chain.ring_degree, -1, d) for d in src_primes],
            src_primes,
        ),
        source_addend=shoup_pair(
            [p_mod if i < len(chain.primes) else 0 for i in sources], src_primes
        ),
        conversion=base_conversion(primes, sources, list(new.limbs()), exact=True, divide=True),
        target_rows=np.array([-1 if i is None else row(i) for i in keep], np.int64),
        target_factors=shoup_pair(scale, new_primes),
        addend_factors=shoup_pair([s * p_mod for s in scale], new_primes),
    )
