"""`CupyDevice` itself: on a CuPy that emulates, and what it asks of the real one."""

from __future__ import annotations

import inspect
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import dask.config
import numpy as np
import pytest
from numpy.typing import NDArray

from aegis_dask.errors import BackendError, DeviceFailedError, DeviceMemoryError
from aegis_dask.ring.backend import Ring
from aegis_dask.ring.chain import Window
from aegis_dask.ring.conversion import digit_raise, mod_down
from aegis_dask.ring.cuda_backend import device, sources
from aegis_dask.ring.cuda_backend.launcher import Launcher
from aegis_dask.ring.cuda_backend.residency import KeptArray
from aegis_dask.ring.cuda_backend.ring import CudaRing
from tests import reference
from tests.emulation.device import DeviceArray, EmulatedDevice, needs_compiler

N = 1 << 10


class Array(DeviceArray):
    """With the address where CuPy has it."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._host.ctypes.data)

    def __getitem__(self, index: Any) -> Array:
        return Array(self._host[index])

    def reshape(self, *shape: Any) -> Array:
        return Array(self._host.reshape(*shape))


class DriverError(Exception):
    pass


class EmulatedCupy:
    """As much of CuPy as `CupyDevice` takes; kernels run in the emulation."""

    def __init__(self) -> None:
        self.room: float = float("inf")
        self.fails = False
        self.has_failed = False
        self.has_toolkit = True
        self.pool = 1 << 20
        self._bound = threading.local()
        self._handles: dict[int, tuple[str, int]] = {}
        self._numbers = itertools.count(1000)
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDevice=lambda: 0,
                memGetInfo=self._memory,
                CUDARuntimeError=type("CUDARuntimeError", (Exception,), {}),
            ),
            driver=SimpleNamespace(launchKernel=self._launch, CUDADriverError=DriverError),
            get_current_stream=lambda: SimpleNamespace(ptr=7, synchronize=self._synchronize),
        )

    def _memory(self) -> tuple[int, int]:
        self._bound.here = True  # as calls of CUDA's runtime do
        return 1 << 30, 8 << 30

    def get_default_memory_pool(self) -> Any:
        def free() -> None:
            self.pool = 0

        return SimpleNamespace(total_bytes=lambda: self.pool, free_all_blocks=free)

    def get_default_pinned_memory_pool(self) -> Any:
        return SimpleNamespace(free_all_blocks=lambda: None)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self._synchronize()
        out = np.empty(shape, dtype)
        if out.nbytes > self.room:
            raise MemoryError("std::bad_alloc")  # CuPy's own, and RMM's, are of this class
        out.fill(0xDEADBEEF)
        return Array(out)

    def asarray(self, x: NDArray[Any]) -> Array:
        return Array(x.copy(order="K"))  # CuPy keeps the order of a transpose

    def _synchronize(self) -> None:
        if self.has_failed:
            raise self.cuda.runtime.CUDARuntimeError("cudaErrorLaunchFailure")

    def asnumpy(self, x: Array) -> NDArray[Any]:
        self._synchronize()
        return x._host.copy()

    def ascontiguousarray(self, x: Array) -> Array:
        return Array(np.ascontiguousarray(x._host))

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        if not self.has_toolkit:
            raise RuntimeError("Failed to find CUDA headers")
        assert code == sources.text()
        (log_n,) = (int(o.partition("LOG_N=")[2]) for o in options if "LOG_N" in o)

        def get_function(name: str) -> Any:
            number = next(self._numbers)
            self._handles[number] = name, log_n
            return SimpleNamespace(kernel=SimpleNamespace(ptr=number))

        return SimpleNamespace(get_function=get_function)

    def _launch(self, function: int, *rest: int) -> None:
        if self.fails:
            raise DriverError("REFUSED")
        if not hasattr(self._bound, "here"):
            raise DriverError("CUDA_ERROR_INVALID_CONTEXT")
        x, y, z, threads, one, another, shared, stream, pointer, extra = rest
        name, log_n = self._handles[function]
        assert (threads, one, another) == (sources.threads(name, log_n), 1, 1)
        assert (shared, stream, extra) == (0, 7, 0)
        EmulatedDevice().launch(name, log_n, (x, y, z), pointer)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCupy]:
    fake = EmulatedCupy()
    monkeypatch.setattr(device, "require_cupy", lambda: fake)
    caches: tuple[Any, ...] = (device._module, device._function, device.this_device)
    for cached in caches:
        cached.cache_clear()
    yield fake
    for cached in caches:
        cached.cache_clear()


@needs_compiler
def test_kernels_through_cupy(
    cupy: EmulatedCupy, thirty_limb_ring: Callable[[int], Ring], rng: np.random.Generator
) -> None:
    cpu = thirty_limb_ring(N)
    gpu = CudaRing(cpu.chain, device.CupyDevice())
    limbs = (0, 3, 30)
    primes = [cpu.chain.all_primes[i] for i in limbs]
    x = reference.random_residues(rng, primes, 2, 2, degree=N)
    sent = gpu.from_host(x)
    assert np.array_equal(gpu.to_host(gpu.ntt(sent, limbs)), cpu.ntt(x, limbs))
    assert np.array_equal(gpu.to_host(gpu.negate(sent[:, 1], limbs)), cpu.negate(x[:, 1], limbs))
    window = Window(2, 20)
    raising = digit_raise(cpu.chain, window, [0, 7, 13, 20])
    down = mod_down(cpu.chain, window, window, has_special=True)
    own = [cpu.chain.all_primes[i] for i in window.limbs()]
    y = reference.random_residues(rng, own, 2, degree=N)
    keys = [reference.random_residues(rng, list(cpu.chain.all_primes), 4, degree=N) for _ in "ba"]
    expected = cpu.switch_key(y, raising, *keys, down, galois_element=5)
    found = gpu.switch_key(
        gpu.from_host(y), raising, *map(gpu.from_host, keys), down, galois_element=5
    )
    assert np.array_equal(gpu.to_host(found), expected)
    assert gpu.part_bytes == (8 << 30) // 64


@needs_compiler
def test_the_first_call_of_a_thread_may_be_a_launch(
    cupy: EmulatedCupy, thirty_limb_ring: Callable[[int], Ring]
) -> None:
    """A pool has memory without asking CUDA, whose driver launches in bound threads only."""
    gpu = CudaRing(thirty_limb_ring(N).chain, device.CupyDevice())
    x = gpu.from_host(np.ones((1, 3, N), np.uint32))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(gpu.ntt(x, (0, 3, 30))))
    thread.start()
    thread.join()
    assert np.array_equal(gpu.to_host(found[0]), gpu.to_host(gpu.ntt(x, (0, 3, 30))))


def test_a_missing_toolkit_is_said(
    cupy: EmulatedCupy, thirty_limb_ring: Callable[[int], Ring]
) -> None:
    gpu = CudaRing(thirty_limb_ring(N).chain, device.CupyDevice())
    cupy.has_toolkit = False
    with pytest.raises(BackendError, match=r"Failed to find CUDA headers.*\.\[cuda13\]"):
        gpu.ntt(gpu.zeros((1, 3, N)), (0, 3, 30))


def test_what_a_process_has_taken(cupy: EmulatedCupy) -> None:
    gpu = device.CupyDevice()
    assert gpu.taken() == 1 << 20
    gpu.release()
    assert gpu.taken() == 0


def test_a_stream_for_every_thread_is_refused(
    cupy: EmulatedCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of one thread and kernels of another are in order on one stream only."""
    for value in ("", "0"):
        monkeypatch.setenv(device.OWN_STREAMS, value)
        device.CupyDevice()
    monkeypatch.setenv(device.OWN_STREAMS, "1")
    with pytest.raises(BackendError, match="a kernel could read what another thread"):
        device.CupyDevice()


