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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from aegis_dask.errors import ClusterError

CHUNK_BYTES = 32 << 20
PROBE = "probe"


@dataclass
class _Host:
    boot: str
    directory: str
    workers: list[str] = field(default_factory=list)
    is_ours: bool = False
    sent: set[str] = field(default_factory=set)


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
        _remove(str(self.root / relative))
        for host in self._hosts:
            sent = {n for n in host.sent if n == str(relative) or n.startswith(below)}
            if not host.is_ours and sent and host.workers:
                host.sent -= sent
                path = str(Path(host.directory) / relative)
                with suppress(Exception):  # the worker may be gone
                    self.client.run(_remove, path, workers=host.workers[:1])

    def sync(self, addresses: list[str]) -> dict[str, str]:
        """Bring all published files to the hosts of workers; return worker -> directory."""
        where = self._locate(addresses)
        for host in self._hosts:
            if not host.is_ours and host.workers:
                for relative in self._published:
                    if relative not in host.sent:
                        self._ship(relative, host)
                        host.sent.add(relative)
        return where

    def close(self) -> None:
        """Delete everything."""
        for host in self._hosts:
            for worker in host.workers if not host.is_ours else ():
                with suppress(Exception):  # the worker may be gone; another one of the host is not
                    self.client.run(remove_tree, host.directory, workers=[worker])
                    break
        shutil.rmtree(self.root, ignore_errors=True)

    def _locate(self, addresses: list[str]) -> dict[str, str]:
        for host in self._hosts:
            host.workers = [w for w in host.workers if w in addresses]
        known = {w for h in self._hosts for w in h.workers}
        left = [a for a in addresses if a not in known]
        for host in self._hosts:
            left = self._assign(host, left)
        while left:
            found = self.client.run(_make_directory, self.token, workers=left[:1])
            host = _Host(*found[left[0]])
            self._hosts.append(host)
            rest = self._assign(host, left)
            if len(rest) == len(left):
                raise ClusterError(
                    f"worker {left[0]} cannot read {host.directory}, which it has just made; "
                    "give its user a writable directory for temporary files (TMPDIR)"
                )
            left = rest
        return {w: h.directory for h in self._hosts for w in h.workers}

    def _assign(self, host: _Host, workers: list[str]) -> list[str]:
        """Give a host its workers; return the others."""
        if not workers:
            return []
        probe = str(Path(host.directory) / PROBE)
        answers = self.client.run(_read_probe, probe, workers=workers)
        own = [w for w in workers if answers.get(w) == (host.boot, self.token)]
        host.workers += own
        return [w for w in workers if w not in own]

    def _ship(self, relative: str, host: _Host) -> None:
        source, target = self.root / relative, str(Path(host.directory) / relative)
        leader, size = host.workers[:1], (self.root / relative).stat().st_size
        digest = hashlib.sha256()
        data = np.memmap(source, np.uint8, "r") if size else np.empty(0, np.uint8)
        self.client.submit(_create, target, workers=leader, pure=False).result()
        for offset in range(0, size, CHUNK_BYTES):
            chunk = np.asarray(data[offset : offset + CHUNK_BYTES])
            digest.update(chunk.data)
            (sent,) = self.client.scatter([chunk], workers=leader, direct=True, hash=False)
            written = self.client.submit(_write, target, offset, sent, workers=leader, pure=False)
            written.result()
        found = self.client.submit(_sha256, target, workers=leader, pure=False).result()
        if found != digest.hexdigest():
            raise ClusterError(
                f"{relative} arrived damaged on {leader[0]}: its SHA-256 is {found}, "
                f"{digest.hexdigest()} was sent; try again, and check the disk of that host"
            )


def boot_id() -> str:
    """Return what identifies the running system of this host."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


# -- called on workers -----------------------------------------------------------------------


def _read_probe(path: str) -> tuple[str, str | None]:
    try:
        return boot_id(), Path(path).read_text()
    except OSError:
        return boot_id(), None


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


def _remove(path: str) -> None:
    if Path(path).is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            Path(path).unlink()


def remove_tree(path: str) -> None:
    """Delete a directory of `Hosts`; no other one."""
    if Path(path).name.startswith("aegis-"):
        shutil.rmtree(path, ignore_errors=True)
