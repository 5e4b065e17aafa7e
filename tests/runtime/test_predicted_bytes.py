"""The bytes that a plan predicts are those that Dask moves: per pair of workers and stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aegis_dask.models.calibration import Calibration, calibrate
from aegis_dask.models.checkpoint import BertConfig, BertModel, random_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.placement.limbs.late import LateDivision
from aegis_dask.placement.limbs.plan import plan_by_limbs
from aegis_dask.placement.limbs.rounds import EXCHANGES, Exchange
from aegis_dask.placement.predict import predict
from aegis_dask.placement.search import candidates
from aegis_dask.placement.strategy import Contiguous
from aegis_dask.program.symbolic import analyse
from aegis_dask.runtime.context import Context
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.client import Client
from aegis_dask.service.job import Job, make_job

CONFIG = BertConfig(1, 32, 4, 64, max_positions=40, vocabulary=11)
LENGTH = 12
FINE = {"least_seconds": 0.0, "target_seconds": 0.02}
"""As many tasks as there can be, so that much is sent."""


@pytest.fixture(scope="module")
def tiny() -> tuple[BertModel, Calibration]:
    model, rng = random_bert(CONFIG, 5), np.random.default_rng(3)
    return model, calibrate(model, [rng.integers(0, 11, rng.integers(3, 30)) for _ in range(50)])


@pytest.fixture(scope="module")
def prepared(
    request: pytest.FixtureRequest, tiny: tuple[BertModel, Calibration]
) -> tuple[Job, Any, Any]:
    model, calibration = tiny
    graph = load_graph(request.param)
    job = make_job(model, calibration, graph, LENGTH, tokens=32, allow_insecure=True)
    client = Client.create(job)
    x = client.encrypt(np.random.default_rng().uniform(-0.5, 0.5, (LENGTH, CONFIG.hidden)))
    return job, client.evaluation_keys(), x


@pytest.mark.parametrize(
    "prepared", ["feed_forward", "self_attention", "bert_layer"], indirect=True
)
def test_bytes_and_residues_on_two_and_four_workers(prepared: tuple[Job, Any, Any]) -> None:
    job, keys, x = prepared
    assert job.params is not None
    residues = []
    for workers in (1, 2, 4):
        with Executor.local(workers, 1, processes=False, protocol="tcp://") as executor:
            executor.prepare(job.params, keys, job.model.tensors())
            level = x.batch.level
            plan = executor.plan(job.program, top_level=level, **FINE)
            sizes = analyse(job.program, job.params, level).node_bytes
            result = executor.run(job.program, {INPUT: x}, **FINE)
            expected = predict(job.program, plan, sizes)
            assert dict(result.transfers.payload) == expected.payload
            assert result.transfers.between_workers == expected.between_workers
            assert (expected.between_workers > 0) is (workers > 1)
            residues.append(result.outputs[OUTPUT].batch.data)
            if workers == 1:
                continue
            # Every stage that may be computed by all workers is.
            copies = frozenset[int]().union(*candidates(job.program))
            plan = executor.plan(job.program, top_level=level, replicated=copies, **FINE)
            result = executor.run(job.program, {INPUT: x}, replicated=copies, **FINE)
            fewer = predict(job.program, plan, sizes)
            assert dict(result.transfers.payload) == fewer.payload
            residues.append(result.outputs[OUTPUT].batch.data)
            # Every worker is given everything, as ciphertext-parallel systems do.
            plan = executor.plan(
                job.program, top_level=level, replicated=copies, everywhere=True, **FINE
            )
            result = executor.run(
                job.program, {INPUT: x}, replicated=copies, everywhere=True, **FINE
            )
            all_ = predict(job.program, plan, sizes)
            assert dict(result.transfers.payload) == all_.payload
            assert all_.between_workers > fewer.between_workers
            residues.append(result.outputs[OUTPUT].batch.data)
    assert all(np.array_equal(r, residues[0]) for r in residues)


def _by_limbs(job: Job, keys: Any, x: Any, workers: int, exchange: Exchange) -> Any:
    with Executor.local(workers, 1, processes=False, protocol="tcp://") as executor:
        executor.prepare(job.params, keys, job.model.tensors())
        recording = executor.record(job.program, {INPUT: x}, late=exchange == "cheapest")
        plan, _ = plan_by_limbs(recording, workers, exchange)
        result = executor.run_by_limbs(job.program, {INPUT: x}, exchange)
        assert dict(result.transfers.payload) == predict(job.program, plan, []).payload
        assert result.transfers.between_workers > 0
        return result.outputs[OUTPUT].batch.data


def _by_columns(job: Job, workers: tuple[int, ...]) -> None:
    """Run the feed-forward network in shards, each with some of the inner features."""
    rng = np.random.default_rng()
    given = rng.uniform(-0.5, 0.5, (LENGTH, CONFIG.hidden))
    for count in workers:
        split = job.split_by_columns(count)
        client = Client.create(split)
        keys, x = client.evaluation_keys(), client.encrypt(given)
        residues = []
        for n in (1, count):
            place = Contiguous(shards=count)
            with Executor.local(n, 1, processes=False, protocol="tcp://") as executor:
                executor.prepare(split.params, keys, split.model.tensors())
                plan = executor.plan(split.program, top_level=x.batch.level, place=place, **FINE)
                result = executor.run(split.program, {INPUT: x}, place=place, **FINE)
            sizes = analyse(split.program, split.params, x.batch.level).node_bytes
            assert dict(result.transfers.payload) == predict(split.program, plan, sizes).payload
            residues.append(result.outputs[OUTPUT].batch.data)
        assert np.array_equal(residues[0], residues[1])
        names = [s.name for s in split.program.stages]
        for task in plan.tasks:  # nothing of the inner features leaves its shard
            for part in task.steps:
                if part.task.kind == "stage" and "/shard-" in names[part.task.stage]:
                    assert f"/shard-{task.owner}/" in names[part.task.stage]
        simulated, _ = split.simulate(given)
        assert np.abs(simulated - job.simulate(given)[0]).max() < 1e-9
        assert np.abs(client.decrypt(result.outputs[OUTPUT]) - simulated).max() < 1e-3


@pytest.mark.parametrize("prepared", ["feed_forward"], indirect=True)
def test_divided_by_columns_and_rows(prepared: tuple[Job, Any, Any]) -> None:
    _by_columns(prepared[0], (2,))


@pytest.mark.slow
@pytest.mark.parametrize("prepared", ["feed_forward", "bert_layer"], indirect=True)
def test_divided_by_columns_and_rows_on_two_and_four_workers(
    prepared: tuple[Job, Any, Any],
) -> None:
    _by_columns(prepared[0], (2, 4))


def late_division(context: Context) -> LateDivision:
    return LateDivision(context.interpreter("encrypted").evaluator)


def _alone(job: Job, keys: Any, x: Any, interpreter: Any = "encrypted") -> Any:
    with Executor.local(1, 1, processes=False) as executor:
        executor.prepare(job.params, keys, job.model.tensors())
        result = executor.run(job.program, {INPUT: x}, interpreter=interpreter)
        return result.outputs[OUTPUT].batch.data


@pytest.mark.parametrize("prepared", ["feed_forward"], indirect=True)
def test_divided_by_limbs(prepared: tuple[Job, Any, Any]) -> None:
    job, keys, x = prepared
    found = [
        _by_limbs(job, keys, x, 2, "broadcast"),
        _by_limbs(job, keys, x, 4, "input-broadcast"),
        _by_limbs(job, keys, x, 2, "output-aggregation"),
    ]
    assert all(np.array_equal(r, _alone(job, keys, x)) for r in found)
    # Sums of rotations are divided once: on one worker too.
    found = [_by_limbs(job, keys, x, 4, "cheapest")]
    assert np.array_equal(found[0], _alone(job, keys, x, late_division))


@pytest.mark.slow
@pytest.mark.parametrize(
    "prepared", ["feed_forward", "self_attention", "bert_layer"], indirect=True
)
def test_divided_by_limbs_on_two_and_four_workers(prepared: tuple[Job, Any, Any]) -> None:
    job, keys, x = prepared
    expected = {e: _alone(job, keys, x) for e in EXCHANGES[:-1]}
    expected["cheapest"] = _alone(job, keys, x, late_division)
    for workers in (2, 4):
        for exchange in EXCHANGES:
            found = _by_limbs(job, keys, x, workers, exchange)
            assert np.array_equal(found, expected[exchange])
