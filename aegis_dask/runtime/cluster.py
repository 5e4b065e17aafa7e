"""Clusters: one on this machine, or one that is there."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import dask.config
from distributed import Client, KilledWorker, LocalCluster, Worker, system
from distributed.client import Future
from distributed.comm import CommClosedError
from distributed.comm import connect as open_comm
from distributed.core import send_recv
from distributed.scheduler import NoValidWorkerError, NoWorkerError

from aegis_dask._version import __version__
from aegis_dask.config import BACKEND, CPU, CUDA, DEVICE_WORKERS
from aegis_dask.errors import ClusterError, DeviceFailedError
from aegis_dask.ring.cuda_backend.device import device_count
from aegis_dask.ring.registry import backend_name
from aegis_dask.runtime import serialization as _registered  # noqa: F401  (registers with Dask)
from aegis_dask.runtime.security import agree, check_handshake
from aegis_dask.runtime.settings import CONFIG

PACKAGES = ("dask", "distributed", "numpy")
"""Packages that must be the same everywhere."""

LOCAL_CONFIG = {
    **CONFIG,
    # Connections within one machine: whoever does not accept in that time has ended.
    "distributed.comm.timeouts.connect": "10s",
}
POOL = 0.8
"""Share of a GPU's memory that RMM takes at the start."""
LOST = (
    *(ConnectionError, CommClosedError, TimeoutError, CancelledError),
    *(KilledWorker, NoValidWorkerError, NoWorkerError),
)
"""What Dask raises where a worker, or a connection, is gone."""
LOOK_SECONDS = 2.0
"""How often it is looked whether the worker is still there that a result is waited for from."""
QUIET = ("distributed.worker", "distributed.nanny", "distributed.scheduler", "distributed.core")


class UnusableError(ClusterError):
    """A worker has not done what it was asked for.

    Attributes
    ----------
    address
        Of the worker.
    is_lost
        It is gone, or cannot be reached.
    """

    def __init__(self, message: str, address: str, is_lost: bool = False) -> None:
        super().__init__(message)
        self.address, self.is_lost = address, is_lost


def cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


class _LoopbackWorker(Worker):
    """A worker that is a thread; Dask would serve its status on all interfaces."""

    def start_http_server(
        self,
        routes: Any,
        dashboard_address: Any,
        default_port: int = 0,
        ssl_options: Any = None,
    ) -> None:
        address = dashboard_address or "127.0.0.1:0"
        super().start_http_server(routes, address, default_port, ssl_options)


def start_local(
    workers: int,
    processes: bool,
    dashboard: bool | int,
    memory_limit: str | float | None,
    protocol: str | None,
    stack: ExitStack,
) -> Client:
    """Start workers on this machine, which listens on the loopback interface only.

    Parameters
    ----------
    workers
        Number of workers, one thread of Dask's each.
    processes
        Make them processes, or threads of this one.
    dashboard
        Serve the dashboard, at a free port or the one given.
    memory_limit
        Of each worker: bytes or text such as ``"4GB"``; None for an equal share of the memory, or
        for none where values are on a GPU: Dask would take them for memory of the host, and write
        them to its disk.
    protocol
        ``"tcp://"`` for connections even between threads.
    stack
        Closes cluster and client.
    """
    if workers < 1:
        raise ClusterError(f"{workers} workers were asked for; one or more are needed")
    port = 0 if dashboard is True else int(dashboard)
    options: dict[str, Any] = {} if protocol is None else {"protocol": protocol}
    on_cpu = backend_name() == CPU
    if memory_limit is None:
        memory_limit = system.MEMORY_LIMIT // workers if on_cpu else 0
    sharing = {} if on_cpu or not processes else {DEVICE_WORKERS: workers}
    # A while after a worker was lost the cluster looks whether there is one of its name, and else
    # gives it up for good. If its successor has been lost just then, that is the wrong moment.
    stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "10 days"}))
    with dask.config.set(LOCAL_CONFIG | sharing):  # workers get it with their configuration
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=processes,
            host="127.0.0.1" if processes or protocol else None,
            scheduler_port=0,
            dashboard_address=f"127.0.0.1:{port}",
            scheduler_kwargs={"dashboard": dashboard is not False},
            worker_dashboard_address=None,
            worker_class=None if processes else _LoopbackWorker,
            memory_limit=memory_limit,
            silence_logs=logging.CRITICAL,
            **options,
        )
        stack.callback(cluster.close)
        client = Client(cluster, set_as_default=False)
        stack.callback(client.close)
        return client


