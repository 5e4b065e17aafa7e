"""Dask's settings, as the executor wants them.

They hold for scheduler and workers. Clusters that we start have them; others get them with
``--preload aegis_dask.runtime.preload``.
"""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    # It deletes copies of data that we have placed.
    "distributed.scheduler.active-memory-manager.start": False,
    # A task whose worker is gone fails, instead of waiting for ever.
    "distributed.scheduler.no-workers-timeout": "30s",
    "distributed.scheduler.allowed-failures": 0,
    # A worker that hangs is noticed within a minute, by its silence. One that cannot be reached is
    # noticed by the system within `distributed.comm.timeouts.tcp`, 30 s.
    "distributed.scheduler.worker-ttl": "30s",
    # Its call trees of the last hour would take a gigabyte of a worker that runs many small jobs,
    # and they end at the kernels; the operators' times are measured anyway.
    "distributed.worker.profile.enabled": False,
    # A paused worker waits for memory that no other would free. It is ended at 95 % instead.
    "distributed.worker.memory.pause": False,
}
