"""The monitor: a scheduler plugin that knows the runs of all clients, and shows them.

Clients tell it of a run before it begins and when it has ended; workers log an event for every
finished task. It looks at nothing else: no transition of a task passes through it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from distributed import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from aegis_dask.dashboard.brief import brief_from_dict
from aegis_dask.dashboard.log import RunLog
from aegis_dask.dashboard.metrics import Totals, serve_scheduler, withdraw_scheduler
from aegis_dask.dashboard.page import open_pages
from aegis_dask.dashboard.targets import open_targets
from aegis_dask.dashboard.view import CANCELLED, RUNNING, STATES

NAME = "aegis-monitor"
"""Name of the plugin on the scheduler."""
TASKS, TROUBLE, RUNS = "aegis-tasks", "aegis-errors", "aegis-runs"
"""Topics of events: finished tasks, failed ones, and runs that have ended."""
KEPT = 20
"""Runs that have ended and can still be looked at."""
SAMPLE_MS = 500
"""How often the memory of workers is looked at, and tasks that wait are noted, at least."""
MOST_WAITING, SETTLE_SECONDS = 500, 0.5
"""So many tasks wait to be noted, and so long while others come."""
LOOK_SECONDS = 0.1
"""How often the memory is looked at while tasks finish."""
SPAN_SECONDS, LATE_SECONDS = 60.0, 3600.0
"""How long Dask's own record of a run (a span) is kept, and when no worker tells of it any more."""
OPENED, SENT = "open-context", "send-file"
"""How Dask calls the tasks of `runtime.loading`, and those of `runtime.hosts` with their data."""
MOST_TEXT = 500
"""Characters of a message that are kept."""


