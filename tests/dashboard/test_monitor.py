"""The monitor on a real scheduler: it sees what the results report, of all runs and clients."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from aegis_dask.dashboard import monitor
from aegis_dask.dashboard.brief import make_brief
from aegis_dask.dashboard.monitor import KEPT, NAME, RUNS, TASKS, Monitor, begin_run, view_runs
from aegis_dask.dashboard.view import CANCELLED, FAILED, FINISHED, RUNNING, RunView, parse_view
from aegis_dask.errors import ClusterError
from aegis_dask.placement.plan import make_plan
from aegis_dask.runtime.executor import Executor
from tests.dashboard.synthetic import make_run
from tests.runtime.programs import chain, failing, integers, model, someone

PROGRAM, STORE = model()
WORK = [1.0] * len(PROGRAM.stages)
HOW: dict[str, Any] = {"interpreter": "simulated", "stage_work": WORK, "target_seconds": 0.3}
X = {"x": integers(PROGRAM)}


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor.local(workers=2, processes=False, dashboard=True, protocol="tcp://") as found:
        found.prepare(store=STORE)
        yield found


def runs(client: Client) -> list[RunView]:
    found = client.run_on_scheduler(view_runs, None)
    assert found is not None
    return [parse_view(text) for text in found]


def until(client: Client, right: Callable[[RunView], bool]) -> RunView:
    """The last run, once it is as expected: events take a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        view = runs(client)[-1]
        if right(view):
            return view
        time.sleep(0.02)
    raise AssertionError(view)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


def test_the_monitor_sees_what_the_result_reports(executor: Executor) -> None:
    result = executor.run(PROGRAM, X, **HOW, title="the run")
    view = until(executor.client, lambda v: v.state == FINISHED and v.done == v.tasks)
    assert view.title == "the run"
    assert view.tasks == result.tasks
    assert {p: n for p, n in result.transfers.pairs.items() if -1 not in p} == {
        (p.source, p.destination): p.measured for p in view.pairs
    }
    assert result.view is not None
    assert result.view.pairs == view.pairs
    steps = {o.name: o.done for o in view.operators}
    assert steps == {o.name: o.done for o in result.view.operators}
    assert sum(steps.values()) == sum(o.calls for o in result.stages.values())
    assert [layer.name for layer in view.layers] == ["layer0", "layer1"]
    assert all(layer.share == 1.0 for layer in view.layers)
    assert sum(d.done for d in view.devices) == result.tasks
    assert all(d.segments and d.process for d in view.devices)


def test_bytes_memory_and_levels_of_an_encrypted_run_are_beside_the_plan() -> None:
    client = someone()
    with Executor.local(workers=2, processes=False, protocol="tcp://") as executor:
        executor.prepare(client.params, client.keys, STORE)
        view = executor.run(PROGRAM, client.inputs, stage_work=WORK, target_seconds=0.3).view
    assert view is not None
    assert view.pairs
    assert all(p.measured == p.planned for p in view.pairs)
    assert view.precision_bits == 30
    assert all(d.planned_peak and d.peak for d in view.devices)
    assert {c.high for c in view.columns} <= set(range(client.params.max_level + 1))


