"""A device that computes nothing and writes down what is launched on it.

Programs run on it as on a GPU, with arrays that have no memory: what they launch depends on shapes
only. So the launches of a layer of a large model are known, and what the host takes to prepare
them, where there is no GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import dask.config
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from aegis_dask.ring.cuda_backend import arguments
from aegis_dask.ring.cuda_backend.device import KEY_PARTS
from aegis_dask.ring.cuda_backend.residency import Residency
from aegis_dask.ring.cuda_backend.ring import CudaRing
from aegis_dask.ring.registry import BACKENDS

BACKEND = "recording"
MEMORY = 139 << 30
"""Bytes of memory that the device claims to have: an H200's."""
_SMALL = 1 << 16


@dataclass(frozen=True)
class Launch:
    """A launch, or a copy or filling of memory.

    Attributes
    ----------
    kernel
        Its name; "copy" and "fill" are CuPy's.
    grid
        Blocks.
    arguments
        Values of the arguments, structures flat; the number of bytes for "copy" and "fill".
    sizes
        Sources and targets of each conversion of `convert`.
    """

    kernel: str
    grid: tuple[int, int, int]
    arguments: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass
class Log:
    """What has been launched, while it `listens`."""

    launches: list[Launch] = field(default_factory=list)
    listens: bool = True
    small: dict[int, bytes] = field(default_factory=dict)
    """Contents of small arrays that were uploaded, by address."""
    held: int = 0
    """Bytes of arrays that exist."""
    peak: int = 0
    """The most that there were since it was set."""

    def add(self, kernel: str, size: int) -> None:
        """Write a copy or filling down."""
        if self.listens:
            self.launches.append(Launch(kernel, (1, 1, 1), (size,)))


class _Buffer:
    """What an array and its views share: it counts as memory while one of them lives."""

    def __init__(self, log: Log, size: int) -> None:
        self.log, self.size, self.address = log, size, next(_addresses)
        log.held += size
        log.peak = max(log.peak, log.held)

    def __del__(self) -> None:
        self.log.held -= self.size


class RecordedArray:
    """An array without memory: shape, strides and an address."""

    def __init__(self, buffer: _Buffer, shadow: NDArray[Any], offset: int = 0) -> None:
        self._buffer, self._shadow, self._offset = buffer, shadow, offset
        self.address = buffer.address + offset
        self.shape, self.strides, self.dtype = shadow.shape, shadow.strides, shadow.dtype
        self.ndim, self.size, self.flags = shadow.ndim, shadow.size, shadow.flags
        self.nbytes, self.itemsize = shadow.nbytes, shadow.itemsize

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array of the device was used as one of NumPy's; copy it with to_host")

    def __len__(self) -> int:
        return len(self._shadow)

    def _view(self, shadow: NDArray[Any]) -> RecordedArray:
        places = (a.__array_interface__["data"][0] for a in (shadow, self._shadow))
        return RecordedArray(self._buffer, shadow, self._offset + next(places) - next(places))

    def __getitem__(self, index: Any) -> RecordedArray:
        return self._view(self._shadow[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._buffer.log.add("fill" if np.isscalar(value) else "copy", self._shadow[index].nbytes)

    def reshape(self, *shape: Any) -> RecordedArray:
        """Return a view; nothing here reshapes what would have to be copied."""
        wanted = shape[0] if isinstance(shape[0], tuple) else shape
        if -1 in wanted:
            rest = self.size // prod(n for n in wanted if n != -1)
            wanted = tuple(rest if n == -1 else n for n in wanted)
        if self.flags.c_contiguous:
            return RecordedArray(self._buffer, _shadow(wanted, self.dtype), self._offset)
        shadow = self._shadow.view()
        shadow.shape = wanted
        return self._view(shadow)

    def transpose(self, *axes: Any) -> RecordedArray:
        """Return a view."""
        return self._view(self._shadow.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> RecordedArray:
        """Return a view."""
        return self._view(self._shadow.swapaxes(a, b))

    def copy(self) -> RecordedArray:
        """Return another array."""
        self._buffer.log.add("copy", self.nbytes)
        return _new(self._buffer.log, self.shape, self.dtype)


_addresses = itertools.count(1 << 40, 1 << 20)
_ITEMS = {np.dtype(kind): np.empty(1, kind) for kind in "IiqQ"}


def _shadow(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an array of a shape that has the memory of one item: it is never read."""
    item, strides, step = _ITEMS[np.dtype(dtype)], [], np.dtype(dtype).itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return as_strided(item, shape, tuple(reversed(strides)))


def _new(log: Log, shape: tuple[int, ...], dtype: Any) -> RecordedArray:
    shadow = _shadow(tuple(shape), dtype)
    return RecordedArray(_Buffer(log, shadow.nbytes), shadow)


class RecordingDevice:
    """A `Device` of the GPU backend."""

    def __init__(self, log: Log) -> None:
        self.log, self.keys = log, Residency(self.upload, MEMORY // KEY_PARTS)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """See `Device.empty`."""
        return _new(self.log, shape, np.uint32)

    def upload(self, x: NDArray[Any]) -> Any:
        """See `Device.upload`."""
        out = _new(self.log, x.shape, x.dtype)
        if x.nbytes <= _SMALL:
            self.log.small[out.address] = x.tobytes()
        return out

    def download(self, x: Any) -> NDArray[Any]:
        """See `Device.download`: zeros."""
        return np.zeros(x.shape, x.dtype)

    def contiguous(self, x: Any) -> Any:
        """See `Device.contiguous`."""
        return x if x.flags.c_contiguous else x.copy()

    def address(self, x: Any) -> int:
        """See `Device.address`."""
        return int(x.address)

    def launch(self, kernel: str, log_n: int, grid: tuple[int, int, int], pointer: int) -> None:
        """See `Device.launch`."""
        if not self.log.listens:
            return
        values = arguments.unpack(kernel)
        sizes: tuple[tuple[int, int], ...] = ()
        if kernel == "convert":
            held = np.frombuffer(self.log.small[values[4]], np.int32).reshape(-1, 14)
            sizes = tuple((int(c[10]), int(c[11])) for c in held)
        self.log.launches.append(Launch(kernel, grid, values, sizes))

    def synchronize(self) -> None:
        """See `Device.synchronize`."""

    def memory(self) -> int:
        """See `Device.memory`."""
        return MEMORY


@contextmanager
def recording() -> Iterator[Log]:
    """Let every ring be one of a device that records."""
    log = Log()
    BACKENDS[BACKEND] = lambda chain: CudaRing(chain, RecordingDevice(log))
    with dask.config.set({"aegis.backend": BACKEND}):
        yield log
