"""``dask scheduler --preload aegis_dask.dashboard.preload``: the page before the first run."""

from __future__ import annotations

from typing import Any

from aegis_dask.dashboard.monitor import NAME, Monitor


async def dask_setup(scheduler: Any) -> None:
    """Give a scheduler that starts a monitor; clients find it there."""
    await scheduler.register_scheduler_plugin(Monitor(), name=NAME, idempotent=True)
