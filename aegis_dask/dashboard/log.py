"""A run as it goes: what is known of it, brought up to date by an event per finished task.

An event costs a constant time, and memory is bounded: a timeline with too many segments is drawn
half as fine from then on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from heapq import heappush, heapreplace
from itertools import groupby
from typing import Any

from aegis_dask.dashboard.brief import Brief
from aegis_dask.dashboard.view import (
    RUNNING,
    Column,
    Device,
    Layer,
    Operator,
    Pair,
    RunView,
    Segment,
    Slow,
    Trouble,
)

SEGMENTS = 2000
"""Most segments of all timelines of a run together, at least `LEAST` for each device."""
LEAST = 50
RESOLUTION = 0.01
"""Pauses of so many seconds are not drawn, in the beginning."""
SLOWEST = 10
TROUBLES = 20
COLUMNS = 240
"""Most columns of the drawing of levels."""
EARLY = 0.02
"""Share of the work before which the time to go is not told."""


class Timeline:
    """What a device did: segments ``[start, stop, operator, seconds in tasks]``, coarse if many."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.resolution = RESOLUTION
        self.segments: list[list[Any]] = [[-1e9, -1e9, -1, 0.0]]  # the first is none

    def add(self, start: float, stop: float, operator: int) -> None:
        """Note a task."""
        last = self.segments[-1]
        if operator == last[2] and start - last[1] < self.resolution:
            if stop > last[1]:
                last[1] = stop
            last[3] += stop - start
            return
        self.segments.append([start, stop, operator, stop - start])
        if len(self.segments) > 2 * self.most:
            self._coarsen()

    def _coarsen(self) -> None:
        """Put neighbours together, in bins that double until at most half of the room is taken."""
        first, *segments = self.segments
        end = max(s[1] for s in segments)
        self.resolution = max(2 * self.resolution, (end - segments[0][0]) / (2 * self.most))
        while len(segments) > self.most:
            segments = [_joined(list(group)) for _, group in groupby(segments, self._bin)]
            self.resolution *= 2
        self.segments = [first, *segments]

    def _bin(self, segment: list[Any]) -> float:
        return float(segment[0] // self.resolution)


def _joined(segments: list[list[Any]]) -> list[Any]:
    """Return one segment for several: the operator is the one that took the most time."""
    if len(segments) == 1:
        return segments[0]
    seconds: dict[int, float] = {}
    for _, _, operator, busy in segments:
        seconds[operator] = seconds.get(operator, 0.0) + busy
    most = max(seconds, key=lambda o: seconds[o])
    stop = max(s[1] for s in segments)
    return [segments[0][0], stop, most, min(sum(seconds.values()), stop - segments[0][0])]


class RunLog:
    """What is known of a run.

    Parameters
    ----------
    brief
        What was said of it before it began.
    begin
        Unix time of its beginning, by the clock of who keeps this.
    """

    def __init__(self, brief: Brief, begin: float) -> None:
        self.brief, self.begin = brief, begin
        self.state, self.message = RUNNING, ""
        self.ended: float | None = None
        self.done = [s.done for s in brief.stages]
        self.seconds = [0.0] * len(brief.stages)
        self.first: list[float | None] = [None] * len(brief.layers)
        self.last = [0.0] * len(brief.layers)
        self._layers = [s.layer for s in brief.stages]
        self._operators = [s.operator for s in brief.stages]
        workers = len(brief.addresses)
        most = max(LEAST, SEGMENTS // max(1, workers))
        self.timelines = [Timeline(most) for _ in range(workers)]
        self.worker_done, self.worker_seconds = [0] * workers, [0.0] * workers
        self.held, self.peaks, self.process = [0] * workers, [0] * workers, [0] * workers
        self.limits = [0] * workers
        self.bytes: dict[tuple[int, int], int] = {}
        self.slowest: list[tuple[float, int, int, int, float]] = []
        self.trouble: deque[Trouble] = deque(maxlen=TROUBLES)
        self.tasks_done = 0  # in this run, without those that an earlier one has done

    # -- events ------------------------------------------------------------------------------

    def task(self, event: Mapping[str, Any]) -> None:
        """Note a finished task: its device, its steps ``[stage, start, stop]``, what it received.

        Times are Unix times, by the clock of the worker.
        """
        worker: int = event["device"]
        timeline, begin = self.timelines[worker], self.begin
        spent = 0.0
        for stage, start, stop in event["steps"]:
            seconds = stop - start
            spent += seconds
            self.done[stage] += 1
            self.seconds[stage] += seconds
            timeline.add(start - begin, stop - begin, self._operators[stage])
            layer = self._layers[stage]
            if self.first[layer] is None:
                self.first[layer] = start - begin
            if stop - begin > self.last[layer]:
                self.last[layer] = stop - begin
            if len(self.slowest) < SLOWEST or seconds > self.slowest[0][0]:
                item = (seconds, event["task"], stage, worker, start - begin)
                if len(self.slowest) < SLOWEST:
                    heappush(self.slowest, item)
                else:
                    heapreplace(self.slowest, item)
        self.tasks_done += 1
        self.worker_done[worker] += 1
        self.worker_seconds[worker] += spent
        for source, count in event["received"]:
            pair = source, worker
            self.bytes[pair] = self.bytes.get(pair, 0) + count

    def note_memory(self, worker: int, held: int, process: int, limit: int) -> None:
        """Note what a worker holds now."""
        self.held[worker], self.process[worker], self.limits[worker] = held, process, limit
        if held > self.peaks[worker]:
            self.peaks[worker] = held

    def note_trouble(self, now: float, where: str, what: str) -> None:
        """Note that something went wrong, at a Unix time."""
        self.trouble.append(Trouble(max(0.0, now - self.begin), where, what))

    def end(self, now: float, state: str, message: str = "") -> None:
        """Note how it ended, at a Unix time; what is said first counts."""
        if self.ended is None:
            self.ended, self.state, self.message = now, state, message

    # -- what there is to see ----------------------------------------------------------------

    def view(self, now: float) -> RunView:
        """Return the run as it stands."""
        brief = self.brief
        seconds = max(0.0, (now if self.ended is None else self.ended) - self.begin)
        work = [s.work or 1e-6 * s.tasks for s in brief.stages]
        worked = [
            w * d / s.tasks if s.tasks else 0.0
            for w, d, s in zip(work, self.done, brief.stages, strict=True)
        ]
        before = sum(
            w * s.done / s.tasks for w, s in zip(work, brief.stages, strict=True) if s.done
        )
        whole = sum(work) or 1.0
        pace = (sum(worked) - before) / seconds if seconds > 0 else 0.0
        is_early = pace <= 0 or sum(worked) - before < EARLY * whole or self.ended is not None
        layers = self._view_layers(work, worked, None if is_early else pace)
        refreshes = sum(s.refreshes for s in brief.stages)
        refreshed = sum(
            s.refreshes * d // s.tasks
            for s, d in zip(brief.stages, self.done, strict=True)
            if s.tasks
        )
        tasks = sum(brief.worker_tasks)
        share = min(1.0, sum(worked) / whole)
        return RunView(
            run=brief.run,
            title=brief.title or f"run {brief.run}",
            parameters=brief.parameters,
            state=self.state,
            message=self.message,
            resumed=brief.resumed,
            date=self.begin,
            seconds=seconds,
            predicted_seconds=brief.seconds,
            remaining=None if is_early else (whole - sum(worked)) / pace,
            tasks=tasks,
            done=brief.skipped + self.tasks_done,
            share=share,
            refreshes=refreshes,
            refreshed=refreshed,
            precision_bits=brief.precision_bits,
            layers=layers,
            operators=self._view_operators(),
            columns=self._view_columns(),
            devices=self._view_devices(),
            pairs=self._view_pairs(),
            slowest=tuple(
                Slow(task, brief.stages[stage].name, worker, start, spent)
                for spent, task, stage, worker, start in sorted(self.slowest, reverse=True)
            ),
            trouble=tuple(self.trouble),
        )

    def _view_layers(
        self, work: list[float], worked: list[float], pace: float | None
    ) -> tuple[Layer, ...]:
        out = []
        ahead = 0.0  # work of this layer and those before that is left
        for i, name in enumerate(self.brief.layers):
            mine = [k for k, layer in enumerate(self._layers) if layer == i]
            tasks = sum(self.brief.stages[k].tasks for k in mine)
            done = sum(self.done[k] for k in mine)
            whole, part = sum(work[k] for k in mine), sum(worked[k] for k in mine)
            ahead += whole - part
            finished = done >= tasks
            remaining = 0.0 if finished else None if not pace else ahead / pace
            out.append(
                Layer(
                    name,
                    tasks,
                    done,
                    1.0 if finished else min(1.0, part / whole),
                    sum(self.seconds[k] for k in mine),
                    self.first[i],
                    None if self.first[i] is None else self.last[i],
                    remaining if self.ended is None else None,
                )
            )
        return tuple(out)

    def _view_operators(self) -> tuple[Operator, ...]:
        tasks, done = [0] * len(self.brief.operators), [0] * len(self.brief.operators)
        seconds = [0.0] * len(self.brief.operators)
        for k, operator in enumerate(self._operators):
            tasks[operator] += self.brief.stages[k].tasks
            done[operator] += self.done[k]
            seconds[operator] += self.seconds[k]
        return tuple(
            Operator(name, tasks[i], done[i], seconds[i])
            for i, name in enumerate(self.brief.operators)
        )

    def _view_columns(self) -> tuple[Column, ...]:
        """Return the levels of the stages that have tasks, so many to a column that all fit."""
        stages = [(s, d) for s, d in zip(self.brief.stages, self.done, strict=True) if s.tasks]
        together = -(-len(stages) // COLUMNS) or 1
        out = []
        for layer, found in groupby(stages, key=lambda item: item[0].layer):
            mine = list(found)
            for k in range(0, len(mine), together):
                some = mine[k : k + together]
                plain = [s for s, _ in some if not s.refreshes and s.low >= 0]
                fresh = [s for s, _ in some if s.refreshes]
                out.append(
                    Column(
                        name=some[0][0].name,
                        stages=len(some),
                        layer=layer,
                        share=sum(min(1.0, d / s.tasks) for s, d in some) / len(some),
                        low=_least(s.low for s in plain),
                        high=_most(s.high for s in plain),
                        refreshes=sum(s.refreshes for s in fresh),
                        refreshed_from=_least(s.low for s in fresh),
                        refreshed_to=_most(s.high for s in fresh),
                    )
                )
        return tuple(out)

    def _view_devices(self) -> tuple[Device, ...]:
        brief = self.brief
        return tuple(
            Device(
                brief.names[i],
                brief.addresses[i],
                brief.worker_tasks[i],
                self.worker_done[i],
                self.worker_seconds[i],
                self.held[i],
                self.peaks[i],
                None if brief.peaks is None else brief.peaks[i],
                self.process[i],
                self.limits[i],
                tuple(Segment(*s) for s in self.timelines[i].segments[1:]),
            )
            for i in range(len(brief.addresses))
        )

    def _view_pairs(self) -> tuple[Pair, ...]:
        planned = {(a, b): count for a, b, count in self.brief.pairs or ()}
        is_known = self.brief.pairs is not None
        return tuple(
            Pair(a, b, self.bytes.get((a, b), 0), planned.get((a, b), 0) if is_known else None)
            for a, b in sorted({*self.bytes, *planned})
        )


def _least(levels: Iterable[int]) -> int | None:
    return min(levels, default=None)


def _most(levels: Iterable[int]) -> int | None:
    return max(levels, default=None)
