"""A GPU, through CuPy: memory, compiled kernels, launches on the current stream."""

from __future__ import annotations

import os
import threading
from functools import cache, lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask import config
from aegis_dask.errors import BackendError, DeviceFailedError, DeviceMemoryError
from aegis_dask.ring.cuda_backend import sources
from aegis_dask.ring.cuda_backend.residency import Residency

OPTIONS = ("-std=c++17", "--extra-device-vectorization")
OWN_STREAMS = "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"
KEY_PARTS = 2
"""A half of the GPU's memory may hold evaluation keys, unless it is configured."""
INSTALL = "pip install '.[cuda13]' in a checkout (or cuda12, as 'nvidia-smi' says)"


@cache
def require_cupy() -> Any:
    """Return CuPy, if it works here.

    Raises
    ------
    BackendError
        If it is missing, was built for another CUDA, or finds no driver or GPU.
    """
    try:
        import cupy
    except ImportError as e:
        raise BackendError(
            f"the GPU backend needs CuPy, which cannot be imported ({e}); {INSTALL}, or use the "
            "CPU: DASK_AEGIS__BACKEND=cpu"
        ) from e
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        version = cupy.cuda.runtime.runtimeGetVersion()
        try:
            driver = cupy.cuda.runtime.driverGetVersion()
        except cupy.cuda.runtime.CUDARuntimeError:
            driver = 0
        if driver and driver // 1000 < version // 1000:
            raise BackendError(
                f"CuPy is built for CUDA {version // 1000}, the driver supports CUDA "
                f"{driver // 1000} at most; install cupy-cuda{driver // 1000}x instead, or a newer "
                "driver"
            ) from e
        raise BackendError(
            f"no GPU can be used: {e}. Install NVIDIA's driver, check 'nvidia-smi' and "
            "CUDA_VISIBLE_DEVICES, or use the CPU: DASK_AEGIS__BACKEND=cpu"
        ) from e
    if count == 0:
        raise BackendError(
            "no GPU is visible; check CUDA_VISIBLE_DEVICES, or use the CPU: DASK_AEGIS__BACKEND=cpu"
        )
    return cupy


def device_count() -> int:
    """Return how many GPUs this process sees.

    Raises
    ------
    BackendError
        If none can be used.
    """
    return int(require_cupy().cuda.runtime.getDeviceCount())


def is_available() -> bool:
    """Tell whether there are CuPy and a GPU."""
    try:
        require_cupy()
    except BackendError:
        return False
    return True


@lru_cache(maxsize=1)
def this_device() -> CupyDevice:
    """Return the GPU of this process, which all rings share: its room for keys is one."""
    return CupyDevice()


