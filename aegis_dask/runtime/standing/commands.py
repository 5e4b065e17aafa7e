"""Standing clusters: started, scaled, stopped.

Each process is a ``dask scheduler`` or a ``dask worker`` with our preload and TLS, under a keeper.
The record is saved after every process that is started, so that an interrupted or crashed command
can be cleaned up after.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from urllib.parse import urlsplit

from distributed import Client

from aegis_dask.errors import ClusterError, ParameterError
from aegis_dask.runtime import cluster as clusters
from aegis_dask.runtime.certificates import (
    CA,
    CLUSTER,
    ROLES,
    check_certificates,
    make_certificates,
)
from aegis_dask.runtime.launch import LOCAL, Host
from aegis_dask.runtime.plugin import running_tasks
from aegis_dask.runtime.security import is_loopback
from aegis_dask.runtime.standing.record import (
    SCHEDULER,
    STATE,
    Process,
    Standing,
    client_of,
    directory_of,
    handle_of,
    here,
    load,
    load_here,
    locked,
    running_of,
    save,
)

TLS = "tls"
PRELOAD = "aegis_dask.runtime.preload"
TLS_OPTIONS = ("--tls-ca-file", CA, "--tls-cert", f"{CLUSTER}.pem", "--tls-key", f"{CLUSTER}.key")
"""The certificates are in the working directory of the processes."""
JOIN_SECONDS = 90.0
"""How long processes may take to start."""
STOP_SECONDS = 25.0
DEATH_SECONDS = 60
"""How long a worker looks for its scheduler before it ends, to be started again by its keeper."""

Say = Callable[[str], None]


@dataclass
class Plan:
    """What `up` is asked for.

    Attributes
    ----------
    workers
        How many, over all hosts; by default two on this machine, or one on each host.
    hosts
        Where; this machine if empty.
    listen
        Address of this machine for the scheduler; by default loopback, or with hosts the address
        from which the first of them is reached.
    port
        For the scheduler; 0 for a free one.
    tls
        Directory of certificates; by default new ones are made.
    threads
        Kernel threads of each worker; by default the cores of a host are divided among its workers.
    memory_limit
        Of each worker, as Dask takes it; by default the memory of its host.
    gpus
        Deal workers to this many GPUs per host.
    """

    workers: int | None = None
    hosts: Sequence[Host] = ()
    listen: str | None = None
    port: int = 0
    tls: Path | None = None
    threads: int | None = None
    memory_limit: str = "1.0"
    gpus: int = 0


def up(name: str, plan: Plan, say: Say) -> Standing:
    """Start a cluster; nothing is left of it if that fails or is interrupted.

    Raises
    ------
    ClusterError
        If there is one of the name, or something does not start.
    """
    hosts = tuple(plan.hosts) or (Host(),)
    if len({h.name for h in hosts}) < len(hosts):
        raise ParameterError("a host is given twice; --workers says how many workers there are")
    count = plan.workers if plan.workers is not None else len(plan.hosts) or 2
    remote = [h for h in hosts if h.name != LOCAL]
    listen = plan.listen or (_address_towards(remote[0]) if remote else "127.0.0.1")
    if listen in ("0.0.0.0", "::", ""):
        raise ParameterError(
            f"the scheduler cannot be reached at {listen!r}; give one address of this machine "
            "(--listen)"
        )
    directory = directory_of(name)
    with locked(name):
        if (directory / STATE).exists():
            raise ClusterError(
                f"there is a cluster {name!r} already; 'aegis cluster status {name}' shows it, "
                f"'aegis cluster down {name}' ends it or what is left of it"
            )
        machine, system = here()
        state = Standing(
            name,
            f"tls://{_bracketed(listen)}:{plan.port or _free_port(listen)}",
            str(plan.tls.absolute() if plan.tls else directory / TLS),
            hosts,
            {},
            plan.memory_limit,
            plan.gpus,
            machine=machine,
            system=system,
        )
        if plan.tls is None:
            make_certificates(directory / TLS, [listen])
        for role in ROLES:
            check_certificates(Path(state.tls), role)
        save(state)
        try:
            state = _prepare(state, count, plan.threads)
            say(f"Starting the scheduler at {state.address}")
            state = _start_scheduler(state)
            state = _start_workers(state, count, say)
            _wait(state)
        except BaseException:
            say("Stopping what was started")
            try:
                _end(load(name))
            except ClusterError as e:
                say(f"warning: {e}; 'aegis cluster down {name}' tries again")
            raise
    return state


def scale(name: str, count: int, force: bool, say: Say) -> Standing:
    """Start or retire workers until there are `count`.

    A worker that is retired gives what it holds to others first. Runs that use it lose it, and go
    on after their last finished layer if there are enough workers.

    Raises
    ------
    ClusterError
        If the cluster is not there, or was started elsewhere; a worker is part of a run and
        `force` is not given; or more workers would share a GPU than its memory was divided among.
    """
    if count < 0:
        raise ParameterError(f"{count} workers were asked for; give 0 or more")
    with locked(name):
        state = load_here(name)
        with client_of(state) as client:
            there = running_of(state)
            gone = [p for p in state.workers if not there[p.name]]
            if gone:
                say(f"Gone by themselves, or killed: {_workers(gone)}")
                for process in gone:  # what has lost its keeper has its name still
                    state.host(process.host).call(
                        "kill_leftovers", cluster=name, host=process.host, name=process.name
                    )
                state = _without(state, gone)
            excess = len(state.workers) - count
            if excess > 0:
                state = _retire(state, client, excess, force, say)
        state = _start_workers(state, count, say)
        _wait(state)
    return state


def down(name: str, force: bool, say: Say) -> int:
    """Stop a cluster, or what is left of one, and remove its files; return the number stopped.

    Raises
    ------
    ClusterError
        If there is none of that name, or it was started elsewhere; if it has runs and `force` is
        not given; or if a host cannot be reached: then what is known is kept, for another try.
    """
    with locked(name):
        state = load_here(name)
        runs: set[str] = set()
        with suppress(ClusterError), client_of(state) as client:
            of_workers = client.run(running_tasks, on_error="ignore")
            runs = {run for tasks in of_workers.values() for run in tasks}
        if runs and not force:
            raise ClusterError(
                f"cluster {name!r} has {len(runs)} runs under way, which would be lost; wait for "
                "them, or say --force"
            )
        say(f"Stopping cluster {name!r}")
        return _end(state)


# -- starting --------------------------------------------------------------------------------


def _prepare(state: Standing, count: int, threads: int | None) -> Standing:
    """Make the hosts' directories, with certificates; find how many threads workers have."""
    files = {f: (Path(state.tls) / f).read_text() for f in (CA, f"{CLUSTER}.pem", f"{CLUSTER}.key")}
    for i, host in enumerate(state.hosts):
        cores = host.call("prepare", cluster=state.name, host=host.name, files=files)["cores"]
        here = len(range(i, count, len(state.hosts)))
        each = threads or max(1, cores // max(1, here))
        state = replace(state, threads={**state.threads, host.name: each})
        save(state)
    if LOCAL not in state.threads:  # the scheduler's directory
        Host().call("prepare", cluster=state.name, host=LOCAL, files=files)
    return state


def _start_scheduler(state: Standing) -> Standing:
    address, _, port = state.address.rpartition(":")
    return _start(
        state,
        Host(),
        SCHEDULER,
        [
            *("distributed.cli.dask_scheduler", "--host", address, "--port", port),
            *("--dashboard-address", "127.0.0.1:0", "--preload", PRELOAD),
        ],
        {},
    )


def _start_workers(state: Standing, count: int, say: Say) -> Standing:
    """Start workers until there are `count`, with the lowest free names."""
    taken = {p.name for p in state.workers}
    listen = urlsplit(state.address).hostname or ""
    if state.gpus:
        state = replace(state, sharing=_sharing(state, count))
    free = (str(i) for i in range(count + len(taken)) if str(i) not in taken)
    for name in [next(free) for _ in range(count - len(taken))]:
        host = state.hosts[int(name) % len(state.hosts)]
        say(f"Starting worker {name} on {'this machine' if host.name == LOCAL else host.name}")
        options = [
            *("distributed.cli.dask_worker", state.address, "--name", name),
            *("--nthreads", str(state.threads[host.name]), "--memory-limit", state.memory_limit),
            *("--dashboard-address", "127.0.0.1:0", "--local-directory", "scratch"),
            *("--death-timeout", str(DEATH_SECONDS), "--preload", PRELOAD),
        ]
        if is_loopback(listen):
            options += ["--host", _bracketed(listen)]
        environment = {"DASK_AEGIS__BACKEND": "cpu"}
        if state.gpus:
            number = int(name) // len(state.hosts) % state.gpus
            environment = {
                "CUDA_VISIBLE_DEVICES": str(number),
                "DASK_AEGIS__BACKEND": "cuda",
                "DASK_AEGIS__DEVICE_WORKERS": str(state.sharing),
            }
        state = _start(state, host, name, options, environment)
    return state


def _sharing(state: Standing, count: int) -> int:
    """Return among how many workers a GPU is divided if there are `count`.

    Those that run keep the share of its memory that they were started with.
    """

    def on_one(workers: int) -> int:
        return ceil(workers / len(state.hosts) / state.gpus)

    if not state.workers:
        return on_one(count)
    sharing = state.sharing or on_one(len(state.workers))
    if on_one(count) > sharing:
        raise ClusterError(
            f"the workers of cluster {state.name!r} were started to be {sharing} to a GPU, and its "
            f"memory is divided so; {count} workers would be {on_one(count)}. Scale to 0 first, "
            f"then to {count}"
        )
    return sharing


def _start(
    state: Standing, host: Host, name: str, arguments: list[str], environment: dict[str, str]
) -> Standing:
    started = host.call(
        "start",
        cluster=state.name,
        host=host.name,
        name=name,
        arguments=[*arguments, *TLS_OPTIONS],
        environment=environment,
    )
    state = replace(state, processes=(*state.processes, Process(name, host.name, **started)))
    save(state)
    return state


def _wait(state: Standing) -> None:
    """Wait until the scheduler answers and the workers have joined.

    Raises
    ------
    ClusterError
        Naming what has not come up, with the end of its log.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        there, running = _present(state), running_of(state)
        missing = [p for p in state.processes if p.name not in there]
        if not missing:
            return
        ended = [p for p in missing if not running[p.name]]
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    first = (ended or missing)[0]
    who = "the scheduler" if first.name == SCHEDULER else f"worker {first.name} on {first.host}"
    log = state.host(first.host).call("tail", path=first.log)
    raise ClusterError(
        f"{who} has not come up within {JOIN_SECONDS:.0f} s, or has ended. Its log, {first.log}, "
        f"ends with:\n{log}"
    )


def _present(state: Standing) -> set[str]:
    """Return the names of what answers: the scheduler, and workers that have joined."""
    with suppress(ClusterError), client_of(state, 2.0) as client:
        joined = clusters.workers_of(client).values()
        return {SCHEDULER, *(str(w["name"]) for w in joined)}
    return set()


# -- stopping --------------------------------------------------------------------------------


def _retire(state: Standing, client: Client, excess: int, force: bool, say: Say) -> Standing:
    """Retire workers, those without work first; the highest names first among equals."""
    addresses = {str(w["name"]): a for a, w in clusters.workers_of(client).items()}
    tasks = client.run(running_tasks, on_error="ignore")
    held = client.has_what()

    def load(process: Process) -> tuple[bool, int, int]:
        address = addresses.get(process.name, "")
        return bool(tasks.get(address)), len(held.get(address, ())), -int(process.name)

    leaving = sorted(state.workers, key=load)[:excess]
    for process in leaving:
        address = addresses.get(process.name, "")
        runs = tasks.get(address, {})
        if runs:
            message = (
                f"worker {process.name} is part of {len(runs)} runs, with {sum(runs.values())} "
                f"tasks at work and {len(held.get(address, ()))} results of theirs"
            )
            if not force:
                raise ClusterError(
                    f"{message}. Wait for them, or say --force: runs then go on after their last "
                    "finished layer, if another worker takes its place"
                )
            say(f"warning: {message}; the runs lose it")
    gone = [addresses[p.name] for p in leaving if p.name in addresses]
    say(f"Retiring {_workers(leaving)}")
    if gone:
        client.retire_workers(gone, close_workers=False, remove=False)
    for process in leaving:
        host = state.host(process.host)
        host.call("stop", processes=[handle_of(process)], seconds=STOP_SECONDS)
        state = _without(state, [process])
    return state


def _end(state: Standing) -> int:
    """Stop all processes on all hosts and delete all files; forget the cluster last."""
    directory = directory_of(state.name)
    count = 0
    used = [h for h in state.hosts if h.name in state.threads and h.name != LOCAL]
    for host in (*used, Host()):
        mine = [p for p in state.processes if p.host == host.name]
        workers = [handle_of(p) for p in mine if p.name != SCHEDULER]
        scheduler = [handle_of(p) for p in mine if p.name == SCHEDULER]
        # Workers first, also on all other hosts: they take their leave of the scheduler.
        count += host.call("stop", processes=workers, seconds=STOP_SECONDS)
        count += host.call("stop", processes=scheduler, seconds=STOP_SECONDS)
        count += host.call("kill_leftovers", cluster=state.name, host=host.name, name="")
        host.call("remove", cluster=state.name, host=host.name)
    if state.tls == str(directory / TLS):
        for file in (directory / TLS).glob("*"):
            file.unlink()
        with suppress(OSError):
            (directory / TLS).rmdir()
    (directory / STATE).unlink(missing_ok=True)
    (directory / "lock").unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()
    return count


def _without(state: Standing, gone: Sequence[Process]) -> Standing:
    state = replace(state, processes=tuple(p for p in state.processes if p not in gone))
    save(state)
    return state


def _workers(processes: Sequence[Process]) -> str:
    listed = ", ".join(p.name for p in processes)
    return f"worker {listed}" if len(processes) == 1 else f"workers {listed}"


def _address_towards(host: Host) -> str:
    """Return the address of this machine from which a host is reached."""
    target = host.name.rpartition("@")[2]
    try:
        found = socket.getaddrinfo(target, 22, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[0][4])  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        raise ClusterError(
            f"{target} has no address here (perhaps it is a name of ssh's configuration only); "
            "say with --listen at which address of this machine workers reach the scheduler"
        ) from None


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            return int(probe.getsockname()[1])
    except OSError as e:
        raise ClusterError(
            f"the scheduler cannot listen at {host}: {e.strerror or e}; give an address of this "
            "machine (--listen)"
        ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