def test_threads_that_make_the_same_constants_have_one(cupy: EmulatedCupy) -> None:
    """Addresses of the first may be kept while the second is made."""
    gpu = device.CupyDevice()
    launcher = Launcher(gpu, 10)
    made: list[Any] = []
    upload = gpu.upload

    def while_another_thread_does(x: NDArray[Any]) -> Any:
        gpu.upload = upload  # type: ignore[method-assign]
        made.append(launcher.integers([5, 7]))
        return upload(x)

    gpu.upload = while_another_thread_does  # type: ignore[method-assign]
    found = launcher.integers([5, 7])
    assert found is made[0]
    assert launcher.integers((5, 7)) is found
    owner = SimpleNamespace
    launcher.kept(owner, "name", lambda: launcher.kept(owner, "name", lambda: "first") and "second")
    assert launcher.kept(owner, "name", lambda: "third") == "first"


def test_workers_that_share_a_gpu_have_a_part_of_its_memory(cupy: EmulatedCupy) -> None:
    with dask.config.set({"aegis.device-workers": 2}):
        gpu = device.CupyDevice()
        assert gpu.memory() == 4 << 30
        assert gpu.keys.limit == 2 << 30
    with (
        dask.config.set({"aegis.device-workers": "two"}),
        pytest.raises(BackendError, match=r"is set to 'two' \(DASK_AEGIS__DEVICE_WORKERS\)"),
    ):
        gpu.memory()


