"""A lone worker of a host takes the cores that others leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aegis_dask.ring import threads
from aegis_dask.ring.backend import Ring
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.load import Load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "load"
    path.write_bytes(bytes(3))
    return path


def test_the_cores_are_divided_among_those_that_work(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "max_threads", lambda: 64)
    monkeypatch.setattr(threads, "before_kernels", lambda _: None)
    workers = [Load(file, i, 6) for i in range(3)]
    shares = []
    for worker in workers:
        worker.begin()
        shares.append(worker.share())
    assert shares == [6, 3, 2]
    workers[0].end()
    workers[2].end()
    assert workers[1].share() == 6


def test_more_cores_than_there_are_threads_are_not_taken(file: Path) -> None:
    assert Load(file, 0, 10_000).share() == threads.max_threads()


def test_kernels_adapt_while_a_task_runs(
    file: Path, ring: Ring, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(threads, "set_threads", asked.append)
    monkeypatch.setattr(threads, "max_threads", lambda: 2)
    x = rng.integers(0, 2**24, (1, ring.chain.ring_degree)).astype(np.uint32)
    mine, other = Load(file, 0, 2), Load(file, 1, 2)
    mine.begin()
    try:
        ring.ntt(x, [0])
        ring.ntt(x, [0])  # nothing has changed
        other._map[1] = 1
        ring.ntt(x, [0])
        other._map[1] = 0
        ring.ntt(x, [0])
    finally:
        mine.end()
    ring.ntt(x, [0])
    assert asked == [2, 1, 2]


@pytest.mark.parametrize(("workers", "processes", "shares"), [(2, True, True), (1, True, False)])
def test_only_processes_that_we_start_share(workers: int, processes: bool, shares: bool) -> None:
    with Executor.local(workers, 1, processes=processes) as executor:
        assert executor._site.shares_cores(executor.workers) is shares
