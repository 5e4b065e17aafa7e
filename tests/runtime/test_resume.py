"""A run in which workers are killed goes on after the last finished layer, with the same result."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from aegis_dask.dashboard.monitor import view_runs
from aegis_dask.dashboard.view import CONTINUED, FINISHED, parse_view
from aegis_dask.errors import ClusterError
from aegis_dask.placement.planner import Planner
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.progress import Progress
from tests.conftest import Log
from tests.runtime.programs import SLOTS, SlowFactory, chain

LAYERS, STAGES, ROWS, WORKERS = 4, 4, 4, 2
PROGRAM = chain(LAYERS * STAGES, ROWS)
SECONDS = 0.03
"""Of a rotation: a run takes sixteen of them and Dask's time."""


def killed(executor: Executor, log: Path, victim: int, delay: float, **options: Any) -> Any:
    """Run while a worker is killed after a while; return the result and how many rotations ran."""
    x = np.random.default_rng().integers(-9, 9, (ROWS, SLOTS)) + 0j
    log.write_text("")
    pids = executor.client.run(os.getpid)
    pid = pids[executor.addresses[victim]]

    def kill() -> None:
        deadline = time.time() + 30
        while not log.read_text() and time.time() < deadline:  # until the run has begun
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)

    helper = threading.Thread(target=kill)
    helper.start()
    try:
        result = executor.run(
            PROGRAM,
            {"x": x},
            interpreter=SlowFactory(log, SECONDS),
            stage_work=[1.0] * len(PROGRAM.stages),
            **options,
        )
    finally:
        helper.join()
    expected = run(PROGRAM, Simulated(), {"x": x}, {})
    assert np.array_equal(result.outputs["y"], expected["y"])
    return result, len(log.read_text().split())


def kill_many(tmp_path: Path, times: int) -> None:
    log = tmp_path / "log"
    resumed = 0
    with Executor.local(WORKERS, 1) as executor:
        executor.prepare()
        for i in range(times):
            delay = random.uniform(0, LAYERS * STAGES * SECONDS)
            result, rotations = killed(executor, log, i % WORKERS, delay)
            resumed += result.resumed
            assert result.view is not None
            assert result.view.resumed == result.resumed
            assert result.view.done == result.view.tasks
            # Every worker rotates its rows once in every stage; at most a layer is done again,
            # beside the one that was under way in advance.
            once = LAYERS * STAGES * WORKERS
            assert rotations <= once + result.resumed * 2 * STAGES * WORKERS
        assert not executor.client.futures
    assert resumed >= times // 3  # some are killed when the run has ended


def test_runs_survive_their_workers(tmp_path: Path) -> None:
    kill_many(tmp_path, 3)


@pytest.mark.slow
def test_fifty_runs_survive_their_workers(tmp_path: Path) -> None:
    kill_many(tmp_path, 50)


def test_what_is_left_goes_to_the_workers_that_are_left(tmp_path: Path, log: Log) -> None:
    rotations = tmp_path / "rotations"
    rotations.write_text("")
    x = np.random.default_rng().integers(-9, 9, (ROWS, SLOTS)) + 0j
    shares: list[float] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as dask,
        Executor.connect(dask.scheduler_address, join_seconds=1.0) as executor,
    ):
        executor.prepare()

        def leave(progress: Progress) -> None:
            shares.append(progress.share)
            if progress.stage.startswith("layer2") and len(dask.workers) == 2:
                dask.scale(1)

        result = executor.run(
            PROGRAM,
            {"x": x},
            interpreter=SlowFactory(rotations, SECONDS),
            stage_work=[1.0] * len(PROGRAM.stages),
            progress=leave,
        )
    expected = run(PROGRAM, Simulated(), {"x": x}, {})
    assert np.array_equal(result.outputs["y"], expected["y"])
    assert (result.resumed, len(result.workers)) == (1, 1)
    told = re.search(r"1 workers instead of 2: (\d+) of 17 stages are finished", log.text)
    assert told is not None
    assert int(told[1]) >= 2 * STAGES  # two layers are not done again
    assert shares[-1] == 1
    assert all(b >= min(a, 0.5) for a, b in pairwise(shares))  # it goes on in the second half


def test_workers_that_join_are_used_from_the_next_layer_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    x = np.random.default_rng().integers(-9, 9, (ROWS, SLOTS)) + 0j
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as dask,
        Executor.connect(dask.scheduler_address) as executor,
    ):
        executor.prepare()

        def grow(progress: Progress) -> None:
            if len(dask.workers) == 1:
                dask.scale(2)

        result = executor.run(
            PROGRAM,
            {"x": x},
            interpreter=SlowFactory(log, 10 * SECONDS),
            stage_work=[1.0] * len(PROGRAM.stages),
            progress=grow,
        )
        deadline = time.monotonic() + 10
        states: list[str] = []
        while FINISHED not in states and time.monotonic() < deadline:
            views = executor.client.run_on_scheduler(view_runs, None) or []
            states = [parse_view(text).state for text in views]
    assert states == [CONTINUED, FINISHED]
    expected = run(PROGRAM, Simulated(), {"x": x}, {})
    assert np.array_equal(result.outputs["y"], expected["y"])
    assert (result.resumed, len(result.workers)) == (0, 2)
    one, two = Counter(log.read_text().split()).values()
    assert one + two == 2 * LAYERS * STAGES  # nothing is done twice
    assert two in {STAGES, 2 * STAGES}  # it had the half of one layer, or of two


@pytest.mark.parametrize("planned", [1, 3])
def test_a_plan_for_other_workers_than_there_are_grows_or_shrinks(planned: int) -> None:
    x = np.random.default_rng().integers(-9, 9, (ROWS, SLOTS)) + 0j
    work = [1.0] * len(PROGRAM.stages)
    plan = Planner(PROGRAM, work).plan(planned)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as dask,
        Executor.connect(dask.scheduler_address, join_seconds=0.5) as executor,
    ):
        executor.prepare()
        inputs = {"x": x}
        result = executor.run(PROGRAM, inputs, interpreter="simulated", plan=plan, grows=True)
        with pytest.raises(ClusterError, match=f"for {planned} workers, there are 2"):
            executor.run(PROGRAM, inputs, interpreter="simulated", plan=plan)
    assert np.array_equal(result.outputs["y"], run(PROGRAM, Simulated(), inputs, {})["y"])
    assert len(result.workers) == 2


def test_a_run_that_is_not_to_be_resumed_says_so(tmp_path: Path) -> None:
    with Executor.local(WORKERS, 1) as executor:
        executor.prepare()
        with pytest.raises(ClusterError, match=r"worker 0 \(tcp://.*\) was lost"):
            killed(executor, tmp_path / "log", 0, 0.1, resumes=0)
