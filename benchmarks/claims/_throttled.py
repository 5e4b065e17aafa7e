"""Workers whose link to each other is slow: results take their time to be fetched."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import WorkerPlugin
from distributed.sizeof import sizeof

GIGABIT = 125e6
"""Bytes per second of a link of 1 Gbit/s."""


class Throttle(WorkerPlugin):
    """Lets a worker send what other workers fetch at so many bytes per second, one at a time."""

    name = "throttle"

    def __init__(self, bytes_per_second: float = GIGABIT) -> None:
        self.bytes_per_second = bytes_per_second

    def setup(self, worker: Any) -> None:
        """Stand between the worker and those who ask for data."""
        send = worker.handlers["get_data"]
        link = asyncio.Lock()

        async def get_data(comm: Any, keys: Any, who: Any = None, **options: Any) -> Any:
            if who is not None:  # another worker, not the client
                size = sum(sizeof(worker.data[k]) for k in keys if k in worker.data)
                async with link:
                    await asyncio.sleep(size / self.bytes_per_second)
            return await send(comm=comm, keys=keys, who=who, **options)

        worker.handlers["get_data"] = get_data
