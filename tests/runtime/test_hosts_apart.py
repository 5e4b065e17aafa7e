"""Two hosts, as network namespaces: what crosses the link between them, and what if it is cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aegis_dask.runtime import launch
from aegis_dask.runtime.certificates import make_certificates
from tests.namespaces import (
    PORT,
    ROOT,
    SCHEDULER,
    WORKER,
    Capture,
    Hosts,
    reason_to_skip,
    tcp_streams,
    tls_records,
    two_hosts,
)
from tests.runtime.remote_client import PLAIN

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
        keeper = (KEEPER, sys.executable, "-m") if certs is None else ()
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
        assert worker.wait(90) != 0
    log = (cluster.folder / "scheduler.log").read_text()
    joined = {
        line.split("name: ")[1].split()[0].rstrip(",>")
        for line in log.splitlines()
        if "name: " in line
    }
    assert not joined & {"other", "mixed", "plain"}
    for name in ("other", "mixed", "plain"):
        assert "Registered to" not in (cluster.folder / f"worker-{name}.log").read_text()
    for word in ("UNKNOWN_CA", "WRONG_VERSION_NUMBER"):
        assert word in log.upper().replace(" ", "_"), log


def test_clients_without_a_certificate_of_ours_are_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    make_certificates(tmp_path / "other", [SCHEDULER])
    assert "not of our authority" in cluster.client("other", 0, tmp_path / "other")()["error"]
    shutil.copy(cluster.certs / "ca.pem", tmp_path / "other")
    mixed = cluster.client("mixed", 0, tmp_path / "other")()["error"]
    assert "was not issued by the authority" in mixed
    cluster.address = cluster.address.replace("tls", "tcp")
    try:
        plain = cluster.client("plain", 0, Path(PLAIN))()["error"]
    finally:
        cluster.address = ADDRESS
    assert "the same TLS settings" in plain


@pytest.mark.parametrize(
    ("seconds", "resumed", "workers"),
    [(10, 0, 2), (45, 1, 2), (90, 1, 1)],
    ids=["short", "longer", "too-long"],
)
def test_a_link_that_is_cut_in_mid_run_and_healed(
    cluster: Cluster, seconds: int, resumed: int, workers: int
) -> None:
    """Shorter than the system's patience of 30 s; so long that the worker is lost and another one
    takes its place; longer than a run waits for that, another 30 s: the other worker does it."""
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
    assert found == {"equal": True, "resumed": resumed, "workers": workers}, cluster.logs()
    # The cluster is whole again.
    again = cluster.client(f"after-{name}", 0)(150)
    assert again == {"equal": True, "resumed": 0, "workers": 2}, cluster.logs()


def test_the_worker_is_on_another_host(cluster: Cluster) -> None:
    log = (cluster.folder / "worker-1.log").read_text()
    assert f"tls://{WORKER}:" in log


def test_a_cluster_on_hosts_that_ssh_reaches(tmp_path: Path) -> None:
    """The whole of it: started, used, scaled and ended by commands on the first host."""
    if shutil.which("sshd", path=SBIN) is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (Debian: openssh-server)")
    with two_hosts() as hosts:
        ssh = start_sshd(hosts, tmp_path)

        def aegis(*arguments: str) -> Any:
            log = tmp_path / "command.log"
            log.unlink(missing_ok=True)
            process = hosts.start(
                hosts.first,
                *("aegis_dask.cli", "cluster", *arguments, "--json"),
                log=log,
                environment={launch.STATE_VARIABLE: str(tmp_path / "state")},
            )
            status = process.wait(200)
            assert status == 0, log.read_text()
            return json.loads(log.read_text().splitlines()[-1])

        there = ("--host", "local", "--host", WORKER, "--ssh", ssh, "--python", sys.executable)
        made = aegis("up", "apart", *there, "--threads", "1")
        assert made["address"].startswith(f"tls://{SCHEDULER}:")  # from where ssh leaves
        found = aegis("status", "apart")
        assert [w["address"].split(":")[1] for w in found["workers"]] == [
            f"//{SCHEDULER}",
            f"//{WORKER}",
        ]
        out = tmp_path / "result.json"
        client = hosts.start(
            hosts.first,
            *("tests.runtime.remote_client", made["address"], made["tls"], str(out), "0"),
            log=tmp_path / "client.log",
        )
        client.wait(150)
        assert json.loads(out.read_text()) == {"equal": True, "resumed": 0, "workers": 2}
        assert aegis("scale", "3", "apart")["workers"] == ["0", "1", "2"]
        assert aegis("scale", "1", "apart")["workers"] == ["0"]
        assert aegis("down", "apart")["stopped"] == 2
        assert not list((tmp_path / "state").iterdir())


SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def start_sshd(hosts: Hosts, folder: Path) -> str:
    """Start an ssh server on the second host; return the client's command for it."""
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized").write_text((folder / "user_key.pub").read_text())
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": paths, launch.STATE_VARIABLE: str(folder / "state")}
    variables |= {k: v for k, v in os.environ.items() if k == "AEGIS_CACHE_DIR"}
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\n"
        f"PermitRootLogin yes\nUsePAM no\nPidFile none\nPasswordAuthentication no\n"
        f"SetEnv {' '.join(f'{k}={v}' for k, v in variables.items())}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = shutil.which("sshd", path=SBIN)
    hosts.start_program(
        hosts.second,
        str(server),
        "-D",
        "-e",
        "-f",
        str(folder / "sshd_config"),
        log=folder / "sshd.log",
    )
    known = folder / "known"
    return (
        f"ssh -i {folder}/user_key -F none -o UserKnownHostsFile={known} "
        "-o StrictHostKeyChecking=accept-new"
    )