def start_cuda(
    workers: int | None, dashboard: bool | int, memory_limit: str | float | None, stack: ExitStack
) -> tuple[Client, int]:
    """Start a worker per GPU of this machine, or `workers`; return how many too.

    One worker per GPU is dask-cuda's cluster: transfers by UCX where it is installed, one pool of
    RMM for CuPy too where that is, spilling beyond the device memory limit. More workers than GPUs
    share the first, without dask-cuda and its spilling: to try several workers on one GPU.

    Parameters
    ----------
    workers
        Number of workers; as many as there are GPUs by default.
    dashboard
        As for `start_local`.
    memory_limit
        Device memory per worker beyond which dask-cuda spills to the host: bytes, a fraction, or
        text such as ``"40GB"``.
    stack
        Closes cluster and client.

    Raises
    ------
    BackendError
        If no GPU can be used.
    ClusterError
        If dask-cuda is missing, or fewer workers than one are asked for.
    """
    gpus = device_count()
    count = gpus if workers is None else workers
    if count < 1:
        raise ClusterError(f"{count} workers were asked for; one or more are needed")
    with dask.config.set({BACKEND: CUDA}):  # the workers get it with their configuration
        if count > gpus:
            client = start_local(count, True, dashboard, None, None, stack)
            return client, count
        try:
            from dask_cuda import LocalCUDACluster
        except ImportError as e:
            raise ClusterError(
                f"a cluster of GPU workers needs dask-cuda, which cannot be imported ({e}); "
                "pip install '.[cuda13]' (or cuda12) in a checkout"
            ) from e
        options: dict[str, Any] = {
            "protocol": "ucx" if find_spec("distributed_ucxx") else "tcp",
        }
        if memory_limit is not None:
            options["device_memory_limit"] = memory_limit
        if find_spec("rmm"):
            options |= {"rmm_pool_size": POOL, "rmm_allocator_external_lib_list": ["cupy"]}
        port = 0 if dashboard is True else int(dashboard)
        with dask.config.set(LOCAL_CONFIG):
            cluster = LocalCUDACluster(
                n_workers=count,
                host="127.0.0.1" if options["protocol"] == "tcp" else None,
                scheduler_port=0,
                dashboard_address=f"127.0.0.1:{port}",
                worker_dashboard_address=None,
                silence_logs=logging.CRITICAL,
                **options,
            )
            stack.callback(cluster.close)
            client = Client(cluster, set_as_default=False)
            stack.callback(client.close)
    return client, count


def allow_for_maps(client: Client, size: int) -> None:
    """Raise the memory limits of the worker processes of a local cluster by what they map.

    Dask takes maps of files for memory of each process, though all share it.
    """
    limits: dict[str, int] = {}
    for nanny in client.cluster.workers.values():
        manager = getattr(nanny, "memory_manager", None)
        if manager is None or not manager.memory_limit:
            continue
        if not hasattr(manager, "own_limit"):
            manager.own_limit = manager.memory_limit
        manager.memory_limit = min(manager.own_limit + size, system.MEMORY_LIMIT)
        limits[nanny.worker_address] = manager.memory_limit
    there = workers_of(client)  # one that is being started again has the limit from its nanny
    workers = [address for address in limits if address in there]
    client.run(_set_memory_limit, limits, workers=workers, on_error="ignore")


def _set_memory_limit(limits: Mapping[str, int], dask_worker: Any) -> None:
    dask_worker.memory_manager.memory_limit = limits[dask_worker.address]