def test_a_run_is_a_span_of_dask_that_is_forgotten(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = executor.client.cluster.scheduler
    known = scheduler.extensions["spans"]
    executor.run(PROGRAM, X, **HOW, title="spanned")
    (span,) = known.find_by_tags("spanned")
    assert len(span.groups) >= 10
    monkeypatch.setattr(monitor, "SPAN_SECONDS", 0.0)
    until(executor.client, lambda v: v.state == FINISHED)
    deadline = time.monotonic() + 10
    while known.root_spans and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not known.root_spans
    assert not list(known.find_by_tags("spanned"))
    assert known.spans  # workers may still tell of them


def test_spans_of_files_that_were_sent_are_forgotten_too(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, keys = executor.client, [f"send-file-{uuid.uuid4().hex}" for _ in range(2)]
    sent = client.scatter({keys[0]: np.ones(3)}, direct=True, hash=False)
    assert client.submit(np.sum, sent[keys[0]], key=keys[1], pure=False).result() == 3.0
    sent.clear()
    known = client.cluster.scheduler.extensions["spans"]
    assert any(group.name == "send-file" for span in known.root_spans for group in span.groups)
    monkeypatch.setattr(monitor, "SPAN_SECONDS", 0.0)
    executor.run(PROGRAM, X, **HOW)
    deadline = time.monotonic() + 10
    while known.root_spans and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not known.root_spans


def test_a_task_that_fails_is_told_with_words_of_ours(executor: Executor) -> None:
    with pytest.raises(ClusterError):
        executor.run(PROGRAM, X, **{**HOW, "interpreter": failing})
    view = until(executor.client, lambda v: v.state == FAILED and len(v.trouble) >= 2)
    told = " ".join(f"{t.where} {t.what}" for t in view.trouble)
    assert "norm/square" in told
    assert "LevelError: no level is left" in told
    assert "failed on" in view.message


def test_several_clients_share_one_monitor_and_a_client_that_goes_ends_its_runs(
    executor: Executor,
) -> None:
    address = executor.client.scheduler.address
    with Executor.connect(address, 2) as other:
        other.prepare(store=STORE)
        other.run(PROGRAM, X, **HOW, title="other")
        executor.run(PROGRAM, X, **HOW, title="mine")
        until(executor.client, lambda v: v.state == FINISHED)
        assert [v.title for v in runs(executor.client)[-2:]] == ["other", "mine"]
        brief = {**make_run(100, run="gone").to_dict(), "client": other.client.id}
        other.client.run_on_scheduler(begin_run, brief)
        assert runs(executor.client)[-1].state == RUNNING
    view = until(executor.client, lambda v: v.state == CANCELLED)
    assert "client" in view.message


def test_ended_runs_are_kept_for_a_while_and_counted_for_ever(executor: Executor) -> None:
    for i in range(KEPT + 5):
        brief = make_run(100, workers=1, layers=1, run=f"many{i}").to_dict()
        executor.client.run_on_scheduler(begin_run, brief)
        step = [[0, time.time(), time.time()]]
        done = {"run": f"many{i}", "task": 0, "device": 0, "steps": step, "received": []}
        executor.client.log_event(TASKS, done)
        executor.client.log_event(RUNS, {"run": f"many{i}", "state": FINISHED, "message": ""})
        until(executor.client, lambda v: v.state == FINISHED)
    assert len(runs(executor.client)) <= KEPT + 1
    lines = fetch(executor.dashboard_link.replace("/status", "/metrics")).splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if line.startswith("aegis_"))
    assert float(metrics['aegis_runs_total{state="finished"}']) >= KEPT + 5
    label = 'aegis_operator_tasks_total{operator="attention: query, key, value"}'
    assert float(metrics[label]) >= KEPT + 5


def test_events_of_strangers_do_no_harm(executor: Executor) -> None:
    executor.client.log_event(TASKS, {"run": "unknown", "task": 0})
    executor.client.log_event(TASKS, {"nothing": 1})
    executor.client.log_event(RUNS, {"run": "unknown", "state": "x", "message": ""})
    executor.run(PROGRAM, X, **HOW)
    until(executor.client, lambda v: v.state == FINISHED and v.done == v.tasks)


def test_the_page_is_in_the_menu_of_dasks_pages(executor: Executor) -> None:
    base = executor.dashboard_link.removesuffix("/status")
    for page in ("status", "workers", "aegis"):
        assert 'href="aegis"' in fetch(f"{base}/{page}")


def test_prometheus_finds_the_workers_and_their_metrics(executor: Executor) -> None:
    executor.run(PROGRAM, X, **HOW)
    base = executor.dashboard_link.removesuffix("/status")
    (group,) = json.loads(fetch(f"{base}/aegis-targets"))
    assert len(group["targets"]) == 2
    for target in group["targets"]:
        text = fetch(f"http://{target}/metrics")
        assert 'aegis_worker_operations_total{operation="rotate"' in text


def test_a_brief_is_small_for_very_many_tasks() -> None:
    program = chain(200, rows=100)
    plan = make_plan(program, 4, [100.0] * len(program.stages), target_seconds=0.01)
    assert len(plan.tasks) > 5_000
    brief = make_brief(program, plan, run="r", addresses="abcd", names="0123")
    assert len(json.dumps(brief.to_dict())) < 200 * len(program.stages)
    assert sum(brief.worker_tasks) == sum(t.kind != "input" for t in plan.tasks)


def test_a_scheduler_can_have_the_page_before_the_first_client() -> None:
    with LocalCluster(
        n_workers=0,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"preload": "aegis_dask.dashboard.preload"},
    ) as cluster:
        port = cluster.scheduler.http_server.port
        assert 'href="aegis"' in fetch(f"http://127.0.0.1:{port}/aegis")
        with Client(cluster, set_as_default=False) as client:
            client.register_plugin(Monitor(), name=NAME)  # as an executor does
            assert client.run_on_scheduler(view_runs, None) == []


def test_dasks_own_pages_group_by_layer_and_operator(executor: Executor) -> None:
    executor.run(PROGRAM, X, **HOW)
    prefixes = executor.client.run_on_scheduler(
        lambda dask_scheduler: set(dask_scheduler.task_prefixes)
    )
    assert {"layer0-attention-giant", "layer1-norm-square"} <= prefixes
