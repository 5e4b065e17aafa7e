from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from aegis_dask.ring import memory
from aegis_dask.ring.backend import Ring
from aegis_dask.ring.memory import ALIGNMENT, SMALLEST, BufferPool, keep_at_least, keeping, release
from tests import reference

SHAPE = (2, SMALLEST // 4)
BYTES = 2 * SMALLEST


@pytest.fixture
def pool() -> BufferPool:
    return BufferPool(limit=8 * BYTES)


def address(x: np.ndarray) -> int:
    return int(x.__array_interface__["data"][0])


@pytest.mark.parametrize("shape", [(3,), (2, 5), SHAPE, (1, 2, SMALLEST), (0,)], ids=str)
def test_arrays_are_writable_aligned_and_of_the_shape_asked_for(
    pool: BufferPool, shape: tuple[int, ...]
) -> None:
    x = pool.empty(shape)
    assert x.shape == shape
    assert x.dtype == np.uint32
    assert x.flags.c_contiguous
    assert x.flags.writeable
    if x.nbytes >= SMALLEST:
        assert address(x) % ALIGNMENT == 0


def test_a_freed_buffer_serves_the_next_array_of_its_size(pool: BufferPool) -> None:
    x = pool.empty(SHAPE)
    where = address(x)
    del x
    gc.collect()
    assert pool.held == BYTES
    y = pool.empty((SHAPE[0] * SHAPE[1],))
    assert address(y) == where
    assert pool.held == 0


def test_arrays_of_another_size_take_other_memory(pool: BufferPool) -> None:
    x = pool.empty(SHAPE)
    where = address(x)
    del x
    assert address(pool.empty((4, SMALLEST // 4))) != where


def test_live_arrays_never_share_memory(pool: BufferPool, rng: np.random.Generator) -> None:
    # Arrays are made and dropped at random; each keeps the value that was written into it.
    live: list[tuple[int, np.ndarray]] = []
    for value in range(400):
        x = pool.empty(SHAPE)
        x.fill(value)
        live.append((value, x))
        while len(live) > 6:
            live.pop(int(rng.integers(len(live))))
        del x
        assert all(np.all(y == v) for v, y in live)
        starts = sorted(address(y) for _, y in live)
        assert all(b - a >= BYTES for a, b in pairwise(starts))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[1:],
        lambda x: x.reshape(-1)[::7],
        lambda x: x.view(np.uint8),
        lambda x: x.T,
        lambda x: np.asarray(memoryview(x)),
        lambda x: np.frombuffer(memoryview(x).cast("B"), np.uint32),
    ],
    ids=["slice", "stride", "dtype", "transpose", "memoryview", "buffer"],
)
def test_a_view_keeps_the_memory_of_its_array(pool: BufferPool, view: object) -> None:
    x = pool.empty(SHAPE)
    x.fill(0x01010101)
    part = view(x)  # type: ignore[operator]
    expected = part.copy()
    del x
    gc.collect()
    for _ in range(4):
        pool.empty(SHAPE).fill(0xFFFFFFFF)
    assert np.array_equal(part, expected)


def test_the_pool_holds_at_most_its_limit(pool: BufferPool) -> None:
    arrays = [pool.empty(SHAPE) for _ in range(12)]
    del arrays
    gc.collect()
    assert pool.held == pool.limit


def test_clear_frees_what_is_held_and_leaves_live_arrays_alone(pool: BufferPool) -> None:
    kept = pool.empty(SHAPE)
    kept.fill(7)
    pool.empty(SHAPE)
    pool.clear()
    assert pool.held == 0
    assert np.all(kept == 7)
    del kept
    assert pool.held == BYTES


def test_threads_get_memory_of_their_own(pool: BufferPool) -> None:
    barrier = threading.Barrier(8)

    def work(value: int) -> bool:
        barrier.wait()
        ok = True
        for _ in range(150):
            arrays = [pool.empty(SHAPE) for _ in range(2)]
            for x in arrays:
                x.fill(value)
            ok = ok and all(bool(np.all(x == value)) for x in arrays)
            del arrays, x
        return ok

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(work, range(8)))
    assert 0 <= pool.held <= pool.limit


def test_kernels_called_from_several_threads_do_not_disturb_each_other(
    ring: Ring, rng: np.random.Generator
) -> None:
    limbs = list(range(31))
    primes = list(ring.chain.primes + ring.chain.special_primes)
    x, y = (reference.random_residues(rng, primes, 4, degree=1024) for _ in "xy")
    product = ring.multiply(x, y, limbs)
    values = ring.ntt(x, limbs)

    def work(_: int) -> bool:
        ok = True
        for _ in range(20):
            ok = ok and np.array_equal(ring.multiply(x, y, limbs), product)
            ok = ok and np.array_equal(ring.ntt(x, limbs), values)
            ok = ok and np.array_equal(ring.intt(values, limbs), x)
        return ok

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(work, range(4)))


