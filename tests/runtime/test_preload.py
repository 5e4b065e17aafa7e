"""The preload: Dask's commands run as the executor wants them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import Client

from aegis_dask.runtime.settings import CONFIG
from tests.runtime.test_connect import free_port

PRELOAD = ("--preload", "aegis_dask.runtime.preload")


def settings(dask_scheduler: object) -> tuple[object, ...]:
    s = dask_scheduler
    return (
        s.worker_ttl,  # type: ignore[attr-defined]
        s.allowed_failures,  # type: ignore[attr-defined]
        s.no_workers_timeout,  # type: ignore[attr-defined]
        s.extensions["amm"].running,  # type: ignore[attr-defined]
    )


def pause(dask_worker: object) -> object:
    return dask_worker.memory_manager.memory_pause_fraction  # type: ignore[attr-defined]


def test_dasks_own_commands_take_the_settings(tmp_path: Path) -> None:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ("scheduler", "--host", address, "--dashboard-address", "127.0.0.1:0")
    worker = ("worker", address, "--nthreads", "1", "--dashboard-address", "127.0.0.1:0")
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments, *PRELOAD],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for name, *arguments in (scheduler, worker)
    ]
    try:
        with Client(address, timeout=30, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=30)
            assert client.run_on_scheduler(settings) == (30, 0, 30, False)
            assert list(client.run(pause).values()) == [False]
    finally:
        for program in programs[::-1]:
            program.terminate()
            program.wait(30)


@pytest.mark.parametrize(
    ("host", "complains"), [("tcp://0.0.0.0", True), ("tcp://127.0.0.1", False)]
)
def test_an_open_scheduler_is_complained_about(host: str, complains: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", host]
    with subprocess.Popen(
        [*command, "--port", "0", "--dashboard-address", "127.0.0.1:0", *PRELOAD],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stderr is not None
        said = ""
        deadline = time.monotonic() + 30
        for line in program.stderr:
            said += line
            if "Registering Worker plugin" in line or time.monotonic() > deadline:
                break
        program.terminate()
        said += program.stderr.read()
    assert ("without encryption" in said) is complains, said


def test_the_settings_are_dasks() -> None:
    import dask.config
    import distributed  # noqa: F401  (its defaults)

    for key in CONFIG:
        assert dask.config.get(key, "missing") != "missing", key
