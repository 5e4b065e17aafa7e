"""Metrics for Prometheus, served by Dask at ``/metrics`` of the scheduler and of every worker.

Dask serves the registry of the process, whatever is in it. One collector of ours is in it, and asks
the monitor of a scheduler and the meters of workers that live in this process: all of them where
workers are threads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aegis_dask.dashboard.view import RUNNING

if TYPE_CHECKING:
    from aegis_dask.dashboard.log import RunLog
    from aegis_dask.dashboard.monitor import Monitor

MOST_NAMES = 200
"""Operators, and pairs of workers, that are counted by name; further ones together."""
OTHER = "other"


class Totals:
    """What all runs together have done."""

    def __init__(self) -> None:
        self.tasks = 0
        self.refreshes = 0
        self.operator_tasks: Counter[str] = Counter()
        self.operator_seconds: defaultdict[str, float] = defaultdict(float)
        self.bytes: Counter[tuple[str, str]] = Counter()

    def add(self, run: RunLog) -> None:
        """Add what a run has done itself."""
        brief = run.brief
        self.tasks += run.tasks_done
        for stage, done, seconds in zip(brief.stages, run.done, run.seconds, strict=True):
            mine = done - stage.done
            if not mine:
                continue
            operator = _known(brief.operators[stage.operator], self.operator_tasks)
            self.operator_tasks[operator] += mine
            self.operator_seconds[operator] += seconds
            if stage.tasks:
                self.refreshes += stage.refreshes * mine // stage.tasks
        for (a, b), count in run.bytes.items():
            pair = brief.names[a], brief.names[b]
            if pair not in self.bytes and len(self.bytes) >= MOST_NAMES:
                pair = OTHER, OTHER
            self.bytes[pair] += count

    def copy(self) -> Totals:
        """Return totals that can be added to."""
        out = Totals()
        out.tasks, out.refreshes = self.tasks, self.refreshes
        out.operator_tasks = Counter(self.operator_tasks)
        out.operator_seconds = defaultdict(float, self.operator_seconds)
        out.bytes = Counter(self.bytes)
        return out


def _known(name: str, names: Mapping[str, Any]) -> str:
    return name if name in names or len(names) < MOST_NAMES else OTHER


class Meter:
    """What a worker has done, counted where it happens.

    Parameters
    ----------
    worker
        Dask's worker.
    """

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.operator_tasks: Counter[str] = Counter()
        self.operator_seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.received = 0
        self.failed = 0

    def step(self, operator: str, seconds: float, operations: Mapping[str, Any]) -> None:
        """Count a step of a task: the calls and seconds of its operations."""
        operator = _known(operator, self.operator_tasks)
        self.operator_tasks[operator] += 1
        self.operator_seconds[operator] += seconds
        for name, (calls, spent) in operations.items():
            self.calls[name] += calls
            self.seconds[name] += spent


class AegisCollector(Collector):
    """What Prometheus is told: of monitors and meters in this process."""

    def __init__(self) -> None:
        self.monitors: list[Monitor] = []
        self.meters: list[Meter] = []

    def describe(self) -> Iterable[Metric]:
        """Return nothing: what there is depends on who lives here."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for monitor in self.monitors[-1:]:  # of several schedulers in a process the last, as Dask
            yield from scheduler_metrics(monitor)
        if self.meters:
            yield from worker_metrics(list(self.meters))


COLLECTOR = AegisCollector()


def _register() -> None:
    if not (COLLECTOR.monitors or COLLECTOR.meters):
        REGISTRY.register(COLLECTOR)


def _unregister() -> None:
    if not (COLLECTOR.monitors or COLLECTOR.meters):
        REGISTRY.unregister(COLLECTOR)


def serve_scheduler(monitor: Monitor) -> None:
    """Serve the metrics of a monitor."""
    _register()
    COLLECTOR.monitors.append(monitor)


def withdraw_scheduler(monitor: Monitor) -> None:
    """Serve them no longer."""
    if monitor in COLLECTOR.monitors:
        COLLECTOR.monitors.remove(monitor)
        _unregister()


def serve_worker(worker: Any) -> Meter:
    """Serve the metrics of a worker."""
    _register()
    meter = Meter(worker)
    COLLECTOR.meters.append(meter)
    return meter


def withdraw_worker(meter: Meter) -> None:
    """Serve them no longer."""
    if meter in COLLECTOR.meters:
        COLLECTOR.meters.remove(meter)
        _unregister()


