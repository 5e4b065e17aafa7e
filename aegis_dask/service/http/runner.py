"""Runs the jobs of a service: a few at a time, every client in its turn, keys loaded as needed."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf

from aegis_dask.ckks.files import PRIVATE, write_atomically
from aegis_dask.ckks.serialization import dumps
from aegis_dask.errors import AegisError, ClusterError, IntegrityError
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.ring.memory import release
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.loading import Loaded
from aegis_dask.runtime.progress import Progress
from aegis_dask.runtime.session import RunCancelledError
from aegis_dask.service.http.fair import FairShare
from aegis_dask.service.http.offers import Offer, Offers
from aegis_dask.service.http.store import ATTEMPTS, JobRecord, Store

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""Between attempts at a job whose cluster failed."""


@dataclass
class Running:
    """A job that runs.

    Attributes
    ----------
    job
        The job.
    cancelled
        Set to end it.
    by_client
        Whether the client wanted that; else the service ends.
    progress
        The last that was heard.
    changes
        How often it was heard of.
    estimate
        Seconds that it should take, once they are known.
    """

    job: JobRecord
    cancelled: threading.Event = field(default_factory=threading.Event)
    by_client: bool = False
    progress: Progress | None = None
    changes: int = 0
    estimate: float = inf

    def note(self, progress: Progress) -> None:
        """Take note of progress."""
        self.progress = progress
        self.changes += 1


class Runner:
    """Takes jobs from a store and runs them on a cluster, until it is closed.

    Parameters
    ----------
    store, offers, executor
        Where jobs are, what they are, and what runs them.
    at_once
        Jobs that run side by side. Two fill the moments in which one has nothing to do in parallel.
    keys_bytes
        Memory for the evaluation keys of clients; those not used for longest give way.
    keep_seconds
        How long jobs that have ended, and their results, are kept.
    adapts
        Use as many workers as the cluster has when a job begins, and those that join while it
        runs.
    """

    def __init__(
        self,
        store: Store,
        offers: Offers,
        executor: Executor,
        *,
        at_once: int = 2,
        keys_bytes: int = 8 << 30,
        keep_seconds: float = 86_400.0,
        adapts: bool = False,
    ) -> None:
        self.store, self.offers, self.executor = store, offers, executor
        self.keep_seconds, self.adapts = keep_seconds, adapts
        self.busy_seconds = 0.0
        self._fair = FairShare()
        self._running: dict[str, Running] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._not_before: dict[str, float] = {}
        self._keys = KeyCache(executor, store, keys_bytes)
        self._threads = [
            threading.Thread(target=self._work, name=f"aegis-job-{i}", daemon=True)
            for i in range(at_once)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout: float = 60.0) -> None:
        """End: what runs is queued again, with its checkpoint, for the next start."""
        with self._wake:
            self._closing = True
            for running in self._running.values():
                running.cancelled.set()
            self._wake.notify_all()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._keys.close()

    def wake(self) -> None:
        """Say that there is something to do."""
        with self._wake:
            self._wake.notify()

    def running(self, identifier: str) -> Running | None:
        """Return what is known of a job that runs."""
        return self._running.get(identifier)

    def cancel(self, identifier: str) -> bool:
        """End a job that waits or runs; False if it has ended already."""
        with self._wake:
            ended = self.store.end(identifier, "cancelled")
            running = self._running.get(identifier)
            if running is not None:
                running.by_client = True
                running.cancelled.set()
        return ended

    def forget_keys(self, identifier: str) -> None:
        """Unload keys that have been removed."""
        self._keys.drop(identifier)

    @property
    def keys_bytes(self) -> int:
        """Size of the evaluation keys that the cluster has."""
        return self._keys.bytes

    # -- the threads -------------------------------------------------------------------------

    def _work(self) -> None:
        while (running := self._take()) is not None:
            start = time.monotonic()
            try:
                self._run(running)
            except Exception:
                logger.exception("job %s", running.job.id)
                self.store.end(running.job.id, "failed", "an internal error; see the service's log")
            finally:
                seconds = time.monotonic() - start
                release()
                with self._wake:
                    del self._running[running.job.id]
                    # What the first job of a kind takes beyond that is warming up: not its own.
                    self._fair.charge(running.job.client, min(seconds, running.estimate))
                    self.busy_seconds += seconds
                    self._wake.notify_all()

    def _take(self) -> Running | None:
        """Wait for a job; None when it is time to end."""
        while True:
            with self._wake:
                if self._closing:
                    return None
                now = time.monotonic()
                queued = [j for j in self.store.queued() if self._not_before.get(j.id, 0.0) <= now]
                clients = [r.job.client for r in self._running.values()]
                job = self._fair.choose(queued, clients)
                if job is not None and self.store.begin(job.id):
                    self._not_before.pop(job.id, None)
                    running = Running(job)
                    self._running[job.id] = running
                    return running
                self._wake.wait(IDLE_SECONDS)
            self.store.expire(self.keep_seconds)

    def _run(self, running: Running) -> None:
        job = running.job
        try:
            data = self._result(running)
            write_atomically(self.store.result_path(job.id), [data], mode=PRIVATE)
            if not self.store.end(job.id, "done"):  # it was cancelled at the last moment
                self.store.result_path(job.id).unlink(missing_ok=True)
        except RunCancelledError:
            if not running.by_client:
                self.store.put_back(job.id, again=False)
        except (ClusterError, OSError) as e:
            self._failed(job, e)
        except AegisError as e:
            self.store.end(job.id, "failed", str(e))

    def _failed(self, job: JobRecord, error: Exception) -> None:
        """Try again what the cluster could not do, unless the program itself raised it."""
        cause = error.__cause__
        own = isinstance(cause, AegisError) and not isinstance(cause, ClusterError | IntegrityError)
        logger.warning("job %s, attempt %d: %s", job.id, job.attempts + 1, error)
        if own or job.attempts + 1 >= ATTEMPTS:
            # Addresses of workers are the operator's business.
            what = str(cause) if own else f"the cluster could not run it, {ATTEMPTS} times"
            self.store.end(job.id, "failed", what)
            return
        self._not_before[job.id] = time.monotonic() + RETRY_SECONDS
        self.store.put_back(job.id, again=True)

    def _result(self, running: Running) -> bytes:
        job = running.job
        offer = self.offers[job.offer]
        x = offer.read_request(self.store.request_path(job.id))
        if self.adapts:
            self.executor.adapt()
        with self._keys.loaded(job.keys, offer) as loaded:
            program, plan = offer.planned(job.length, self.executor, loaded)
            running.estimate = sum(task.seconds for task in plan.tasks) / plan.workers
            result = self.executor.run(
                program,
                {INPUT: x},
                progress=running.note,
                loaded=loaded,
                plan=plan,
                checkpoint=self.store.checkpoint_path(job.id),
                cancelled=running.cancelled,
                grows=self.adapts,
            )
        return dumps(result.outputs[OUTPUT].batch)


