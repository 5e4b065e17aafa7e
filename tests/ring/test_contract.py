from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Ring
from tests import reference

LIMBS = (0, 4, 30)
"""The first terminal, the first main and the last special prime."""


def primes_of(ring: Ring) -> list[int]:
    return [ring.chain.all_primes[i] for i in LIMBS]


def exact(x: Any, y: Any, primes: list[int]) -> Any:
    """``sum_k x[k] y[o, k]`` on Python integers, ``[o, 3, limb, N]``."""
    x, y = x.astype(object), y.astype(object)
    terms = [
        x[:, 0] * y[:, :, 0],
        x[:, 0] * y[:, :, 1] + x[:, 1] * y[:, :, 0],
        x[:, 1] * y[:, :, 1],
    ]
    return np.stack([t.sum(1) for t in terms], axis=1) % np.array(primes, object)[:, None]


@pytest.mark.parametrize("kind", ["random", "extreme", "largest"])
# Terms around the four and eight after which sums are cut and the eight of a pass; outputs in
# groups of four and the rest.
@pytest.mark.parametrize(
    ("terms", "outs"), [(1, 1), (3, 4), (4, 2), (5, 1), (8, 5), (9, 3), (13, 2), (16, 4), (33, 9)]
)
def test_contraction_is_a_sum_of_tensor_products(
    ring: Ring, rng: np.random.Generator, terms: int, outs: int, kind: str
) -> None:
    primes, degree = primes_of(ring), ring.chain.ring_degree
    if kind == "largest":
        x = reference.largest_residues(primes, terms, 2, degree=degree)
        y = reference.largest_residues(primes, outs, terms, 2, degree=degree)
    else:
        make = reference.random_residues if kind == "random" else reference.extreme_residues
        x = make(rng, primes, terms, 2, degree=degree)
        y = make(rng, primes, outs, terms, 2, degree=degree)
    out = ring.contract(x, y, LIMBS)
    assert out.shape == (outs, 3, len(LIMBS), degree)
    assert np.array_equal(out, exact(x, y, primes))


@pytest.mark.parametrize("terms", [1, 2, 40, 100])
def test_largest_values_in_every_place(ring: Ring, terms: int) -> None:
    primes = primes_of(ring)
    x = reference.largest_residues(primes, terms, 2, degree=1024)
    out = ring.contract(x, np.stack([x] * 2), LIMBS)
    assert np.all(out[:, 0] == terms)  # (-1)(-1) each
    assert np.all(out[:, 1] == 2 * terms)
    assert np.all(out[:, 2] == terms)


def test_contraction_gives_the_residues_of_tensor_and_add(
    thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator
) -> None:
    # Several blocks of points, and every limb.
    ring, limbs = thirty_limb_ring(1 << 12), list(range(31))
    x = reference.random_residues(rng, ring.chain.all_primes, 6, 2, degree=1 << 12)
    y = reference.random_residues(rng, ring.chain.all_primes, 2, 6, 2, degree=1 << 12)
    out = ring.contract(x, y, limbs)
    for o in range(2):
        total = ring.zeros((1, 3, 31, 1 << 12))
        for k in range(6):
            total = ring.add(total, ring.tensor(x[k : k + 1], y[o, k : k + 1], limbs), limbs)
        assert np.array_equal(out[o], total[0])


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_rows_are_contracted_like_each_alone(
    ring: Ring, rng: np.random.Generator, rows: int
) -> None:
    primes = primes_of(ring)
    x = reference.random_residues(rng, primes, rows, 11, 2, degree=1024)
    y = reference.random_residues(rng, primes, 6, 11, 2, degree=1024)
    out = ring.contract(x, y, LIMBS)
    assert out.shape == (rows, 6, 3, 3, 1024)
    for r in range(rows):
        assert np.array_equal(out[r], ring.contract(x[r], y, LIMBS))


def test_leading_axes_may_be_views(ring: Ring, rng: np.random.Generator) -> None:
    primes = primes_of(ring)
    x = reference.random_residues(rng, primes, 10, 2, degree=1024)
    stored = reference.random_residues(rng, primes, 10, 6, 2, degree=1024)  # [k, o]
    turned = stored.swapaxes(0, 1)
    expected = exact(x, turned, primes)
    assert np.array_equal(ring.contract(x, turned, LIMBS), expected)
    assert np.array_equal(ring.contract(x[::-1], turned[:, ::-1], LIMBS), expected)
    assert np.array_equal(ring.contract(x[3:5], turned[1::2, 3:5], LIMBS),
                          exact(x[3:5], turned[1::2, 3:5], primes))  # fmt: skip
    # The same right operand for every output; a limb of every row left out.
    same = np.broadcast_to(turned[:1], turned.shape)
    assert np.array_equal(ring.contract(x, same, LIMBS), exact(x, same, primes))
    got = ring.contract(x[:, :, 1:], turned[:, :, :, 1:], LIMBS[1:])
    assert np.array_equal(got, expected[:, :, 1:])


def test_transposed_storage_is_not_copied(ring: Ring) -> None:
    from aegis_dask.ring.numba_backend.ring import _leading

    stored = np.zeros((5, 3, 2, 1, 1024), np.uint32)
    flat, steps = _leading(stored.swapaxes(0, 1), 2)
    assert np.shares_memory(flat, stored)
    assert flat.size == stored.size
    assert steps == (2 * 1024, 3 * 2 * 1024)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((4, 2, 3, 1024), (4, 2, 3, 1024)),
        ((4, 2, 3, 1024), (2, 5, 2, 3, 1024)),
        ((4, 3, 3, 1024), (2, 4, 3, 3, 1024)),
        ((0, 2, 3, 1024), (2, 0, 2, 3, 1024)),
        ((4, 2, 3, 1024), (0, 4, 2, 3, 1024)),
    ],
    ids=str,
)
def test_operands_that_do_not_fit_are_refused(
    ring: Ring, x: tuple[int, ...], y: tuple[int, ...]
) -> None:
    with pytest.raises(BackendError, match="do not fit"):
        ring.contract(np.zeros(x, np.uint32), np.zeros(y, np.uint32), LIMBS)
