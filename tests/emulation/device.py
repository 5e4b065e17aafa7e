"""A device whose kernels are the CUDA sources, compiled for the host."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aegis_dask.ring.cuda_backend import sources
from aegis_dask.ring.cuda_backend.residency import Residency
from aegis_dask.ring.cuda_backend.ring import CudaRing
from aegis_dask.ring.registry import BACKENDS

HEADER = Path(__file__).with_name("emulation.h")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler (g++, or CXX) for the emulation of the GPU"
)
MAX_GRID = (2**31 - 1, 65535, 65535)
"""Blocks of a launch that a GPU takes."""
_one_at_a_time = threading.Lock()
OPTIONS = ("-std=c++20", "-O2", "-shared", "-fPIC", "-DAEGIS_EMULATION", "-w")


@cache
def library(log_n: int) -> ctypes.CDLL:
    """Compile the sources for one ring degree, unless that has been done on this machine."""
    launches = "\n".join(
        f'extern "C" void launch_{name}(void** a, const unsigned* grid, unsigned threads, '
        f"u64 seed) {{ emulation::state = seed; emulation::launch({name}, a, grid, threads); }}"
        for name in sources.kernels()
    )
    text = f"{sources.text()}\n{launches}\n"
    digest = hashlib.sha256((text + HEADER.read_text()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"aegis-emulation-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{digest}-{log_n}.so"
    if not built.exists():
        assert COMPILER is not None
        with tempfile.TemporaryDirectory(dir=folder) as work:
            source = Path(work) / "kernels.cpp"
            source.write_text(text)
            made = Path(work) / "kernels.so"
            command = [COMPILER, *OPTIONS, f"-DLOG_N={log_n}", f"-I{HEADER.parent}"]
            subprocess.run([*command, source, "-o", made], check=True)
            made.replace(built)
    return ctypes.CDLL(str(built))


class DeviceArray:
    """An array that is not on the host: NumPy cannot read it, as it cannot read CuPy's.

    It has what arrays of both have, and keeps the views of NumPy underneath.
    """

    def __init__(self, host: NDArray[Any]) -> None:
        self._host = host

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("an array of the device was used as one of NumPy's; copy it with to_host")

    def __getattr__(self, name: str) -> Any:
        if name in {"shape", "strides", "ndim", "size", "dtype", "nbytes", "flags", "itemsize"}:
            return getattr(self._host, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> DeviceArray:
        return DeviceArray(self._host[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("an array of the host was copied to the device; use from_host")
        self._host[index] = value._host if isinstance(value, DeviceArray) else value

    def reshape(self, *shape: Any) -> DeviceArray:
        return DeviceArray(self._host.reshape(*shape))

    def transpose(self, *axes: Any) -> DeviceArray:
        return DeviceArray(self._host.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> DeviceArray:
        return DeviceArray(self._host.swapaxes(a, b))

    def copy(self) -> DeviceArray:
        return DeviceArray(self._host.copy())

    def get(self) -> NDArray[Any]:
        """Return a copy on the host, as arrays of CuPy's do."""
        return self._host.copy()


EMULATION = "emulation"


def register() -> None:
    """Make the emulated GPU a backend."""
    BACKENDS[EMULATION] = lambda chain: CudaRing(chain, EmulatedDevice())


class EmulatedDevice:
    """Runs kernels on the host."""

    def __init__(self, keys: int = 1 << 40) -> None:
        self.keys = Residency(self.upload, keys)

    def empty(self, shape: tuple[int, ...]) -> DeviceArray:
        """Return an array of noise: what is not written shows."""
        out = np.empty(shape, np.uint32)
        out.fill(0xDEADBEEF)
        return DeviceArray(out)

    def upload(self, x: NDArray[Any]) -> DeviceArray:
        assert isinstance(x, np.ndarray)
        return DeviceArray(x.copy())

    def download(self, x: DeviceArray) -> NDArray[Any]:
        return x._host.copy()

    def contiguous(self, x: DeviceArray) -> DeviceArray:
        assert isinstance(x, DeviceArray)
        return DeviceArray(np.ascontiguousarray(x._host))

    def address(self, x: DeviceArray) -> int:
        return int(x._host.ctypes.data)

    def synchronize(self) -> None:
        pass

    def memory(self) -> int:
        return 1 << 34

    def launch(self, kernel: str, log_n: int, grid: tuple[int, int, int], pointer: int) -> None:
        assert all(g <= most for g, most in zip(grid, MAX_GRID, strict=True)), grid
        seed = int.from_bytes(os.urandom(8), "little")
        threads = sources.threads(kernel, log_n)
        function = getattr(library(log_n), f"launch_{kernel}")
        blocks = (ctypes.c_uint * 3)(*grid)
        with _one_at_a_time:  # threads and blocks are global in the emulation
            function(ctypes.c_void_p(pointer), blocks, threads, ctypes.c_uint64(seed))
