"""NTT-friendly 32-bit primes.

Every prime is below 2^30, so that values in ``[0, 4p)`` fit a 32-bit word: the lazy butterflies of
the number-theoretic transform (Harvey, arXiv:1205.2926) need no correction of one operand.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache

from aegis_dask.errors import ParameterError

MAX_PRIME_BITS = 30
"""Every prime of the library is below ``2**MAX_PRIME_BITS``."""

MIN_PRIME_BITS = 25
"""Smallest target size: there are few smaller NTT primes, and they would waste their words."""

_WITNESSES = (2, 3, 5, 7)  # deterministic below 3,215,031,751 (Jaeschke 1993), so below 2^30


@lru_cache(maxsize=1 << 16)
def is_prime(n: int) -> bool:
    """Tell whether `n`, at most ``2**31``, is prime (deterministic Miller-Rabin)."""
    if n < 11 or any(n % w == 0 for w in _WITNESSES):
        return n in _WITNESSES
    d, r = n - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for a in _WITNESSES:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(r - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def _candidates(target: float, step: int) -> Iterator[int]:
    """Yield numbers ``= 1 mod step`` by their distance from `target`."""
    low = int(target) // step * step + 1
    high = low + step
    while low > 1 or high < 1 << MAX_PRIME_BITS:
        if low > 1 and (target - low <= high - target or high >= 1 << MAX_PRIME_BITS):
            yield low
            low -= step
        else:
            yield high
            high += step


def ntt_primes(
    ring_degree: int, bits: float, count: int, exclude: Collection[int] = ()
) -> tuple[int, ...]:
    """Return the `count` primes ``p = 1 mod 2 * ring_degree`` nearest to ``2**bits``.

    Parameters
    ----------
    ring_degree
        Degree N of the cyclotomic polynomial ``X^N + 1``, a power of two.
    bits
        Target size as log2, from 25 to 30. At 30 the primes lie just below ``2**30``.
    count
        Number of primes.
    exclude
        Primes that are taken already.

    Raises
    ------
    ParameterError
        If `bits` is out of range or there are not enough such primes.
    """
    if not MIN_PRIME_BITS <= bits <= MAX_PRIME_BITS:
        raise ParameterError(
            f"primes of {bits} bits were asked for; this library uses primes of "
            f"{MIN_PRIME_BITS} to {MAX_PRIME_BITS} bits"
        )
    found: list[int] = []
    if count == 0:
        return ()
    taken = set(exclude)
    target = 2.0**bits
    for c in _candidates(target, 2 * ring_degree):
        # Beyond a factor sqrt(2) a prime would no longer have the size that was asked for.
        if not 0.7 < c / target < 1.42:
            break
        if c not in taken and is_prime(c):
            found.append(c)
            if len(found) == count:
                return tuple(found)
    raise ParameterError(
        f"ring degree {ring_degree} has only {len(found)} free NTT primes near 2^{bits:g}, "
        f"{count} are needed; use wider levels or a smaller ring"
    )


def primitive_root_of_unity(prime: int, order: int) -> int:
    """Return the smallest-generator primitive root of unity of power-of-two `order` mod `prime`."""
    for g in range(2, prime):
        if pow(g, (prime - 1) // 2, prime) == prime - 1:
            return pow(g, (prime - 1) // order, prime)
    raise ParameterError(f"{prime} has no primitive root of order {order}")
