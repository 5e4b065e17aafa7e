"""A cluster, and what one client has on it: files, keys and weights, an ear for events."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client

from aegis_dask.errors import ClusterError
from aegis_dask.runtime import cluster, plugin
from aegis_dask.runtime.cluster import UnusableError
from aegis_dask.runtime.events import Events
from aegis_dask.runtime.hosts import Hosts
from aegis_dask.runtime.loading import Loaded, Loader
from aegis_dask.runtime.session import DeviceLostError, WorkerLostError
from aegis_dask.runtime.watch import install_monitor
from aegis_dask.runtime.worker import PLUGIN

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 1.0
LOAD = "load"
"""File of `runtime.load`."""


class Site:
    """Where runs of an executor take place.

    Parameters
    ----------
    client
        Connected to the cluster.
    stack
        Closes it, or what has taken its place.
    directory, ship
        As for `Executor.connect`.
    in_process
        Whether the workers are threads of this process.
    join_seconds
        How long to wait for workers, and for a scheduler that is away.

    Attributes
    ----------
    hosts, loader, events
        Files on the workers' hosts, keys and weights on the workers, and the scheduler's events.
    lock
        Of workers and files; runs go on side by side.
    addresses
        Of worker 0, 1, ... of the next run, if all stay.
    again
        Connects once more, if the cluster is not ours.
    checked
        Workers whose versions have been looked at.
    """

    def __init__(
        self,
        client: Client,
        stack: ExitStack,
        *,
        directory: Path | None,
        ship: bool,
        in_process: bool,
        join_seconds: float,
    ) -> None:
        self.client, self.in_process, self.join_seconds = client, in_process, join_seconds
        stack.callback(lambda: cluster.close_client(self.client))  # last: the others need it
        self._owner = secrets.token_hex(8)
        self.hosts = Hosts(client, directory, ship)
        stack.callback(self.hosts.close)
        self.loader = Loader(client, self.hosts, in_process, self._owner)
        stack.callback(self.loader.close)
        self.events = Events(client)
        self.lock = threading.RLock()
        self.addresses: list[str] = []
        self.again: Callable[[], Client] | None = None
        self.checked: set[str] = set()
        self._introduced = ("", "")  # identifiers: to which scheduler, and as which client
        self._introduce()

    @property
    def is_local(self) -> bool:
        """Whether the workers share this machine with the client."""
        return self.client.cluster is not None

    def count(self) -> int:
        """Return how many workers the cluster has."""
        with self.lock, _reached():
            self.find_scheduler()
            return len(cluster.workers_of(self.client))

    def ready(self, loaded: Loaded, count: int, *, takes_fewer: bool = False) -> dict[str, str]:
        """Wait for workers, and open a context where it is not; return their directories.

        In the order in which a run numbers the workers. With `takes_fewer` those that there are
        after the time to wait will do. A worker that was not among the last ones, and cannot be
        used, is left out where there are others.

        Raises
        ------
        WorkerLostError
            If a worker is lost meanwhile.
        ClusterError
            If workers are missing, or one of the last ones cannot be used.
        """
        with self.lock, _reached():
            self.find_scheduler()
            try:
                found = cluster.wait_for_workers(self.client, count, self.join_seconds)
            except ClusterError:
                found = cluster.workers_of(self.client)
                if not takes_fewer or not found:
                    raise
            self.checked &= set(found)
            loaded.opened = {a: backend for a, backend in loaded.opened.items() if a in found}
            while True:
                try:
                    return self._bring(loaded, found, count)
                except (UnusableError, DeviceLostError) as e:
                    is_restarted = isinstance(e, DeviceLostError) and self.restart(e.address)
                    is_new = e.address not in self.addresses
                    if is_new and len(found) > (1 if takes_fewer else count):
                        logger.warning("%s; the others go on without it", e)
                        found = {a: info for a, info in found.items() if a != e.address}
                        continue
                    if is_restarted:  # an earlier run has left it so
                        text = f"{e}. It has been started again: run again"
                        raise WorkerLostError(text) from e
                    if isinstance(e, DeviceLostError):
                        raise ClusterError(str(e)) from e
                    raise

    def _bring(
        self, loaded: Loaded, found: Mapping[str, dict[str, Any]], count: int
    ) -> dict[str, str]:
        """Give so many of these workers what they need; return their directories."""
        in_order = cluster.in_order(dict(found))
        # Those of before first: one that joined late is taken if another is gone.
        chosen = set(sorted(in_order, key=lambda a: a not in self.addresses)[:count])
        addresses = [a for a in in_order if a in chosen]
        new = chosen - self.checked
        if new and self.again is not None:
            for address, why in cluster.unfit_workers(self.client, new).items():
                raise UnusableError(why, address)
            self.checked |= new
        found_in = self.hosts.sync(addresses)
        where = {address: found_in[address] for address in addresses}
        self.loader.open(loaded, where)
        self.addresses = addresses
        return where

    def restart(self, address: str) -> bool:
        """Start the process of a worker again; False if nothing would do that (it has no nanny)."""
        with self.lock:
            found = cluster.workers_of(self.client).get(address)
            if found is None:
                return True  # it is gone already, as other lost workers are
            if not found.get("nanny"):
                return False
            self.client.restart_workers([address], self.join_seconds, raise_for_error=False)
            return True

    def _introduce(self) -> None:
        """Give scheduler and workers, those to come too, what they need of us."""
        client, scheduler = self.client, cluster.identity_of(self.client)["id"]
        on_their_own = self.is_local and not self.in_process
        client.register_plugin(plugin.Owners(), name=plugin.OWNERS)
        alive = client.run_on_scheduler(plugin.introduce, self._owner, client.id)
        client.register_plugin(plugin.AegisPlugin(on_their_own), name=PLUGIN)
        install_monitor(client)
        client.run(plugin.bury, alive, on_error="ignore")
        self._introduced = scheduler, client.id

    def find_scheduler(self) -> None:
        """Notice that the scheduler, or our client, is another one; wait if it is away.

        Raises
        ------
        ClusterError
            If it does not come back.
        """
        deadline = time.monotonic() + self.join_seconds
        while True:
            try:
                scheduler = cluster.identity_of(self.client)["id"]
                if scheduler != self._introduced[0]:
                    logger.warning("the scheduler has been started again")
                if (scheduler, self.client.id) != self._introduced:
                    self._introduce()
                return
            except (OSError, TimeoutError) as e:
                if self.again is None or time.monotonic() > deadline:
                    raise ClusterError(
                        f"the scheduler no longer answers ({e}); start it again at the same "
                        "address, or open a new Executor"
                    ) from e
            time.sleep(RECONNECT_SECONDS)
            with suppress(ClusterError):
                client = self.again()
                cluster.close_client(self.client)
                for user in (self, self.hosts, self.loader, self.events):
                    user.client = client

    def names(self, addresses: Sequence[str]) -> list[str]:
        """Return the workers' names, by Dask."""
        known = cluster.workers_of(self.client)
        return [str(known.get(a, {}).get("name", i)) for i, a in enumerate(addresses)]

    def shares_cores(self, workers: int) -> bool:
        """Whether so many workers are processes that we have started on this machine."""
        return self.is_local and not self.in_process and workers > 1

    def load_file(self, workers: int) -> str:
        """Return the file in which workers that share this machine say what they do, or ""."""
        if not self.shares_cores(workers):
            return ""
        path = self.hosts.root / LOAD
        with self.lock:
            path.touch()
            if path.stat().st_size < workers:  # of an earlier run on fewer
                os.truncate(path, workers)
        return str(path)


@contextmanager
def _reached() -> Iterator[None]:
    """Say what it means when the block loses a worker or the scheduler."""
    try:
        yield
    except UnusableError as e:
        if not e.is_lost:
            raise
        raise WorkerLostError(f"{e}; run again") from e
    except Exception as e:
        if not cluster.is_lost(e):
            raise
        raise WorkerLostError(
            f"the connection to the scheduler or to a worker was lost: {e!r}; run again"
        ) from e
