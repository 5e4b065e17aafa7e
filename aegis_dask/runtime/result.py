"""What a run gives back: outputs, and where the time went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aegis_dask.dashboard.view import RunView
from aegis_dask.placement.tasks import Task
from aegis_dask.placement.traffic import Transfers, format_bytes
from aegis_dask.program.graph import Program
from aegis_dask.runtime.measure import WorkerReport


@dataclass(frozen=True)
class Span:
    """A task on the timeline: seconds since the run began, by the clock of its worker."""

    worker: int
    task: int
    name: str
    kind: str
    start: float
    stop: float


@dataclass(frozen=True)
class Operator:
    """All calls of one operation, or all tasks of one stage."""

    calls: int
    seconds: float


@dataclass(frozen=True)
class WorkerSummary:
    """One worker in a run."""

    address: str
    name: str
    tasks: int
    busy_seconds: float
    peak_memory: int
    device_memory: int = 0


@dataclass(frozen=True)
class Scheduling:
    """Where the time of the workers went; the parts add up to ``wall * workers``.

    Attributes
    ----------
    wall
        Seconds from submission to the last result.
    busy
        In tasks, summed over workers.
    dispatch
        Between the moment when a task could have run (its worker idle, its arguments computed) and
        its start: Dask's scheduling, and moving the arguments.
    waiting
        Idle because nothing could run: the program's dependencies and uneven shares.
    mean_gap
        `dispatch` per task.
    """

    workers: int
    wall: float
    busy: float
    dispatch: float
    waiting: float
    mean_gap: float

    @property
    def idle_share(self) -> float:
        """Share of the workers' time that was not spent in tasks."""
        return self._share(self.wall * self.workers - self.busy)

    @property
    def dispatch_share(self) -> float:
        """Share of the workers' time that went into scheduling and moving data."""
        return self._share(self.dispatch)

    @property
    def waiting_share(self) -> float:
        """Share of the workers' time without anything to do."""
        return self._share(self.waiting)

    def _share(self, seconds: float) -> float:
        whole = self.wall * self.workers
        return min(1.0, max(0.0, seconds / whole)) if whole else 0.0


@dataclass(frozen=True)
class Result:
    """Outputs and measurements of a run.

    Attributes
    ----------
    outputs
        Values by name, as the interpreter represents them.
    seconds
        From submission to the last result.
    operations
        Operation -> calls and seconds, summed over workers.
    stages
        Stage -> tasks and seconds, summed over workers.
    transfers
        Bytes between workers.
    tasks
        Number of tasks that ran.
    scheduling
        Where the time of the workers went.
    workers
        Each worker.
    timeline
        Every task, by start.
    dashboard
        Address of Dask's dashboard, or "".
    about
        Parameters and program, for reports.
    resumed
        How often the run was taken up again after the loss of a worker; times, tasks and transfers
        are those since the last.
    view
        What there is to see of the run: the panels of reports, and records, are made from it.
    """

    outputs: dict[str, Any]
    seconds: float
    operations: dict[str, Operator]
    stages: dict[str, Operator]
    transfers: Transfers
    tasks: int
    scheduling: Scheduling
    workers: list[WorkerSummary]
    timeline: list[Span]
    dashboard: str = ""
    about: dict[str, str] = field(default_factory=dict)
    resumed: int = 0
    view: RunView | None = None

    @property
    def scheduling_share(self) -> float:
        """Share of the workers' time that went into scheduling and moving data."""
        return self.scheduling.dispatch_share

    @property
    def peak_memory(self) -> int:
        """Largest peak of a worker, in bytes."""
        return max((w.peak_memory for w in self.workers), default=0)

    @property
    def device_memory(self) -> int:
        """The most that a worker has taken from its GPU, in bytes; 0 without GPUs."""
        return max((w.device_memory for w in self.workers), default=0)

    @property
    def memory_text(self) -> str:
        """Both in words."""
        gpu = f", {format_bytes(self.device_memory)} of a GPU's" if self.device_memory else ""
        return format_bytes(self.peak_memory) + gpu

    def __repr__(self) -> str:
        return (
            f"Result({', '.join(self.outputs)}: {self.tasks} tasks on {len(self.workers)} workers "
            f"in {self.seconds:.2f} s, {self.scheduling_share:.0%} of it scheduling)"
        )


