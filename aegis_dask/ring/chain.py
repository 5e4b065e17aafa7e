"""Moduli of a leveled RNS scheme as contiguous windows of one list of primes.

The limbs are stored as ``T[A-1] .. T[0], M[0] .. M[B-1]``: "terminal" primes near 2^25, then "main"
primes (2^30, or half of a wide level). Level l uses t terminals and m mains, the window
``[A - t, A + m)``. Going down one level some primes leave *and some enter*, so that the quotient is
the wished 2^35, 2^40 or 2^45 although no 32-bit prime has that size ("rational rescaling", the
25-30 prime system of Cheddar, arXiv:2407.13055, section 4). With ``25 t + 30 m = log2 Q`` the
number of terminals is fixed modulo 6 by log2 Q, hence at most five of them are ever needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log2, prod

from aegis_dask.errors import ParameterError
from aegis_dask.ring.primes import ntt_primes

TERMINAL_BITS = 25
MAIN_BITS = 30
SPECIAL_BITS = MAIN_BITS  # the largest primes: P exceeds every digit with the fewest limbs
RATIONAL_LEVEL_BITS = (35, 40, 45)


@dataclass(frozen=True)
class Window:
    """A contiguous range of limbs, ``[start, stop)`` in storage order."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of limbs."""
        return self.stop - self.start

    def __contains__(self, limb: int) -> bool:
        """Tell whether `limb` lies in the window."""
        return self.start <= limb < self.stop

    def limbs(self) -> range:
        """Return the limb indices."""
        return range(self.start, self.stop)

    def issubset(self, other: Window) -> bool:
        """Tell whether every limb of this window is one of `other`."""
        return other.start <= self.start and self.stop <= other.stop


@dataclass(frozen=True)
class ModulusChain:
    """Primes of the ciphertext moduli and of the special modulus, with a window per level.

    Attributes
    ----------
    ring_degree
        N, a power of two.
    primes
        Ciphertext primes in storage order (terminals, then mains).
    special_primes
        Primes of P, used only inside key switching.
    windows
        ``windows[l]`` is the limb window of level l.
    """

    ring_degree: int
    primes: tuple[int, ...]
    special_primes: tuple[int, ...]
    windows: tuple[Window, ...]

    @cached_property
    def _hash(self) -> int:
        return hash((self.ring_degree, self.primes, self.special_primes, self.windows))

    def __hash__(self) -> int:
        # Asked for at every operation; of integers only, so it is the same in every process.
        return self._hash

    @property
    def max_level(self) -> int:
        """Highest level, the number of levels above the base."""
        return len(self.windows) - 1

    @cached_property
    def all_primes(self) -> tuple[int, ...]:
        """Primes of an evaluation key: the ciphertext primes, then the special ones."""
        return self.primes + self.special_primes

    @cached_property
    def special_modulus(self) -> int:
        """P, the product of the special primes."""
        return prod(self.special_primes)

    def modulus(self, level: int) -> int:
        """Return Q_level, the ciphertext modulus at `level`."""
        w = self.windows[level]
        return prod(self.primes[w.start : w.stop])

    @cached_property
    def key_modulus(self) -> int:
        """Product of every prime of an evaluation key: all ciphertext primes and P."""
        return prod(self.all_primes)

    @cached_property
    def log2_key_modulus(self) -> float:
        """log2 of `key_modulus`, the figure that security depends on."""
        return sum(log2(p) for p in self.all_primes)


def _next_counts(terminals: int, mains: int, bits: int) -> tuple[int, int]:
    """Return the terminal and main counts of a rational level `bits` above the given one."""
    for t in range(6):
        rest = bits - TERMINAL_BITS * (t - terminals)
        if rest % MAIN_BITS == 0 and mains + rest // MAIN_BITS >= 0:
            return t, mains + rest // MAIN_BITS
    raise ParameterError(
        f"a level of {bits} bits cannot be made of {TERMINAL_BITS}- and {MAIN_BITS}-bit primes "
        f"above {terminals} terminal and {mains} main primes; the base may be too small"
    )


