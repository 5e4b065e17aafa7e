"""What is known of a standing cluster: a file, replaced as a whole at every change."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distributed import Client

from aegis_dask.errors import ClusterError, ParameterError
from aegis_dask.runtime import cluster as clusters
from aegis_dask.runtime import launch
from aegis_dask.runtime.hosts import boot_id
from aegis_dask.runtime.launch import Host
from aegis_dask.runtime.security import is_loopback, load_security

DEFAULT = "default"
STATE = "cluster.json"
SCHEDULER = "scheduler"
CLIENT_SECONDS = 10.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Process:
    """A keeper and what it keeps.

    Attributes
    ----------
    name
        ``"scheduler"``, or the name of the worker: 0, 1, ...
    host
        Name of the `launch.Host`.
    pid, started
        Of the keeper: its number, and when it was started, in seconds.
    log
        File on that host.
    """

    name: str
    host: str
    pid: int
    started: float
    log: str


@dataclass(frozen=True)
class Standing:
    """What is known of a standing cluster.

    Attributes
    ----------
    name
        Of the cluster.
    address
        Of the scheduler.
    tls
        Directory of the certificates.
    hosts
        Where workers are, in the order in which they are dealt.
    threads
        Kernel threads of each worker, by host.
    memory_limit
        Of each worker, as Dask takes it.
    gpus
        Number of GPUs per host that workers are dealt to; 0 for workers on CPUs.
    processes
        The scheduler, then the workers.
    sharing
        How many workers a GPU was divided among when the first ones were started; 0 if unknown.
    machine, system
        Name of the machine that started it, and what identifies its running system (`here`); ""
        in records of earlier versions.
    """

    name: str
    address: str
    tls: str
    hosts: tuple[Host, ...]
    threads: dict[str, int]
    memory_limit: str
    gpus: int = 0
    processes: tuple[Process, ...] = ()
    sharing: int = 0
    machine: str = ""
    system: str = ""

    @property
    def workers(self) -> tuple[Process, ...]:
        """The workers' processes."""
        return tuple(p for p in self.processes if p.name != SCHEDULER)

    def host(self, name: str) -> Host:
        """Return the host of that name."""
        return next((h for h in self.hosts if h.name == name), Host())


def here() -> tuple[str, str]:
    """Return the name of this machine, and what identifies the system in which a pid is one."""
    namespace = ""
    with suppress(OSError):  # containers on one kernel have pids of their own
        namespace = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), f"{boot_id()} {namespace}"


def names() -> list[str]:
    """Return the clusters that are known."""
    root = launch.state_root()
    return sorted(p.parent.name for p in root.glob(f"*/{STATE}")) if root.is_dir() else []


def find(name: str) -> tuple[str, Any]:
    """Return address and TLS settings of a standing cluster.

    Raises
    ------
    ClusterError
        If there is none of that name, or another machine has it on loopback.
    """
    state = load(name or DEFAULT)
    if is_loopback(urlsplit(state.address).hostname or ""):
        require_here(state)
    return state.address, load_security(state.tls)


def directory_of(name: str) -> Path:
    """Return where a cluster keeps its files on this machine.

    Raises
    ------
    ParameterError
        If it is no name for a cluster.
    """
    if not _NAME.fullmatch(name):
        raise ParameterError(
            f"{name!r} is no name of a cluster; give letters, digits, hyphens and underscores"
        )
    return launch.state_root() / name


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one command at a time change a cluster."""
    import fcntl

    directory = directory_of(name)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(directory / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as e:
        raise ClusterError(
            f"{directory} cannot be written: {e.strerror or e}; {launch.STATE_VARIABLE} names "
            "another place"
        ) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                f"another command is changing cluster {name!r}; wait for it"
            ) from None
        yield
    finally:
        os.close(file)
        if not (directory / STATE).exists():
            with suppress(OSError):
                (directory / "lock").unlink()
                directory.rmdir()


def save(state: Standing) -> None:
    """Replace the file as a whole."""
    directory = directory_of(state.name)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{STATE}")  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(state), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / STATE)
    except BaseException:
        os.unlink(temporary)
        raise


def load(name: str) -> Standing:
    """Return what is known of a cluster.

    Raises
    ------
    ClusterError
        If there is none of that name, or its record cannot be read.
    """
    file = directory_of(name) / STATE
    try:
        data = json.loads(file.read_text())
        data["hosts"] = tuple(Host(**h) for h in data["hosts"])
        data["processes"] = tuple(Process(**p) for p in data["processes"])
        return Standing(**data)
    except FileNotFoundError:
        known = ", ".join(names()) or "none"
        raise ClusterError(
            f"there is no cluster {name!r} (known: {known}); 'aegis cluster up' starts one"
        ) from None
    except (OSError, ValueError, TypeError, LookupError) as e:
        raise ClusterError(
            f"{file} cannot be read: {e}; end the processes that it names by hand, and remove "
            f"{file.parent}"
        ) from None


def load_here(name: str) -> Standing:
    """Return what is known of a cluster that this machine has started.

    Raises
    ------
    ClusterError
        As `load`; or if another machine has.
    """
    state = load(name)
    require_here(state)
    return state


def require_here(state: Standing) -> None:
    """Refuse a cluster of another machine with the same home directory: our pids are not its.

    Raises
    ------
    ClusterError
        Naming the machine.
    """
    machine, system = here()
    if state.machine in ("", machine) or state.system == system:  # it may have another name now
        return
    raise ClusterError(
        f"cluster {state.name!r} was started on {state.machine}, and this is {machine}: give the "
        f"command there. If {state.machine} is no more, remove {directory_of(state.name)}"
    )


def running_of(state: Standing, *hosts: str) -> dict[str, bool]:
    """Return name -> whether it runs, of the processes on these hosts or on all."""
    found: dict[str, bool] = {}
    for host in hosts or {p.host for p in state.processes}:
        mine = [p for p in state.processes if p.host == host]
        flags = state.host(host).call("running", processes=[handle_of(p) for p in mine])
        found |= dict(zip((p.name for p in mine), flags, strict=True))
    return found


def handle_of(process: Process) -> dict[str, Any]:
    """Return what `launch` wants to know of a process."""
    return {"pid": process.pid, "started": process.started}


@contextmanager
def client_of(state: Standing, timeout: float = CLIENT_SECONDS) -> Iterator[Client]:
    """Connect to the scheduler of a cluster.

    Raises
    ------
    ClusterError
        If it does not answer, now or later.
    """
    with ExitStack() as stack:
        try:
            yield clusters.connect(state.address, timeout, load_security(state.tls), stack)
        except (OSError, TimeoutError) as e:
            raise ClusterError(f"the scheduler at {state.address} no longer answers: {e}") from e
