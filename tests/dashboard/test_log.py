"""What is known of a run: progress, times, bytes, and memory that does not grow with it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from aegis_dask.dashboard.brief import Brief, StageBrief
from aegis_dask.dashboard.log import COLUMNS, LEAST, SEGMENTS, SLOWEST, RunLog, Timeline
from aegis_dask.dashboard.view import CANCELLED, FAILED, RUNNING
from tests.dashboard.synthetic import make_events, make_run

TWO = Brief(
    run="r",
    title="",
    parameters="p",
    client="c",
    addresses=("a", "b"),
    names=("0", "1"),
    layers=("layer0", "layer1"),
    operators=("rotate", "bootstrapping"),
    stages=(
        StageBrief("layer0/rotate", 0, 0, 4, 0, 4.0, 3, 5, 0),
        StageBrief("layer1/x-refresh", 1, 1, 2, 0, 12.0, 2, 9, 6),
    ),
    worker_tasks=(3, 3),
    pairs=((0, 1, 100),),
    peaks=(10, 20),
    seconds=8.0,
)


def event(
    task: int, device: int, stage: int, start: float, stop: float, *received: Any
) -> dict[str, Any]:
    steps = [[stage, start, stop]]
    return {"task": task, "device": device, "steps": steps, "received": list(received)}


def test_progress_is_weighed_by_the_estimated_work() -> None:
    log = RunLog(TWO, begin=100.0)
    for i in range(4):
        log.task(event(i, i % 2, 0, 100.0 + i // 2, 101.0 + i // 2))
    log.task(event(4, 0, 1, 102.0, 105.0, [1, 60]))
    view = log.view(now=105.0)
    assert view.state == RUNNING
    assert (view.done, view.tasks) == (5, 6)
    assert view.share == pytest.approx(10 / 16)
    assert view.remaining == pytest.approx(3.0)  # 10 s of work in 5 s, 6 s are left
    assert (view.refreshed, view.refreshes) == (3, 6)
    first, second = view.layers
    assert (first.share, first.remaining) == (1.0, 0.0)
    assert (first.begin, first.end) == (0.0, 2.0)
    assert second.share == pytest.approx(0.5)
    assert second.remaining == pytest.approx(3.0)
    assert [(p.source, p.destination, p.measured, p.planned) for p in view.pairs] == [
        (0, 1, 0, 100),
        (1, 0, 60, 0),
    ]
    assert view.slowest[0].task == 4
    assert view.slowest[0].stage == "layer1/x-refresh"
    assert [o.seconds for o in view.operators] == [4.0, 3.0]
    assert view.columns[1].refreshed_to == 9


def test_a_run_that_is_taken_up_again_begins_with_what_is_done() -> None:
    stages = (replace(TWO.stages[0], done=4), TWO.stages[1])
    log = RunLog(replace(TWO, stages=stages, skipped=4, resumed=1), begin=0.0)
    view = log.view(now=1.0)
    assert (view.done, view.resumed) == (4, 1)
    assert view.layers[0].share == 1.0
    assert view.share == pytest.approx(0.25)
    assert view.remaining is None  # nothing has been done at this pace yet
    log.task(event(4, 0, 1, 0.0, 3.0))
    assert log.view(now=3.0).remaining == pytest.approx(3.0)


def test_what_is_said_first_of_the_end_counts() -> None:
    log = RunLog(TWO, begin=0.0)
    log.end(5.0, FAILED, "a reason")
    log.end(6.0, CANCELLED)
    view = log.view(now=100.0)
    assert (view.state, view.message) == (FAILED, "a reason")
    assert (view.seconds, view.remaining) == (5.0, None)


def test_a_short_timeline_is_exact_and_a_long_one_bounded() -> None:
    timeline = Timeline(most=50)
    for i in range(40):
        timeline.add(float(i), i + 0.5, i % 3)
    assert [s[:3] for s in timeline.segments[1:]] == [[float(i), i + 0.5, i % 3] for i in range(40)]
    for i in range(40, 100_000):
        timeline.add(float(i), i + 0.5, i % 3)
        assert len(timeline.segments) <= 2 * timeline.most + 1
    segments = timeline.segments[1:]
    assert sum(s[3] for s in segments) == pytest.approx(50_000)  # no time is lost
    assert segments[0][0] == 0.0
    assert segments[-1][1] == 99_999.5
    assert all(a[1] <= b[0] for a, b in pairwise(segments))
    assert all(s[3] <= s[1] - s[0] for s in segments)


def test_tasks_of_one_operator_in_a_row_are_one_segment() -> None:
    timeline = Timeline(most=50)
    for i in range(100):
        timeline.add(0.1 * i, 0.1 * i + 0.095, 2)
    assert len(timeline.segments) == 2
    assert timeline.segments[1] == [0.0, pytest.approx(9.995), 2, pytest.approx(9.5)]


def test_a_run_of_very_many_tasks_takes_bounded_memory_and_a_small_page() -> None:
    brief = make_run(30_000, workers=64)
    log = RunLog(brief, 0.0)
    for e in make_events(brief, 0.0):
        log.task(e)
    view = log.view(1e4)
    assert view.done == view.tasks == sum(s.tasks for s in brief.stages)
    assert all(len(d.segments) <= 2 * max(LEAST, SEGMENTS // 64) for d in view.devices)
    assert len(view.columns) <= COLUMNS + len(brief.layers)
    assert len(view.slowest) == SLOWEST
    assert view.slowest == tuple(sorted(view.slowest, key=lambda s: -s.seconds))
    assert len(view.to_json()) < 2_000_000
