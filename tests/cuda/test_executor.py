"""Runs on workers whose backend is the emulated GPU: the residues of the CPU."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
from distributed import LocalCluster

from aegis_dask.errors import ClusterError
from aegis_dask.placement.limbs.rounds import Exchange
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.executor import Executor
from tests.cuda.moving import assert_same, emulation, moved
from tests.emulation.device import DeviceArray, needs_compiler
from tests.runtime.programs import model, someone

pytestmark = needs_compiler


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_on_gpu_workers(workers: int, tmp_path: Path) -> None:
    client = someone()
    expected = client.expected()
    program, store = model()
    with emulation(), Executor.local(workers=workers, processes=False) as executor:
        executor.prepare(client.params, moved(client.keys), store)
        # Dask does not count what is on the device as memory of the host, and spills nothing.
        limits = executor.client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
        assert set(limits.values()) == {None}
        result = executor.run(
            program,
            {"x": moved(client.x)},
            stage_work=[1.0] * len(program.stages),
            target_seconds=0.3,
            checkpoint=tmp_path / "checkpoint",
        )
        for name, value in expected.items():
            found = result.outputs[name]
            assert isinstance(value, CipherArray)
            assert isinstance(found.batch.data, DeviceArray)
            assert found.shape == value.shape
            assert_same(found, value.batch.data, name)


@pytest.mark.parametrize("exchange", ["broadcast", "input-broadcast", "output-aggregation"])
def test_a_run_divided_by_limbs_on_gpu_workers(exchange: Exchange) -> None:
    client = someone()
    expected = client.expected()
    program, store = model()
    with emulation(), Executor.local(workers=2, processes=False) as executor:
        executor.prepare(client.params, moved(client.keys), store)
        result = executor.run_by_limbs(program, {"x": moved(client.x)}, exchange)
        for name, value in expected.items():
            assert_same(result.outputs[name], value.batch.data, name)


def test_dask_writes_nothing_to_disk_that_is_on_a_gpu() -> None:
    with (
        emulation(),
        LocalCluster(
            1,
            processes=False,
            threads_per_worker=1,
            protocol="tcp://",
            host="127.0.0.1",
            memory_limit="64GB",
            dashboard_address=None,
        ) as dask,
        Executor.connect(dask.scheduler_address) as executor,
    ):
        executor.prepare()
        limits = executor.client.run(lambda dask_worker: dask_worker.data.n)
        assert set(limits.values()) == {inf}


def test_limbs_go_between_workers_of_one_kind() -> None:
    client = someone()
    program, store = model()
    with Executor.local(workers=2, processes=False) as executor:
        executor.prepare(client.params, client.keys, store)
        prepared = executor._prepared
        where = executor._site.ready(prepared, 2)
        prepared.opened |= dict(zip(where, ["cpu", "cuda"], strict=True))
        with pytest.raises(ClusterError, match="different backends, cpu, cuda, and limbs go"):
            executor.run_by_limbs(program, {"x": client.x})