def connect(
    address: str,
    timeout: float,
    security: Any,
    stack: ExitStack,
    *,
    insecure_transport: bool = False,
) -> Client:
    """Connect to a scheduler.

    Parameters
    ----------
    address
        Of the scheduler.
    timeout
        Seconds to wait for it.
    security
        TLS settings, or None (see `security.agree`).
    stack
        Closes the client.
    insecure_transport
        Permit connections beyond loopback that are not encrypted.

    Raises
    ------
    ClusterError
        If there is none, or something else listens.
    SecurityError
        If the connection would not be encrypted, or one side refuses the other.
    """
    address, security = agree(address, security, insecure_transport)
    url = urlsplit(address)
    try:
        if security is None:
            socket.create_connection((url.hostname, url.port), timeout).close()
        else:
            check_handshake(address, security, timeout)
    except OSError as e:
        raise ClusterError(
            f"no scheduler answers at {address} ({e}); start one with 'dask scheduler', and check "
            "address, port and firewall"
        ) from e
    try:
        # A client of Dask's would wait for minutes for a server that accepts and says nothing.
        with ThreadPoolExecutor(1) as thread:
            kind = thread.submit(asyncio.run, _identify(address, timeout, security)).result()
        if kind != "Scheduler":
            raise OSError(f"it is a {kind}")
        with warnings.catch_warnings():  # versions are checked later, and named
            warnings.simplefilter("ignore")
            client = Client(
                address, timeout=timeout, security=security, set_as_default=False, name="aegis"
            )
    except (OSError, ValueError, TypeError, ImportError, TimeoutError, EOFError) as e:
        raise ClusterError(
            f"what listens at {address} does not answer as a Dask scheduler within {timeout:g} s "
            f"({type(e).__name__}: {e}); check the address, and that client and scheduler use the "
            "same protocol and the same TLS settings"
        ) from e
    stack.callback(close_client, client)
    return client


async def _identify(address: str, timeout: float, security: Any) -> str:
    """Return what a server of Dask says that it is."""

    async def ask() -> str:
        arguments = {} if security is None else security.get_connection_args("client")
        comm = await open_comm(address, timeout=timeout, **arguments)
        try:
            reply = await send_recv(comm, op="identity")
            return str(reply.get("type"))
        finally:
            comm.abort()

    return await asyncio.wait_for(ask(), timeout)


def close_client(client: Client) -> None:
    """Close a client; nothing happens the second time, and no scheduler is waited for long."""
    with suppress(Exception):
        client.close(timeout=2)


def check_software(client: Client) -> None:
    """Check that scheduler and workers have our packages, in our versions.

    Raises
    ------
    ClusterError
        If one has not; it says which.
    """
    versions: Any = client.get_versions(packages=list(PACKAGES))
    # First: functions, such as the probe, cannot be sent to another version.
    _check_packages("the scheduler", versions["scheduler"], versions["client"])
    probe = client.run_on_scheduler(_make_probe())
    _check_version("the scheduler", "aegis_dask", probe, __version__)
    for message in _unfit(client, versions, versions["workers"]).values():
        raise ClusterError(message)


def unfit_workers(client: Client, addresses: Collection[str]) -> dict[str, str]:
    """Return which of these workers lack our packages, or have other versions; and what of it."""
    return _unfit(client, client.get_versions(packages=list(PACKAGES)), addresses)


