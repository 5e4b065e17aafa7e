"""Programs on clusters: the same residues however they are cut, and exact accounts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ClusterError, ProgramError
from aegis_dask.placement.traffic import CLIENT
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.progress import Progress
from tests.runtime.programs import SLOTS, Someone, chain, integers, model, someone

PROGRAM, STORE = model()
WORK = [1.0] * len(PROGRAM.stages)  # two tasks per worker and stage, where there are as many rows


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    """Four workers, threads of the test."""
    with Executor.local(workers=4, processes=False) as executor:
        executor.prepare(store=STORE)
        yield executor


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two workers, processes."""
    with Executor.local(workers=2, threads_per_worker=1) as executor:
        yield executor


@pytest.fixture(scope="module")
def client() -> Someone:
    return someone()


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, CipherArray):
            assert found[name].shape == value.shape
            assert found[name].batch.level == value.batch.level
            assert found[name].batch.scale == value.batch.scale
            assert np.array_equal(found[name].batch.data, value.batch.data)
        else:
            assert np.array_equal(found[name], value)


def test_workers_that_are_threads_give_the_result_of_one_process(threads: Executor) -> None:
    x = integers(PROGRAM)
    expected = run(PROGRAM, Simulated(), {"x": x}, STORE)
    for target in (0.1, 0.5, 10.0):
        result = threads.run(
            PROGRAM, {"x": x}, interpreter="simulated", stage_work=WORK, target_seconds=target
        )
        assert_same(result.outputs, expected)
        assert len({s.worker for s in result.timeline}) == 4


@pytest.mark.parametrize(("workers", "protocol"), [(1, None), (2, "tcp://")])
def test_residues_do_not_depend_on_workers_that_are_threads(
    workers: int, protocol: str | None, client: Someone
) -> None:
    with Executor.local(workers=workers, processes=False, protocol=protocol) as executor:
        executor.prepare(client.params, client.keys, STORE)
        result = executor.run(PROGRAM, client.inputs, stage_work=WORK, target_seconds=0.3)
        whole = executor.run(PROGRAM, client.inputs, stage_work=WORK, target_seconds=60.0)
    assert_same(result.outputs, client.expected())
    assert_same(whole.outputs, client.expected())
    assert whole.tasks < result.tasks
    assert workers > 1 or whole.tasks < len(WORK)
    assert {s.name for s in whole.timeline} == {s.name for s in result.timeline}  # every stage


def test_residues_do_not_depend_on_workers_that_are_processes(
    processes: Executor, client: Someone
) -> None:
    processes.prepare(client.params, client.keys, STORE)
    seen: list[Progress] = []
    result = processes.run(
        PROGRAM, client.inputs, stage_work=WORK, target_seconds=0.3, progress=seen.append
    )
    expected = client.expected()
    assert_same(result.outputs, expected)
    assert seen[-1].done == seen[-1].total == result.tasks
    assert seen[-1].share == pytest.approx(1)
    assert {s.worker for s in result.timeline} == {0, 1}
    assert all(w.peak_memory > 1 << 20 for w in result.workers)
    assert result.operations["rotate"].calls == 6
    # Estimates from the analysis: everything is short, so little is split.
    few = processes.run(PROGRAM, client.inputs)
    assert_same(few.outputs, expected)
    assert few.tasks <= result.tasks


def test_every_byte_between_workers_is_counted(processes: Executor) -> None:
    """One stage gives four rows on each of two workers, and the next needs all eight on each."""
    from aegis_dask.program.graph import Capture, capture

    def build(c: Capture) -> None:
        x = c.input("x", (8,))
        with c.stage("rows", over=8):
            y = x * 2
        with c.stage("sums", over=8):
            z = y * 3
        with c.stage("all"):
            s = z.sum()
        c.output("y", s)

    program = capture(SLOTS, build)
    x = np.arange(8 * SLOTS).reshape(8, SLOTS) + 0j
    processes.prepare()
    result = processes.run(
        program, {"x": x}, interpreter="simulated", stage_work=[0.0, 1.0, 1.0, 0.01]
    )
    assert np.array_equal(result.outputs["y"], x.sum(axis=0) * 6)
    row = 16 * SLOTS
    home = next(s.worker for s in result.timeline if s.name == "all")
    pairs = {(CLIENT, 0): 4 * row, (CLIENT, 1): 4 * row, (home, CLIENT): row}
    assert result.transfers.pairs == {**pairs, (1 - home, home): 4 * row}
    assert result.transfers.stages == {"sums": 4 * row}
    assert result.transfers.between_workers == 4 * row
    # What the socket carried: the same and some headers.
    wire = result.transfers.wire[1 - home, home]
    assert 4 * row < wire < 4 * row + 4096
    assert "worker 1" in result.transfers.table()


def test_the_parts_of_the_time_add_up(threads: Executor) -> None:
    program = chain(12)
    x = np.ones((4, SLOTS)) + 0j
    result = threads.run(
        program, {"x": x}, interpreter="simulated", stage_work=[1.0] * len(program.stages)
    )
    s = result.scheduling
    assert s.busy + s.dispatch + s.waiting == pytest.approx(4 * s.wall, rel=1e-6)
    assert s.busy == pytest.approx(sum(o.seconds for o in result.stages.values()))
    # A hop takes Dask 5 to 6 ms; ten times that would be a mistake of ours.
    assert s.mean_gap < 0.06
    assert 0 <= result.scheduling_share <= s.idle_share <= 1


def test_wrong_inputs_and_an_unprepared_run_are_refused(threads: Executor) -> None:
    x = integers(PROGRAM)
    with pytest.raises(ProgramError, match=r"takes the inputs \['x'\], given were \['z'\]"):
        threads.run(PROGRAM, {"z": x})
    with pytest.raises(ClusterError, match=r"needs parameters and evaluation keys"):
        threads.run(PROGRAM, {"x": x})
    with pytest.raises(ClusterError, match="there is no interpreter 'magic'"):
        threads.run(PROGRAM, {"x": x}, interpreter="magic")
    with pytest.raises(ClusterError, match="must give one of 0 to 3 for each"):
        threads.run(
            PROGRAM,
            {"x": x},
            interpreter="simulated",
            place=lambda program, units, workers, node_bytes: [workers] * len(units),
        )


def test_another_placement_gives_the_same_result(threads: Executor) -> None:
    x = integers(PROGRAM)
    expected = run(PROGRAM, Simulated(), {"x": x}, STORE)
    rng = np.random.default_rng(1)
    for _ in range(4):
        result = threads.run(
            PROGRAM,
            {"x": x},
            interpreter="simulated",
            stage_work=WORK,
            place=lambda program, units, workers, node_bytes: [
                int(w) for w in rng.integers(0, workers, len(units))
            ],
        )
        assert_same(result.outputs, expected)
