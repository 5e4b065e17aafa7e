"""What goes wrong on clusters: it is named, nothing hangs, and the cluster stays usable."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ClusterError, DeviceFailedError, LevelError
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.site import Site
from tests.runtime import programs
from tests.runtime.programs import DyingFactory, integers, model

PROGRAM, STORE = model()
WORK = [1.0] * len(PROGRAM.stages)
X = integers(PROGRAM)


def assert_usable(executor: Executor) -> None:
    """A run works, and nothing of an earlier one is left."""
    result = executor.run(PROGRAM, {"x": X}, interpreter="simulated", stage_work=WORK)
    expected = run(PROGRAM, Simulated(), {"x": X}, STORE)
    assert np.array_equal(result.outputs["y"], expected["y"])
    assert not executor.client.futures
    left: Any = executor.client.run(lambda dask_worker: len(dask_worker.plugins["aegis"].runs))
    assert set(left.values()) == {0}


def test_an_error_in_a_task_is_named_and_has_its_cause() -> None:
    with Executor.local(workers=2, processes=False) as executor:
        executor.prepare(store=STORE)
        with pytest.raises(
            ClusterError,
            match=r"task \d+ of layer 'layer1', operator 'norm/square' \[add, sumofsquares\], rows "
            r"\d to \d failed on inproc://.*: no level is left; use parameters with more",
        ) as caught:
            executor.run(PROGRAM, {"x": X}, interpreter=programs.failing, stage_work=WORK)
        assert isinstance(caught.value.__cause__, LevelError)
        notes = "".join(caught.value.__notes__)
        assert "in sumofsquares of stage 'layer1/norm/square'" in notes
        assert "Traceback" in notes
        assert_usable(executor)


def test_an_interrupt_cancels_the_run_and_leaves_the_cluster_clean() -> None:
    programs.started.clear()
    programs.proceed.clear()

    def interrupt() -> None:
        assert programs.started.wait(30)
        os.kill(os.getpid(), signal.SIGINT)
        programs.proceed.set()

    helper = threading.Thread(target=interrupt)
    with Executor.local(workers=2, processes=False) as executor:
        executor.prepare(store=STORE)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            executor.run(PROGRAM, {"x": X}, interpreter=programs.blocking, stage_work=WORK)
        helper.join()
        assert_usable(executor)


def test_a_worker_whose_gpu_has_failed_is_started_again(tmp_path: Path) -> None:
    order = tmp_path / "order"
    options: Any = {"interpreter": DyingFactory(order), "stage_work": WORK}
    with Executor.local(workers=2, threads_per_worker=1) as executor:
        executor.prepare(store=STORE)
        before = {*executor.client.run(os.getpid).values()}
        order.write_text("device")
        result = executor.run(PROGRAM, {"x": X}, **options)
        expected = run(PROGRAM, Simulated(), {"x": X}, STORE)
        assert np.array_equal(result.outputs["y"], expected["y"])
        assert result.resumed == 1
        after = {*executor.client.run(os.getpid).values()}
        assert len(before - after) == len(after - before) == 1
        order.write_text("device")
        with pytest.raises(ClusterError, match=r"failed on tcp://.*: a kernel failed"):
            executor.run(PROGRAM, {"x": X}, **options, resumes=0)
        assert_usable(executor)
        assert len(after - {*executor.client.run(os.getpid).values()}) == 1


def test_a_gpu_that_fails_where_nothing_starts_workers_again_is_said(tmp_path: Path) -> None:
    order = tmp_path / "order"
    order.write_text("device")
    with Executor.local(workers=2, processes=False) as executor:
        executor.prepare(store=STORE)
        with pytest.raises(
            ClusterError, match=r"failed on inproc://.*: a kernel failed on the GPU"
        ):
            executor.run(PROGRAM, {"x": X}, interpreter=DyingFactory(order), stage_work=WORK)


def test_a_gpu_that_failed_before_the_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def warm_up(context: object) -> None:
        raise DeviceFailedError("a kernel failed on the GPU")

    restarted: list[str] = []

    def restart(site: Site, address: str) -> bool:
        restarted.append(address)
        return True

    with Executor.local(workers=1, processes=False) as executor:
        monkeypatch.setattr("aegis_dask.runtime.context.warm_up", warm_up)
        with pytest.raises(ClusterError, match=r"worker inproc://.* cannot open .*: a kernel"):
            executor.prepare(store=STORE)
        monkeypatch.setattr(Site, "restart", restart)
        with pytest.raises(ClusterError, match=r"has been started again: run again"):
            executor.prepare(store=STORE)
        assert len(restarted) == 1


def test_a_worker_that_dies_is_named_and_its_successor_is_used(tmp_path: Path) -> None:
    order = tmp_path / "order"
    with Executor.local(workers=2, threads_per_worker=1, memory_limit="400MB") as executor:
        executor.prepare(store=STORE)
        options: Any = {"interpreter": DyingFactory(order), "stage_work": WORK}
        order.write_text("kill")
        with pytest.raises(
            ClusterError, match=r"worker \d \(tcp://.*\) was lost while it had task \d+ of layer"
        ):
            executor.run(PROGRAM, {"x": X}, **options, resumes=0)
        before = executor.addresses
        assert_usable(executor)
        assert len(set(executor.addresses) & set(before)) == 1
        order.write_text("fill")
        with pytest.raises(
            ClusterError, match=r"worker \d \(tcp://.*\) ran out of memory .*its limit is 40\d"
        ):
            executor.run(PROGRAM, {"x": X}, **options)
        assert_usable(executor)
