"""Galois elements: rotations of the slots, and conjugation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


def rotation_element(steps: int, ring_degree: int) -> int:
    """Return ``5^steps mod 2N``: X -> X^g moves slot j + steps to slot j (a left rotation)."""
    return pow(5, steps % (ring_degree // 2), 2 * ring_degree)


@lru_cache(maxsize=4096)
def rotation_step(galois_element: int, ring_degree: int) -> int:
    """Return the rotation k with ``5^k = galois_element mod 2N``, bit by bit from the lowest.

    Raises
    ------
    ValueError
        If the element is not a power of 5 (a conjugation is involved).
    """
    order, step, modulus = ring_degree // 2, 0, 2 * ring_degree
    if galois_element % 4 != 1:
        raise ValueError(f"Galois element {galois_element} is not a rotation")
    rest = galois_element % modulus
    bit = 1
    while bit < order:
        # rest is 1 mod 4 bit; 5^bit is 1 + 4 bit mod 8 bit
        if rest % (8 * bit) != 1:
            step += bit
            rest = rest * pow(5, -bit, modulus) % modulus
        bit *= 2
    return step


def conjugation_element(ring_degree: int) -> int:
    """Return ``2N - 1``: complex conjugation of every slot."""
    return 2 * ring_degree - 1


def power_of_two_steps(slots: int) -> tuple[int, ...]:
    """Return ``1, 2, 4, .., slots / 2``: a minimal set that reaches every rotation."""
    return tuple(1 << i for i in range(slots.bit_length() - 1))


@lru_cache(maxsize=4096)
def decompose(steps: int, available: frozenset[int], slots: int) -> tuple[int, ...] | None:
    """Return a shortest list of available steps whose sum is `steps` mod `slots`, or None.

    Breadth-first over sums, so the fewest key switches are used; the order is deterministic.
    """
    target = steps % slots
    if target == 0:
        return ()
    choices = sorted(available)
    previous: dict[int, tuple[int, int]] = {0: (0, 0)}
    frontier = [0]
    while frontier and target not in previous:
        following = []
        for position in frontier:
            for step in choices:
                reached = (position + step) % slots
                if reached not in previous:
                    previous[reached] = (position, step)
                    following.append(reached)
        frontier = following
    if target not in previous:
        return None
    path = []
    while target:
        target, step = previous[target]
        path.append(step)
    return tuple(sorted(path, reverse=True))


def inner_sum_steps(count: int, stride: int = 1) -> tuple[int, ...]:
    """Return the rotations that `Evaluator.inner_sum` uses for `count` terms `stride` apart."""
    steps: set[int] = set()
    span, offset = 1, 0
    while span <= count:
        if count & span:
            steps.add(offset * stride)
            offset += span
        if 2 * span <= count:
            steps.add(span * stride)
        span *= 2
    return tuple(sorted(s for s in steps if s))


def normalize(steps: Iterable[int], slots: int) -> tuple[int, ...]:
    """Return distinct nonzero steps modulo `slots`, sorted."""
    return tuple(sorted({s % slots for s in steps} - {0}))
