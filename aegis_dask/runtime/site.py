"""A cluster, and what one client has on it: files, keys and weights, an ear for events."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from distributed import Client

from aegis_dask.errors import ClusterError
from aegis_dask.runtime import cluster, plugin
from aegis_dask.runtime.events import Events
from aegis_dask.runtime.hosts import Hosts
from aegis_dask.runtime.loading import Loaded, Loader
from aegis_dask.runtime.session import DeviceLostError
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
        Closes it.
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
        self.hosts = Hosts(client, directory, ship)
        stack.callback(self.hosts.close)
        self.loader = Loader(client, self.hosts, in_process)
        stack.callback(self.loader.close)
        self.events = Events(client)
        self.lock = threading.RLock()
        self.addresses: list[str] = []
        self.again: Callable[[], Client] | None = None
        self._scheduler = ""
        self._introduce()

    @property
    def is_local(self) -> bool:
        """Whether the workers share this machine with the client."""
        return self.client.cluster is not None

    def count(self) -> int:
        """Return how many workers the cluster has."""
        with self.lock:
            self.find_scheduler()
            return len(cluster.workers_of(self.client))

    def ready(self, loaded: Loaded, count: int, *, takes_fewer: bool = False) -> dict[str, str]:
        """Wait for workers, and open a context where it is not; return their directories.

        In the order in which a run numbers the workers. With `takes_fewer` those that there are
        after the time to wait will do.
        """
        with self.lock:
            self.find_scheduler()
            try:
                found = cluster.wait_for_workers(self.client, count, self.join_seconds)
            except ClusterError:
                found = cluster.workers_of(self.client)
                if not takes_fewer or not found:
                    raise
            # Those of before first: one that joined late is taken if another is gone.
            ordered = sorted(cluster.in_order(found), key=lambda a: a not in self.addresses)
            chosen = set(ordered[:count])
            self.addresses = [a for a in cluster.in_order(found) if a in chosen]
            found_in = self.hosts.sync(self.addresses)
            where = {address: found_in[address] for address in self.addresses}
            try:
                self.loader.open(loaded, where)
            except DeviceLostError as e:  # an earlier run has left it so
                if self.restart(e.address):
                    raise ClusterError(f"{e}. It has been started again: run again") from e
                raise
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
        self._scheduler = cluster.identity_of(self.client)["id"]
        on_their_own = self.is_local and not self.in_process
        self.client.register_plugin(plugin.AegisPlugin(on_their_own), name=PLUGIN)
        install_monitor(self.client)
        self.client.run(plugin.bury, self.client.run_on_scheduler(_clients), on_error="ignore")

    def find_scheduler(self) -> None:
        """Notice that the scheduler has been started again; wait for it if it is away.

        Raises
        ------
        ClusterError
            If it does not come back.
        """
        deadline = time.monotonic() + self.join_seconds
        while True:
            try:
                if cluster.identity_of(self.client)["id"] != self._scheduler:
                    logger.warning("the scheduler has been started again")
                    self.loader.forget_workers()
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
            if not path.exists():
                path.write_bytes(bytes(workers))
        return str(path)


def _clients(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.clients)
