"""Reuse of large host arrays.

A fresh 20 MB array costs as much in page faults as adding two ciphertexts. Freed buffers are kept
for the next array of about the same size, up to a bound; those of sizes that have not been used for
longest make room. (A circuit that walks down the levels asks for other sizes at every level.)
"""

from __future__ import annotations

import threading
import time
import weakref
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
SMALLEST = 1 << 18
"""Arrays below this many bytes are left to NumPy."""
SLACK = 4
"""A buffer serves arrays that are smaller by up to one part in this many."""


AGE_SECONDS = 10.0
_aged = 0.0  # when `age` has done something
_pools: weakref.WeakSet[BufferPool] = weakref.WeakSet()


@contextmanager
def keeping(size: int) -> Iterator[None]:
    """Let the pools keep at least `size` bytes each meanwhile.

    For work that goes through so much memory at a time that the usual bound would give it back to
    the system and take it again, over and over.
    """
    pools = list(_pools)
    for pool in pools:
        pool.begin_keeping(size)
    try:
        yield
    finally:
        for pool in pools:
            pool.end_keeping(size)


def keep_at_least(size: int) -> None:
    """Let the pools that exist keep at least `size` bytes each from now on."""
    for pool in list(_pools):
        pool.usual = max(pool.usual, size)


def age() -> None:
    """Let the pools give back what has not been used for a while, 10 to 20 seconds.

    For processes that do one piece of work after the other, and call this in between: sizes that
    only some of them need would fill the pools in time. Pieces may end at the same moment, or be
    short; that is no reason to free what the next one needs.
    """
    global _aged
    now = time.monotonic()
    if now - _aged >= AGE_SECONDS:
        _aged = now
        for pool in list(_pools):
            pool.age()


def release() -> None:
    """Give what the pools keep back to the system: for a process that has done its work."""
    for pool in list(_pools):
        pool.clear()


class _Block:
    """Memory that returns to its pool when the last array over it is gone.

    It is not an ndarray, so NumPy keeps it alive as the ``base`` of every view.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_buffer", "_pool")

    def __init__(self, pool: BufferPool, buffer: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self._pool, self._buffer = pool, buffer
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "<u4",
            "shape": shape,
            "data": (buffer.ctypes.data, False),
        }

    def __del__(self) -> None:
        self._pool.give_back(self._buffer)


class BufferPool:
    """Keeps up to `limit` bytes of freed buffers; safe to use from several threads.

    Parameters
    ----------
    limit
        The usual limit.
    """

    def __init__(self, limit: int) -> None:
        self.usual = limit
        self._wanted: list[int] = []
        _pools.add(self)
        self.held = 0
        # Size -> buffers, each with the age in which it came; recent use last.
        self._free: OrderedDict[int, list[tuple[int, NDArray[np.uint8]]]] = OrderedDict()
        self._age = 0
        self._sizes: list[int] = []  # of _free, sorted
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        """Bytes that it keeps: the usual, or the most that anyone wants meanwhile."""
        return max(self.usual, *self._wanted, 0)

    def begin_keeping(self, size: int) -> None:
        """Raise the limit to `size` until `end_keeping`."""
        with self._lock:
            self._wanted.append(size)

    def end_keeping(self, size: int) -> None:
        """Take back one `begin_keeping`, and free what is too much then."""
        with self._lock:
            self._wanted.remove(size)
            while self.held > self.limit:
                self._take(next(iter(self._free)), keep_place=True)

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint32]:
        """Return an uninitialised, aligned uint32 array."""
        size = 4 * prod(shape)
        if size < SMALLEST:
            return np.empty(shape, np.uint32)
        with self._lock:
            place = bisect_left(self._sizes, size)
            buffer = None
            if place < len(self._sizes) and self._sizes[place] <= size + size // SLACK:
                buffer = self._take(self._sizes[place])
        if buffer is None:
            raw = np.empty(size + ALIGNMENT, np.uint8)
            skip = -raw.ctypes.data % ALIGNMENT
            buffer = raw[skip : skip + size]
        return np.asarray(_Block(self, buffer, shape))

    def _take(self, size: int, keep_place: bool = False) -> NDArray[np.uint8]:
        stack = self._free[size]
        _, buffer = stack.pop()
        self.held -= size
        if stack and not keep_place:
            self._free.move_to_end(size)
        elif not stack:
            del self._free[size]
            del self._sizes[bisect_left(self._sizes, size)]
        return buffer

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a buffer for reuse, in the place of others that have not been used for longer."""
        size = len(buffer)
        # The garbage collector may call this from within any method of this thread. A buffer that
        # comes while the pool is in use goes back to the system.
        if not self._lock.acquire(blocking=False):
            return
        try:
            while self.held + size > self.limit and self._free:
                oldest = next(iter(self._free))
                if oldest == size:
                    return
                self._take(oldest, keep_place=True)
            if self.held + size > self.limit:
                return
            if size not in self._free:
                self._free[size] = []
                insort(self._sizes, size)
            self._free[size].append((self._age, buffer))
            self._free.move_to_end(size)
            self.held += size
        finally:
            self._lock.release()

    def age(self) -> None:
        """Free the buffers that nobody has used since the call before the last."""
        with self._lock:
            for size in list(self._free):
                # The last that came is the first that is taken: what is too much stays below.
                kept = [b for b in self._free[size] if b[0] >= self._age]
                self.held -= size * (len(self._free[size]) - len(kept))
                if kept:
                    self._free[size] = kept
                else:
                    del self._free[size]
                    del self._sizes[bisect_left(self._sizes, size)]
            self._age += 1

    def clear(self) -> None:
        """Free every buffer that is not in use."""
        with self._lock:
            self._free.clear()
            self._sizes.clear()
            self.held = 0