class CupyDevice:
    """The current GPU of this process; arrays are CuPy's, from its current allocator."""

    def __init__(self) -> None:
        self.cupy = require_cupy()
        if os.environ.get(OWN_STREAMS, "0") not in ("", "0"):
            raise BackendError(
                f"{OWN_STREAMS} is set: every thread would have a stream of its own, and a kernel "
                "could read what another thread is still copying. Unset it"
            )
        self._threads = threading.local()
        configured = config.device_keys()
        room = self.memory() // KEY_PARTS if configured is None else configured
        self.keys = Residency(self.upload, room)

    def empty(self, shape: tuple[int, ...]) -> Any:
        """Return an uninitialised uint32 array."""
        return self._allocate(lambda: self.cupy.empty(shape, np.uint32), 4 * prod(shape))

    def upload(self, x: NDArray[Any]) -> Any:
        """Copy a host array to the device, in C order."""
        host = np.ascontiguousarray(x)  # CuPy would keep another order, such as a transpose's
        return self._allocate(lambda: self.cupy.asarray(host), x.nbytes)

    def download(self, x: Any) -> NDArray[Any]:
        """Copy an array to the host."""
        try:
            found: NDArray[Any] = self.cupy.asnumpy(x)
        except self.cupy.cuda.runtime.CUDARuntimeError as e:
            raise _failed(e) from e
        return found

    def contiguous(self, x: Any) -> Any:
        """Return x, or a contiguous copy of it."""
        return self._allocate(lambda: self.cupy.ascontiguousarray(x), x.nbytes)

    def address(self, x: Any) -> int:
        """Return the address of the first element."""
        return int(x.data.ptr)

    def launch(self, kernel: str, log_n: int, grid: tuple[int, int, int], pointer: int) -> None:
        """Launch a kernel on the current stream."""
        if not hasattr(self._threads, "has_context"):
            # The driver launches only in threads that the runtime has bound to the device. Memory
            # from a pool does not do that, so a thread's first call may be this one.
            self.cupy.cuda.runtime.memGetInfo()
            self._threads.has_context = True
        block = (sources.threads(kernel, log_n), 1, 1)
        stream = self.cupy.cuda.get_current_stream().ptr
        function = _function(kernel, log_n, self.cupy.cuda.runtime.getDevice())
        try:
            self.cupy.cuda.driver.launchKernel(function, *grid, *block, 0, stream, pointer, 0)
        except self.cupy.cuda.driver.CUDADriverError as e:
            self.synchronize()  # an earlier kernel may have failed: that is told, then
            raise BackendError(
                f"the GPU refused kernel {kernel} with grid {grid}: {e}. Please report it"
            ) from e

    def synchronize(self) -> None:
        """Wait for all launches on the current stream.

        Raises
        ------
        DeviceFailedError
            If one of them failed.
        """
        try:
            self.cupy.cuda.get_current_stream().synchronize()
        except self.cupy.cuda.runtime.CUDARuntimeError as e:
            raise _failed(e) from e

    def memory(self) -> int:
        """Return the bytes of memory of the GPU, or of this process's part of it."""
        return int(self.cupy.cuda.runtime.memGetInfo()[1]) // config.device_workers()

    def taken(self) -> int:
        """Return the bytes that CuPy's pool has taken from the GPU, and keeps: its most so far.

        0 where RMM's pool has the memory, whose size says nothing of what was needed.
        """
        return int(self.cupy.get_default_memory_pool().total_bytes())

    def release(self) -> None:
        """Give back what CuPy's pools keep unused: of the GPU, and what was pinned for copies."""
        self.cupy.get_default_memory_pool().free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()

    def name(self) -> str:
        """Return what the maker calls the GPU."""
        runtime = self.cupy.cuda.runtime
        return str(runtime.getDeviceProperties(runtime.getDevice())["name"].decode())

    def _allocate(self, make: Any, size: int) -> Any:
        while True:
            try:
                return make()
            except MemoryError as e:  # CuPy's OutOfMemoryError is one, and RMM's own
                if self.keys.drop_one():  # it can be fetched again
                    continue
                free, total = self.cupy.cuda.runtime.memGetInfo()
                raise DeviceMemoryError(
                    f"{size / 1e9:.2f} GB more are needed on the GPU, which has {free / 1e9:.2f} "
                    f"of {total / 1e9:.2f} GB left beside the pool, and no keys to give up; use "
                    "more workers, shorter sequences, a lower memory target for tasks "
                    "(target_seconds), or the CPU (DASK_AEGIS__BACKEND=cpu)"
                ) from e
            except self.cupy.cuda.runtime.CUDARuntimeError as e:
                raise _failed(e) from e


def _failed(error: Exception) -> DeviceFailedError:
    """Tell of a kernel that failed: whatever the runtime is asked for next says so."""
    return DeviceFailedError(
        f"a kernel failed on the GPU: {error}. This process cannot use the GPU any more; start it "
        "again, with CUDA_LAUNCH_BLOCKING=1 to see which kernel it was"
    )


@lru_cache(maxsize=8)
def _module(log_n: int) -> Any:
    options = (*OPTIONS, f"-DLOG_N={log_n}")
    return require_cupy().RawModule(code=sources.text(), options=options)


@lru_cache(maxsize=1024)
def _function(kernel: str, log_n: int, device: int) -> int:
    """Return the handle of a kernel on a device; compiled once, then cached on disk by CuPy."""
    try:
        return int(_module(log_n).get_function(kernel).kernel.ptr)
    except RuntimeError as e:
        raise BackendError(
            f"kernels cannot be compiled and loaded here: {e}. It takes NVRTC and the headers of "
            f"the CUDA toolkit, which come with {INSTALL}"
        ) from e
