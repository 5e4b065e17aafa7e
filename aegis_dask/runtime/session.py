"""One run on a cluster: inputs, groups of tasks, waiting, and cleaning up after trouble."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from typing import Any

from distributed import Client
from distributed.client import Future
from distributed.utils_comm import gather_from_workers

from aegis_dask.errors import ClusterError, DeviceFailedError, IntegrityError
from aegis_dask.placement.tasks import Plan
from aegis_dask.placement.traffic import format_bytes
from aegis_dask.runtime import plugin
from aegis_dask.runtime.checkpoints import Snapshot
from aegis_dask.runtime.cluster import workers_of
from aegis_dask.runtime.events import Events
from aegis_dask.runtime.graph import (
    IN_FLIGHT,
    Group,
    Key,
    make_graph,
    make_groups,
    make_keys,
    make_ranks,
)
from aegis_dask.runtime.progress import Progress, ProgressCallback
from aegis_dask.runtime.serialization import check_intact, payload_bytes
from aegis_dask.runtime.values import limbs_of, rows_of
from aegis_dask.runtime.worker import RunSpec, TaskError

POLL_SECONDS = 2.0
"""How often the workers are looked at, beside the scheduler's messages."""
PAUSED_SECONDS = 30.0
"""How long a worker may be paused for lack of memory while nothing else happens."""
DRAIN_SECONDS = 120.0
"""How long a cancelled run may take to finish the tasks that are being executed."""
PROGRESS_SECONDS = 0.1

Event = tuple[str, Any]


class WorkerLostError(ClusterError):
    """A worker of a run, or the scheduler, is gone; the run can be taken up again."""


class DeviceLostError(WorkerLostError):
    """The GPU of a worker has failed: its process must be started again."""

    def __init__(self, message: str, address: str) -> None:
        super().__init__(message)
        self.address = address


class RunCancelledError(ClusterError):
    """Somebody wanted the run to end."""


class MoreWorkersError(ClusterError):
    """More workers have joined; the run can go on with them, where it has got to."""


