"""Clusters that are there: reached, checked, waited for, and given files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from aegis_dask.errors import ClusterError
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime import cluster, hosts, plugin
from aegis_dask.runtime.executor import Executor
from tests.runtime.programs import integers, model, someone

PROGRAM, STORE = model()
WORK = [1.0] * len(PROGRAM.stages)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[LocalCluster]:
    """A cluster that knows nothing of us: two worker processes."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as found:
        yield found


def free_port() -> int:
    with closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_an_address_where_nothing_listens_is_named_at_once() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    start = time.perf_counter()
    with pytest.raises(ClusterError, match=f"no scheduler answers at {address}"):
        Executor.connect(address, timeout=10)
    assert time.perf_counter() - start < 5
    with pytest.raises(ClusterError, match="is no address of a scheduler"):
        Executor.connect("somewhere")


def test_something_else_that_listens_is_refused() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="does not answer as a Dask scheduler within 1 s"):
            Executor.connect(address, timeout=1)


@pytest.mark.parametrize("ship", [False, True], ids=["same-host", "shipped"])
def test_a_foreign_cluster_gives_the_same_residues_and_keeps_no_files(
    scheduler: LocalCluster, ship: bool
) -> None:
    client = someone()
    expected = client.expected()
    with Executor.connect(scheduler.scheduler_address, workers=2, ship=ship) as executor:
        executor.prepare(client.params, client.keys, STORE)
        directories = set(executor._site.hosts.sync(executor.addresses).values())
        assert len(directories) == 1
        assert ({str(executor._site.hosts.root)} != directories) is ship
        assert all(Path(d).stat().st_mode & 0o077 == 0 for d in directories)
        for _ in range(2):
            result = executor.run(PROGRAM, client.inputs, stage_work=WORK)
            found = result.outputs["y"].batch.data
            assert np.array_equal(found, expected["y"].batch.data)
        names = {p.name for d in directories for p in Path(d).iterdir()}
        assert not any(name.startswith("run-") for name in names)
    assert not any(Path(d).exists() for d in directories)


def test_two_executors_share_a_cluster(scheduler: LocalCluster) -> None:
    x = integers(PROGRAM)
    address = scheduler.scheduler_address
    with Executor.connect(address) as one, Executor.connect(address) as two:
        one.prepare(store=STORE)
        two.prepare(store={"w": 2 * STORE["w"]})
        y = [e.run(PROGRAM, {"x": x}, interpreter="simulated").outputs["y"] for e in (one, two)]
    assert not np.array_equal(*y)


def test_a_worker_that_joins_late_is_waited_for_and_a_missing_one_is_named() -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as found:
        with pytest.raises(ClusterError, match=r"1 of 2 workers have joined within 0.2 s"):
            Executor.connect(found.scheduler_address, workers=2, timeout=0.2)
        late = threading.Thread(target=lambda: found.scale(2))
        late.start()
        with Executor.connect(found.scheduler_address, workers=2, timeout=30) as executor:
            executor.prepare(store=STORE)
            result = executor.run(
                PROGRAM, {"x": integers(PROGRAM)}, interpreter="simulated", stage_work=WORK
            )
            assert {s.worker for s in result.timeline} == {0, 1}
        late.join()


class _Versions:
    """A client whose cluster has what the test says."""

    def __init__(self, **changes: Any) -> None:
        def node() -> dict[str, Any]:
            packages = dict.fromkeys(cluster.PACKAGES, "1.0")
            return {"host": {"python": "3.11.7.final.0"}, "packages": packages}

        self.found = {"client": node(), "scheduler": node(), "workers": {"tcp://w:1": node()}}
        self.ours = {"scheduler": cluster.__version__, "worker": cluster.__version__}
        for path, value in changes.items():
            who, _, name = path.rpartition("__")
            if name == "aegis_dask":
                self.ours[who] = value
                continue
            target = self.found["workers"]["tcp://w:1"] if who == "worker" else self.found[who]
            target["host" if name == "python" else "packages"][name] = value

    def get_versions(self, packages: list[str]) -> dict[str, Any]:
        return self.found

    def run_on_scheduler(self, probe: Any) -> Any:
        assert probe() == cluster.__version__
        return self.ours["scheduler"]

    def run(self, probe: Any, workers: list[str], on_error: str) -> Any:
        return {address: self.ours["worker"] for address in workers}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler__aegis_dask": None}, "the scheduler cannot import aegis_dask"),
        ({"worker__aegis_dask": None}, "worker tcp://w:1 cannot import aegis_dask"),
        ({"worker__aegis_dask": "0.0.1"}, "tcp://w:1 has aegis_dask 0.0.1, the client has"),
        ({"worker__distributed": "0.9"}, "tcp://w:1 has distributed 0.9, the client has 1.0"),
        ({"worker__numpy": None}, "tcp://w:1 cannot import numpy"),
        ({"scheduler__python": "3.12.1.final.0"}, "the scheduler has Python 3.12, the client"),
        ({"scheduler__python": "3.11.9.final.0"}, None),
    ],
)
def test_missing_packages_and_other_versions_are_named(
    changes: dict[str, Any], message: str | None
) -> None:
    client: Any = _Versions(**changes)
    if message is None:
        cluster.check_software(client)
    else:
        with pytest.raises(ClusterError, match=message):
            cluster.check_software(client)


