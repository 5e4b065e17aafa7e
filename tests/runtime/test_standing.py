"""Clusters that outlive their command: started, scaled, looked at, ended, cleaned up after."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from aegis_dask.errors import ClusterError, ParameterError
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime import launch, standing
from aegis_dask.runtime.certificates import make_certificates
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.standing import Plan, commands, record
from tests.runtime.programs import SLOTS, SlowFactory, chain
from tests.service.conftest import aegis, json_of, refused

PROGRAM = chain(12)
ROOT = Path(__file__).parents[2]
X = np.ones((4, SLOTS)) + 0j


def quiet(message: str) -> None:
    pass


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of this test's; whatever is left in it is ended."""
    monkeypatch.setenv(launch.STATE_VARIABLE, str(tmp_path / "state"))
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    yield tmp_path / "state"
    for name in standing.names():
        standing.down(name, True, quiet)


def processes(root: Path) -> list[psutil.Process]:
    """What runs for clusters of a state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(launch.MARK, "")
            if mark.startswith(str(root)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ended(root: Path) -> bool:
    deadline = time.monotonic() + 10
    while processes(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes(root)


def listening(process: psutil.Process) -> set[str]:
    found = process.net_connections(kind="inet")
    return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}


@pytest.mark.slow
def test_a_cluster_from_its_start_to_its_end(root: Path) -> None:
    made = json_of("cluster", "up", "first", "--workers", 2, "--threads", 1)
    assert made["address"].startswith("tls://127.0.0.1:")
    assert record.load("first").machine == socket.gethostname()
    assert {ip for p in processes(root) for ip in listening(p)} == {"127.0.0.1"}
    ours = [p for p in root.rglob("*") if p.suffix in (".json", ".log", ".key", ".pem")]
    assert (
        len(ours) == 1 + 3 + 3 + 5
    )  # the state, logs, certificates of the host and of the cluster
    assert all(p.stat().st_mode & 0o077 == 0 for p in (*ours, root / "first"))
    assert "already" in refused("cluster", "up", "first")

    found = json_of("cluster", "status", "first")
    assert found["answers"]
    assert [w["name"] for w in found["workers"]] == ["0", "1"]
    assert {w["state"] for w in found["workers"]} == {"running"}
    assert found["dashboard"].startswith("http://127.0.0.1:")
    assert found["versions"]["aegis_dask"]

    x = np.random.default_rng(1).integers(-9, 9, (4, SLOTS)) + 0j
    expected = run(PROGRAM, Simulated(), {"x": x}, {})["y"]
    address, security = standing.find("first")
    with Executor.connect(address, security=security) as executor:
        assert executor.workers == 2
        result = executor.run(PROGRAM, {"x": x}, interpreter="simulated")
        assert np.array_equal(result.outputs["y"], expected)

    assert json_of("cluster", "scale", 3, "first")["workers"] == ["0", "1", "2"]
    assert json_of("cluster", "scale", 1, "first")["workers"] == ["0"]
    assert len(json_of("cluster", "status", "first")["workers"]) == 1
    assert json_of("cluster", "down", "first")["stopped"] == 2
    assert ended(root)
    assert not list(root.iterdir())
    assert "there is no cluster 'first'" in refused("cluster", "down", "first")


def slow_run(executor: Executor, log: Path, meanwhile: Callable[[], None]) -> Any:
    """Run while something happens; check the result."""
    import threading

    x = np.random.default_rng().integers(-9, 9, (4, SLOTS)) + 0j
    errors: list[BaseException] = []

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            meanwhile()
        except BaseException as e:
            errors.append(e)

    helper = threading.Thread(target=wait)
    helper.start()
    try:
        result = executor.run(
            PROGRAM,
            {"x": x},
            interpreter=SlowFactory(log, 1.5),
            stage_work=[1.0] * len(PROGRAM.stages),
        )
    finally:
        helper.join()
    assert not errors, errors
    assert np.array_equal(result.outputs["y"], run(PROGRAM, Simulated(), {"x": x}, {})["y"])
    return result


@pytest.mark.slow
def test_scaling_in_mid_run(root: Path, tmp_path: Path) -> None:
    """Up does no harm; down is refused, and when forced is the loss of a worker, which is made up
    for by another one."""
    said: list[str] = []
    standing.up("second", Plan(workers=2, threads=1), quiet)
    address, security = standing.find("second")

    def change() -> None:
        standing.scale("second", 3, False, quiet)
        found = standing.status("second")
        assert len(found["runs"]) == 1
        with pytest.raises(ClusterError, match="part of 1 runs"):
            standing.scale("second", 1, False, quiet)
        with pytest.raises(ClusterError, match="1 runs under way"):
            standing.down("second", False, quiet)
        assert len(standing.status("second")["workers"]) == 3
        standing.scale("second", 2, False, said.append)  # the idle one
        assert said == ["Retiring worker 2"]
        standing.scale("second", 1, True, said.append)
        assert said[1].startswith("warning: worker 1 is part of 1 runs")
        standing.scale("second", 2, False, quiet)

    with Executor.connect(address, security=security) as executor:
        result = slow_run(executor, tmp_path / "log", change)
        assert result.resumed == 1


def test_what_a_crash_has_left_is_seen_and_cleaned_up(root: Path) -> None:
    state = standing.up("third", Plan(workers=1, threads=1), quiet)
    worker = state.workers[0]
    keeper = psutil.Process(worker.pid)
    keeper.kill()  # what it kept lives on
    keeper.wait(10)
    found = standing.status("third")
    assert found["workers"][0]["state"] == "ended"
    shown = aegis("cluster", "status", "third")
    assert shown.exit_code == 1
    assert "worker 0: ended; its log: " in shown.stderr
    state = standing.scale("third", 1, False, quiet)  # of the same name, in its place
    worker = state.workers[0]
    assert standing.status("third")["workers"][0]["state"] == "running"
    # A process that has got the number of another one is not ours.
    file = root / "third" / standing.STATE
    data = json.loads(file.read_text())
    data["processes"][1] |= {"pid": os.getpid(), "started": worker.started}
    file.write_text(json.dumps(data))
    os.kill(state.processes[0].pid, signal.SIGKILL)
    assert standing.down("third", False, quiet) > 0
    assert ended(root)
    assert not list(root.iterdir())


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed_within_a_minute_and_replaced(
    root: Path, tmp_path: Path
) -> None:
    """It keeps its connections, and says nothing."""
    standing.up("frozen", Plan(workers=2, threads=1), quiet)
    address, security = standing.find("frozen")
    with Executor.connect(address, security=security) as executor:
        pid = executor.client.run(os.getpid)[executor.addresses[1]]
        result = slow_run(executor, tmp_path / "log", lambda: os.kill(pid, signal.SIGSTOP))
        assert result.resumed == 1
        assert pid not in executor.client.run(os.getpid).values()
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("gpus", [0, 2])
def test_workers_are_dealt_to_hosts_and_gpus(
    gpus: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, str, dict[str, str]]] = []

    def call(self: launch.Host, action: str, **request: Any) -> Any:
        assert action == "start"
        started.append((self.name, request["name"], request["environment"]))
        return {"pid": 1, "started": 0.0, "log": "log"}

    monkeypatch.setattr(launch.Host, "call", call)
    hosts = (launch.Host("a"), launch.Host("b"))
    threads = {"a": 4, "b": 8}
    state = standing.Standing("x", "tls://127.0.0.1:1", "tls", hosts, threads, "1.0", gpus)
    (root / "x").mkdir(parents=True)
    commands._start_workers(state, 6, quiet)
    assert [s[:2] for s in started] == [("ab"[i % 2], f"{i}") for i in range(6)]
    devices = [s[2].get("CUDA_VISIBLE_DEVICES") for s in started]
    assert devices == (["0", "0", "1", "1", "0", "0"] if gpus else [None] * 6)
    assert {s[2]["DASK_AEGIS__BACKEND"] for s in started} == {"cuda" if gpus else "cpu"}
    sharing = {s[2].get("DASK_AEGIS__DEVICE_WORKERS") for s in started}
    assert sharing == {"2" if gpus else None}  # three workers of a host on two GPUs
    (root / "x" / standing.STATE).unlink()


def test_gpus_are_divided_as_they_were_at_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, str]] = []

    def call(self: launch.Host, action: str, **request: Any) -> Any:
        environment = request["environment"]
        started.append((request["name"], environment["DASK_AEGIS__DEVICE_WORKERS"]))
        return {"pid": 1, "started": 0.0, "log": "log"}

    monkeypatch.setattr(launch.Host, "call", call)
    hosts = (launch.Host(),)
    state = standing.Standing("x", "tls://127.0.0.1:1", "tls", hosts, {"local": 1}, "1.0", 2)
    (root / "x").mkdir(parents=True)
    state = commands._start_workers(state, 3, quiet)
    assert record.load("x").sharing == 2
    state = commands._without(state, state.workers[1:])
    state = commands._start_workers(
        state, 2, quiet
    )  # each alone, but the first has half of its own
    state = commands._start_workers(state, 4, quiet)
    assert [share for _, share in started] == ["2"] * 6
    with pytest.raises(ClusterError, match=r"2 to a GPU.*5 workers would be 3\. Scale to 0"):
        commands._start_workers(state, 5, quiet)
    with pytest.raises(ClusterError, match="2 to a GPU"):  # a record of an earlier version
        commands._start_workers(replace(state, sharing=0), 5, quiet)
    assert len(started) == 6
    commands._start_workers(commands._without(state, state.workers), 5, quiet)
    assert [share for _, share in started[6:]] == ["3"] * 5
    (root / "x" / standing.STATE).unlink()


def test_a_cluster_of_another_machine_with_the_same_home_is_left_alone(root: Path) -> None:
    tls = root / "certs"
    make_certificates(tls)
    (root / "x").mkdir(parents=True)
    state = standing.Standing("x", "tls://127.0.0.1:1", str(tls), (launch.Host(),), {}, "1.0")
    theirs = replace(state, machine="login1", system="another")
    record.save(theirs)
    for command in (("status",), ("scale", 1), ("down", "--force")):
        message = refused("cluster", *command, "x")
        assert "was started on login1, and this is" in message
        assert "give the command there" in message
    assert record.load("x") == theirs
    with pytest.raises(ClusterError, match="was started on login1"):
        standing.find("x")
    record.save(replace(theirs, address="tls://192.0.2.1:1"))  # can be reached from here
    assert standing.find("x")[0] == "tls://192.0.2.1:1"
    # Of this machine: under another name, after a start of the system, of an earlier version.
    machine, system = record.here()
    for known in ((machine, system), ("before", system), (machine, "before"), ("", "")):
        record.save(replace(state, machine=known[0], system=known[1]))
        assert record.load_here("x").address == state.address
    assert standing.down("x", False, quiet) == 0


def scheduler_of(root: Path) -> psutil.Process:
    (found,) = (
        p
        for p in processes(root)
        if "distributed.cli.dask_scheduler" in p.cmdline() and "keeper" not in str(p.cmdline())
    )
    return found


@pytest.mark.slow
def test_a_run_goes_on_after_its_scheduler_was_lost(root: Path, tmp_path: Path) -> None:
    standing.up("fifth", Plan(workers=2, threads=1), quiet)
    address, security = standing.find("fifth")
    log = tmp_path / "log"

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(log.read_text().split()) < 16 and time.monotonic() < deadline:
            time.sleep(0.05)  # until some layers are finished
        scheduler_of(root).kill()

    with Executor.connect(address, security=security) as executor:
        result = slow_run(executor, log, kill)
        assert result.resumed == 1
        again = executor.run(PROGRAM, {"x": X}, interpreter="simulated")
    assert np.array_equal(again.outputs["y"], X)


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_scheduler_come_back(root: Path) -> None:
    standing.up("fourth", Plan(workers=1, threads=1), quiet)
    address, security = standing.find("fourth")
    scheduler_of(root).kill()
    deadline = time.monotonic() + 60
    while True:  # at the same address; the worker finds it again
        try:
            with Executor.connect(address, 1, security=security, timeout=2) as executor:
                result = executor.run(PROGRAM, {"x": X}, interpreter="simulated")
                break
        except ClusterError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert np.array_equal(result.outputs["y"], X)


@pytest.mark.slow
def test_a_cluster_that_does_not_start_leaves_nothing(root: Path) -> None:
    with pytest.raises(ClusterError, match=r"(?s)worker 0 on local has not come up.*ValueError"):
        standing.up("fifth", Plan(workers=1, memory_limit="nonsense"), quiet)
    assert ended(root)
    assert not list(root.iterdir())


def test_an_interrupt_while_it_starts_leaves_nothing(root: Path) -> None:
    command = [sys.executable, "-m", "aegis_dask.cli", "cluster", "up", "sixth", "--workers", "1"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Starting the scheduler")
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Stopping what was started" in rest
    assert "Traceback" not in rest
    assert ended(root)
    assert not list(root.iterdir())


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "-x", "a" * 64])
def test_names_are_checked(name: str, root: Path) -> None:
    with pytest.raises(ParameterError, match="is no name of a cluster"):
        standing.up(name, Plan(), quiet)
    assert not root.exists()


def test_what_cannot_be_is_refused_before_anything_starts(root: Path, tmp_path: Path) -> None:
    assert "there is no cluster 'x' (known: none)" in refused("cluster", "status", "x")
    assert "there is no cluster 'x'" in refused("cluster", "scale", 2, "x")
    assert "lacks ca.pem" in refused("cluster", "up", "--tls", tmp_path)
    assert "cannot be reached at '0.0.0.0'" in refused("cluster", "up", "--listen", "0.0.0.0")
    assert "cannot listen at 192.0.2.1" in refused("cluster", "up", "--listen", "192.0.2.1")
    message = refused("cluster", "up", "--host", "no-such-host.invalid")
    assert "--listen" in message
    there = ("--host", "no-such-host.invalid", "--listen", "127.0.0.1")
    message = refused("cluster", "up", *there)
    assert "host no-such-host.invalid cannot be used by ssh" in message
    message = refused("cluster", "up", *there, "--ssh", "no-such-program")
    assert "there is no program no-such-program" in message
    assert not processes(root)
    assert not root.exists() or not list(root.iterdir())
