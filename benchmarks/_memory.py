"""Memory of a process and its children together, pages that they share counted once."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from contextlib import suppress


class HostMemory:
    """Samples the proportional set size (PSS) of this process and all below it, in a thread.

    Mapped files count as far as they are in memory, once for all processes that map them. Linux.

    Attributes
    ----------
    peak
        Largest sum in bytes.
    at
        When that was, seconds since the start.
    """

    def __init__(self, period: float = 1.0) -> None:
        self.period, self.peak, self.at = period, 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> HostMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(self.period):
            total = sum(_proportional(pid) for pid in _tree(os.getpid()))
            if total > self.peak:
                self.peak, self.at = total, time.monotonic() - start


def _tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
                children[parent].append(int(name))
    out = [root]
    for pid in out:  # grows
        out += children[pid]
    return out


def _proportional(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