def build_chain(
    ring_degree: int, base_bits: int, level_bits: Sequence[int], special_count: int
) -> ModulusChain:
    """Choose primes so that level l has about ``base_bits + sum(level_bits[:l])`` bits.

    Parameters
    ----------
    ring_degree
        N, a power of two from 2^10 to 2^17.
    base_bits
        Size of Q_0: a multiple of 5 from 50 (two terminals) upwards when a rational level follows,
        else from 50 to 60 (a pair of primes).
    level_bits
        Size of each level from the bottom: 35, 40 or 45 (rational rescaling), 25 to 30 (one
        prime) or 50 to 60 (a pair). Single and pair levels stand above the rational ones. A level
        of 50 bits there is made of two terminal primes while there are some that the levels below
        it do without: keys carry them anyway.
    special_count
        Number of primes just below 2^30 in P.

    Raises
    ------
    ParameterError
        If a size is not one of these, or primes run out.
    """
    rational = any(b in RATIONAL_LEVEL_BITS for b in level_bits)
    if base_bits < 50 or (not rational and base_bits > 60):
        raise ParameterError(
            f"the base has {base_bits} bits; it has 50 to 60 (a pair of primes), or a multiple of "
            f"5 from 50 below levels of {', '.join(map(str, RATIONAL_LEVEL_BITS))} bits"
        )
    if rational:
        base, rest = _next_counts(0, 0, base_bits), 0.0
    else:
        base, rest = (0, 2), base_bits / 2
    counts = [base]
    main_bits: list[float] = [rest or float(MAIN_BITS)] * base[1]
    for i, bits in enumerate(level_bits):
        t, m = counts[-1]
        if bits in RATIONAL_LEVEL_BITS:
            if any(b != MAIN_BITS for b in main_bits):
                raise ParameterError(
                    f"level {i + 1} of {bits} bits stands above a level made of single primes or "
                    "pairs; put the rational levels (35, 40, 45 bits) at the bottom"
                )
            t, m = _next_counts(t, m, bits)
            main_bits += [float(MAIN_BITS)] * (m - len(main_bits))
        elif bits == 2 * TERMINAL_BITS and rational and t + 2 <= max(t for t, _ in counts):
            t += 2
        elif 25 <= bits <= 30 or 50 <= bits <= 60:
            new = [float(bits)] if bits <= 30 else [bits / 2] * 2
            # Limbs above m exist already where the rational cycle stepped back; they are reused
            # when they have the right size, so that no key carries them for nothing.
            have = main_bits[m : m + len(new)]
            if have and have != new[: len(have)]:
                raise ParameterError(
                    f"level {i + 1} of {bits} bits does not fit here: the prime cycle stepped "
                    f"back over {len(main_bits) - m} primes of {MAIN_BITS} bits; use 60 bits, or "
                    "one rational level more or less below it"
                )
            m += len(new)
            main_bits += [new[0]] * (m - len(main_bits))
        else:
            raise ParameterError(
                f"level {i + 1} has {bits} bits; a level has 25 to 30, 35, 40, 45 or 50 to 60 bits"
            )
        counts.append((t, m))
    terminals = max(t for t, _ in counts)
    taken: list[int] = list(ntt_primes(ring_degree, SPECIAL_BITS, special_count))
    special = tuple(taken)
    mains: list[int] = [0] * len(main_bits)
    for bits_ in sorted(set(main_bits), reverse=True):
        where = [i for i, b in enumerate(main_bits) if b == bits_]
        chosen = ntt_primes(ring_degree, bits_, len(where), taken)
        taken += chosen
        for i, p in zip(where, chosen, strict=True):
            mains[i] = p
    ter = ntt_primes(ring_degree, TERMINAL_BITS, terminals, taken)
    return ModulusChain(
        ring_degree=ring_degree,
        primes=tuple(reversed(ter)) + tuple(mains),
        special_primes=special,
        windows=tuple(Window(terminals - t, terminals + m) for t, m in counts),
    )
