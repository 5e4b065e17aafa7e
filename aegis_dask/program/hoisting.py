"""Many rotations of one ciphertext with few keys: two hoisted stages instead of one.

Rotations by ``a + b`` for all a of one set and b of another are rotations by a, each then rotated
by b. Both stages share decompositions, so n rotations still cost n - 1 key switches, with about
2 sqrt(n) keys instead of n, for one decomposition more per element of the first set.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

SINGLE_STAGE = 16
"""Up to so many steps every one has a key of its own."""


@lru_cache(maxsize=1024)
def two_stages(steps: tuple[int, ...], slots: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (outer, inner): step i is ``outer[i // len(inner)] + inner[i % len(inner)]``.

    Parameters
    ----------
    steps
        Rotations, at most `SINGLE_STAGE` of them, or of the form above for some length of the inner
        set; the last outer step may be incomplete.
    slots
        Rotations act modulo this number.

    Returns
    -------
    tuple, tuple
        ``(0,)`` and all steps where one stage is best.
    """
    n = len(steps)
    best: tuple[tuple[int, ...], tuple[int, ...]] = ((0,), steps)
    if n <= SINGLE_STAGE or steps[0] % slots:
        return best
    keys = n
    for size in range(2, n // 2 + 1):
        inner = steps[:size]
        outer = steps[::size]
        count = _nonzero(outer, slots) + _nonzero(inner, slots)
        if count < keys and _is_sum(steps, outer, inner, slots):
            best, keys = (outer, inner), count
    return best


def _nonzero(steps: Sequence[int], slots: int) -> int:
    return sum(1 for s in steps if s % slots)


def _is_sum(
    steps: tuple[int, ...], outer: tuple[int, ...], inner: tuple[int, ...], slots: int
) -> bool:
    size = len(inner)
    return all((outer[i // size] + inner[i % size] - s) % slots == 0 for i, s in enumerate(steps))
