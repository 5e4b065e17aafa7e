"""A run in which workers are killed goes on after the last finished layer, with the same result."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ClusterError
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.executor import Executor
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


def test_a_run_that_is_not_to_be_resumed_says_so(tmp_path: Path) -> None:
    with Executor.local(WORKERS, 1) as executor:
        executor.prepare()
        with pytest.raises(ClusterError, match=r"worker 0 \(tcp://.*\) was lost"):
            killed(executor, tmp_path / "log", 0, 0.1, resumes=0)
