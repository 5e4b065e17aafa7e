"""Hosts that are network namespaces of this machine: joined by a link that tests listen to and cut.

They share processes, files and clock with the machine, not addresses: what goes from one to the
other crosses the link, as between machines.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCHEDULER, WORKER = "10.89.7.1", "10.89.7.2"
"""Addresses of the two hosts."""
PORT = 8786
ETH_P_ALL = 3


def reason_to_skip() -> str:
    """Why namespaces cannot be made here, or ""."""
    if shutil.which("ip") is None:
        return "needs the ip command (iproute2)"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root, to make network namespaces"
    name = f"aegis-probe-{secrets.token_hex(3)}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if done.returncode != 0:
        return f"network namespaces cannot be made: {done.stderr.strip()}"
    run("netns", "del", name)
    return ""


def run(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Hosts:
    """Two hosts and the link between them.

    Attributes
    ----------
    first, second
        Names of the namespaces; the first has the address `SCHEDULER`, the second `WORKER`.
    links
        Names of the ends of the link, first and second.
    """

    first: str
    second: str
    links: tuple[str, str]
    _programs: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, host: str, *command: str, log: Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a module of Python on a host."""
        return self.start_program(
            host, sys.executable, "-u", "-m", *command, log=log, environment=environment
        )

    def start_program(
        self, host: str, *command: str, log: Path, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program on a host."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
        with log.open("a") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", host, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=env,
                start_new_session=True,
                text=True,
            )
        self._programs.append(process)
        return process

    def cut(self) -> None:
        """Take the link down."""
        run("-n", self.first, "link", "set", self.links[0], "down")

    def heal(self) -> None:
        """Bring it up again."""
        run("-n", self.first, "link", "set", self.links[0], "up")

    def close(self) -> None:
        for process in self._programs:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make two hosts; end what runs on them and delete them afterwards."""
    token = secrets.token_hex(3)
    hosts = Hosts(f"aegis-{token}-a", f"aegis-{token}-b", (f"ag{token}a", f"ag{token}b"))
    try:
        for name in (hosts.first, hosts.second):
            run("netns", "add", name)
            run("-n", name, "link", "set", "lo", "up")
        one, two = hosts.links
        run("link", "add", one, "netns", hosts.first, "type", "veth", "peer", "name", two)
        run("link", "set", two, "netns", hosts.second)
        ends = ((hosts.first, one, SCHEDULER), (hosts.second, two, WORKER))
        for name, link, address in ends:
            run("-n", name, "address", "add", f"{address}/24", "dev", link)
            run("-n", name, "link", "set", link, "up")
        yield hosts
    finally:
        hosts.close()
        for name in (hosts.first, hosts.second):
            with suppress(subprocess.CalledProcessError):
                run("netns", "del", name)


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """Let the calling thread make its sockets in a namespace."""
    setns = __import__("ctypes").CDLL(None, use_errno=True).setns
    with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{namespace}") as there:
        if setns(there.fileno(), 0):
            raise OSError("setns failed")
        try:
            yield
        finally:
            setns(own.fileno(), 0)


class Capture:
    """Every frame that crosses a link, read from a packet socket of one of its ends."""

    def __init__(self, hosts: Hosts) -> None:
        with entered(hosts.first):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._socket.bind((hosts.links[0], 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
        self._socket.settimeout(0.2)
        self.frames: list[bytes] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopped.is_set():
            with suppress(TimeoutError, OSError):
                self.frames.append(self._socket.recv(1 << 17))

    def stop(self) -> list[bytes]:
        """End it, and return the frames."""
        self._stopped.set()
        self._thread.join()
        self._socket.close()
        return self.frames


Stream = tuple[str, int, str, int]


def tcp_streams(frames: list[bytes]) -> dict[Stream, bytes]:
    """Put together what was sent over TCP, for each connection and direction.

    Raises
    ------
    ValueError
        If a frame is neither TCP over IPv4 nor one of what a link has beside: ARP, IPv6 neighbours.
    """
    pieces: dict[Stream, dict[int, bytes]] = {}
    for frame in frames:
        kind = int.from_bytes(frame[12:14])
        if kind == 0x0806 or (kind == 0x86DD and frame[20] in (0, 58)):  # ARP; ICMPv6, MLD
            continue
        packet = frame[14:]
        if kind != 0x0800 or packet[9] != socket.IPPROTO_TCP:
            raise ValueError(f"a frame of type {kind:#06x}, protocol {packet[9]}")
        header = (packet[0] & 15) * 4
        source, target = (socket.inet_ntoa(packet[i : i + 4]) for i in (12, 16))
        segment = packet[header : int.from_bytes(packet[2:4])]
        key = (source, int.from_bytes(segment[:2]), target, int.from_bytes(segment[2:4]))
        number = int.from_bytes(segment[4:8])
        if segment[13] & 2:  # SYN takes a number
            pieces.setdefault(key, {})["start"] = number + 1  # type: ignore[index, assignment]
        elif payload := segment[(segment[12] >> 4) * 4 :]:
            found = pieces.setdefault(key, {})
            if len(payload) > len(found.get(number, b"")):
                found[number] = payload
    return {key: _joined(found) for key, found in pieces.items()}


def _joined(pieces: dict[int, bytes]) -> bytes:
    start = pieces.pop("start", None)  # type: ignore[call-overload]
    if start is None:
        start = min(pieces, default=0)
    out = bytearray()
    for number, payload in sorted((((n - start) % (1 << 32)), p) for n, p in pieces.items()):
        if number > len(out):
            raise ValueError(f"{number - len(out)} bytes at {len(out)} were not captured")
        out[number : number + len(payload)] = payload
    return bytes(out)


def tls_records(stream: bytes) -> list[tuple[int, int]]:
    """Return type and length of the TLS records of which a stream consists.

    Raises
    ------
    ValueError
        If it consists of anything else. The last record may be cut.
    """
    found, at = [], 0
    while at + 5 <= len(stream):
        kind, version = stream[at], stream[at + 1 : at + 3]
        length = int.from_bytes(stream[at + 3 : at + 5])
        if kind not in (20, 21, 22, 23) or version not in (b"\x03\x01", b"\x03\x03"):
            raise ValueError(f"no TLS record at byte {at}: {stream[at : at + 16]!r}")
        if not 0 < length <= (1 << 14) + 256:
            raise ValueError(f"a record of {length} bytes at byte {at}")
        found.append((kind, length))
        at += 5 + length
    return found
