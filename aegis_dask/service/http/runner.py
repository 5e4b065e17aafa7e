"""Runs the jobs of a service: a few at a time, every client in its turn, keys loaded as needed."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from aegis_dask.ckks.files import PRIVATE, write_atomically
from aegis_dask.ckks.serialization import dumps
from aegis_dask.errors import AegisError, ClusterError, IntegrityError
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.ring.memory import release
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.loading import Loaded
from aegis_dask.runtime.progress import Progress
from aegis_dask.runtime.session import DRAIN_SECONDS, RunCancelledError
from aegis_dask.service.http.fair import FairShare
from aegis_dask.service.http.offers import Offer, Offers
from aegis_dask.service.http.store import ATTEMPTS, JobRecord, Store

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
TIDY_SECONDS = 1.0
"""Between looks at what is too old, or has been deleted by ``aegis clients remove``."""
CLOSE_SECONDS = DRAIN_SECONDS + 30.0
"""For what runs to end: a worker finishes the task that it executes."""
RETRY_SECONDS = 5.0
"""Between attempts at a job whose cluster failed, and at what the disk has refused."""

T = TypeVar("T")


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
        self._started = self._closing = False
        self._not_before: dict[str, float] = {}
        self._refused: set[str] = set()  # threads that the disk or the database refused last
        self._keys = KeyCache(executor, store, keys_bytes)
        self._threads = [
            threading.Thread(target=self._work, name=f"aegis-job-{i}", daemon=True)
            for i in range(at_once)
        ]
        self._tidying = threading.Thread(target=self._tidy, name="aegis-tidy", daemon=True)

    def start(self) -> None:
        """Begin."""
        stranded = self.stranded
        if stranded:
            logger.warning("%d jobs wait for offers that are not there", stranded)
        self._started = True
        for thread in (*self._threads, self._tidying):
            thread.start()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """End: what runs is queued again, with its checkpoint, for the next start."""
        with self._wake:
            self._closing = True
            for running in self._running.values():
                running.cancelled.set()
                # At once, and not when it has ended: whoever ends this process meanwhile, or
                # loading of keys that takes longer, is not to cost the job an attempt.
                try:
                    self.store.put_back(running.job.id, again=False)
                except sqlite3.Error as e:
                    logger.error("job %s cannot be put back: %s", running.job.id, e)
            self._wake.notify_all()
        deadline = time.monotonic() + timeout
        if self._started:
            for thread in (*self._threads, self._tidying):
                thread.join(max(0.0, deadline - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):  # else they have the lock
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
    def stranded(self) -> int:
        """Jobs that wait for offers that are not there: they run when those are offered again."""
        return sum(job.offer not in self.offers for job in self.store.queued())

    @property
    def trouble(self) -> str:
        """Why jobs are not run, or "" if they are."""
        if self._started and not any(thread.is_alive() for thread in self._threads):
            return "nothing runs jobs any more; start the service again"
        if self._refused:
            return "the service cannot read or write its directory; see its log"
        return ""

    @property
    def keys_bytes(self) -> int:
        """Size of the evaluation keys that the cluster has."""
        return self._keys.bytes

    # -- the threads -------------------------------------------------------------------------

    def _work(self) -> None:
        """Run jobs until it is time to end: whatever goes wrong with one, the next is taken."""
        while not self._closing:
            try:
                running = self._take()
                self._refused.discard(threading.current_thread().name)
                if running is not None:
                    self._go(running)
            except Exception as e:
                self._note(e)
                self._pause()

    def _take(self) -> Running | None:
        """Take a job, or wait a moment; None if there was none."""
        with self._wake:
            if self._closing:
                return None
            now = time.monotonic()
            queued = [
                job
                for job in self.store.queued()
                # One of an earlier start's offers waits until there is that offer again.
                if job.offer in self.offers and self._not_before.get(job.id, 0.0) <= now
            ]
            clients = [r.job.client for r in self._running.values()]
            job = self._fair.choose(queued, clients)
            if job is not None and self.store.begin(job.id):
                self._not_before.pop(job.id, None)
                running = Running(job)
                self._running[job.id] = running
                return running
            self._wake.wait(IDLE_SECONDS)
        return None

    def _go(self, running: Running) -> None:
        start = time.monotonic()
        job = running.job
        try:
            self._run(running)
        except Exception:
            logger.exception("job %s", job.id)
            if not self._closing:
                what = "an internal error; see the service's log"
                self._insist(lambda: self.store.end(job.id, "failed", what))
        finally:
            seconds = time.monotonic() - start
            with self._wake:
                if self._running.get(job.id) is running:  # else it has been taken again already
                    del self._running[job.id]
                # What the first job of a kind takes beyond that is warming up: not its own.
                self._fair.charge(job.client, min(seconds, running.estimate))
                self.busy_seconds += seconds
                self._wake.notify_all()
            release()

    def _run(self, running: Running) -> None:
        job = running.job
        path = self.store.result_path(job.id)
        try:
            data = self._result(running)
            self._insist(lambda: write_atomically(path, [data], mode=PRIVATE))
            if not self._insist(lambda: self.store.end(job.id, "done")):
                self.store.delete_files(job.id)  # it was cancelled at the last moment
        except RunCancelledError:
            if running.by_client:
                self.store.delete_files(job.id)  # the run may have written some since
            else:
                self._insist(lambda: self.store.put_back(job.id, again=False))
        except (ClusterError, OSError) as e:
            self._failed(job, e)
        except AegisError as e:
            error = str(e)
            self._insist(lambda: self.store.end(job.id, "failed", error))

    def _failed(self, job: JobRecord, error: Exception) -> None:
        """Try again what the cluster could not do, unless the program itself raised it."""
        cause = error.__cause__
        own = isinstance(cause, AegisError) and not isinstance(cause, ClusterError | IntegrityError)
        logger.warning("job %s, attempt %d: %s", job.id, job.attempts + 1, error)
        if self._closing and not own:  # that may be why, and `close` has put it back
            return
        if own or job.attempts + 1 >= ATTEMPTS:
            # Addresses of workers are the operator's business.
            what = str(cause) if own else f"the cluster could not run it, {ATTEMPTS} times"
            self._insist(lambda: self.store.end(job.id, "failed", what))
            return
        self._not_before[job.id] = time.monotonic() + RETRY_SECONDS
        self._insist(lambda: self.store.put_back(job.id, again=True))

    def _tidy(self) -> None:
        """Forget what is too old, and end what runs for clients that have been removed."""
        while not self._closing:
            try:
                self.store.expire(self.keep_seconds)
                for running in list(self._running.values()):
                    if not self.store.has_job(running.job.id):
                        running.by_client = True
                        running.cancelled.set()
                for identifier in self._keys.identifiers:
                    if not self.store.has_keys(identifier):
                        self._keys.drop(identifier)
            except Exception as e:
                logger.error("the service cannot tidy up, trying again: %s", e)
            with self._wake:
                self._wake.wait_for(lambda: self._closing, TIDY_SECONDS)

    def _insist(self, write: Callable[[], T]) -> T:
        """Write how a run went, again and again while the disk refuses: nobody else will.

        Raises
        ------
        OSError, sqlite3.Error
            If the service ends meanwhile. The next start puts the job back.
        """
        while True:
            try:
                done = write()
            except (OSError, sqlite3.Error) as e:
                if self._closing:
                    raise
                self._note(e)
                self._pause()
            else:
                self._refused.discard(threading.current_thread().name)
                return done

    def _note(self, error: Exception) -> None:
        self._refused.add(threading.current_thread().name)
        known = isinstance(error, OSError | sqlite3.Error)
        logger.error(
            "jobs wait, trying again in %g s: %s",
            *(RETRY_SECONDS, error),
            exc_info=None if known else error,
        )

    def _pause(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _result(self, running: Running) -> bytes:
        job = running.job
        offer = self.offers[job.offer]
        x = offer.read_request(self.store.request_path(job.id))
        if self.adapts:
            self.executor.adapt()
        with self._keys.loaded(job.keys, offer, running.cancelled) as loaded:
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
    def loaded(self, identifier: str, offer: Offer, cancelled: threading.Event) -> Iterator[Loaded]:
        """Give keys that the workers have, and keep them there meanwhile."""
        with self._lock:  # loading takes the cluster's own lock anyway
            if cancelled.is_set():  # while others' keys were loaded
                raise RunCancelledError("the run was cancelled")
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
    def identifiers(self) -> list[str]:
        """The keys that are loaded."""
        return list(self._loaded)

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