# -- families ----------------------------------------------------------------------------------


def _counter(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([str(k) for k in (key if isinstance(key, tuple) else (key,))], value)
    return family


def _gauge(name: str, text: str, values: Mapping[Any, float], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([str(k) for k in (key if isinstance(key, tuple) else (key,))], value)
    return family


def scheduler_metrics(monitor: Monitor) -> Iterator[Metric]:
    """Yield what a monitor knows of all runs together."""
    monitor.settle()
    totals = monitor.totals.copy()
    for run in monitor.runs.values():
        totals.add(run)
    running = [run for run in monitor.runs.values() if run.state == RUNNING]
    yield GaugeMetricFamily("aegis_runs_running", "Runs that are going on", len(running))
    yield _counter("aegis_runs", "Runs that have ended", monitor.ended, "state")
    yield CounterMetricFamily(
        "aegis_runs_resumed", "Runs that have taken up one that lost a worker", monitor.resumed
    )
    waiting = sum(sum(r.brief.worker_tasks) - r.tasks_done - r.brief.skipped for r in running)
    yield GaugeMetricFamily("aegis_tasks_waiting", "Tasks of runs that have not finished", waiting)
    yield CounterMetricFamily("aegis_tasks", "Tasks that have finished", totals.tasks)
    yield CounterMetricFamily("aegis_refreshes", "Bootstraps that are done", totals.refreshes)
    yield _counter("aegis_operator_tasks", "Steps of tasks done", totals.operator_tasks, "operator")
    yield _counter("aegis_operator_seconds", "Time in tasks", totals.operator_seconds, "operator")
    yield _counter(
        "aegis_transfer_bytes",
        "Bytes of residues sent from worker to worker",
        totals.bytes,
        "source",
        "destination",
    )
    held = monitor.held()
    planned = dict.fromkeys(held, 0)
    for run in running:
        for name, peak in zip(run.brief.names, run.brief.peaks or (), strict=False):
            planned[name] = planned.get(name, 0) + peak
    yield _gauge("aegis_held_bytes", "Bytes of results that a worker holds", held, "worker")
    yield _gauge(
        "aegis_held_planned_bytes", "The most that the plans of its runs say", planned, "worker"
    )
    bits = [r.brief.precision_bits for r in monitor.runs.values()]
    least = min((b for b in bits if b is not None), default=None)
    if least is not None:
        yield GaugeMetricFamily(
            "aegis_precision_bits", "Bits that the parameters of the runs leave, the least", least
        )


def worker_metrics(meters: list[Meter]) -> Iterator[Metric]:
    """Yield what workers have done, and what they are at."""

    def total(values: str) -> dict[Any, float]:
        return {
            (m.worker.name, name): value
            for m in meters
            for name, value in getattr(m, values).items()
        }

    def each(value: Any) -> dict[Any, float]:
        return {str(m.worker.name): value(m) for m in meters}

    yield _counter(
        "aegis_worker_operator_tasks",
        "Steps of tasks done",
        total("operator_tasks"),
        "worker",
        "operator",
    )
    yield _counter(
        "aegis_worker_operator_seconds",
        "Time in tasks",
        total("operator_seconds"),
        "worker",
        "operator",
    )
    yield _counter(
        "aegis_worker_operations",
        "Calls of operations of the scheme",
        total("calls"),
        "worker",
        "operation",
    )
    yield _counter(
        "aegis_worker_operation_seconds",
        "Time in operations of the scheme",
        total("seconds"),
        "worker",
        "operation",
    )
    yield _counter(
        "aegis_worker_received_bytes",
        "Bytes of residues received from other workers",
        each(lambda m: m.received),
        "worker",
    )
    yield _counter(
        "aegis_worker_failed_tasks", "Tasks that raised", each(lambda m: m.failed), "worker"
    )
    yield _gauge(
        "aegis_worker_queue_tasks",
        "Tasks that are ready and wait for the worker",
        each(lambda m: len(m.worker.state.ready)),
        "worker",
    )
    yield _gauge(
        "aegis_worker_memory_bytes",
        "Memory of the process, files that are mapped included",
        each(lambda m: m.worker.monitor.get_process_memory()),
        "worker",
    )
    yield _gauge(
        "aegis_worker_memory_limit_bytes",
        "What the process may take; 0 without a limit",
        each(lambda m: int(m.worker.memory_manager.memory_limit or 0)),
        "worker",
    )