def test_keys_make_room_for_values(cupy: EmulatedCupy) -> None:
    gpu = device.CupyDevice()
    keys = [KeptArray(np.zeros((4, 8), np.uint32)) for _ in range(3)]
    for key in keys:
        gpu.keys.on_device(key)
    empty = cupy.empty

    def short(shape: tuple[int, ...], dtype: Any) -> Array:
        if gpu.keys.nbytes > keys[0].nbytes:
            raise MemoryError
        return empty(shape, dtype)

    cupy.empty = short  # type: ignore[method-assign]
    assert gpu.empty((4, 4)).shape == (4, 4)
    assert gpu.keys.nbytes == keys[0].nbytes
    for key in keys:
        assert np.array_equal(cupy.asnumpy(gpu.keys.on_device(key)), key.host)


def test_arrays_are_uploaded_in_c_order(cupy: EmulatedCupy) -> None:
    x = np.arange(12).reshape(3, 4).T
    found = device.CupyDevice().upload(x)
    assert found.flags.c_contiguous
    assert np.array_equal(cupy.asnumpy(found), x)


@needs_compiler
def test_a_kernel_that_fails_and_memory_that_ends_are_said(
    cupy: EmulatedCupy, thirty_limb_ring: Callable[[int], Ring]
) -> None:
    gpu = CudaRing(thirty_limb_ring(N).chain, device.this_device())
    assert gpu.device is device.this_device()
    x = gpu.zeros((1, 3, N))
    cupy.room = 100.0
    with pytest.raises(
        DeviceMemoryError, match=r"more are needed .*1\.07 of 8\.59 GB left.*BACKEND=cpu"
    ):
        gpu.ntt(x, (0, 3, 30))
    cupy.room, cupy.fails = float("inf"), True
    with pytest.raises(BackendError, match=r"refused kernel ntt_rows with grid .*REFUSED"):
        gpu.ntt(x, (0, 3, 30))
    cupy.has_failed = True  # the next launch, copy or allocation finds out
    calls: list[Callable[[], Any]] = [
        lambda: gpu.device.launch("ntt_rows", 10, (1, 1, 1), 0),
        lambda: gpu.to_host(x),
        lambda: gpu.negate(x, (0, 3, 30)),
    ]
    for call in calls:
        with pytest.raises(DeviceFailedError, match=r"a kernel failed .*CUDA_LAUNCH_BLOCKING=1"):
            call()


def test_the_real_cupy_has_what_is_used() -> None:
    """Without a GPU: names and signatures only."""
    cupy = pytest.importorskip("cupy")
    for name in ("empty", "asarray", "asnumpy", "ascontiguousarray"):
        assert callable(getattr(cupy, name))
    for name in ("getDevice", "getDeviceCount", "memGetInfo", "CUDARuntimeError"):
        assert hasattr(cupy.cuda.runtime, name)
    assert issubclass(cupy.cuda.driver.CUDADriverError, Exception)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    signature = cupy.cuda.driver.launchKernel.__doc__ or ""
    found = re.findall(r"(\w+)(?=[,)])", signature.partition("\n")[0])
    assert found == [
        "f",
        *(f"grid_dim_{i}" for i in "xyz"),
        *(f"block_dim_{i}" for i in "xyz"),
        *("shared_mem_bytes", "stream", "kernel_params", "extra"),
    ]
    assert {"code", "options"} <= {*dir(cupy.RawModule)}
    assert hasattr(cupy.RawKernel, "kernel")
    assert hasattr(cupy.cuda.function.Function, "ptr")
    assert inspect.isclass(cupy.ndarray)
    for name in ("data", "strides", "flags", "nbytes", "swapaxes", "reshape", "transpose", "copy"):
        assert hasattr(cupy.ndarray, name)
