from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Ring
from tests import reference

N = 1024
LIMBS = (0, 3, 4, 15, 26, 30)
"""First and last terminal, first, middle and last main prime, last special prime."""

Operands = Callable[..., Any]


def column(ring: Ring, limbs: Sequence[int] = LIMBS) -> Any:
    """The primes as an object array ``[limb, 1]``."""
    everything = ring.chain.primes + ring.chain.special_primes
    return np.array([everything[i] for i in limbs], object)[:, None]


@pytest.fixture(params=["random", "extreme", "largest"])
def operand(request: pytest.FixtureRequest, ring: Ring, rng: np.random.Generator) -> Operands:
    """Leading shape -> residues: uniform, or the values at which ranges break first."""
    primes = [int(p) for p in column(ring)[:, 0]]

    def make(*shape: int) -> Any:
        if request.param == "largest":
            return reference.largest_residues(primes, *shape, degree=N)
        make = (
            reference.random_residues if request.param == "random" else reference.extreme_residues
        )
        return make(rng, primes, *shape, degree=N)

    return make


def exact(x: Any) -> Any:
    return x.astype(object)


def runs_to_points(w: Any) -> Any:
    return np.repeat(w, N // w.shape[-1], axis=-1)


# What y may look like next to x of shape [3, 2, limb, N].
SHAPES = [(3, 2), (), (2,), (1, 2), (3, 1), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_sub_and_multiply_broadcast_their_second_operand(
    ring: Ring, operand: Operands, shape: tuple[int, ...]
) -> None:
    x, y, q = operand(3, 2), operand(*shape), column(ring)
    assert np.array_equal(ring.add(x, y, LIMBS), (exact(x) + exact(y)) % q)
    assert np.array_equal(ring.sub(x, y, LIMBS), (exact(x) - exact(y)) % q)
    assert np.array_equal(ring.multiply(x, y, LIMBS), exact(x) * exact(y) % q)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_multiply_adds_to_an_accumulator(
    ring: Ring, operand: Operands, shape: tuple[int, ...]
) -> None:
    x, y, total = operand(3, 2), operand(*shape), operand(3, 2)
    expected = (exact(total) + exact(x) * exact(y)) % column(ring)
    assert ring.multiply(x, y, LIMBS, accumulate=total) is total
    assert np.array_equal(total, expected)


def test_results_go_to_the_array_given(ring: Ring, operand: Operands) -> None:
    x, y = operand(2), operand(2)
    out = ring.empty(x.shape)
    assert ring.add(x, y, LIMBS, out=out) is out
    assert np.array_equal(out, ring.add(x, y, LIMBS))
    difference = ring.sub(x, y, LIMBS)
    assert ring.sub(x, y, LIMBS, out=x) is x  # in place
    assert np.array_equal(x, difference)


def test_negate(ring: Ring, operand: Operands) -> None:
    x = operand(2, 2)
    assert np.array_equal(ring.negate(x, LIMBS), -exact(x) % column(ring))
    zero = np.zeros_like(x)
    assert np.array_equal(ring.negate(zero, LIMBS), zero)


def test_to_montgomery(ring: Ring, operand: Operands) -> None:
    x = operand(2)
    assert np.array_equal(ring.to_montgomery(x, LIMBS), (exact(x) << 32) % column(ring))


@pytest.mark.parametrize("runs", [1, 2, 8, N // 16])
def test_runs_are_constants_over_contiguous_points(
    ring: Ring, operand: Operands, runs: int
) -> None:
    x, total, w, q = operand(2, 3), operand(2, 3), operand()[:, :runs], column(ring)
    points = exact(runs_to_points(w))
    assert np.array_equal(ring.multiply_runs(x, w, LIMBS), exact(x) * points % q)
    assert np.array_equal(ring.add_runs(x, w, LIMBS), (exact(x) + points) % q)
    expected = (exact(total) + exact(x) * points) % q
    assert ring.multiply_runs(x, w, LIMBS, accumulate=total) is total
    assert np.array_equal(total, expected)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_rows_of_constants_share_the_polynomials(ring: Ring, operand: Operands, rows: int) -> None:
    x, total, q = operand(2, 3), operand(2, 3), column(ring)
    w = operand(rows)[..., :4]
    points = np.repeat(exact(runs_to_points(w)), 6 // rows, axis=0).reshape(2, 3, len(LIMBS), N)
    given = w.swapaxes(0, 1)  # [limb, row, run]
    assert np.array_equal(ring.multiply_runs(x, given, LIMBS), exact(x) * points % q)
    assert np.array_equal(ring.add_runs(x, given, LIMBS), (exact(x) + points) % q)
    expected = (exact(total) + exact(x) * points) % q
    ring.multiply_runs(x, given, LIMBS, accumulate=total)
    assert np.array_equal(total, expected)


@pytest.mark.parametrize(
    "shape", [(6, N // 8), (5, 2), (6, 3), (6,), (6, 2, 4), (6, 0, 4)], ids=str
)
def test_runs_that_do_not_fit_are_refused(ring: Ring, shape: tuple[int, ...]) -> None:
    x, w = np.zeros((6, N), np.uint32), np.zeros(shape, np.uint32)
    for operation in (ring.multiply_runs, ring.add_runs):
        with pytest.raises(BackendError, match="runs of at least 16 of 1024 points"):
            operation(x, w, LIMBS)


@pytest.mark.parametrize("batch", [3, 1])
def test_tensor_is_the_product_of_linear_polynomials_in_the_secret(
    ring: Ring, operand: Operands, batch: int
) -> None:
    x, y, q = operand(3, 2), operand(batch, 2), column(ring)
    (x0, x1), (y0, y1) = (exact(v).swapaxes(0, 1) for v in (x, y))
    expected = np.stack([x0 * y0, x0 * y1 + x1 * y0, x1 * y1], axis=1) % q
    assert np.array_equal(ring.tensor(x, y, LIMBS), expected)


SIGNED = [0, 1, -1, 2**31, 2**32 - 1, 2**32, -(2**32), 2**62, 2**63 - 1, -(2**63), 1 - 2**63]


def test_from_signed_at_the_ends_of_the_range(ring: Ring) -> None:
    x = np.resize(np.array(SIGNED, np.int64), (2, N))
    expected = x.astype(object)[:, None] % column(ring)
    assert np.array_equal(ring.from_signed(x, LIMBS), expected)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=64))
def test_from_signed_of_any_integers(ring: Ring, values: list[int]) -> None:
    x = np.resize(np.array(values, np.int64), N)
    assert np.array_equal(ring.from_signed(x, LIMBS), x.astype(object) % column(ring))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_arithmetic_modulo_any_prime_of_the_chain(ring: Ring, data: st.DataObject) -> None:
    l = data.draw(st.integers(0, 30))
    p = int(column(ring, [l])[0, 0])
    pairs = data.draw(st.lists(st.tuples(*[st.integers(0, p - 1)] * 3), min_size=1, max_size=48))
    x, y, total = np.resize(np.array(pairs, np.uint32).T[:, None], (3, 1, N))
    a, b, c = (exact(v) for v in (x, y, total))
    assert np.array_equal(ring.add(x, y, [l]), (a + b) % p)
    assert np.array_equal(ring.sub(x, y, [l]), (a - b) % p)
    assert np.array_equal(ring.multiply(x, y, [l]), a * b % p)
    ring.multiply(x, y, [l], accumulate=total)
    assert np.array_equal(total, (c + a * b) % p)


def test_operands_with_gaps_or_read_only_work_like_copies(ring: Ring, operand: Operands) -> None:
    x, y = operand(4), operand(4)
    frozen = y[::2].copy()
    frozen.flags.writeable = False
    expected = (exact(x[::2]) + exact(y[::2])) % column(ring)
    assert np.array_equal(ring.add(x[::2], y[::2], LIMBS), expected)
    assert np.array_equal(ring.add(x[::2], frozen, LIMBS), expected)


@pytest.mark.parametrize("degree_bits", range(10, 18))
def test_every_ring_degree(
    thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator, degree_bits: int
) -> None:
    ring, limbs = thirty_limb_ring(1 << degree_bits), [0, 30]
    q = column(ring, limbs).astype(np.uint64)
    x, y = (
        reference.random_residues(rng, [int(p) for p in q[:, 0]], 2, degree=1 << degree_bits)
        for _ in "xy"
    )
    a, b = x.astype(np.uint64), y.astype(np.uint64)
    assert np.array_equal(ring.add(x, y, limbs), (a + b) % q)
    assert np.array_equal(ring.sub(x, y, limbs), (a + q - b) % q)
    assert np.array_equal(ring.multiply(x, y, limbs), a * b % q)
    assert np.array_equal(
        ring.tensor(x[None], y[None], limbs)[0, 1], (a[0] * b[1] + a[1] * b[0]) % q
    )
