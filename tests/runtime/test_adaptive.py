"""A cluster that adapts: more workers while a run is under way, and none is taken from it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
from distributed import LocalCluster

from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.adaptive import AdaptiveWorkers
from aegis_dask.runtime.executor import Executor
from tests.runtime.programs import SLOTS, SlowFactory, chain

PROGRAM = chain(24)


def test_workers_come_with_a_run_and_go_after_it(tmp_path: Path) -> None:
    rotations = tmp_path / "rotations"
    rotations.write_text("")
    x = np.random.default_rng().integers(-9, 9, (4, SLOTS)) + 0j
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster.adapt(
            Adaptive=AdaptiveWorkers, minimum=1, maximum=2, interval="200ms", wait_count=2
        )
        with Executor.connect(cluster.scheduler_address) as executor:
            result = executor.run(
                PROGRAM,
                {"x": x},
                interpreter=SlowFactory(rotations, 0.25),
                stage_work=[1.0] * len(PROGRAM.stages),
            )
            deadline = time.monotonic() + 30
            while len(cluster.workers) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert len(cluster.workers) == 1
    expected = run(PROGRAM, Simulated(), {"x": x}, {})
    assert np.array_equal(result.outputs["y"], expected["y"])
    assert (result.resumed, len(result.workers)) == (0, 2)
    done = Counter(rotations.read_text().split())
    assert len(done) == 2
    assert sum(done.values()) == 2 * len(PROGRAM.stages) - 2  # nothing twice; an input is a stage


def test_a_cluster_that_may_be_empty_has_a_worker_while_a_client_is_connected() -> None:
    x = np.ones((4, SLOTS)) + 0j
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster.adapt(Adaptive=AdaptiveWorkers, maximum=2, interval="200ms", wait_count=2)
        with Executor.connect(cluster.scheduler_address, timeout=60) as executor:
            result = executor.run(PROGRAM, {"x": x}, interpreter="simulated")
        deadline = time.monotonic() + 30
        while cluster.workers and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not cluster.workers
    assert np.array_equal(result.outputs["y"], x)