def test_zeros_are_zero_even_in_used_memory(ring: Ring) -> None:
    shape = (8, SMALLEST // 4)
    ring.empty(shape).fill(5)
    assert not np.any(ring.zeros(shape))


def test_a_somewhat_larger_buffer_serves_a_smaller_array(pool: BufferPool) -> None:
    x = pool.empty((5, SMALLEST // 4))
    where = address(x)
    del x
    gc.collect()
    y = pool.empty((4, SMALLEST // 4))
    assert address(y) == where
    assert y.shape == (4, SMALLEST // 4)
    del y
    gc.collect()
    assert pool.held == 5 * SMALLEST


def test_sizes_that_are_no_longer_used_make_room(pool: BufferPool) -> None:
    old = [pool.empty(SHAPE) for _ in range(8)]
    del old
    gc.collect()
    assert pool.held == pool.limit
    x = pool.empty((4, SMALLEST // 4))
    where = address(x)
    del x
    gc.collect()
    assert pool.held == pool.limit
    assert address(pool.empty((4, SMALLEST // 4))) == where


def test_a_pool_keeps_more_for_a_while(pool: BufferPool) -> None:
    with keeping(10 * BYTES), keeping(9 * BYTES):
        assert pool.limit == 10 * BYTES
        arrays = [pool.empty(SHAPE) for _ in range(12)]
        del arrays
        gc.collect()
        assert pool.held == 10 * BYTES
    assert pool.held <= pool.limit == 8 * BYTES


def test_a_pool_can_be_told_to_keep_more(pool: BufferPool) -> None:
    keep_at_least(10 * BYTES)
    keep_at_least(1)
    arrays = [pool.empty(SHAPE) for _ in range(12)]
    del arrays
    gc.collect()
    assert pool.held == pool.limit == 10 * BYTES


def test_a_pool_gives_everything_back(pool: BufferPool) -> None:
    x = pool.empty(SHAPE)
    del x
    gc.collect()
    assert pool.held
    release()
    assert pool.held == 0


def test_a_buffer_that_comes_while_the_pool_is_in_use_is_let_go(pool: BufferPool) -> None:
    """The garbage collector may free an array in the middle of a method of the pool."""
    array = pool.empty((1 << 18,))
    with pool._lock:
        del array
    assert pool.held == 0
    assert not pool._lock.locked()


def test_what_is_not_used_for_two_ages_is_given_back() -> None:
    pool = BufferPool(1 << 30)
    often, rarely = (1 << 18,), (1 << 20,)
    arrays = [pool.empty(often), pool.empty(often), pool.empty(rarely)]
    size = sum(a.nbytes for a in arrays)
    del arrays
    assert pool.held == size
    for _ in range(3):
        used = pool.empty(often)
        del used
        pool.age()
    assert pool.held == 4 << 18  # one of the two that are used, and not the large one
    again = pool.empty(rarely)
    assert again.nbytes == 4 << 20
    del again
    assert pool.held == (4 << 18) + (4 << 20)
    for _ in range(2):
        pool.age()
    assert pool.held == 0
    assert not pool._sizes


def test_work_that_ends_at_the_same_moment_ages_the_pools_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1e6
    monkeypatch.setattr(memory.time, "monotonic", lambda: now)
    monkeypatch.setattr(memory, "_aged", 0.0)
    pool = BufferPool(1 << 30)
    pool.empty(SHAPE)
    for _ in range(5):
        memory.age()
    assert pool.held
    now += memory.AGE_SECONDS
    memory.age()
    assert not pool.held
