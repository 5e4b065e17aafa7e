"""Clients that are cut off, workers that are other processes than they were, files left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import KilledWorker, LocalCluster, get_worker
from distributed.comm import CommClosedError

from aegis_dask.errors import ClusterError
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime import cluster, plugin
from aegis_dask.runtime.context import Context
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.progress import Progress
from aegis_dask.runtime.session import WorkerLostError
from aegis_dask.runtime.site import Site
from tests.conftest import Log
from tests.runtime.programs import SLOTS, SlowFactory, chain

PROGRAM = chain(12)
X = np.arange(4 * SLOTS).reshape(4, SLOTS) + 0j
Y = run(PROGRAM, Simulated(), {"x": X}, {})["y"]
STORE = {"w": np.ones(1000)}


def works(executor: Executor, **options: Any) -> Any:
    """Run, and check what comes of it."""
    options = {"interpreter": "simulated", "stage_work": [1.0] * len(PROGRAM.stages)} | options
    result = executor.run(PROGRAM, {"x": X}, **options)
    assert np.array_equal(result.outputs["y"], Y)
    return result


@contextmanager
def foreign(workers: int = 1, processes: bool = False) -> Iterator[LocalCluster]:
    """A cluster that is not ours, with Dask's settings."""
    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=processes,
        protocol="tcp://",
        dashboard_address=None,
        silence_logs=50,
    ) as found:
        yield found


def kill(executor: Executor) -> None:
    """Kill the process of worker 0."""
    os.kill(executor.client.run(os.getpid)[executor.addresses[0]], signal.SIGKILL)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- clients that are cut off ----------------------------------------------------------------


def test_a_client_that_was_cut_off_keeps_what_it_has_while_others_come() -> None:
    with foreign() as dask, Executor.connect(dask.scheduler_address) as executor:
        executor.prepare(store=STORE)
        before = executor.client
        before.close()  # as Dask does with a client that cannot reach its scheduler for a while
        with Executor.connect(dask.scheduler_address):
            works(executor)
        assert executor.client is not before
        with Executor.connect(dask.scheduler_address):
            works(executor)


def test_a_client_that_was_away_for_long_is_told_that_its_files_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin, "GRACE_SECONDS", 0.0)
    with foreign() as dask, Executor.connect(dask.scheduler_address) as executor:
        executor.prepare(store=STORE)
        executor.client.close()
        wait_until(lambda: not any("aegis" in c for c in dask.scheduler.clients))
        with Executor.connect(dask.scheduler_address):
            assert not executor._site.hosts.root.exists()
            with pytest.raises(ClusterError, match=r"have been deleted.*open a new Executor"):
                works(executor)


def test_copies_that_are_gone_are_sent_again() -> None:
    with foreign() as dask, Executor.connect(dask.scheduler_address, ship=True) as executor:
        executor.prepare(store=STORE)
        (copy,) = executor._site.hosts._hosts
        shutil.rmtree(copy.directory)
        for worker in dask.workers.values():
            worker.plugins["aegis"].contexts.clear()
        works(executor)


# -- workers that are other processes than they were -----------------------------------------


def test_a_worker_that_was_started_again_at_its_address_is_given_everything_again() -> None:
    with foreign() as dask, Executor.connect(dask.scheduler_address) as executor:
        executor.prepare(store=STORE)
        works(executor)
        for worker in dask.workers.values():
            worker.plugins["aegis"].contexts.clear()
        assert works(executor).resumed == 0


class Forgetful(Simulated):
    """Lets its worker forget all runs, once."""

    def __init__(self, done: list[str]) -> None:
        super().__init__()
        self.done = done

    def rotate(self, x: Any, step: int) -> Any:
        if not self.done:
            self.done.append("")
            get_worker().plugins["aegis"].runs.clear()
        return super().rotate(x, step)


DONE: list[str] = []


def forgetful(context: Context) -> Forgetful:
    return Forgetful(DONE)


