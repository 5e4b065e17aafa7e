"""Processes of a standing cluster on one host: started, looked at, stopped.

The same functions serve this machine, by a call, and others, by the system's ssh client: there
``python -m aegis_dask.runtime.launch`` reads a request from its standard input and writes the
answer. Certificates travel that way too, so they are on no command line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from aegis_dask.errors import AegisError, ClusterError

STATE_VARIABLE = "AEGIS_STATE_DIR"
MARK = "AEGIS_CLUSTER"
"""Variable in the environment of all that a cluster starts: its directory, a colon, a name."""
LOCAL = "local"
"""Name of the host on which a command runs."""
SSH = "ssh"
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""No questions, which nobody would answer: keys or an agent."""
SSH_SECONDS = 90.0
TAIL_LINES = 15

_CLOCK_SECONDS = 2.0  # start times are computed from the clock, which is adjusted at times


def state_root() -> Path:
    """Return the folder of all clusters of this user on this host."""
    root = os.environ.get(STATE_VARIABLE)
    return Path(root) if root else platformdirs.user_state_path("aegis_dask") / "clusters"


@dataclass(frozen=True)
class Host:
    """Where processes are started.

    Attributes
    ----------
    name
        `LOCAL`, or what ssh is given: a host, ``user@host``, or a name of its configuration.
    python
        The interpreter there.
    ssh
        The ssh client with its options.
    """

    name: str = LOCAL
    python: str = sys.executable
    ssh: str = SSH

    def call(self, action: str, **request: Any) -> Any:
        """Do something there (see `ACTIONS`), and return what it gives.

        Raises
        ------
        ClusterError
            If the host cannot be reached, or refuses.
        """
        if self.name == LOCAL:
            return ACTIONS[action](**request)
        remote = f"{self.python} -m aegis_dask.runtime.launch"
        command = [*shlex.split(self.ssh), *SSH_OPTIONS, "--", self.name, remote]
        try:
            done = subprocess.run(
                command,
                input=json.dumps({"action": action, **request}),
                capture_output=True,
                text=True,
                timeout=SSH_SECONDS,
                start_new_session=True,  # Ctrl-C is for us, not for the client in mid-request
            )
        except FileNotFoundError:
            raise ClusterError(f"there is no program {command[0]}; install an ssh client") from None
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"host {self.name} has not answered within {SSH_SECONDS:.0f} s; try '{self.ssh} "
                f"{self.name}' by hand"
            ) from None
        try:
            answer = json.loads(done.stdout.strip().splitlines()[-1])
            error, value = answer["error"], answer["value"]
        except (ValueError, LookupError, TypeError):
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise ClusterError(
                f"host {self.name} cannot be used by ssh: {said}. 'ssh {self.name}' must work "
                f"without a question, and '{self.python}' there must be able to import aegis_dask "
                "(--python)"
            ) from None
        if error:
            raise ClusterError(f"host {self.name}: {error}")
        return value


# -- called on the host ----------------------------------------------------------------------


def directory_of(cluster: str, host: str) -> Path:
    """Return where a cluster keeps its files on a host, as seen there."""
    return state_root() / cluster / re.sub(r"[^A-Za-z0-9._-]", "_", host)


def prepare(cluster: str, host: str, files: dict[str, str]) -> dict[str, Any]:
    """Make the directory with files for their owner only; return it and the number of cores."""
    directory = directory_of(cluster, host)
    with _own_words(directory):
        if directory.exists():
            raise ClusterError(
                f"{directory} is there already, of a cluster of the same name; end that one with "
                f"'aegis cluster down {cluster}', or remove the directory"
            )
        directory.mkdir(mode=0o700, parents=True)
        for name, text in files.items():
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
    return {"directory": str(directory), "cores": _cores()}


def start(
    cluster: str, host: str, name: str, arguments: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    """Start a module of Python under a keeper; return what `is_running` wants, and the log."""
    directory = directory_of(cluster, host)
    log = directory / f"{f'worker-{name}' if name.isdigit() else name}.log"
    with _own_words(directory):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "aegis_dask.runtime.keeper"),
                    *(sys.executable, "-m", *arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **environment, MARK: f"{directory}:{name}"},
                start_new_session=True,  # it outlives the command and its terminal
            )
    started = psutil.Process(process.pid).create_time()
    return {"pid": process.pid, "started": started, "log": str(log)}


def is_running(pid: int, started: float) -> bool:
    """Return whether a process is there, and not another one that has got its number."""
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < _CLOCK_SECONDS
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(processes: list[dict[str, Any]], seconds: float) -> int:
    """End processes, gently at first; return how many were running."""
    found = [(int(p["pid"]), float(p["started"])) for p in processes]
    running = [p for p in found if is_running(*p)]
    for pid, _ in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while (left := [p for p in running if is_running(*p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, _ in left:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # it leads a group of its own
    return len(running)


def running(processes: list[dict[str, Any]]) -> list[bool]:
    """Return which processes run."""
    return [is_running(int(p["pid"]), float(p["started"])) for p in processes]


def kill_leftovers(cluster: str, host: str, name: str) -> int:
    """Kill what is there of a process that has lost its keeper, or of all; return how many."""
    mark = f"{directory_of(cluster, host)}:{name}"
    count = 0
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid():
                continue
            found = process.environ().get(MARK, "")
            if found == mark or (not name and found.startswith(mark)):
                process.kill()
                count += 1
    return count


def tail(path: str) -> str:
    """Return the last lines of a log."""
    with suppress(OSError):
        return "\n".join(Path(path).read_text(errors="replace").splitlines()[-TAIL_LINES:])
    return ""


def remove(cluster: str, host: str) -> None:
    """Delete the directory of a cluster on the host."""
    directory = directory_of(cluster, host)
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):
        directory.parent.rmdir()  # where nothing else is in it


ACTIONS: dict[str, Callable[..., Any]] = {
    "prepare": prepare,
    "start": start,
    "running": running,
    "stop": stop,
    "kill_leftovers": kill_leftovers,
    "tail": tail,
    "remove": remove,
}
"""What `Host.call` can ask for."""


class _own_words:  # noqa: N801  (reads as a statement)
    """Turns errors of the operating system into ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise ClusterError(
                f"{self.directory} cannot be written: {error.strerror or error}; {STATE_VARIABLE} "
                "names another place"
            ) from None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def main() -> None:
    """Answer the one request on standard input."""
    request = json.loads(sys.stdin.read())
    try:
        answer = {"error": "", "value": ACTIONS[request.pop("action")](**request)}
    except AegisError as e:
        answer = {"error": str(e), "value": None}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