def make_result(
    program: Program,
    tasks: Sequence[Task],
    addresses: Sequence[str],
    names: Sequence[str],
    reports: Mapping[str, WorkerReport],
    *,
    outputs: dict[str, Any],
    transfers: Transfers,
    begin: float,
    seconds: float,
    dashboard: str,
    about: dict[str, str],
    view: RunView | None = None,
) -> Result:
    """Return the result of a run from what its workers, of these addresses and names, report."""
    timeline = make_timeline(program, tasks, addresses, reports, begin)
    workers = [
        WorkerSummary(
            address,
            name,
            len({r.task for r in reports[address].records}),
            sum(r.seconds for r in reports[address].records),
            reports[address].peak_memory,
            reports[address].device_memory,
        )
        for address, name in zip(addresses, names, strict=True)
    ]
    return Result(
        outputs=outputs,
        seconds=seconds,
        operations=sum_operations(reports),
        stages=sum_stages(program, timeline),
        transfers=transfers,
        tasks=len({span.task for span in timeline}),
        scheduling=measure_scheduling(tasks, timeline, len(addresses), seconds),
        workers=workers,
        timeline=timeline,
        dashboard=dashboard,
        about=about,
        view=view,
    )


def make_timeline(
    program: Program,
    tasks: Sequence[Task],
    addresses: Sequence[str],
    reports: Mapping[str, WorkerReport],
    begin: float,
) -> list[Span]:
    """Return the tasks that ran, by start."""
    number = {address: i for i, address in enumerate(addresses)}
    spans = [
        Span(
            number[address],
            r.task,
            program.stages[r.stage].name,
            r.kind,
            r.start - begin,
            r.stop - begin,
        )
        for address, report in reports.items()
        for r in report.records
    ]
    return sorted(spans, key=lambda s: (s.start, s.task))


def measure_scheduling(
    tasks: Sequence[Task], timeline: Sequence[Span], workers: int, wall: float
) -> Scheduling:
    """Return where the time of the workers went."""
    stops = {s.task: s.stop for s in timeline}
    last = [0.0] * workers
    dispatch = 0.0
    for span in timeline:
        sources = (stops.get(i, 0.0) for i in tasks[span.task].sources)
        possible = max([last[span.worker], *sources])
        dispatch += max(0.0, span.start - possible)  # clocks of hosts may differ
        last[span.worker] = max(last[span.worker], span.stop)
    busy = sum(s.stop - s.start for s in timeline)
    waiting = max(0.0, wall * workers - busy - dispatch)
    return Scheduling(workers, wall, busy, dispatch, waiting, dispatch / max(1, len(stops)))


def sum_operations(reports: Mapping[str, WorkerReport]) -> dict[str, Operator]:
    """Return the operations by time, the longest first."""
    calls: defaultdict[str, int] = defaultdict(int)
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in reports.values():
        for record in report.records:
            for name, (count, time) in record.operations.items():
                calls[name] += count
                seconds[name] += time
    return {n: Operator(calls[n], seconds[n]) for n in sorted(calls, key=lambda n: -seconds[n])}


def sum_stages(program: Program, timeline: Sequence[Span]) -> dict[str, Operator]:
    """Return the stages in the order of the program."""
    out = {stage.name: Operator(0, 0.0) for stage in program.stages}
    for span in timeline:
        old = out[span.name]
        out[span.name] = Operator(old.calls + 1, old.seconds + span.stop - span.start)
    return {name: total for name, total in out.items() if total.calls}