def _unfit(client: Client, versions: Any, addresses: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    fit = []
    for address in sorted(set(addresses) & set(versions["workers"])):
        try:
            _check_packages(f"worker {address}", versions["workers"][address], versions["client"])
            fit.append(address)
        except ClusterError as e:
            found[address] = str(e)
    answers = client.run(_make_probe(), workers=fit, on_error="return")
    for address, version in answers.items():
        if isinstance(version, Exception) and is_lost(version):
            continue  # whoever needs it will notice
        try:
            _check_version(f"worker {address}", "aegis_dask", version, __version__)
        except ClusterError as e:
            found[address] = str(e)
    return found


def _check_packages(who: str, theirs: Any, ours: Any) -> None:
    python = [_minor(dict(v["host"])["python"]) for v in (theirs, ours)]
    _check_version(who, "Python", *python)
    for package in PACKAGES:
        _check_version(who, package, *(v["packages"].get(package) for v in (theirs, ours)))


def _make_probe() -> Callable[[], str | None]:
    def probe() -> str | None:  # sent as code: it must run where the package is missing
        try:
            from aegis_dask import runtime
            from aegis_dask._version import __version__ as version
        except ImportError:
            return None
        return version if runtime else None

    return probe


def _check_version(who: str, package: str, found: str | None, ours: str | None) -> None:
    if found is None:
        raise ClusterError(
            f"{who} cannot import {package}; install {package}{'' if ours is None else ' ' + ours} "
            "in its environment and start it again"
        )
    if found != ours:
        raise ClusterError(
            f"{who} has {package} {found}, the client has {ours}; install one version everywhere"
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def wait_for_workers(client: Client, count: int, timeout: float) -> dict[str, dict[str, Any]]:
    """Return address -> information of the workers there are, once there are enough.

    Raises
    ------
    ClusterError
        If fewer than `count` have joined after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    found = workers_of(client)
    # One that has just died may still be counted when the client is told that there are enough.
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        with suppress(TimeoutError):
            client.wait_for_workers(count, timeout=left)
        time.sleep(min(left, 0.05))
        found = workers_of(client)
    if len(found) < count:
        there = ", ".join(sorted(found)) or "none"
        raise ClusterError(
            f"{len(found)} of {count} workers have joined within {timeout:g} s (there: {there}); "
            "start more with 'dask worker', ask for fewer, or wait longer (timeout)"
        )
    return found


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Return address -> information of the workers that the scheduler has now.

    `Client.scheduler_info` returns what the client holds, and every two seconds a callback of its
    own replaces that with an answer that names no worker.

    Raises
    ------
    OSError
        If the scheduler does not answer.
    """
    found: dict[str, dict[str, Any]] = identity_of(client)["workers"]
    return found


def identity_of(client: Client) -> dict[str, Any]:
    """Return what the scheduler says of itself: ``id``, ``workers``, ...

    Raises
    ------
    OSError
        If it does not answer.
    """
    if client.scheduler is None or client.status == "closed":
        raise OSError("the client is closed")
    found: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)
    return found


def in_order(workers: dict[str, dict[str, Any]]) -> list[str]:
    """Return addresses by the workers' names, numbers by size."""

    def rank(address: str) -> tuple[Any, ...]:
        name = str(workers[address].get("name", address))
        return (0, int(name), "") if name.isdigit() else (1, 0, name)

    return sorted(workers, key=rank)


def ask(
    client: Client, addresses: Collection[str], wish: str, function: Callable[..., Any], *args: Any
) -> dict[str, Any]:
    """Call a function on workers, not as a task; return what it gives on each.

    Parameters
    ----------
    client
        Client of the cluster.
    addresses
        Of the workers.
    wish
        What it is for, in words: "cannot ..." is put before it.
    function, args
        What is called.

    Raises
    ------
    UnusableError
        If it fails on a worker, or one does not answer.
    OSError
        If the scheduler does not answer.
    """
    answers: dict[str, Any] = client.run(
        function, *args, workers=list(addresses), on_error="return"
    )
    for address, answer in answers.items():
        if isinstance(answer, Exception):
            raise unusable(address, wish, answer) from answer
    return answers


def result_of(client: Client, future: Future, address: str, wish: str) -> Any:
    """Return what a task gives that only one worker may run; never wait for one that is gone.

    A scheduler without our settings would wait for a worker to join at that address.

    Raises
    ------
    UnusableError
        If the task fails, or the worker is gone; `wish` as for `ask`.
    DeviceFailedError
        If it fails because of the GPU.
    OSError
        If the scheduler does not answer.
    """
    while not future.done():
        try:
            future.exception(timeout=LOOK_SECONDS)  # waits
        except CancelledError:  # the client has lost the scheduler, perhaps for a moment
            break
        except TimeoutError:
            if address not in workers_of(client) and not future.done():
                raise UnusableError(
                    f"worker {address} cannot {wish}: it is gone", address, is_lost=True
                ) from None
    try:
        return future.result()
    except DeviceFailedError:
        raise
    except Exception as e:
        raise unusable(address, wish, e) from e


def unusable(address: str, wish: str, error: Exception) -> UnusableError:
    """Return what says that a worker has not done something; `wish` as for `ask`."""
    text = str(error) or type(error).__name__
    return UnusableError(f"worker {address} cannot {wish}: {text}", address, is_lost(error))


def is_lost(error: BaseException) -> bool:
    """Whether an error says that a worker, the scheduler or the way there is lost.

    Dask raises `OSError` for connections, as Python does for files, whose errors have a number.
    """
    if isinstance(error, LOST):
        return True
    return isinstance(error, OSError) and error.errno is None