def test_a_run_whose_worker_does_not_know_it_any_more_is_taken_up_again() -> None:
    DONE.clear()
    with Executor.local(1, processes=False) as executor:
        executor.prepare()
        assert works(executor, interpreter=forgetful).resumed == 1


def test_a_worker_that_dies_while_it_opens_keys_is_named_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a scheduler without our settings: it would wait for a worker at that address."""
    with foreign(processes=True) as dask, Executor.connect(dask.scheduler_address) as executor:
        monkeypatch.setattr(plugin, "open_context", lambda *arguments: time.sleep(60))
        helper = threading.Timer(1, kill, [executor])
        helper.start()
        with pytest.raises(WorkerLostError, match=r"worker tcp://.* cannot open keys and weights"):
            executor.load(store=STORE)
        helper.join()
        assert len(executor._site.loader._loaded) == 1
        monkeypatch.undo()
        executor.prepare(store=STORE)
        works(executor)


def test_a_worker_that_dies_while_it_is_sent_files_is_named_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        foreign(processes=True) as dask,
        Executor.connect(dask.scheduler_address, ship=True) as executor,
    ):
        real = executor.client.scatter

        def scatter(*arguments: Any, **options: Any) -> Any:
            kill(executor)
            return real(*arguments, **options)

        monkeypatch.setattr(executor.client, "scatter", scatter)
        with pytest.raises(WorkerLostError, match=r"worker tcp://.* cannot take the file"):
            executor.load(store=STORE)
        monkeypatch.undo()
        executor.prepare(store=STORE)
        (copy,) = executor._site.hosts._hosts  # of the same host, found by another worker
        works(executor)
        assert not copy.withdrawn


def test_a_run_whose_workers_are_lost_before_it_begins_is_taken_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    real = Site._bring

    def bring(self: Site, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise CommClosedError("in <TCP (closed)>")
        return real(self, *arguments)

    with Executor.local(1, processes=False) as executor:
        executor.prepare()
        monkeypatch.setattr(Site, "_bring", bring)
        assert works(executor).resumed == 1
        assert len(calls) == 2


def test_keys_are_loaded_while_a_worker_is_started_again() -> None:
    """The others get their limit at once, and the new one when it is there."""

    def limits(executor: Executor) -> set[int]:
        get = lambda dask_worker: dask_worker.memory_manager.memory_limit  # noqa: E731
        return {*executor.client.run(get).values()}

    with Executor.local(2, 1, memory_limit="500MB") as executor:
        site = executor._site
        kill(executor)
        begin = time.monotonic()
        executor.prepare(store={"w": np.ones((1000, 1000))})
        assert time.monotonic() - begin < 15
        (limit,) = limits(executor)
        assert limit >= 508_000_000
        assert len(executor._prepared.opened) == 2
        # The file of the load is as long as there are workers, in every run.
        for workers in (2, 3, 2):
            file = Path(site.load_file(workers))
            assert file.stat().st_size >= workers
        works(executor)


# -- files on other hosts --------------------------------------------------------------------


def test_files_on_other_hosts_are_deleted_by_whoever_is_there() -> None:
    with foreign(processes=True) as dask:
        with Executor.connect(dask.scheduler_address, ship=True) as executor:
            executor.prepare(store=STORE)
            (copy,) = executor._site.hosts._hosts
            loaded = executor.load(store={"w": np.ones(5)})
            there = Path(copy.directory) / loaded.name
            assert there.is_dir()
            (old,) = executor.addresses
            kill(executor)
            wait_until(lambda: old not in cluster.workers_of(executor.client))
            begin = time.monotonic()
            executor.unload(loaded)
            assert time.monotonic() - begin < 5  # nobody waits for the dead
            wait_until(lambda: executor._site.count() == 1)
            works(executor)
            assert not there.exists()
            (new,) = executor.addresses
            kill(executor)
            wait_until(lambda: {*cluster.workers_of(executor.client)} - {old, new} != set())
            assert Path(copy.directory).is_dir()
        assert not Path(copy.directory).exists()


def test_files_on_other_hosts_are_deleted_after_a_new_connection() -> None:
    with foreign() as dask:
        with Executor.connect(dask.scheduler_address, ship=True) as executor:
            executor.prepare(store=STORE)
            clients = [executor.client]
            for _ in range(2):
                executor.client.close()
                works(executor)
                clients.append(executor.client)
            (copy,) = executor._site.hosts._hosts
        assert not Path(copy.directory).exists()
        assert {client.status for client in clients} == {"closed"}


# -- workers that join and are of no use -----------------------------------------------------


@pytest.mark.parametrize("trouble", ["full disk", "another version"])
def test_a_worker_that_joins_and_cannot_be_used_is_left_out(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    rotations = tmp_path / "rotations"
    rotations.write_text("")
    asked = []
    with foreign() as dask, Executor.connect(dask.scheduler_address, join_seconds=2) as executor:
        executor.prepare()
        (first,) = executor.addresses
        if trouble == "full disk":
            real = plugin.open_context

            def open_context(*arguments: str) -> str:
                if get_worker().address != first:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*arguments)

            monkeypatch.setattr(plugin, "open_context", open_context)
        else:

            def unfit(client: Any, addresses: set[str]) -> dict[str, str]:
                asked.append(addresses)
                return dict.fromkeys(addresses, "it has numpy 0.1")

            monkeypatch.setattr(cluster, "unfit_workers", unfit)

        def grow(progress: Progress) -> None:
            if len(dask.workers) == 1:
                dask.scale(2)

        interpreter = SlowFactory(rotations, 0.3)
        result = works(executor, interpreter=interpreter, progress=grow)
        assert (len(result.workers), result.resumed) == (1, 0)
        assert log.text.count("the others go on without it") == 1
        assert ("No space left" if trouble == "full disk" else "numpy 0.1") in log.text
        assert len(rotations.read_text().split()) == 2 * 12  # nothing twice
        assert len(works(executor).workers) == 1
        assert executor.adapt() == 2  # as a service does, job by job
        executor.unload(executor.load(store=STORE))
        assert not asked or all(first not in addresses for addresses in asked)
        monkeypatch.undo()
        assert len(works(executor).workers) == 2


# -- what is no lost connection --------------------------------------------------------------


def test_an_error_of_the_progress_callback_is_the_callers_own() -> None:
    calls = []

    def progress(progress: Progress) -> None:
        calls.append(progress)
        raise OSError("the log cannot be written")

    with Executor.local(1, processes=False) as executor:
        executor.prepare()
        with pytest.raises(OSError, match="the log cannot be written"):
            works(executor, progress=progress)
        assert len(calls) == 1
        works(executor)


def test_a_full_disk_here_ends_a_run_at_once(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    real = Path.write_bytes

    def write_bytes(self: Path, data: Any) -> int:
        if self.name.startswith("run-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    with Executor.local(1, processes=False) as executor:
        executor.prepare()
        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(ClusterError, match="cannot be written: No space left on device"):
            works(executor)
        assert "taken up" not in log.text
        monkeypatch.undo()
        works(executor)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CommClosedError("x"), True),
        (OSError("Timed out trying to connect to tcp://x"), True),
        (TimeoutError(), True),
        (TimeoutError(errno.ETIMEDOUT, "x"), True),
        (ConnectionResetError(errno.ECONNRESET, "x"), True),
        (KilledWorker("task", None, 0), True),
        (FileNotFoundError(errno.ENOENT, "x"), False),
        (OSError(errno.ENOSPC, "x"), False),
        (ValueError("x"), False),
    ],
)
def test_errors_of_files_are_no_lost_connections(error: Exception, expected: bool) -> None:
    assert cluster.is_lost(error) is expected
