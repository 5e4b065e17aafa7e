"""Timing on a shared machine: every figure carries the load other processes caused meanwhile.

Kept free of third-party imports and valid on Python 3.10, because some peers' wheels serve one
older interpreter only and their subprocess imports this module.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Foreign load (in cores) above which a figure on a small machine is off by more than its spread.
DISTURBED = 0.1
_QUIET = 0.06
_PROC = Path("/proc")


@dataclass(frozen=True)
class Measurement:
    """Time of one operation: minimum and median over `reps` runs, in milliseconds.

    `foreign_load` is in cores (0 = quiet machine) and None where the system does not tell.
    """

    op: str
    lib: str
    threads: int
    min_ms: float
    median_ms: float
    reps: int
    foreign_load: float | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _CpuClock:
    """CPU seconds used so far by the whole machine and by this process, at `wall` seconds."""

    wall: float
    machine: float
    own: float

    @classmethod
    def read(cls) -> _CpuClock | None:
        try:
            first_line = (_PROC / "stat").read_text().split("\n", 1)[0]
        except OSError:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (
            int(ticks) for ticks in first_line.split()[1:9]
        )
        # Stolen time belongs to neighbours of a virtual machine, who disturb just the same.
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), busy, usage.ru_utime + usage.ru_stime)


def _foreign_since(start: _CpuClock | None) -> float | None:
    """Cores used by other processes since `start`."""
    now = _CpuClock.read()
    if start is None or now is None:
        return None
    foreign = (now.machine - start.machine) - (now.own - start.own)
    return round(max(0.0, foreign / max(now.wall - start.wall, 1e-3)), 2)


def _wait_until_quiet(deadline: float) -> None:
    while time.perf_counter() < deadline:
        start = _CpuClock.read()
        time.sleep(0.5)
        load = _foreign_since(start)
        if load is None or load < _QUIET:
            return


def _run(
    fn: Callable[[], object], budget_s: float, min_reps: int, max_reps: int
) -> tuple[list[float], float | None]:
    """Seconds of each repetition, and the foreign load over all of them."""
    start = _CpuClock.read()
    end = time.perf_counter() + budget_s
    seconds: list[float] = []
    while len(seconds) < min_reps or (len(seconds) < max_reps and time.perf_counter() < end):
        begin = time.perf_counter()
        fn()  # the result dies here: releasing it is part of what a program pays
        seconds.append(time.perf_counter() - begin)
    return seconds, _foreign_since(start)


def measure(
    fn: Callable[[], object],
    budget_s: float = 1.5,
    min_reps: int = 3,
    max_reps: int = 200,
    warm: int = 1,
    quiet_wait_s: float = 0,
    *,
    op: str = "",
    lib: str = "",
    threads: int = 1,
    extra: Mapping[str, Any] | None = None,
) -> Measurement:
    """Time `fn` for about `budget_s` seconds, after `warm` runs that do not count.

    With `quiet_wait_s` > 0 a disturbed measurement is repeated, each time after waiting for a
    quiet machine, until that many seconds have passed. The minimum is then over all attempts;
    median, repetitions and foreign load are those of the quietest one.
    """
    if min_reps < 1:
        raise ValueError(f"min_reps is {min_reps}; at least one repetition is needed")
    for _ in range(warm):
        fn()
    deadline = time.perf_counter() + quiet_wait_s
    lowest = float("inf")
    best: tuple[list[float], float | None] | None = None
    while True:
        if quiet_wait_s > 0:
            _wait_until_quiet(deadline)
        attempt = _run(fn, budget_s, min_reps, max_reps)
        lowest = min(lowest, min(attempt[0]))
        if best is None or (attempt[1] or 0.0) < (best[1] or 0.0):
            best = attempt
        if (best[1] or 0.0) <= DISTURBED or time.perf_counter() >= deadline:
            break
    seconds, foreign = best
    return Measurement(
        op=op,
        lib=lib,
        threads=threads,
        min_ms=round(lowest * 1e3, 4),
        median_ms=round(statistics.median(seconds) * 1e3, 4),
        reps=len(seconds),
        foreign_load=foreign,
        extra=dict(extra or {}),
    )


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    # Not ru_maxrss on Linux: a child started by a large parent inherits the parent's peak there.
    peak = _proc_status_kib("VmHWM")
    if peak is not None:
        return peak * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def current_rss_bytes() -> int:
    """Resident memory of this process now, in bytes (the peak where the system hides it)."""
    now = _proc_status_kib("VmRSS")
    return peak_rss_bytes() if now is None else now * 1024


def machine_info() -> dict[str, Any]:
    """Processor, cores, memory, system, Python, date (UTC) and commit, as a JSON-ready dict."""
    flags = _cpuinfo("flags").split()
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "simd": [name for name in ("avx2", "avx512f", "avx512ifma") if name in flags],
        "memory_gib": _memory_gib(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
    }


def _proc_status_kib(key: str) -> int | None:
    try:
        lines = (_PROC / "self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return None


def _cpuinfo(key: str) -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _usable_cores() -> int | None:
    # Absent on macOS, where a process cannot be pinned.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    return round(total / 2**30, 1)


def _commit() -> str | None:
    """Short commit of this checkout, with `-dirty` when files differ from it."""
    root = Path(__file__).resolve().parent.parent
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() or None
