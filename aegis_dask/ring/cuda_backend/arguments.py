"""Kernel arguments in memory, as CUDA's driver takes them: an array of pointers to the values."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class Arguments:
    """Values of the arguments of one launch; they live as long as this object.

    Parameters
    ----------
    values
        Arrays of the device, None for a null pointer, NumPy scalars and structures.
    address
        Gives the address of an array of the device.
    """

    def __init__(self, values: Sequence[Any], address: Callable[[Any], int]) -> None:
        self._values = [_as_bytes(v, address) for v in values]
        self._pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.addressof(v) for v in self._values)
        )

    @property
    def pointer(self) -> int:
        """Address of the array of pointers."""
        return ctypes.addressof(self._pointers)


def _as_bytes(value: Any, address: Callable[[Any], int]) -> Any:
    if value is None:
        return ctypes.c_uint64(0)
    if not isinstance(value, np.generic):
        return ctypes.c_uint64(address(value))
    raw = value.tobytes()
    held = (ctypes.c_uint64 * (-(-len(raw) // 8)))()  # aligned for what any structure holds
    ctypes.memmove(held, raw, len(raw))
    return held
