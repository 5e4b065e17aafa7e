"""Files for workers: in place on this host, shipped once to each other host.

A host is what can read a directory and has the boot identifier of its first worker. To other hosts
than ours the bytes go straight from the client to that worker, which writes them into a private
directory; SHA-256 sums are compared.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from aegis_dask.dashboard.monitor import SENT
from aegis_dask.errors import ClusterError
from aegis_dask.runtime import cluster
from aegis_dask.runtime.cluster import UnusableError

CHUNK_BYTES = 32 << 20
PROBE = "probe"


@dataclass(eq=False)
class _Host:
    boot: str
    directory: str
    workers: list[str] = field(default_factory=list)  # all that were seen there, the last first
    is_ours: bool = False
    sent: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)  # to be deleted there


class Hosts:
    """A private directory here, and its copies on the other hosts of a cluster.

    Parameters
    ----------
    client
        Client of the cluster.
    parent
        Where to make the directory; by default where temporary files go.
    ship
        Send files to every worker's host, even to ours: for tests.
    """

    def __init__(self, client: Client, parent: Path | None = None, ship: bool = False) -> None:
        self.client = client
        self.root = Path(tempfile.mkdtemp(prefix="aegis-", dir=parent))  # mode 0700
        self.token = secrets.token_hex(16)
        (self.root / PROBE).write_text(self.token)
        self._hosts = [] if ship else [_Host(boot_id(), str(self.root), is_ours=True)]
        self._published: dict[str, None] = {}

    def publish(self, relative: Path) -> None:
        """Name a file under `root` that every host must have from the next `sync` on."""
        self._published[str(relative)] = None

    def withdraw(self, relative: Path) -> None:
        """Delete a file, or a directory with all that is in it, here and on all hosts."""
        below = f"{relative}/"
        for name in [n for n in self._published if n == str(relative) or n.startswith(below)]:
            del self._published[name]
        _remove(self.root / relative)
        for host in self._hosts:
            sent = {n for n in host.sent if n == str(relative) or n.startswith(below)}
            if sent and not host.is_ours:
                host.sent -= sent
                host.withdrawn.add(str(relative))
        self._delete_withdrawn()

    def sync(self, addresses: list[str]) -> dict[str, str]:
        """Bring all published files to the hosts of workers; return worker -> directory.

        The workers are asked what they can read: their process, or their host, may be a new one.

        Raises
        ------
        UnusableError
            If a worker is gone, or cannot take files.
        ClusterError
            If our own files are gone.
        """
        if not (self.root / PROBE).exists():
            raise ClusterError(
                f"the files of this executor in {self.root} have been deleted: by whatever cleans "
                "up temporary files, or by the cluster, which had not heard of this client for "
                "minutes; open a new Executor"
            )
        where = self._locate(addresses)
        self._delete_withdrawn()
        self.send(addresses)
        return {address: host.directory for address, host in where.items()}

    def send(self, addresses: list[str]) -> None:
        """Bring published files to the hosts of workers that `sync` knows."""
        for host in self._hosts:
            leader = next((w for w in host.workers if w in addresses), None)
            if leader is not None and not host.is_ours:
                for relative in self._published:
                    if relative not in host.sent:
                        host.withdrawn -= {relative, Path(relative).parts[0]}
                        try:
                            self._ship(relative, host, leader)
                        except BaseException:
                            host.withdrawn.add(relative)  # what there is of it
                            raise
                        host.sent.add(relative)

    def close(self) -> None:
        """Delete everything."""
        copies = [host.directory for host in self._hosts if not host.is_ours]
        if copies:  # whoever is on those hosts now, in the place of workers that are gone
            with suppress(Exception):  # the scheduler may be gone
                self.client.run(_remove_copies, copies, self.token, on_error="ignore")
        shutil.rmtree(self.root, ignore_errors=True)

    def _locate(self, addresses: list[str]) -> dict[str, _Host]:
        found = self._find(self._hosts, addresses)
        while left := [a for a in addresses if a not in found]:
            wish = "make a directory for temporary files"
            made = cluster.ask(self.client, left[:1], wish, _make_directory, self.token)
            host = _Host(*made[left[0]])
            self._hosts.append(host)
            found |= self._find([host], left)
            if left[0] not in found:
                raise UnusableError(
                    f"worker {left[0]} cannot read {host.directory}, which it has just made; "
                    "give its user a writable directory for temporary files (TMPDIR)",
                    left[0],
                )
        for host in self._hosts:
            others = [w for w in host.workers if w not in found]
            host.workers = [a for a in addresses if found[a] is host] + others
        return found

    def _find(self, hosts: list[_Host], addresses: list[str]) -> dict[str, _Host]:
        """Return the host of each worker, if it is among these."""
        probes = [str(Path(host.directory) / PROBE) for host in hosts]
        answers = cluster.ask(self.client, addresses, "read files", _read_probes, probes)
        found: dict[str, _Host] = {}
        for address, (boot, tokens) in answers.items():
            for host, token in zip(hosts, tokens, strict=True):
                if token == self.token and boot == host.boot:
                    found.setdefault(address, host)
        return found

    def _delete_withdrawn(self) -> None:
        """Delete on other hosts what was withdrawn; later where none of their workers is there."""
        hosts = [host for host in self._hosts if host.withdrawn]
        if not hosts:
            return
        with suppress(Exception):  # the scheduler may be gone
            there = cluster.workers_of(self.client)
            leaders = {}
            for host in hosts:
                leader = next((w for w in host.workers if w in there), None)
                if leader is not None:
                    leaders[leader] = host
            paths = {
                leader: [str(Path(host.directory) / name) for name in host.withdrawn]
                for leader, host in leaders.items()
            }
            done = self.client.run(_remove_all, paths, workers=list(paths), on_error="ignore")
            for leader in done:
                leaders[leader].withdrawn.clear()

    def _ship(self, relative: str, host: _Host, leader: str) -> None:
        source, target = self.root / relative, str(Path(host.directory) / relative)
        size = source.stat().st_size
        digest = hashlib.sha256()
        data = np.memmap(source, np.uint8, "r") if size else np.empty(0, np.uint8)

        wish = f"take the file {target}"

        def call(function: Callable[..., Any], *args: Any) -> Any:
            key = f"{SENT}-{secrets.token_hex(16)}"
            future = self.client.submit(
                function, target, *args, workers=[leader], pure=False, key=key
            )
            return cluster.result_of(self.client, future, leader, wish)

        call(_create)
        for offset in range(0, size, CHUNK_BYTES):
            chunk = np.asarray(data[offset : offset + CHUNK_BYTES])
            digest.update(chunk.data)
            try:
                key = f"{SENT}-{secrets.token_hex(16)}"
                sent = self.client.scatter({key: chunk}, workers=[leader], direct=True, hash=False)
            except OSError as e:
                raise cluster.unusable(leader, wish, e) from e
            call(_write, offset, sent.pop(key))
        found = call(_sha256)
        if found != digest.hexdigest():
            raise UnusableError(
                f"{relative} arrived damaged on {leader}: its SHA-256 is {found}, "
                f"{digest.hexdigest()} was sent; try again, and check the disk of that host",
                leader,
            )


def boot_id() -> str:
    """Return what identifies the running system of this host."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


# -- called on workers -----------------------------------------------------------------------


def _read_probes(paths: list[str]) -> tuple[str, list[str]]:
    return boot_id(), [_read(path) for path in paths]


def _read(path: str) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text()
    return ""


def _make_directory(token: str) -> tuple[str, str]:
    directory = tempfile.mkdtemp(prefix="aegis-")
    (Path(directory) / PROBE).write_text(token)
    return boot_id(), directory


def _create(path: str) -> None:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))


def _write(path: str, offset: int, data: NDArray[np.uint8]) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(np.ascontiguousarray(data).data)


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_all(paths: dict[str, list[str]], dask_worker: Any) -> None:
    for path in paths[dask_worker.address]:
        _remove(Path(path))


def _remove_copies(directories: list[str], token: str) -> None:
    for directory in directories:
        if _read(str(Path(directory) / PROBE)) == token:
            remove_tree(directory)


def remove_tree(path: str) -> None:
    """Delete a directory of `Hosts`; no other one."""
    if Path(path).name.startswith("aegis-"):
        shutil.rmtree(path, ignore_errors=True)