@pytest.mark.slow
def test_a_scheduler_without_the_package_is_named(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    program = (
        "import sys; sys.modules['aegis_dask'] = None; "
        "from distributed.cli.dask_scheduler import main; "
        f"main(['--host', '127.0.0.1', '--port', '0', '--no-dashboard', "
        f"'--dashboard-address', '127.0.0.1:0', '--scheduler-file', {str(file)!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny"),
                *("--no-dashboard", "--scheduler-file", str(file)),
            ],
            stderr=subprocess.DEVNULL,
            cwd=tmp_path,
        )
        try:
            with Client(scheduler_file=str(file), timeout=30, set_as_default=False) as client:
                address = client.scheduler.address
            with pytest.raises(ClusterError, match="the scheduler cannot import aegis_dask"):
                Executor.connect(address, workers=1, timeout=30)
        finally:
            worker.kill()
            worker.wait()
            process.kill()


def test_damage_on_the_way_is_found(
    scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaged:
        def __init__(self) -> None:
            self.real = __import__("hashlib").sha256()

        def update(self, data: Any) -> None:
            self.real.update(bytes(data)[:-1] + b"\0")

        def hexdigest(self) -> str:
            return str(self.real.hexdigest())

    class Module:
        sha256 = Damaged

    monkeypatch.setattr(hosts, "hashlib", Module)  # of the client only
    with pytest.raises(ClusterError, match="arrived damaged"):
        Executor.connect(scheduler.scheduler_address, ship=True)


INTERRUPTED = """
import os, sys
import numpy as np
from aegis_dask.runtime.executor import Executor
from tests.runtime.programs import chain, SLOTS

def main():
    program, x = chain(400), np.ones((4, SLOTS)) + 0j
    work = [1.0] * len(program.stages)
    with Executor.local(workers=2, threads_per_worker=1) as executor:
        options = dict(interpreter="simulated", stage_work=work)
        try:
            executor.run(program, {"x": x}, progress=lambda p: print("running", flush=True),
                         **options)
        except KeyboardInterrupt:
            print("interrupted", executor.addresses, flush=True)
        small = chain(2)
        executor.run(small, {"x": x}, interpreter="simulated")
        print("again", executor.addresses, flush=True)

if __name__ == "__main__":
    main()
"""


def test_an_interrupt_from_the_keyboard_stops_the_run_and_no_worker(tmp_path: Path) -> None:
    """A terminal sends it to all processes of the program."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "running\n"
            os.killpg(process.pid, signal.SIGINT)
            said, _ = process.communicate(timeout=120)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    rest = [line for line in said.splitlines() if line != "running"]
    interrupted, again = rest
    assert interrupted.startswith("interrupted")
    assert again.split("again")[1] == interrupted.split("interrupted")[1]  # the same workers
    assert process.returncode == 0


def test_the_workers_are_those_of_the_scheduler_whatever_the_client_remembers(
    scheduler: LocalCluster,
) -> None:
    """A callback of the client's own forgets them every two seconds; here, all the time."""
    with Client(scheduler, set_as_default=False) as client:
        client._periodic_callbacks["scheduler-info"].callback_time = 1
        expected = set(scheduler.scheduler.workers)
        for _ in range(300):
            assert set(cluster.workers_of(client)) == expected
    with pytest.raises(OSError, match="closed"):
        cluster.workers_of(client)


VANISHING = """
import os, signal, sys
import numpy as np
from aegis_dask.runtime.executor import Executor

executor = Executor.connect(sys.argv[1])
executor.prepare(store={"w": np.ones(8)})
print(executor._site.hosts.root, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_client_has_left_that_is_gone_is_cleaned_up(
    scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys would fill the disks of the workers' hosts."""
    done = subprocess.run(
        [sys.executable, "-c", VANISHING, scheduler.scheduler_address],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    left = Path(done.stdout.strip())
    assert left.is_dir(), done.stderr
    with Executor.connect(scheduler.scheduler_address) as executor:
        time.sleep(1)
        executor._site._introduce()
        assert left.is_dir()  # it may only be cut off
        monkeypatch.setattr(plugin, "GRACE_SECONDS", 0.0)  # the scheduler is in this process
        deadline = time.monotonic() + 10
        while left.exists() and time.monotonic() < deadline:  # until the scheduler has noticed
            executor._site._introduce()
            time.sleep(0.1)
        assert not left.exists()
        own = {executor._prepared.name}
        held: Any = executor.client.run(
            lambda dask_worker: set(dask_worker.plugins["aegis"].contexts)
        )
        assert list(held.values()) == [own, own]
        assert executor._site.hosts.root.is_dir()


def test_a_cluster_that_grows_and_shrinks_is_followed(scheduler: LocalCluster) -> None:
    def expected(executor: Executor) -> None:
        x = integers(PROGRAM)
        result = executor.run(PROGRAM, {"x": x}, interpreter="simulated", stage_work=WORK)
        assert len(result.workers) == executor.workers
        assert np.array_equal(result.outputs["y"], run(PROGRAM, Simulated(), {"x": x}, STORE)["y"])

    with Executor.connect(scheduler.scheduler_address) as executor:
        executor.prepare(store=STORE)
        expected(executor)
        scheduler.scale(3)
        scheduler.wait_for_workers(3)
        try:
            assert executor.workers == 2
            assert executor.adapt() == 3
            expected(executor)
        finally:
            scheduler.scale(2)
        deadline = time.monotonic() + 20
        while executor.adapt() != 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert executor.workers == 2
        expected(executor)
