"""Adaptive clusters: workers come when a run begins and go when none is under way."""

from __future__ import annotations

import pickle
from typing import Any

from distributed.deploy.adaptive import Adaptive

from aegis_dask.dashboard.monitor import busy_workers


class AdaptiveWorkers(Adaptive):
    """A policy for ``cluster.adapt`` of Dask's clusters, in the place of their own.

    Dask judges workers by the tasks that wait now. Ours are pinned: a worker that has nothing to do
    for a moment may be the one that the next layer needs, and one that joins is of no use before
    the rest of a run is planned for it, too. So the cluster has its maximum of workers while a run
    is under way, which takes them up when its layer ends (``grows`` of `Executor.run`); otherwise
    its minimum. No worker of a run is closed.

    Examples
    --------
    >>> cluster.adapt(Adaptive=AdaptiveWorkers, minimum=1, maximum=8)     # doctest: +SKIP
    """

    async def target(self) -> int:
        """Return how many workers there should be."""
        if await self._busy():
            return int(self.maximum)
        return int(self.minimum)

    async def workers_to_close(self, target: int) -> list[str]:
        """Return the names of workers that may go: none that a run has."""
        busy = set(await self._busy())
        return [name for name in await super().workers_to_close(target) if name not in busy]

    async def _busy(self) -> list[Any]:
        reply = await self.scheduler.run_function(function=pickle.dumps(busy_workers))
        if reply["status"] != "OK":
            raise reply["exception"].data
        names: list[Any] = reply["result"]
        return names
