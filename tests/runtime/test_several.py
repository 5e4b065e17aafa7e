"""Several clients on one cluster: keys of each, runs side by side, cancelling one of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.errors import ClusterError
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.loading import Loaded
from aegis_dask.runtime.session import RunCancelledError
from tests.runtime.programs import SLOTS, SlowFactory, chain, model, someone

PROGRAM, STORE = model()


@pytest.fixture(scope="module", params=[True, False], ids=["processes", "threads"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with Executor.local(workers=2, threads_per_worker=1, processes=request.param) as executor:
        yield executor


def files(executor: Executor) -> set[str]:
    return {p.name for p in executor._site.hosts.root.iterdir()} - {"probe", "load"}


def test_clients_with_keys_of_their_own_run_side_by_side(executor: Executor) -> None:
    before = files(executor)
    people = [someone() for _ in range(3)]
    expected = [p.expected()["y"] for p in people]
    loaded = [executor.load(p.params, p.keys, STORE) for p in people]
    assert sum(n.startswith("weights-") for n in files(executor)) <= 1  # once for all

    def one(i: int) -> CipherArray:
        who = i % len(people)
        result = executor.run(PROGRAM, people[who].inputs, loaded=loaded[who])
        return result.outputs["y"]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(8)))
    for i, value in enumerate(found):
        assert np.array_equal(value.batch.data, expected[i % len(people)].batch.data)
    for each in loaded:
        executor.unload(each)
        executor.unload(each)
    assert files(executor) == before
    assert not executor.client.futures


def start(executor: Executor, **options: object) -> tuple[threading.Thread, list[BaseException]]:
    """Run in a thread; return it and the list that will hold what the run raises."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            executor.run(PROGRAM_SLOW, {"x": X}, **options)  # type: ignore[arg-type]
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, raised


PROGRAM_SLOW = chain(16)
X = np.arange(4 * SLOTS).reshape(4, SLOTS) + 0j


def test_a_run_is_cancelled_and_another_goes_on(executor: Executor, tmp_path: Path) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    for log in logs:
        log.write_text("")
    event = threading.Event()
    options = {"stage_work": [1.0] * len(PROGRAM_SLOW.stages)}
    first, raised = start(
        executor, interpreter=SlowFactory(logs[0], 0.05), cancelled=event, **options
    )
    second, others = start(executor, interpreter=SlowFactory(logs[1], 0.01), **options)
    while not logs[0].read_text() and first.is_alive():
        time.sleep(0.01)
    event.set()
    first.join(30)
    second.join(30)
    assert [type(e) for e in raised] == [RunCancelledError]
    assert not others
    assert len(logs[0].read_text().split()) < 16 * 4
    assert not executor.client.futures


def test_a_plan_for_other_workers_is_refused(executor: Executor) -> None:
    loaded: Loaded = executor.load()
    plan = executor.plan(PROGRAM_SLOW, loaded=loaded)
    other = type(plan)(plan.tasks, plan.outputs, 3)
    with pytest.raises(ClusterError, match="for 3 workers, there are 2"):
        executor.run(PROGRAM_SLOW, {"x": X}, loaded=loaded, plan=other)
    executor.unload(loaded)


def test_an_analysis_that_another_thread_adds_meanwhile_does_no_harm(executor: Executor) -> None:
    class Level:
        """A level that adds one more analysis when it is compared."""

        def __eq__(self, other: object) -> bool:
            executor._analyses.append(executor._analyses[0])
            return False

        __hash__ = None  # type: ignore[assignment]

    who = someone()
    loaded = executor.load(who.params, who.keys, STORE)
    analysis = executor._analyse(PROGRAM, None, "encrypted", loaded)
    assert analysis is not None
    executor._analyses.append((PROGRAM, Level(), "", analysis))  # type: ignore[arg-type]
    executor._analyses.rotate(1)
    assert executor._analyse(PROGRAM, None, "encrypted", loaded) is analysis
    executor._analyses.clear()
    executor.unload(loaded)
