"""Which backend is used, and what is said where it cannot be."""

from __future__ import annotations

import sys
import types
from typing import Any

import dask.config
import pytest
from distributed import LocalCluster

from aegis_dask.cli import setup
from aegis_dask.cli.options import ClusterKind
from aegis_dask.errors import BackendError, ClusterError
from aegis_dask.ring import registry
from aegis_dask.ring.cuda_backend import device, sources
from aegis_dask.runtime import cluster
from aegis_dask.runtime.executor import Executor
from aegis_dask.service import local
from tests.service.conftest import refused


@pytest.fixture(autouse=True)
def fresh() -> None:
    registry._has_gpu.cache_clear()
    device.require_cupy.cache_clear()


def test_the_cpu_is_used_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "is_available", lambda: False)
    with dask.config.set({"aegis.backend": "auto"}):
        assert registry.backend_name() == "cpu"


def test_a_gpu_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy")
    monkeypatch.setattr(device, "is_available", lambda: True)
    with dask.config.set({"aegis.backend": "auto"}):
        assert registry.backend_name() == "cuda"
    with dask.config.set({"aegis.backend": "CPU"}):
        assert registry.backend_name() == "cpu"


def test_unknown_backends_are_refused() -> None:
    with (
        dask.config.set({"aegis.backend": "tpu"}),
        pytest.raises(BackendError, match=r"set to 'tpu' \(aegis.backend, DASK_AEGIS__BACKEND\)"),
    ):
        registry.backend_name()


def test_missing_cupy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"needs CuPy.*pip install '\.\[cuda13\]'"):
        device.require_cupy()


class _RuntimeError(Exception):
    pass


class FakeCupy:
    """As much of CuPy as is asked before a GPU is used."""

    def __init__(self, runtime: int, driver: int, devices: int | None) -> None:
        self.cuda = self.runtime = self
        self.CUDARuntimeError = _RuntimeError
        self._runtime, self._driver, self._devices = runtime, driver, devices

    def getDeviceCount(self) -> int:  # noqa: N802
        if self._devices is None:
            raise _RuntimeError("cudaErrorInsufficientDriver")
        return self._devices

    def runtimeGetVersion(self) -> int:  # noqa: N802
        return self._runtime

    def driverGetVersion(self) -> int:  # noqa: N802
        return self._driver


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (FakeCupy(13000, 0, None), "no GPU can be used: cudaErrorInsufficientDriver. Install"),
        (FakeCupy(13000, 12040, None), "supports CUDA 12 at most; install cupy-cuda12x"),
        (FakeCupy(13000, 13000, 0), "no GPU is visible; check CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_is_wrong_with_the_gpu_is_said(
    fake: FakeCupy, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=message):
        device.require_cupy()
    assert not device.is_available()


@pytest.mark.parametrize("log_n", range(sources.MIN_LOG_N, sources.MAX_LOG_N + 1))
def test_blocks_have_a_whole_number_of_warps(log_n: int) -> None:
    assert {sources.threads(k, log_n) % 32 for k in sources.kernels()} == {0}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have two GPUs; its workers use the CPU all the same."""
    monkeypatch.setattr(cluster, "device_count", lambda: 2)
    monkeypatch.setattr(cluster, "CUDA", "cpu")


def test_a_worker_is_started_for_every_gpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def start(**options: Any) -> LocalCluster:
        asked.update(options)
        for name in ("device_memory_limit", "rmm_pool_size", "rmm_allocator_external_lib_list"):
            options.pop(name, None)
        return LocalCluster(**options | {"protocol": "tcp"}, threads_per_worker=1)

    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster = start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    installed = {"rmm": True, "distributed_ucxx": False}
    monkeypatch.setattr(cluster, "find_spec", installed.get)
    with Executor.cuda(device_memory_limit="4GB") as executor:
        assert executor.workers == 2
        backends = executor.client.run(registry.backend_name)
        assert set(backends.values()) == {"cpu"}  # what the client set, whatever they have
    assert asked["n_workers"] == 2
    assert asked["protocol"] == "tcp"
    assert asked["device_memory_limit"] == "4GB"
    assert asked["rmm_allocator_external_lib_list"] == ["cupy"]


def test_more_workers_than_gpus_share_them(two_gpus: None) -> None:
    with Executor.cuda(3) as executor:
        assert executor.workers == 3


def test_what_a_gpu_cluster_lacks_is_said(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(ClusterError, match=r"needs dask-cuda.*\.\[cuda13\]"):
        Executor.cuda()
    with pytest.raises(ClusterError, match="0 workers were asked for"):
        Executor.cuda(0)
    with pytest.raises(ClusterError, match="a scheduler was given and a cluster of this"):
        local.open_executor("tcp://127.0.0.1:1", None, cuda=True)


def test_the_command_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    found = refused("run", "feed_forward", "--text", "a cat", "--insecure", "--cluster", "cuda")
    assert "needs CuPy" in found


@pytest.mark.parametrize(
    ("kind", "scheduler", "backend", "dask_cuda", "expected"),
    [
        ("auto", None, "cuda", True, True),
        ("auto", None, "cuda", False, False),
        ("auto", None, "cpu", True, False),
        ("auto", "tcp://127.0.0.1:1", "cuda", True, False),
        ("local", None, "cuda", True, False),
        ("cuda", None, "cpu", False, True),
    ],
)
def test_gpus_of_the_machine_are_taken(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    scheduler: str | None,
    backend: str,
    dask_cuda: bool,
    expected: bool,
) -> None:
    monkeypatch.setattr(registry, "backend_name", lambda: backend)
    monkeypatch.setattr(setup, "find_spec", lambda name: name if dask_cuda else None)
    options = setup.ClusterOptions(scheduler, None, ClusterKind(kind), None, False)
    assert options.cuda is expected
