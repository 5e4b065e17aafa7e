"""The search: never worse than without it, and the same results."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from aegis_dask.errors import ClusterError
from aegis_dask.models.checkpoint import named_config, shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.placement.devices import MACHINES, Link
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.predict import predict
from aegis_dask.placement.search import plain, search
from aegis_dask.placement.simulate import simulate
from aegis_dask.service.job import Job, make_job
from aegis_dask.service.sources import assumed_calibration, first_layers

SLOW = Link("slow", 1e9, 1e-3)


@pytest.fixture(scope="module")
def job() -> Job:
    """A BERT-base layer on 2,048 tokens."""
    graph = load_graph("bert_layer")
    model = first_layers(shape_only(named_config("bert-base", 2048)), graph.layers)
    return make_job(model, assumed_calibration(model), graph, 2048)


@pytest.mark.parametrize(
    ("devices", "machine"), [(1, "cpu"), (2, "cpu"), (4, "h200-pcie"), (8, "h200-nvlink")]
)
def test_the_search_is_never_worse(job: Job, devices: int, machine: str) -> None:
    a, m = job.analysis, MACHINES[machine]
    before = simulate(
        job.program,
        plain(job.program, devices, a.stage_work, a.node_bytes, m),
        a.node_bytes,
        m,
    )
    found = search(job.program, devices, a.stage_work, a.node_bytes, m)
    assert found.simulation.makespan <= before.makespan
    again = search(job.program, devices, a.stage_work, a.node_bytes, m)
    assert again == found  # deterministic


def test_rotated_keys_are_made_by_all_where_links_are_slow(job: Job) -> None:
    a = job.analysis
    m = replace(MACHINES["h200-pcie"], inside=SLOW, between=SLOW)
    found = search(job.program, 4, a.stage_work, a.node_bytes, m)
    names = {job.program.stages[i].name for i in found.replicated}
    assert "layer0/attention/key-steps" in names
    before = predict(
        job.program, plain(job.program, 4, a.stage_work, a.node_bytes, m), a.node_bytes
    )
    after = predict(job.program, found.plan, a.node_bytes)
    assert after.between_workers < before.between_workers / 5


def test_the_fewest_bytes_within_a_time(job: Job) -> None:
    a, m = job.analysis, MACHINES["h200-pcie"]
    fastest = search(job.program, 4, a.stage_work, a.node_bytes, m)
    limit = 1.2 * fastest.simulation.makespan
    frugal = search(job.program, 4, a.stage_work, a.node_bytes, m, limit)
    assert frugal.simulation.makespan <= limit
    assert sum(frugal.simulation.received) < sum(fastest.simulation.received)


def test_plans_that_fit_come_first(job: Job) -> None:
    a, m = job.analysis, MACHINES["h200-nvlink"]
    found = search(job.program, 4, a.stage_work, a.node_bytes, m)
    needed = max(found.simulation.peak_bytes)
    tight = m.device.memory_bytes - needed + 1
    other = search(job.program, 4, a.stage_work, a.node_bytes, m, reserved_bytes=tight)
    assert max(other.simulation.peak_bytes) < needed
    assert pickle.loads(pickle.dumps(other.plan)) == other.plan


def test_sums_cannot_be_replicated(job: Job) -> None:
    a, program = job.analysis, job.program
    sums = next(s for s in program.stages if any(program.nodes[i].op.reduces for i in s.nodes))
    with pytest.raises(ClusterError, match="it has a sum over its leading axis"):
        make_plan(program, 2, a.stage_work, replicated={sums.index})
