"""Reuse of large host arrays.

A fresh 20 MB array costs as much in page faults as adding two ciphertexts. Freed buffers are kept
for the next array of the same size, up to a bound.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
SMALLEST = 1 << 18
"""Arrays below this many bytes are left to NumPy."""


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
    """Keeps up to `limit` bytes of freed buffers; safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
        self._lock = threading.RLock()  # a finalizer may run inside `empty`

    def empty(self, shape: tuple[int, ...]) -> NDArray[np.uint32]:
        """Return an uninitialised, aligned uint32 array."""
        size = 4 * prod(shape)
        if size < SMALLEST:
            return np.empty(shape, np.uint32)
        with self._lock:
            stack = self._free.get(size)
            buffer = stack.pop() if stack else None
            if buffer is not None:
                self.held -= size
        if buffer is None:
            raw = np.empty(size + ALIGNMENT, np.uint8)
            skip = -raw.ctypes.data % ALIGNMENT
            buffer = raw[skip : skip + size]
        return np.asarray(_Block(self, buffer, shape))

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        """Keep a buffer for reuse, or let it go when the pool is full."""
        with self._lock:
            if self.held + len(buffer) <= self.limit:
                self._free[len(buffer)].append(buffer)
                self.held += len(buffer)

    def clear(self) -> None:
        """Free every buffer that is not in use."""
        with self._lock:
            self._free.clear()
            self.held = 0
