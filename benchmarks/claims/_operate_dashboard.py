"""The dashboard behind a run of 100,000 tasks: how fast its page is, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis_dask.runtime.executor import Executor
from benchmarks.claims import Claim, Finding, Options
from tests.dashboard.browser import CHROMIUM, FIND, browser
from tests.dashboard.synthetic import feed, make_run
from tests.runtime.programs import chain, integers

TASKS, QUICK_TASKS = 100_000, 8_000
ROWS, STEPS = 100, 4
"""Rows of the program, each a task, and steps of a task: stages of a layer are fused."""
LOADS = 5


def page_load(options: Options) -> Finding:
    """The slowest of several loads of the page, seconds until the timeline is drawn."""
    if CHROMIUM is None:
        return Finding(None, "chromium is not installed", sound=False)
    ready = f"{FIND}('#timeline rect').length"
    brief = make_run(TASKS, title=f"{TASKS:,} tasks").to_dict()
    with (
        Executor.local(workers=1, processes=False, dashboard=True) as executor,
        tempfile.TemporaryDirectory() as folder,
        browser(Path(folder)) as page,
    ):
        executor.client.run_on_scheduler(feed, brief, 0.9, "running", "")
        address = executor.dashboard_link.replace("/status", "/aegis")
        times = []
        for _ in range(LOADS):
            page.call("Network.clearBrowserCache")
            times.append(page.open(address, ready))
            page.open("about:blank", "true")
    shown = ", ".join(f"{t:.2f}" for t in times)
    return Finding(max(times), f"loads without a cache: {shown} s")


def monitor_share(options: Options) -> Finding:
    """The share of the scheduler's processor time that the monitor takes, in percent."""
    tasks = QUICK_TASKS if options.quick else TASKS
    program = chain(STEPS * tasks // ROWS, rows=ROWS)
    inputs = {"x": integers(program)}
    with _scheduler() as address, Executor.connect(address, 2, timeout=60) as executor:
        executor.prepare()
        how: dict[str, Any] = {
            "interpreter": "simulated",
            "stage_work": [float(ROWS)] * len(program.stages),
            "target_seconds": 1.0,
            "least_seconds": 0.0,
        }
        executor.client.run_on_scheduler(_watch_monitor)
        before = executor.client.run_on_scheduler(_times)
        result = executor.run(program, inputs, **how)
        after = executor.client.run_on_scheduler(_times)
    whole, mine, events = (b - a for a, b in zip(before, after, strict=True))
    note = (
        f"{result.tasks} tasks, {1e6 * whole / result.tasks:.0f} us of the scheduler each, "
        f"{1e6 * mine / max(1, events):.1f} us of them the monitor's"
    )
    return Finding(100 * mine / whole, note, sound=events >= result.tasks)


@contextmanager
def _scheduler() -> Iterator[str]:
    """A scheduler in a process of its own, and two workers."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scheduler.json")
        common = [sys.executable, "-m", "distributed.cli"]
        commands = [
            ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address"],
            *(["dask_worker", "--nthreads", "1", "--name", str(i)] for i in range(2)),
        ]
        commands[0] += ["127.0.0.1:0", "--scheduler-file", str(file)]
        processes = []
        try:
            for command in commands:
                if command[0] == "dask_worker":
                    command += ["--scheduler-file", str(file), "--local-directory", folder]
                    command += ["--host", "127.0.0.1", "--no-nanny"]
                module = f"{common[2]}.{command[0]}"
                processes.append(
                    subprocess.Popen(
                        [*common[:2], module, *command[1:]],
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
            yield _address(file)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(20)


def _address(file: Path) -> str:
    import json

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if file.exists():
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    raise RuntimeError("the scheduler does not start")


def _watch_monitor(dask_scheduler: Any) -> None:
    """Time all that the monitor does, and count the events that it handles."""
    monitor = dask_scheduler.plugins["aegis-monitor"]
    handle, settle = monitor.log_event, monitor.settle
    spent = dask_scheduler.monitor_times = [0.0, 0]
    depth = 0

    def nothing(*arguments: Any) -> None:
        pass

    def timed(call: Any, *arguments: Any) -> None:
        nonlocal depth
        depth += 1
        begin = time.thread_time()
        call(*arguments)
        depth -= 1
        if not depth:  # one that another calls is in its time
            spent[0] += time.thread_time() - begin

    def log_event(topic: str, message: Any) -> None:
        before = spent[0]
        timed(nothing, topic, message)  # what the clock itself takes
        clock, spent[0] = spent[0] - before, before
        timed(handle, topic, message)
        spent[0] -= clock
        spent[1] += 1

    monitor.log_event = log_event
    monitor.settle = lambda: timed(settle)


def _times(dask_scheduler: Any) -> tuple[float, float, int]:
    """Return processor seconds of the scheduler's process and of the monitor, and its events."""
    seconds, events = dask_scheduler.monitor_times
    return time.process_time(), seconds, events


def claims(options: Options) -> list[Claim]:
    """The claims of the dashboard."""
    return [
        Claim("dashboard", "< 2", "s", lambda: page_load(options)),
        Claim(
            "dashboard-share", "< 1", "% of the scheduler's time", lambda: monitor_share(options)
        ),
    ]
