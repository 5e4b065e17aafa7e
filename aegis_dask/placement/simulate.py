"""Discrete-event simulation of a plan: when every task would run, and what would wait for what.

It follows what Dask does. A worker runs one task at a time, of those that are ready the one of the
lowest rank. A task's results are asked for when all tasks that it needs have ended; a device
receives one result at a time over its link, and sends one at a time. A result stays where it
was made until the last task that needs it has it, and where it was fetched until the last task
there has ended.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from aegis_dask.errors import ClusterError
from aegis_dask.placement.devices import Machine
from aegis_dask.placement.predict import result_bytes, working_bytes
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program


@dataclass(frozen=True)
class Interval:
    """A task on a device, in seconds since the start."""

    task: int
    device: int
    start: float
    stop: float


@dataclass(frozen=True)
class Simulation:
    """What a plan would take.

    Attributes
    ----------
    machine, devices
        Where.
    makespan
        Seconds from the start to the last result.
    work
        Seconds of all tasks together.
    busy
        Seconds in tasks, of every device.
    exposed
        Seconds in which a device had nothing to run and waited for a result on its way.
    received
        Bytes that each device received from the others.
    peak_bytes
        Most bytes of results held at a time, of every device, those inside of tasks among them.
    peak_tasks
        Task whose result made it that much.
    timeline
        Every task, in the order of their starts.
    """

    machine: Machine
    devices: int
    makespan: float
    work: float
    busy: tuple[float, ...]
    exposed: tuple[float, ...]
    received: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    peak_tasks: tuple[int, ...]
    timeline: tuple[Interval, ...]

    @property
    def speedup(self) -> float:
        """Over all tasks one after the other on one device, without Dask."""
        return self.work / self.makespan if self.makespan else 1.0

    @property
    def efficiency(self) -> float:
        """`speedup` per device."""
        return self.speedup / self.devices


def simulate(
    program: Program, plan: Plan, node_bytes: Sequence[int], machine: Machine
) -> Simulation:
    """Simulate a plan on a machine.

    Parameters
    ----------
    program, plan
        The program, and its tasks; `Task.seconds` are those of a device of speed 1.
    node_bytes
        Size of every node's value.
    machine
        Devices and links.

    Raises
    ------
    ClusterError
        If tasks wait for each other.
    """
    return _Simulator(program, plan, node_bytes, machine).run()


class _Simulator:
    def __init__(
        self, program: Program, plan: Plan, node_bytes: Sequence[int], machine: Machine
    ) -> None:
        self.program, self.plan, self.machine = program, plan, machine
        self.node_bytes = node_bytes
        self.tasks = plan.tasks
        self.bytes = [result_bytes(program, t, node_bytes) for t in self.tasks]
        self.working = [working_bytes(program, t, node_bytes) for t in self.tasks]
        self.consumers: list[list[int]] = [[] for _ in self.tasks]
        for t in self.tasks:
            for i in t.sources:
                self.consumers[i].append(t.index)
        final = {i for pieces in plan.outputs.values() for i in pieces}
        # How many tasks still need a result on a device; outputs are needed to the end.
        self.needed: Counter[tuple[int, int]] = Counter(
            (i, t.owner) for t in self.tasks for i in t.sources
        )
        self.needed.update((i, self.tasks[i].owner) for i in final)
        # A result is also needed where it was made until every other device has fetched it.
        self.fetches: defaultdict[int, set[int]] = defaultdict(set)
        for t in self.tasks:
            for i in t.sources:
                if self.tasks[i].owner != t.owner:
                    self.fetches[i].add(t.owner)
        for i, devices in self.fetches.items():
            self.needed[i, self.tasks[i].owner] += len(devices)

        n = plan.workers
        self.waiting = [len(set(t.sources)) for t in self.tasks]
        self.missing = [0] * len(self.tasks)  # results on their way
        self.ready: list[list[tuple[float, int]]] = [[] for _ in range(n)]
        self.running: list[int | None] = [None] * n
        self.exposed_since: list[float | None] = [None] * n
        self.on_way = [0] * n
        self.receives, self.sends = [0.0] * n, [0.0] * n  # when the link is free
        self.held, self.peak, self.peak_at = [0] * n, [0] * n, [0] * n
        self.busy, self.exposed, self.received = [0.0] * n, [0.0] * n, [0] * n
        self.there: set[tuple[int, int]] = set()  # (result, device), on the way or there
        self.expecting: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.events: list[tuple[float, int, str, int, int]] = []
        self.timeline: list[Interval] = []
        self.count = 0

    def run(self) -> Simulation:
        for t in self.tasks:
            if not t.sources:
                self.push(0.0, "assigned", t.index, t.owner)
        now = 0.0
        while self.events:
            now, _, what, index, device = heapq.heappop(self.events)
            getattr(self, what)(now, index, device)
            self.watch(now, device)
        if len(self.timeline) < len(self.tasks):
            raise ClusterError(
                f"{len(self.tasks) - len(self.timeline)} of {len(self.tasks)} tasks wait for each "
                "other; the plan is wrong"
            )
        ends = [i.stop for i in self.timeline]
        return Simulation(
            self.machine,
            self.plan.workers,
            max(ends, default=0.0),
            sum(
                p.task.seconds / self.machine.device.speed
                for t in self.tasks
                for p in t.steps
                if p.task.kind in ("stage", "round")
            ),
            tuple(self.busy),
            tuple(self.exposed),
            tuple(self.received),
            tuple(self.peak),
            tuple(self.peak_at),
            tuple(sorted(self.timeline, key=lambda i: (i.start, i.task))),
        )

    def push(self, time: float, what: str, index: int, device: int) -> None:
        self.count += 1  # events of one time happen in the order in which they were found
        heapq.heappush(self.events, (time, self.count, what, index, device))

    def seconds(self, index: int) -> float:
        """Return what a task takes: its work, and putting its arguments together."""
        joined = 0.0
        for part in self.tasks[index].steps:
            task = part.task
            if task.kind != "stage" or all(len(a.takes) < 2 for a in task.arguments):
                continue
            stage = self.program.stages[task.stage]
            whole = self.program.needed_whole(stage)
            rows = 1.0 if task.rows is None else (task.rows[1] - task.rows[0]) / (stage.over or 1)
            for argument in task.arguments:
                if len(argument.takes) > 1:
                    share = 1.0 if whole[argument.node] else rows
                    joined += share * self.node_bytes[argument.node]
        return self.worked(index) + 2 * joined / self.machine.device.bytes_per_second

    def worked(self, index: int) -> float:
        task, device = self.tasks[index], self.machine.device
        if task.parts:
            moved = sum(
                2 * result_bytes(self.program, p.task, self.node_bytes)
                for p in task.parts
                if p.task.kind != "stage" and not p.task.seconds
            )
            return task.seconds / device.speed + moved / device.bytes_per_second
        if task.kind == "stage" or task.seconds:
            return task.seconds / device.speed
        if task.kind in ("input", "pick"):
            return 0.0
        if task.kind in ("share", "limbs"):
            return 2 * self.bytes[index] / device.bytes_per_second
        read = sum(self.bytes[i] for i in task.sources)
        return (read + self.bytes[index]) / device.bytes_per_second

    def watch(self, now: float, device: int) -> None:
        """Note when a device begins to wait for data, and when it does no longer."""
        idle = self.running[device] is None and not self.ready[device]
        since = self.exposed_since[device]
        if idle and self.on_way[device]:
            if since is None:
                self.exposed_since[device] = now
        elif since is not None:
            self.exposed[device] += now - since
            self.exposed_since[device] = None

    # -- events ------------------------------------------------------------------------------

    def assigned(self, now: float, index: int, device: int) -> None:
        """All that a task needs is somewhere: what is elsewhere is fetched."""
        for i in dict.fromkeys(self.tasks[index].sources):
            if self.tasks[i].owner == device or (i, device) in self.there:
                if (i, device) in self.expecting:
                    self.expecting[i, device].append(index)
                    self.missing[index] += 1
                continue
            self.there.add((i, device))
            self.expecting[i, device].append(index)
            self.missing[index] += 1
            source = self.tasks[i].owner
            link = self.machine.link(source, device)
            start = max(now + link.latency_seconds, self.receives[device], self.sends[source])
            stop = start + self.bytes[i] / link.bytes_per_second
            self.receives[device] = self.sends[source] = stop
            self.received[device] += self.bytes[i]
            self.on_way[device] += 1
            self.push(stop, "arrived", i, device)
        if not self.missing[index]:
            self.become_ready(now, index, device)

    def arrived(self, now: float, index: int, device: int) -> None:
        """Take note of a result that is there."""
        self.on_way[device] -= 1
        self.hold(device, index)
        self.let_go(index, self.tasks[index].owner)
        for task in self.expecting.pop((index, device)):
            self.missing[task] -= 1
            if not self.missing[task]:
                self.become_ready(now, task, device)

    def become_ready(self, now: float, index: int, device: int) -> None:
        heapq.heappush(self.ready[device], (self.tasks[index].rank, index))
        self.start_next(now, device)

    def start_next(self, now: float, device: int) -> None:
        if self.running[device] is not None or not self.ready[device]:
            return
        _, index = heapq.heappop(self.ready[device])
        self.running[device] = index
        spent = self.seconds(index)
        extra = 0.0 if self.tasks[index].kind == "input" else self.machine.task_seconds
        self.timeline.append(Interval(index, device, now, now + spent))
        self.busy[device] += spent
        self.push(now + spent + extra, "ended", index, device)

    def ended(self, now: float, index: int, device: int) -> None:
        """Take note of the end of a task."""
        self.running[device] = None
        self.hold(device, index, self.working[index])
        if not self.needed[index, device]:
            self.held[device] -= self.bytes[index]
        for i in dict.fromkeys(self.tasks[index].sources):
            self.let_go(i, device)
        for c in dict.fromkeys(self.consumers[index]):
            self.waiting[c] -= 1
            if not self.waiting[c]:
                hop = 0.0 if self.tasks[index].kind == "input" else self.machine.hop_seconds
                self.push(now + hop, "assigned", c, self.tasks[c].owner)
        self.start_next(now, device)

    # -- memory ------------------------------------------------------------------------------

    def hold(self, device: int, index: int, most: int = 0) -> None:
        """Note that a result is there; `most` is what was held to make it."""
        peak = self.held[device] + max(most, self.bytes[index])
        self.held[device] += self.bytes[index]
        if peak > self.peak[device]:
            self.peak[device], self.peak_at[device] = peak, index

    def let_go(self, index: int, device: int) -> None:
        self.needed[index, device] -= 1
        if not self.needed[index, device]:
            self.held[device] -= self.bytes[index]
