"""Adaptive clusters: workers come when a run begins and go when none is under way."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from distributed.deploy.adaptive import Adaptive

from aegis_dask.dashboard.monitor import busy_workers, has_clients


class AdaptiveWorkers(Adaptive):
    """A policy for ``cluster.adapt`` of Dask's clusters, in the place of their own.

    Dask judges workers by the tasks that wait now. Ours are pinned: a worker that has nothing to do
    for a moment may be the one that the next layer needs, and one that joins is of no use before
    the rest of a run is planned for it, too. So the cluster has its maximum of workers while a run
    is under way, which takes them up when its layer ends (``grows`` of `Executor.run`); otherwise
    its minimum, but one while a client is connected, which needs it to begin a run. No worker of a
    run is closed.

    Examples
    --------
    >>> cluster.adapt(Adaptive=AdaptiveWorkers, minimum=1, maximum=8)     # doctest: +SKIP
    """

    async def target(self) -> int:
        """Return how many workers there should be."""
        if await self._ask(busy_workers):
            return int(self.maximum)
        least = int(await self._ask(has_clients))  # the minimum of Dask is 0
        return int(min(max(self.minimum, least), self.maximum))

    async def workers_to_close(self, target: int) -> list[str]:
        """Return the names of workers that may go: none that a run has."""
        busy = set(await self._ask(busy_workers))
        return [name for name in await super().workers_to_close(target) if name not in busy]

    async def _ask(self, function: Callable[..., Any]) -> Any:
        reply = await self.scheduler.run_function(function=pickle.dumps(function))
        if reply["status"] != "OK":
            raise reply["exception"].data
        return reply["result"]
