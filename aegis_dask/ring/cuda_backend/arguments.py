"""Kernel arguments in memory, as CUDA's driver takes them: an array of pointers to the values.

A launch takes microseconds on the GPU, so it may not take many to prepare: the places of a
kernel's arguments are worked out once, from its signature in the sources, and one call fills them.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence

from aegis_dask.ring.cuda_backend import sources

KEY = "QQQI4x"
"""A structure `Key` of the sources."""
_FORMATS = {
    "int": "i",
    "u32": "I",
    "i64": "q",
    "Rows": "QQi",
    "Twiddles": "QQQ",
    "Addend": "Qiiii",
    "Seed": "8I",
    "Keys": KEY * sources.KEYS,
}
"""Types of the sources that are passed by value, beside pointers."""
_ALIGNMENT = 8


class Arguments:
    """Memory for the arguments of one kernel, for one thread."""

    def __init__(self, kernel: str) -> None:
        words, offsets, size = ["<"], [], 0
        for declared in sources.parameters(kernel):
            kind = declared.removeprefix("const ").split()[0]
            form = "Q" if "*" in declared else _FORMATS[kind]
            offsets.append(size)
            own = struct.calcsize("<" + form)
            padding = -own % _ALIGNMENT
            words += [form, f"{padding}x"]
            size += own + padding
        self.kernel = kernel
        self._struct = struct.Struct("".join(words))
        self._memory = (ctypes.c_uint64 * (size // _ALIGNMENT))()
        base = ctypes.addressof(self._memory)
        self._pointers = (ctypes.c_void_p * len(offsets))(*(base + o for o in offsets))
        self.pointer = ctypes.addressof(self._pointers)

    def fill(self, values: Sequence[int]) -> None:
        """Write values: addresses and integers in the order of the signature, structures flat."""
        try:
            self._struct.pack_into(self._memory, 0, *values)
        except struct.error as e:
            raise TypeError(f"kernel {self.kernel} cannot be given {values!r}: {e}") from e

    def values(self) -> tuple[int, ...]:
        """Return what was written last."""
        found: tuple[int, ...] = self._struct.unpack_from(self._memory, 0)
        return found


_held = threading.local()


def pack(kernel: str, values: Sequence[int]) -> int:
    """Return the address of the pointers to these arguments, until the thread's next launch.

    CUDA copies the arguments of a launch before it returns, so the memory can be used again.
    """
    try:
        arguments: Arguments = _held.kernels[kernel]
    except (AttributeError, KeyError):
        if not hasattr(_held, "kernels"):
            _held.kernels = {}
        arguments = _held.kernels[kernel] = Arguments(kernel)
    arguments.fill(values)
    return arguments.pointer


def unpack(kernel: str) -> tuple[int, ...]:
    """Return the arguments that this thread has packed last for a kernel, structures flat."""
    arguments: Arguments = _held.kernels[kernel]
    return arguments.values()
