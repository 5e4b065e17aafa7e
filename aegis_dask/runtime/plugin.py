"""The worker plugin: contexts and runs of one worker, and what it measures.

The functions below the plugin run on the workers, called by the executor through `Client.run`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import cloudpickle
from distributed import SchedulerPlugin, WorkerPlugin, get_worker
from distributed.spill import SpillBuffer

from aegis_dask.config import CPU
from aegis_dask.dashboard.metrics import Meter, serve_worker, withdraw_worker
from aegis_dask.errors import ClusterError
from aegis_dask.ring.memory import age
from aegis_dask.ring.registry import backend_name, device_memory
from aegis_dask.runtime import context as contexts
from aegis_dask.runtime.context import Context
from aegis_dask.runtime.graph import make_keys
from aegis_dask.runtime.hosts import remove_tree
from aegis_dask.runtime.measure import (
    Received,
    Tap,
    WorkerReport,
    peak_memory,
    reset_peak_memory,
)
from aegis_dask.runtime.serialization import register
from aegis_dask.runtime.worker import PLUGIN, RunSpec, RunState

OWNERS = "aegis-owners"
"""Name of the plugin of the scheduler."""
GRACE_SECONDS = 300.0
"""So long may an owner be away: a network may fail, and Dask's client be replaced by another."""


class UnpreparedError(ClusterError):
    """A worker has not what a run needs: its process is another than the one that was given it."""


class Owners(SchedulerPlugin):
    """Knows which of Dask's clients stand for which owner of contexts, and when they left."""

    name = OWNERS
    idempotent = True  # a second client of the cluster finds this one's

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}  # client -> owner
        self.left: dict[str, float] = {}  # owner -> when the last of its clients went

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Take note that a client has gone."""
        if client in self.clients:
            self.left[self.clients[client]] = time.monotonic()

    def alive(self, clients: Collection[str]) -> set[str]:
        """Return the owners that have one of these clients, or had until a short while ago."""
        since = time.monotonic() - GRACE_SECONDS
        recent = {owner for owner, left in self.left.items() if left > since}
        return recent | {owner for client, owner in self.clients.items() if client in clients}


class AegisPlugin(WorkerPlugin):
    """Holds what the tasks on a worker need, loaded once, and listens to its transfers.

    Parameters
    ----------
    is_local
        The worker was started by us on the client's machine: an interrupt from the keyboard, which
        a terminal sends to all processes, is the client's to handle.
    """

    name = PLUGIN
    idempotent = True  # a second client of the cluster finds this one's contexts

    def __init__(self, is_local: bool = False) -> None:
        self.is_local = is_local
        self.contexts: dict[str, Context] = {}
        self.owners: dict[str, tuple[str, str]] = {}  # context -> owner, directory
        self.runs: dict[str, RunState] = {}
        self.makers: dict[Any, str] = {}  # key of a task -> address of the worker that runs it
        self._lock: threading.Lock | None = None
        self._meter: Meter | None = None
        self._in_process = False

    def setup(self, worker: Any) -> None:
        """Attach to a worker."""
        register()
        if self.is_local and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._lock = threading.Lock()
        self._meter = serve_worker(worker)
        self._in_process = worker.address.startswith("inproc")  # nothing is written there
        if backend_name() != CPU and isinstance(worker.data, SpillBuffer):
            # Dask counts what is on the device as memory of the host, and would write it to disk.
            worker.data.n = inf
        _fetch_from_makers(worker.state, self.makers)
        worker.transfer_incoming_log = Tap(worker.transfer_incoming_log, self._received)
        worker.transfer_outgoing_log = Tap(worker.transfer_outgoing_log, self._sent)

    def teardown(self, worker: Any) -> None:
        """Let go of everything."""
        self.runs.clear()
        self.contexts.clear()
        if self._meter is not None:
            withdraw_worker(self._meter)

    def start(self, spec: RunSpec, threads: int | None) -> None:
        """Begin a run."""
        if spec.context not in self.contexts:
            raise UnpreparedError("its keys and weights have not been opened; run again")
        assert self._lock is not None
        reset_peak_memory()
        keys = make_keys(spec.program, spec.tasks, spec.run)
        for key, task in zip(keys, spec.tasks, strict=True):
            self.makers[key] = spec.addresses[task.owner]
        state = RunState(spec, self.contexts[spec.context], self._lock, threads)
        state.meter = self._meter
        state.numbers = {key: i for i, key in enumerate(keys)}
        self.runs[spec.run] = state

    def forget(self, run: str) -> None:
        """End a run."""
        if self.runs.pop(run, None) is not None:
            for key in [k for k in self.makers if k[0].endswith(f"-{run}")]:
                del self.makers[key]
            age()

    def _received(self, entry: dict[str, Any]) -> None:
        for run, keys in _by_run(entry["keys"]).items():
            if run in self.runs:
                received = Received(entry["who"], tuple(keys), entry["duration"])
                self.runs[run].receive(received)

    def _sent(self, entry: dict[str, Any]) -> None:
        for run in _by_run(entry["keys"]):
            if run in self.runs and not self._in_process:
                wire = self.runs[run].report.wire_bytes
                who = entry["who"] or "client"
                wire[who] = wire.get(who, 0) + int(entry["compressed"] or 0)
                return


def _fetch_from_makers(state: Any, makers: Mapping[Any, str]) -> None:
    """Let a worker fetch a result from the worker that made it, not from any that has a copy.

    Dask takes one at random, so the bytes between two workers would differ from run to run, and
    from the plan. There is no option for it; where its class is not as expected, nothing changes.
    """
    base = type(state)
    if not hasattr(base, "_update_who_has"):
        return

    class MakersFirst(base):  # type: ignore[valid-type, misc]
        __slots__ = ()

        def _update_who_has(self, who_has: Mapping[Any, Any]) -> None:
            chosen = {}
            for key, workers in who_has.items():
                maker = makers.get(key)
                known = maker != self.address and maker in workers
                chosen[key] = [maker] if known else workers
            super()._update_who_has(chosen)

    with suppress(TypeError):  # its objects have another layout
        state.__class__ = MakersFirst


def _by_run(keys: Any) -> dict[str, list[Any]]:
    """Return the keys of tasks of ours by run: the last word of the first element."""
    out: dict[str, list[Any]] = {}
    for key in keys:
        if isinstance(key, tuple) and key and isinstance(key[0], str):
            out.setdefault(key[0].rpartition("-")[2], []).append(key)
    return out


# -- called on workers -----------------------------------------------------------------------


def plugin_of(worker: Any) -> AegisPlugin:
    """Return the plugin of a worker.

    Raises
    ------
    UnpreparedError
        If the worker does not have it.
    """
    found = worker.plugins.get(PLUGIN)
    if not isinstance(found, AegisPlugin):
        raise UnpreparedError(f"worker {worker.address} lacks the plugin; open a new Executor")
    return found


def open_context(name: str, directory: str, owner: str) -> str:
    """Open a context of an owner on the worker that runs this task, and load its kernels.

    Returns the worker's backend.
    """
    plugin = plugin_of(get_worker())
    if name not in plugin.contexts:
        shared = contexts.SHARED.get(name)
        # Workers that are threads share arrays, and have an evaluator each: it keeps constants.
        context = replace(shared) if shared else contexts.read_context(Path(directory))
        contexts.warm_up(context)
        plugin.contexts[name] = context
        plugin.owners[name] = owner, directory
    return backend_name()


def opened(name: str, dask_worker: Any) -> str:
    """Return the worker's backend if it has opened a context, else ""."""
    found = dask_worker.plugins.get(PLUGIN)
    return backend_name() if isinstance(found, AegisPlugin) and name in found.contexts else ""