class Session:
    """A run.

    Parameters
    ----------
    client, hub
        Client of the cluster, and what tells of its events.
    spec, plan
        What runs, as the workers know it.
    progress
        Called with the progress, if given.
    snapshot
        Where to begin, and where to note what is finished; nothing is noted without one.
    cancelled
        Ends the run when it is set.
    most
        So many workers the run would take: it ends between two layers when there are more than it
        has. 0 to keep to those.
    title
        What to call the run.
    """

    def __init__(
        self,
        client: Client,
        hub: Events,
        spec: RunSpec,
        plan: Plan,
        progress: ProgressCallback | None,
        snapshot: Snapshot | None = None,
        cancelled: threading.Event | None = None,
        *,
        most: float = 0,
        title: str = "",
    ) -> None:
        self._hub, self.snapshot, self._cancelled = hub, snapshot, cancelled
        self._most, self._joined = most if snapshot is not None else 0, 0
        self.client, self.spec, self.plan, self.progress = client, spec, plan, progress
        self.title = title
        self.program, self.tasks = spec.program, plan.tasks
        self.keys: list[Key] = make_keys(self.program, self.tasks, spec.run)
        self.index_of = {key: i for i, key in enumerate(self.keys)}
        self.ranks = make_ranks(self.tasks)
        self.groups = make_groups(self.program, plan)
        self.first = 0 if snapshot is None else snapshot.groups
        self._input_last_use = {
            i: group.index
            for group in self.groups[self.first :]
            for t in range(*group.tasks)
            for i in self.tasks[t].sources
            if self.tasks[i].kind == "input"
        }
        # Ctrl-C while a `Queue` is read can leave it locked, and Dask's thread waiting for ever.
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.futures: dict[int, Future] = {}
        self.done: set[int] = set()
        self.sent: dict[int, int] = {}
        self.fetched: dict[int, int] = {}
        self.begin = 0.0
        self.seconds = 0.0
        self._memory_kills: dict[str, int] = {}
        self._limits: dict[str, tuple[str, int]] = {}
        self._last_sign = self._last_progress = 0.0
        self.compute_tasks = sum(t.kind != "input" for t in self.tasks)
        self._work = sum(t.seconds for t in self.tasks) or 1.0
        earlier = self.tasks[: self.groups[self.first].tasks[0]] if self.first else []
        self._worked = sum(t.seconds for t in earlier)
        self._finished = sum(t.kind != "input" for t in earlier)

    def execute(self, known: Mapping[int, Any]) -> dict[str, list[Any]]:
        """Run, and return the pieces of every output.

        Parameters
        ----------
        known
            Node -> value, of the inputs and of what else is known already.

        Raises
        ------
        MoreWorkersError
            If there are more workers, and the run was to be told.
        ClusterError
            If a task fails or a worker is lost, or the run is cancelled. The cluster is left clean.
        KeyboardInterrupt
            If the user interrupts; then too.
        """
        with self._hub.listening(lambda kind, content: self.events.put((kind, content))):
            try:
                self._look_at_workers()
                self._send(known)
                self.begin = self._last_sign = time.time()
                self._run_groups()
                self.seconds = time.time() - self.begin
                return self._fetch()
            except BaseException:
                self._abort()
                raise
            finally:
                for future in self.futures.values():
                    future.release()
                self.futures.clear()

    # -- events ------------------------------------------------------------------------------

    def _wait(self, timeout: float) -> None:
        """Handle the events there are, waiting for the first."""
        try:
            event = self.events.get(timeout=timeout)
            while True:
                self._handle(*event)
                event = self.events.get_nowait()
        except queue.Empty:
            pass

    def _handle(self, name: str, content: Any) -> None:
        if name == "done":
            self._check(content)
            self.done.add(content)
            self._last_sign = time.time()
        elif name == "task" and content["run"] == self.spec.run:
            self._last_sign = time.time()
            self._report(content["task"])
        elif name == "memory":
            self._memory_kills[content["worker"]] = int(content["rss"])
        elif name == "cluster" and content.get("action") == "remove-worker":
            self._lost(content["worker"], content.get("processing-tasks", ()))

    def _report(self, index: int) -> None:
        self._worked += self.tasks[index].seconds
        self._finished += 1
        now = time.time()
        total = self.compute_tasks
        if self.progress is None:
            return
        if now - self._last_progress < PROGRESS_SECONDS and self._finished < total:
            return
        self._last_progress = now
        name = self.program.stages[self.tasks[index].stage].name
        before = 0.0 if self.snapshot is None else self.snapshot.share  # by earlier plans
        share = before + (1 - before) * min(1.0, self._worked / self._work)
        self.progress(Progress(self._finished, total, share, name, now - self.begin))

    # -- submitting --------------------------------------------------------------------------

    def _send(self, known: Mapping[int, Any]) -> None:
        """Send to each worker the rows of the inputs that it needs, not through the scheduler."""
        if self.snapshot is not None:
            for index, value in self.snapshot.values.items():
                self._send_one(index, value)
        for task in self.tasks:
            if task.kind != "input" or task.index not in self._input_last_use:
                continue
            value = known[task.results[0]]
            part = value if task.rows is None else rows_of(value, *task.rows)
            if task.limbs is not None:
                part = limbs_of(part, task.limbs)
            self._send_one(task.index, part)

    def _send_one(self, index: int, value: Any) -> None:
        address, key = self.spec.addresses[self.tasks[index].owner], self.keys[index]
        sent = self.client.scatter({key: value}, workers=[address], direct=True, hash=False)
        self.futures[index] = sent[key]
        self.sent[index] = payload_bytes(value)

    def _run_groups(self) -> None:
        waiting = [g for g in self.groups[self.first :] if g.wanted]
        running: list[Group] = []
        # Whose results are still with the cluster.
        sent = [g for g in self.groups[: self.first] if any(i in self.futures for i in g.wanted)]
        held = [*sent, *waiting]
        last_look = time.time()
        while waiting or running:
            if self._joined and waiting and not running:
                raise MoreWorkersError(f"{self._joined} workers have joined")
            while waiting and not self._joined and self._has_room(running, waiting[0]):
                self._submit(waiting[0])
                running.append(waiting.pop(0))
            self._wait(min(0.5, POLL_SECONDS))
            if self._cancelled is not None and self._cancelled.is_set():
                raise RunCancelledError("the run was cancelled")
            finished = [g for g in running if self.done.issuperset(g.wanted)]
            if finished:
                running = [g for g in running if g not in finished]
                self._note([*running, *waiting])
                held = self._release(held, [*running, *waiting])
            if time.time() - last_look > POLL_SECONDS:
                self._look_at_workers()
                last_look = time.time()

        if self.progress is not None and self._finished < self.compute_tasks:
            # The word on the last tasks is still on its way.
            last = self.program.stages[self.tasks[-1].stage].name
            seconds, total = time.time() - self.begin, self.compute_tasks
            self.progress(Progress(total, total, 1.0, last, seconds))

    def _note(self, unfinished: list[Group]) -> None:
        """Fetch what later groups need of those that are finished, to begin there if need be."""
        first = min((g.index for g in unfinished), default=len(self.groups))
        if self.snapshot is None or not self.snapshot.groups < first < len(self.groups):
            return
        earlier = [g for g in self.groups[:first] if g.last_use >= first]
        needed = [i for group in earlier for i in group.wanted]
        values = self.snapshot.values
        missing = [i for i in needed if i not in values]
        new = dict(zip(missing, self._gather(missing), strict=True))
        self.snapshot.update(first, {i: values[i] if i in values else new[i] for i in needed})

    def _has_room(self, running: Sequence[Group], group: Group) -> bool:
        if self.snapshot is not None:  # what is in flight is lost with a worker
            return len(running) < 2
        flying = sum(g.tasks[1] - g.tasks[0] for g in running)
        return len(running) < 2 or flying + group.tasks[1] - group.tasks[0] <= IN_FLIGHT

    def _submit(self, group: Group) -> None:
        graph = make_graph(
            self.program,
            self.plan,
            group,
            self.keys,
            self.ranks,
            self.spec.addresses,
            self.spec.run,
            self.title,
        )
        found = self.client.get(graph, [self.keys[i] for i in group.wanted], sync=False)
        for i, future in zip(group.wanted, found, strict=True):
            self.futures[i] = future
            future.add_done_callback(lambda _, i=i: self.events.put(("done", i)))

    def _release(self, held: list[Group], unfinished: list[Group]) -> list[Group]:
        """Let go of results that no unfinished group uses; return the groups that keep theirs."""
        first = min((g.index for g in unfinished), default=len(self.groups))
        for group in held:
            if group.last_use < first:
                for i in group.wanted:
                    if i in self.futures:
                        self.futures.pop(i).release()
        for i in [i for i, last in self._input_last_use.items() if last < first]:
            del self._input_last_use[i]
            self.futures.pop(i).release()
        return [g for g in held if g.last_use >= first]

    def _fetch(self) -> dict[str, list[Any]]:
        out: dict[str, list[Any]] = {}
        for name, indices in self.plan.outputs.items():
            pieces = out[name] = self._gather(indices)
            self.fetched.update({i: payload_bytes(p) for i, p in zip(indices, pieces, strict=True)})
        return out

    def _gather(self, indices: Sequence[int]) -> list[Any]:
        """Fetch what tasks gave, which are finished, from the workers that made it.

        `Client.gather` asks the scheduler for what a worker does not give, and the scheduler then
        closes that worker and its nanny for good: nothing would start another one.
        """
        where = {self.keys[i]: [self.spec.addresses[self.tasks[i].owner]] for i in indices}
        found, missing, failed, _ = self.client.sync(
            gather_from_workers, where, rpc=self.client.rpc
        )
        if missing or failed:
            self.check_workers()
            lost = self.describe(self.index_of[_as_key((*missing, *failed)[0])])
            raise WorkerLostError(
                f"what {lost} gave is lost: the worker that had it no longer answers; run again"
            )
        values = [found[self.keys[i]] for i in indices]
        try:
            for value in values:
                check_intact(value)
        except IntegrityError as e:
            raise ClusterError(f"what the client has fetched is of no use: {e}") from e
        return values

    def check_workers(self) -> None:
        """Raise `WorkerLostError` if a worker of the run is gone."""
        with suppress(OSError, TimeoutError):
            self._require(workers_of(self.client))

    def _require(self, workers: Container[str]) -> None:
        for address in self.spec.addresses:
            if address not in workers:
                self._lost(address, ())

    # -- trouble -----------------------------------------------------------------------------

    def describe(self, index: int, at: int | None = None) -> str:
        """Return layer, operator and number of a task in words; one stage of several if given."""
        task = self.tasks[index]
        task = next((p.task for p in task.parts if p.task.stage == at), task)
        stage = self.program.stages[task.stage]
        ops = ", ".join(dict.fromkeys(self.program.nodes[i].op.name for i in stage.nodes))
        layer, _, rest = stage.name.partition("/")
        where = f"layer {layer!r}, operator {rest!r}" if rest else f"operator {layer!r}"
        rows = "" if task.rows is None else f", rows {task.rows[0]} to {task.rows[1] - 1}"
        kind = "" if task.kind == "stage" else f" ({task.kind})"
        return f"task {index}{kind} of {where} [{ops}]{rows}"

    def _check(self, index: int) -> None:
        """Raise what went wrong with a future, if anything did."""
        future = self.futures.get(index)
        if future is None or future.status == "finished":
            return
        if future.status != "error":
            raise WorkerLostError(
                f"{self.describe(index)} was cancelled by the scheduler: results that it needs "
                "are lost, perhaps because a worker was; run again"
            )
        error = future.exception()
        if isinstance(error, TaskError):
            cause = error.error
            text = f"{self.describe(error.index, error.stage)} failed on {error.worker}: {cause}"
            failure = (
                DeviceLostError(text, error.worker)
                if isinstance(cause, DeviceFailedError)
                else ClusterError(text)
            )
            failure.add_note(error.trace)
            for note in getattr(cause, "__notes__", ()):
                failure.add_note(note)
            raise failure from cause
        raise ClusterError(
            f"{self.describe(index)}, or one that it needs, could not be run: {error}"
        ) from error

    def _lost(self, address: str, processing: Any) -> None:
        if address not in self.spec.addresses:
            return
        known = {self.index_of.get(_as_key(k)) for k in processing}
        mine = sorted((i for i in known if i is not None), key=lambda i: self.ranks[i])
        doing = f"while it had {self.describe(mine[0])}" if mine else "between tasks"
        number = self.spec.addresses.index(address)
        deadline = time.time() + 0.5  # the nanny's word on memory may be behind
        while address not in self._memory_kills and time.time() < deadline:
            with suppress(queue.Empty):
                name, content = self.events.get(timeout=0.1)
                if name == "memory":
                    self._memory_kills[content["worker"]] = int(content["rss"])
        if address in self._memory_kills:
            limit = self._limits.get(address, ("", 0))[1]
            why = (
                f"it held {format_bytes(self._memory_kills[address])}, its limit is "
                f"{format_bytes(limit)}. Use more workers, a higher memory_limit, or smaller tasks"
            )
            raise ClusterError(f"worker {number} ({address}) ran out of memory {doing}: {why}")
        raise WorkerLostError(
            f"worker {number} ({address}) was lost {doing}: its process ended or no longer "
            "answers. See its log (the system may have killed it for lack of memory), then run "
            "again; a worker that has been restarted is taken up"
        )

    def _look_at_workers(self) -> None:
        """Notice what the scheduler does not tell: an unreachable scheduler, paused workers."""
        try:
            workers = workers_of(self.client)
        except (OSError, TimeoutError) as e:
            raise WorkerLostError(
                f"the scheduler no longer answers ({e}); start it again at the same address"
            ) from e
        self._require(workers)
        for address in self.spec.addresses:
            info = workers[address]
            self._limits[address] = info.get("status", ""), int(info.get("memory_limit") or 0)
        wanted = min(len(workers), self._most)
        self._joined = max(0, int(wanted) - len(self.spec.addresses))
        paused = [a for a, (status, _) in self._limits.items() if status == "paused"]
        if paused and time.time() - max(self._last_sign, self.begin) > PAUSED_SECONDS > 0:
            raise ClusterError(
                f"worker {paused[0]} is paused for lack of memory and nothing has finished for "
                f"{PAUSED_SECONDS:.0f} s; use more workers or a higher memory limit"
            )

    def _abort(self) -> None:
        """Cancel everything and wait until no worker executes a task of this run."""
        with suppress(Exception):
            here = workers_of(self.client)
            alive = [a for a in self.spec.addresses if a in here]
            self.client.run(plugin.cancel_run, self.spec.run, workers=alive, on_error="ignore")
            # Everything is there for these: the scheduler forgets it all. `Client.cancel` recurses
            # into dependents one by one and fails on long chains.
            for future in self.futures.values():
                future.release()
            deadline = time.time() + DRAIN_SECONDS
            while time.time() < deadline:
                active = self.client.run(
                    plugin.active_tasks, self.spec.run, workers=alive, on_error="ignore"
                )
                if not sum(Counter(active).values()):
                    break
                time.sleep(0.05)


def _as_key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key
