"""What workers measure: time of tasks and operations, memory, and transfers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any


@dataclass
class Record:
    """One task as its worker saw it.

    Attributes
    ----------
    task
        Index of the task.
    stage, kind
        What it did; a task that does several things has a record of each.
    start, stop
        Unix time by the clock of the worker.
    operations
        Name of an operation -> calls and seconds.
    payload
        Bytes of residues of its results.
    """

    task: int
    stage: int = 0
    kind: str = "stage"
    start: float = 0.0
    stop: float = 0.0
    operations: dict[str, tuple[int, float]] = field(default_factory=dict)
    payload: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


@dataclass(frozen=True)
class Received:
    """Values that a worker received in one message: who sent them, which, and how long it took."""

    source: str
    keys: tuple[Any, ...]
    seconds: float


@dataclass
class WorkerReport:
    """What a worker has measured in a run.

    Attributes
    ----------
    records
        Its tasks.
    received
        What it fetched from other workers.
    wire_bytes
        Bytes that it wrote to others in doing so, with all headers; address -> bytes.
    peak_memory
        Largest resident memory of its process, shared maps included.
    device_memory
        The most that it has taken from its GPU since it was started; 0 where RMM has the memory.
    """

    records: list[Record] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    wire_bytes: dict[str, int] = field(default_factory=dict)
    peak_memory: int = 0
    device_memory: int = 0


class Timed:
    """An interpreter that notes the time of every operation called on it."""

    def __init__(self, interpreter: Any) -> None:
        self.interpreter = interpreter
        self.operations: dict[str, tuple[int, float]] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.interpreter, name)
        if not callable(method):
            return method

        def timed(*arguments: Any, **options: Any) -> Any:
            start = perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                calls, seconds = self.operations.get(name, (0, 0.0))
                self.operations[name] = calls + 1, seconds + perf_counter() - start

        return timed


class Tap(deque[Any]):
    """Dask's log of transfers, which holds 1000 entries, with an ear for every entry."""

    def __init__(self, log: deque[Any], listen: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(log, log.maxlen)
        self.listen = listen

    def append(self, entry: Any) -> None:
        """Append to the log, and tell who listens."""
        super().append(entry)
        self.listen(entry)


def now() -> float:
    """Return Unix time."""
    return time()


def reset_peak_memory() -> None:
    """Start a new measurement of `peak_memory`, where the system allows it."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory() -> int:
    """Return the largest resident memory of this process since the reset, in bytes; 0 if unknown.

    Memory-mapped keys count in every process that has read them, though they share it.
    """
    with suppress(OSError, ValueError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import resource

        unit = 1 if os.uname().sysname == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 0