def close_context(name: str, dask_worker: Any) -> None:
    """Drop a context."""
    plugin = plugin_of(dask_worker)
    plugin.contexts.pop(name, None)
    plugin.owners.pop(name, None)


def bury(alive: Collection[str], dask_worker: Any) -> None:
    """Drop what owners have left that ended without a word, keys on the disk included.

    Parameters
    ----------
    alive
        The owners that there are.
    """
    plugin = plugin_of(dask_worker)
    dead = {name: where for name, (owner, where) in plugin.owners.items() if owner not in alive}
    for name, where in dead.items():
        close_context(name, dask_worker)
        remove_tree(str(Path(where).parent))
    for run in [r for r, state in plugin.runs.items() if state.spec.context in dead]:
        plugin.forget(run)


def knows(run: str, dask_worker: Any) -> bool:
    """Whether a worker has been told of a run."""
    found = dask_worker.plugins.get(PLUGIN)
    return isinstance(found, AegisPlugin) and run in found.runs


def start_run(path: str, threads: int | None, dask_worker: Any) -> None:
    """Begin the run in a file that the client wrote into the private directory of the host."""
    plugin_of(dask_worker).start(cloudpickle.loads(Path(path).read_bytes()), threads)


def cancel_run(run: str, dask_worker: Any) -> None:
    """Let tasks of a run that have not begun fail at once."""
    state = plugin_of(dask_worker).runs.get(run)
    if state is not None:
        state.is_cancelled = True


def active_tasks(run: str, dask_worker: Any) -> int:
    """Return how many tasks of a run this worker is executing."""
    state = plugin_of(dask_worker).runs.get(run)
    return 0 if state is None else len(state.active)


def report_run(run: str, dask_worker: Any) -> WorkerReport:
    """Return what a worker has measured so far."""
    report = plugin_of(dask_worker).runs[run].report
    report.peak_memory, report.device_memory = peak_memory(), device_memory()
    return report


def drop_run(run: str, dask_worker: Any) -> None:
    """Forget a run."""
    with suppress(ClusterError):
        plugin_of(dask_worker).forget(run)


def running_tasks(dask_worker: Any) -> dict[str, int]:
    """Return the runs of which a worker is a part, and how many tasks of each it is executing."""
    found = dask_worker.plugins.get(PLUGIN)
    if not isinstance(found, AegisPlugin):
        return {}
    return {run: len(state.active) for run, state in found.runs.items()}


# -- called on the scheduler -----------------------------------------------------------------


def introduce(owner: str, client: str, dask_scheduler: Any) -> set[str]:
    """Tell the scheduler for whom a client stands; return the owners that are there."""
    owners = dask_scheduler.plugins[OWNERS]
    owners.clients[client] = owner
    found: set[str] = owners.alive(dask_scheduler.clients)
    return found
