"""Two hosts, as network namespaces: what crosses the link between them, and what if it is cut."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_dask.runtime.certificates import make_certificates
from tests.namespaces import (
    PORT,
    SCHEDULER,
    WORKER,
    Capture,
    Hosts,
    reason_to_skip,
    tcp_streams,
    tls_records,
    two_hosts,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-"),
]

ADDRESS = f"tls://{SCHEDULER}:{PORT}"
PRELOAD = ("--preload", "aegis_dask.runtime.preload")
KEEPER = "aegis_dask.runtime.keeper"
PLAIN_WORDS = (b"scheduler", b"distributed", b"register", b"numpy", b"dask", b"tcp://", b"pickle")
"""All of them are in what Dask sends, where it can be read."""


class Cluster:
    """A scheduler and a worker on the first host, a worker on the second."""

    def __init__(self, hosts: Hosts, folder: Path, capture: Capture, tls: bool = True) -> None:
        self.hosts, self.folder, self.capture = hosts, folder, capture
        self.certs = folder / "certs"
        make_certificates(self.certs, [SCHEDULER])
        self.tls = tls
        self.address = ADDRESS if tls else ADDRESS.replace("tls", "tcp")
        self.scheduler = hosts.start(
            hosts.first,
            *("distributed.cli.dask_scheduler", "--host", self.address, *PRELOAD),
            *("--dashboard-address", "127.0.0.1:0", *self.options(self.certs)),
            log=folder / "scheduler.log",
        )
        self.worker(hosts.first, "0")
        self.worker(hosts.second, "1")
        for name in ("0", "1"):
            self.wait_for(f"worker-{name}.log", "Registered to")

    def options(self, certs: Path) -> tuple[str, ...]:
        files = ("--tls-ca-file", certs / "ca.pem"), ("--tls-cert", certs / "cluster.pem")
        pairs = (*files, ("--tls-key", certs / "cluster.key"))
        return tuple(str(word) for pair in pairs for word in pair) if self.tls else ()

    def worker(self, host: str, name: str, certs: Path | None = None) -> Any:
        python = shutil.which("python") or "python3"
        keeper = (KEEPER, python, "-m") if certs is None else ()
        return self.hosts.start(
            host,
            *(*keeper, "distributed.cli.dask_worker", self.address, "--name", name),
            *("--nthreads", "1", "--dashboard-address", "127.0.0.1:0", "--death-timeout", "20"),
            *("--local-directory", str(self.folder / f"scratch-{name}"), *PRELOAD),
            *self.options(certs or self.certs),
            log=self.folder / f"worker-{name}.log",
        )

    def client(self, name: str, seconds: float, certs: Path | None = None) -> Any:
        """Start the client on the first host; return its result once it is there."""
        out = self.folder / f"{name}.json"
        process = self.hosts.start(
            self.hosts.first,
            *("tests.runtime.remote_client", self.address),
            *(str(certs or self.certs), str(out), str(seconds)),
            log=self.folder / f"{name}.out",
        )

        def result(timeout: float = 150) -> Any:
            process.wait(timeout)
            assert out.exists(), self.logs()
            return json.loads(out.read_text())

        return result

    def logs(self) -> str:
        files = sorted((*self.folder.glob("*.log"), *self.folder.glob("*.out")))
        return "\n".join(f"--- {f.name}\n{f.read_text()[-3000:]}" for f in files)

    def wait_for(self, name: str, word: str = "") -> None:
        """Wait until a file has a word, or anything."""
        file = self.folder / name
        deadline = time.monotonic() + 60
        while not (file.exists() and (text := file.read_text()) and word in text):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_hosts() as hosts:
        capture = Capture(hosts)  # of every connection from its beginning
        try:
            yield Cluster(hosts, tmp_path_factory.mktemp("hosts"), capture)
        finally:
            capture.stop()


def test_only_tls_crosses_the_link_and_residues_are_those_of_one_process(cluster: Cluster) -> None:
    found = cluster.client("encrypted", 0)()
    frames = cluster.capture.stop()
    assert found == {"equal": True, "resumed": 0, "workers": 2}, cluster.logs()
    streams = tcp_streams(frames)
    assert len(streams) >= 4
    assert sum(len(s) for s in streams.values()) > 1e6  # keys, weights and ciphertexts
    for key, stream in streams.items():
        records = tls_records(stream)
        if stream:
            assert records[0][0] == 22, key  # a handshake
        for word in PLAIN_WORDS:
            assert word not in stream, (key, word)
    # The certificates of servers and clients cross encrypted too: TLS 1.3.
    assert not any(b"aegis cluster" in stream for stream in streams.values())


def test_the_same_run_without_tls_can_be_read(tmp_path: Path) -> None:
    """What the test above looks for is there to be found."""
    with two_hosts() as hosts:
        capture = Capture(hosts)
        Cluster(hosts, tmp_path, capture, tls=False)
        streams = tcp_streams(capture.stop())
    everything = b"".join(streams.values())
    assert sum(word in everything for word in PLAIN_WORDS) >= 3
    longest = max(streams.values(), key=len)
    with pytest.raises(ValueError, match="no TLS record"):
        tls_records(longest)


def test_workers_without_a_certificate_of_ours_are_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    make_certificates(tmp_path / "other", [SCHEDULER])
    mixed = Path(shutil.copytree(tmp_path / "other", tmp_path / "mixed"))
    shutil.copy(cluster.certs / "ca.pem", mixed)  # trusts ours, and is not trusted
    workers = [
        cluster.worker(cluster.hosts.second, "other", tmp_path / "other"),
        cluster.worker(cluster.hosts.second, "mixed", mixed),
        cluster.hosts.start(
            cluster.hosts.second,
            *("distributed.cli.dask_worker", ADDRESS.replace("tls", "tcp"), "--name", "plain"),
            *("--death-timeout", "10", "--local-directory", str(tmp_path)),
            log=cluster.folder / "worker-plain.log",
        ),
    ]
    for worker in workers:
        worker.wait(90)
    log = (cluster.folder / "scheduler.log").read_text()
    joined = {
        line.split("name: ")[1].split()[0].rstrip(",>")
        for line in log.splitlines()
        if "name: " in line
    }
    assert not joined & {"other", "mixed", "plain"}
    for name in ("other", "mixed", "plain"):
        assert "Registered to" not in (cluster.folder / f"worker-{name}.log").read_text()
    assert "TLS" in log or "SSL" in log


def test_clients_without_a_certificate_of_ours_are_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    make_certificates(tmp_path / "other", [SCHEDULER])
    assert "not of our authority" in cluster.client("other", 0, tmp_path / "other")()["error"]
    shutil.copy(cluster.certs / "ca.pem", tmp_path / "other")
    cut = cluster.client("mixed", 0, tmp_path / "other")()["error"]
    assert "was not issued by the authority" in cut


@pytest.mark.parametrize("seconds", [10, 75], ids=["short", "long"])
def test_a_run_survives_a_link_that_is_cut_and_healed(cluster: Cluster, seconds: int) -> None:
    """Shorter than the system's patience, or so long that the worker is given up."""
    name = f"cut-{seconds}"
    result = cluster.client(name, 1.0)
    cluster.wait_for(f"{name}.log")
    time.sleep(2)
    cluster.hosts.cut()
    begin = time.monotonic()
    try:
        time.sleep(seconds)
    finally:
        cluster.hosts.heal()
    found = result(300)
    print(name, found, f"{time.monotonic() - begin:.0f} s")
    if "error" in found:
        assert seconds == 75
        assert "worker" in found["error"]
    else:
        assert found["equal"], found
        assert found["workers"] == 2
    # The cluster is whole again.
    again = cluster.client(f"after-{name}", 0)(150)
    assert again == {"equal": True, "resumed": 0, "workers": 2}, cluster.logs()


def test_the_worker_is_on_another_host(cluster: Cluster) -> None:
    log = (cluster.folder / "worker-1.log").read_text()
    assert f"tls://{WORKER}:" in log