class KeyCache:
    """Evaluation keys on the cluster, those of the clients that ran last.

    Parameters
    ----------
    executor, store
        Where to load them, and from where.
    limit
        Bytes in memory; one set is loaded even if it is larger.
    """

    def __init__(self, executor: Executor, store: Store, limit: int) -> None:
        self._executor, self._store, self._limit = executor, store, limit
        self._loaded: OrderedDict[str, tuple[Loaded, int]] = OrderedDict()
        self._users: dict[str, int] = {}
        self._dropped: set[str] = set()
        self._lock = threading.RLock()

    @contextmanager
    def loaded(self, identifier: str, offer: Offer) -> Iterator[Loaded]:
        """Give keys that the workers have, and keep them there meanwhile."""
        with self._lock:  # loading takes the cluster's own lock anyway
            self._users[identifier] = self._users.get(identifier, 0) + 1
            try:
                found = self._get(identifier, offer)
            except BaseException:
                self._leave(identifier)
                raise
        try:
            yield found
        finally:
            with self._lock:
                self._leave(identifier)

    @property
    def bytes(self) -> int:
        """Size of what is loaded."""
        return sum(size for _, size in list(self._loaded.values()))

    def drop(self, identifier: str) -> None:
        """Unload keys, when their last run has ended."""
        with self._lock:
            self._dropped.add(identifier)
            self._evict()

    def close(self) -> None:
        """Unload all keys that no run uses."""
        with self._lock:
            self._dropped |= set(self._loaded)
            self._evict()

    def _get(self, identifier: str, offer: Offer) -> Loaded:
        if identifier not in self._loaded:
            keys = offer.read_keys(self._store.keys_path(identifier))
            size = keys.nbytes
            self._evict(size)
            job = offer.job
            loaded = self._executor.load(job.params, keys, job.model.tensors())
            self._loaded[identifier] = loaded, size
        self._loaded.move_to_end(identifier)
        return self._loaded[identifier][0]

    def _leave(self, identifier: str) -> None:
        self._users[identifier] -= 1
        if not self._users[identifier]:
            del self._users[identifier]
        self._evict()

    def _evict(self, room: int = 0) -> None:
        idle = [i for i in self._loaded if i not in self._users]
        for identifier in idle:
            if identifier in self._dropped or self.bytes + room > self._limit:
                loaded, _ = self._loaded.pop(identifier)
                self._executor.unload(loaded)
        self._dropped &= set(self._loaded)
