"""A run that never was: its brief, and the events of its tasks, as workers would log them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from aegis_dask.circuits.operators import operator_of
from aegis_dask.dashboard.brief import Brief, StageBrief, brief_from_dict
from aegis_dask.dashboard.monitor import TASKS, monitor_of
from aegis_dask.dashboard.view import RUNNING

LAYER = (  # name, share of the tasks, seconds of a task, highest and lowest level, bootstraps
    ("attention/query", 12, 0.05, 13, 12, 0),
    ("attention/key", 12, 0.05, 13, 12, 0),
    ("attention/value", 12, 0.05, 13, 12, 0),
    ("attention/distance", 6, 0.04, 12, 11, 0),
    ("attention-refresh", 4, 0.30, 2, 13, 24),
    ("attention/group-0", 20, 0.06, 13, 4, 0),
    ("attention/divide", 4, 0.04, 4, 2, 0),
    ("output/giant", 8, 0.05, 3, 2, 0),
    ("norm1/variance-refresh", 4, 0.30, 2, 13, 12),
    ("norm1/scale", 3, 0.05, 13, 5, 0),
    ("feed-forward/gelu", 16, 0.09, 13, 6, 0),
    ("feed-forward/down", 12, 0.05, 6, 5, 0),
    ("norm2/scale", 3, 0.05, 5, 2, 0),
    ("final-refresh", 4, 0.30, 2, 13, 12),
)


def make_run(
    tasks: int, workers: int = 4, layers: int = 12, run: str = "5e7b1c2d", title: str = ""
) -> Brief:
    """A model of many layers, about so many tasks."""
    operators: dict[str, int] = {}
    stages = []
    whole = sum(part[1] for part in LAYER)
    for layer in range(layers):
        for name, share, seconds, high, low, refreshes in LAYER:
            full = f"layer{layer}/{name}"
            count = max(1, round(tasks * share / whole / layers))
            operator = operators.setdefault(operator_of(full), len(operators))
            stages.append(
                StageBrief(
                    full, layer, operator, count, 0, count * seconds,
                    high if refreshes else low, low if refreshes else high, refreshes,
                )
            )  # fmt: skip
    total = sum(s.tasks for s in stages)
    owned = [total // workers + (i < total % workers) for i in range(workers)]
    pairs = [(a, b, 40_000_000 * (1 + (a + b) % 3)) for a in range(workers) for b in range(workers)]
    pairs = [p for p in pairs if p[0] != p[1]]
    return Brief(
        run=run,
        title=title,
        parameters="n16-d40",
        client="",
        addresses=tuple(f"tcp://10.0.0.{i + 1}:4000" for i in range(workers)),
        names=tuple(str(i) for i in range(workers)),
        layers=tuple(f"layer{i}" for i in range(layers)),
        operators=tuple(operators),
        stages=tuple(stages),
        worker_tasks=tuple(owned),
        pairs=tuple(pairs),
        peaks=tuple(1_900_000_000 + 30_000_000 * i for i in range(workers)),
        seconds=1.02 * sum(s.work for s in stages) / workers,
        precision_bits=24.0,
    )


def make_events(brief: Brief, begin: float, share: float = 1.0) -> Iterator[dict[str, Any]]:
    """The events of the first tasks: each worker takes the next, lengths vary by a fifth."""
    rng = np.random.default_rng(5)
    workers = len(brief.addresses)
    free = [begin] * workers
    total = sum(s.tasks for s in brief.stages)
    number = 0
    for index, stage in enumerate(brief.stages):
        first = max(free)  # stages wait for each other, more or less
        for _ in range(stage.tasks):
            if number >= share * total:
                return
            worker = number % workers
            seconds = stage.work / stage.tasks * rng.uniform(0.8, 1.2)
            if rng.random() < 1e-4:
                seconds *= 6
            start = max(free[worker] + 0.001, first - 0.05)
            free[worker] = start + seconds
            received = [
                (a, count * workers // total) for a, b, count in brief.pairs or () if b == worker
            ]
            yield {
                "run": brief.run,
                "task": number,
                "device": worker,
                "steps": [[index, start, free[worker]]],
                "received": received,
            }
            number += 1


def feed(
    brief: dict[str, Any], share: float, state: str, message: str, dask_scheduler: Any
) -> float:
    """Let the monitor of a scheduler believe in a run that has ended, or goes on.

    Returns the seconds that its events took the monitor.
    """
    monitor = monitor_of(dask_scheduler)
    assert monitor is not None
    known = brief_from_dict(brief)
    events = list(make_events(known, 0.0, share))
    spent = max((event["steps"][-1][2] for event in events), default=0.0)
    monitor.begin(brief)
    log = monitor.runs[known.run]
    log.begin -= spent  # it all has happened by now
    for event in events:
        event["steps"] = [(i, log.begin + a, log.begin + b) for i, a, b in event["steps"]]
    begin = time.perf_counter()
    for event in events:
        monitor.log_event(TASKS, event)
    monitor.settle()
    taken = time.perf_counter() - begin
    for i, peak in enumerate(known.peaks or ()):
        for part in (0.93, 0.4):
            log.note_memory(i, int(part * peak), int(3 * peak), 16_000_000_000)
    if state != RUNNING:
        monitor.end(known.run, state, message)
    return taken
