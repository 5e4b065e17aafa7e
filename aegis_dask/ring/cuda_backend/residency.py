"""Arrays that stay on the host and are on the device while there is room: evaluation keys.

Keys are tens of gigabytes for long sequences. Up to a bound they are all on the device; beyond it
those in use come from the host, in place of others. Which others is chosen at random: programs go
through their keys in the same order again and again, and the one used longest ago would always be
the one that is needed next.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ring.backend import Array


class KeptArray:
    """An array of the host that kernels take: it is brought to the device for them."""

    def __init__(self, host: NDArray[np.uint32]) -> None:
        self.host = host
        self.shape, self.ndim, self.dtype = host.shape, host.ndim, host.dtype
        self.size, self.nbytes, self.itemsize = host.size, host.nbytes, host.itemsize

    def __len__(self) -> int:
        return len(self.host)

    def __getitem__(self, index: Any) -> KeptArray:
        return KeptArray(self.host[index])

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array of the device was used as one of NumPy's; copy it with to_host")


class Residency:
    """Copies of kept arrays on a device, at most `limit` bytes and the last one.

    Attributes
    ----------
    uploads
        How often an array has been brought there.
    """

    def __init__(self, upload: Callable[[NDArray[Any]], Array], limit: int) -> None:
        self.limit, self.uploads = limit, 0
        self._upload = upload
        self._held: WeakKeyDictionary[KeptArray, Array] = WeakKeyDictionary()
        self._lock = threading.RLock()  # an upload that finds no memory makes room here

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(x.nbytes for x in self._held.values())

    def on_device(self, x: KeptArray) -> Array:
        """Return the copy on the device, made if there is none."""
        with self._lock:
            found = self._held.get(x)
            if found is None:
                while self.nbytes + x.nbytes > self.limit and self.drop_one():
                    pass
                found = self._held[x] = self._upload(np.ascontiguousarray(x.host))
                self.uploads += 1
            return found

    def drop_one(self) -> bool:
        """Give up a copy, for memory that is needed otherwise; False if there is none."""
        with self._lock:
            if not self._held:
                return False
            self._held.pop(random.choice(list(self._held)), None)
            return True