class Monitor(SchedulerPlugin):
    """Knows the runs there are, and those that ended last.

    Attributes
    ----------
    runs
        Name -> log, in the order of their beginning.
    resumed
        Runs that have taken up a lost one.
    ended
        State -> number of runs that ended so since the scheduler began.
    totals
        What runs that are no longer known have done.
    """

    name = NAME
    idempotent = True  # a second client of the cluster finds this one's runs

    def __init__(self) -> None:
        self.runs: dict[str, RunLog] = {}
        self.ended = dict.fromkeys((s for s in STATES if s != RUNNING), 0)
        self.resumed = 0
        self.totals = Totals()
        self._spans: deque[tuple[float, str]] = deque()  # when runs ended
        self._emptied: deque[tuple[float, str]] = deque()  # when spans of Dask were emptied
        self._waiting: list[Mapping[str, Any]] = []
        self._settled = self._looked = 0.0  # when
        self._scheduler: Any = None
        self._sampling: PeriodicCallback | None = None

    async def start(self, scheduler: Any) -> None:
        """Attach to a scheduler: open the pages where it has a dashboard, and serve metrics."""
        self._scheduler = scheduler
        serve_scheduler(self)
        open_pages(scheduler, self)
        open_targets(scheduler)
        self._sampling = PeriodicCallback(lambda: self.settle(), SAMPLE_MS)
        self._sampling.start()

    async def close(self) -> None:
        """Let go of the scheduler."""
        if self._sampling is not None:
            self._sampling.stop()
        withdraw_scheduler(self)
        self._scheduler = None

    # -- events ------------------------------------------------------------------------------

    def begin(self, brief: Mapping[str, Any]) -> None:
        """Take note of a run that is about to begin."""
        log = RunLog(brief_from_dict(brief), time.time())
        self.runs[log.brief.run] = log
        self.resumed += log.brief.resumed > 0
        over = [name for name, run in self.runs.items() if run.state != RUNNING]
        for name in over[: max(0, len(over) - KEPT)]:
            self.totals.add(self.runs.pop(name))

    def log_event(self, topic: str, msg: Any) -> None:
        """Take note of what a worker or a client says."""
        if topic == TASKS:
            # Together they take a fraction of the time: the scheduler's own work, between two of
            # them, leaves nothing of ours in the caches of the processor.
            self._waiting.append(msg)
            now = time.time()
            if len(self._waiting) >= MOST_WAITING or now > self._settled + SETTLE_SECONDS:
                self.settle()
            elif now > self._looked + LOOK_SECONDS:
                self._look_at_memory()
        elif topic == TROUBLE:
            run = self.runs.get(msg["run"])
            if run is not None:
                run.note_trouble(time.time(), str(msg["where"]), str(msg["what"])[:MOST_TEXT])
        elif topic == RUNS:
            self.end(msg["run"], msg["state"], str(msg["message"])[:MOST_TEXT])

    def settle(self) -> None:
        """Bring the runs up to date: with the tasks that wait to be noted, and memory."""
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            run = self.runs.get(str(event.get("run")))
            if run is not None:
                with suppress(LookupError, TypeError, ValueError):  # a stranger's event
                    run.task(event)
        self._look_at_memory()
        self._settled = now = time.time()
        if self._scheduler is not None:
            self._forget_spans(now)

    def _forget_spans(self, now: float) -> None:
        while self._spans and self._spans[0][0] < now - SPAN_SECONDS:
            emptied = empty_spans(self._scheduler, self._spans.popleft()[1])
            self._emptied += [(now, span) for span in emptied]
        while self._emptied and self._emptied[0][0] < now - LATE_SECONDS:
            self._scheduler.extensions["spans"].spans.pop(self._emptied.popleft()[1], None)

    def end(self, run: str, state: str, message: str = "") -> None:
        """Take note of the end of a run."""
        log = self.runs.get(run)
        if log is None or log.state != RUNNING or state not in self.ended:
            return
        now = time.time()
        self.settle()
        log.end(now, state, message)
        self._spans.append((now, run))
        self.ended[state] += 1
        if message:
            log.note_trouble(now, "the run", message)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Tell of a worker that has left in the runs that use it."""
        now = time.time()
        for run in self.runs.values():
            if run.state == RUNNING and worker in run.brief.addresses:
                number = run.brief.addresses.index(worker)
                run.note_trouble(now, f"device {run.brief.names[number]}", "the worker has left")

    def remove_client(self, scheduler: Any, client: str) -> None:
        """End the runs of a client that has gone: their tasks are forgotten with it."""
        for name, run in self.runs.items():
            if run.state == RUNNING and run.brief.client == client:
                self.end(name, CANCELLED, "its client has gone")

    # -- memory ------------------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        """Return the bytes of results that each worker of the scheduler holds."""
        workers = self._scheduler.workers if self._scheduler is not None else {}
        return {str(state.name): int(state.nbytes) for state in workers.values()}

    def _look_at_memory(self) -> None:
        self._looked = time.time()
        workers = self._scheduler.workers if self._scheduler is not None else {}
        for run in self.runs.values():
            if run.state != RUNNING:
                continue
            for i, address in enumerate(run.brief.addresses):
                state = workers.get(address)
                if state is not None:
                    process = int(state.metrics.get("memory") or 0)
                    run.note_memory(i, int(state.nbytes), process, int(state.memory_limit or 0))


def empty_spans(scheduler: Any, run: str) -> list[str]:
    """Let a scheduler forget what it has in the spans of a run, which by itself it never does.

    What clients send, and contexts that they open, are in spans called default. They stay known by
    their identifiers, which are returned: a worker whose heartbeat told of one that is not would be
    closed.
    """
    spans = scheduler.extensions.get("spans")
    emptied = []
    for span in [] if spans is None else list(spans.spans.values()):
        names = [group.name for group in span.groups]
        sent = span.name == ("default",) and all(n.endswith((OPENED, SENT, run)) for n in names)
        if names and span.done and (span.id == run or sent):
            span.groups.clear()
            span._code.clear()
            span._cumulative_worker_metrics.clear()
            by_tags = [spans.spans_search_by_tag[tag] for tag in span.name]
            for known in (spans.root_spans, spans.spans_search_by_name[span.name], *by_tags):
                known.remove(span)
            emptied.append(span.id)
    return emptied


# -- called on the scheduler -----------------------------------------------------------------


def monitor_of(scheduler: Any) -> Monitor | None:
    """Return the monitor of a scheduler, if it has one."""
    found = scheduler.plugins.get(NAME)
    return found if isinstance(found, Monitor) else None


def begin_run(brief: Mapping[str, Any], dask_scheduler: Any) -> None:
    """Tell the monitor of a run."""
    monitor = monitor_of(dask_scheduler)
    if monitor is not None:
        monitor.begin(brief)


def busy_workers(dask_scheduler: Any) -> list[Any]:
    """Return the names of the workers that runs under way have, by Dask."""
    monitor = monitor_of(dask_scheduler)
    if monitor is None:
        return []
    here = dask_scheduler.workers
    running = [run.brief.addresses for run in monitor.runs.values() if run.state == RUNNING]
    return [here[a].name for addresses in running for a in addresses if a in here]


def has_clients(dask_scheduler: Any) -> bool:
    """Return whether anyone is connected, who may be waiting for a worker."""
    return any(name != "fire-and-forget" for name in dask_scheduler.clients)  # Dask's own


def memory_of(run: str, dask_scheduler: Any) -> list[tuple[int, int, int]]:
    """Return the most that each worker held in a run, its process, and the limit of that."""
    monitor = monitor_of(dask_scheduler)
    if monitor is None:
        return []
    monitor.settle()
    log = monitor.runs.get(run)
    return [] if log is None else list(zip(log.peaks, log.process, log.limits, strict=True))


def view_runs(run: str | None, dask_scheduler: Any) -> list[str] | None:
    """Return the runs there are as JSON, the oldest first, or the one that is asked for.

    None without a monitor.
    """
    monitor = monitor_of(dask_scheduler)
    if monitor is None:
        return None
    monitor.settle()
    now = time.time()
    with suppress(KeyError):
        wanted = monitor.runs.values() if run is None else [monitor.runs[run]]
        return [log.view(now).to_json() for log in wanted]
    return []
