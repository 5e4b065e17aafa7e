"""Launches of kernels, and constants that stay on the device."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ring.backend import Array, Limbs
from aegis_dask.ring.cuda_backend.arguments import pack
from aegis_dask.ring.cuda_backend.residency import Residency

KEPT_CONTENTS = 4096
"""Small arrays of constants of plaintexts that are kept on the device."""
MAX_CONTENT_BYTES = 1 << 16


class Device(Protocol):
    """Where arrays are and kernels run: a GPU, or its emulation in the tests."""

    keys: Residency
    """Evaluation keys that are on it."""

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised uint32 array."""

    def upload(self, x: NDArray[Any]) -> Any:
        """Copy a host array to the device, in C order."""

    def download(self, x: Array) -> NDArray[Any]:
        """Copy an array to the host."""

    def contiguous(self, x: Array) -> Array:
        """Return x, or a contiguous copy of it."""

    def address(self, x: Array) -> int:
        """Return the address of the first element."""

    def launch(self, kernel: str, log_n: int, grid: tuple[int, int, int], pointer: int) -> None:
        """Launch a kernel with the arguments at `pointer` (see `arguments.pack`)."""

    def synchronize(self) -> None:
        """Wait for all launches."""

    def memory(self) -> int:
        """Return the bytes of memory of the device."""


class Launcher:
    """Launches kernels of one ring degree on a device.

    A key switch takes some 130 microseconds of an H200 and 10 launches, so preparing a launch may
    take a few microseconds only: what does not change between calls is made once and kept.

    Parameters
    ----------
    device
        Where to run.
    log_n
        log2 of the ring degree.

    Attributes
    ----------
    launches
        How often each kernel has been launched.
    """

    def __init__(self, device: Device, log_n: int) -> None:
        self.device, self.log_n = device, log_n
        self.launches: Counter[str] = Counter()
        self._integers: dict[Hashable, Any] = {}
        self._contents: OrderedDict[tuple[bytes, str], Any] = OrderedDict()
        self._owned: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()

    def launch(self, kernel: str, grid: tuple[int, ...], *arguments: Any) -> None:
        """Launch; arguments are arrays, None for none, integers, structures as tuples of them."""
        if 0 in grid:
            return
        self.launches[kernel] += 1
        values: list[int] = []
        address = self.device.address
        for a in arguments:
            if type(a) is int:
                values.append(a)
            elif type(a) is tuple:
                values += a
            elif a is None:
                values.append(0)
            else:
                values.append(address(a))
        x, y, z = (*grid, 1, 1)[:3]
        self.device.launch(kernel, self.log_n, (x, y, z), pack(kernel, values))

    def integers(self, values: Limbs) -> Any:
        """Return small integers as an int32 array of the device; each content is kept for good."""
        key: Hashable = values if type(values) is tuple else None
        found = self._integers.get(key) if key is not None else None
        if found is None:
            host = np.ascontiguousarray(values, np.int32).reshape(-1)
            content = host.tobytes()
            found = self._integers.get(content)
            if found is None:
                # The first stays if two threads upload: addresses of it may be kept already.
                found = self._integers.setdefault(content, self.device.upload(host))
            if key is not None:
                self._integers[key] = found
        return found

    def content(self, values: NDArray[Any]) -> Any:
        """Return an array of the device; what small ones hold is kept while it is in use."""
        if values.nbytes > MAX_CONTENT_BYTES:
            return self.device.upload(np.ascontiguousarray(values))
        key = values.tobytes(), values.dtype.char
        found = self._contents.pop(key, None)
        if found is None:
            found = self.device.upload(np.ascontiguousarray(values))
            if len(self._contents) >= KEPT_CONTENTS:
                self._contents.popitem(last=False)
        self._contents[key] = found
        return found

    def kept(self, owner: Any, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return what belongs to a constant of the library, made once and kept while it lives."""
        owned = self._owned.get(owner)
        if owned is None:
            owned = self._owned.setdefault(owner, {})
        found = owned.get(name)
        if found is None:
            found = owned.setdefault(name, make())
        return found
