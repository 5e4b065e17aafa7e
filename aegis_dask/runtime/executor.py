"""The executor: runs programs on a Dask cluster."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import cloudpickle
from distributed import Client
from numpy.typing import NDArray

from aegis_dask import config
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.dashboard.brief import Brief, make_brief
from aegis_dask.errors import ClusterError, LevelError, ProgramError
from aegis_dask.placement.cut import LEAST_SECONDS, TARGET_SECONDS
from aegis_dask.placement.devices import MACHINES, Machine, load_machine
from aegis_dask.placement.files import check_plan
from aegis_dask.placement.limbs.plan import LimbProgram, plan_by_limbs
from aegis_dask.placement.limbs.record import Recording, record, unrecorded
from aegis_dask.placement.limbs.rounds import Exchange
from aegis_dask.placement.planner import Planner
from aegis_dask.placement.strategy import Strategy, contiguous
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Program
from aegis_dask.program.symbolic import Analysis, analyse
from aegis_dask.runtime import cluster, plugin
from aegis_dask.runtime.checkpoints import Checkpoint, Snapshot, identity
from aegis_dask.runtime.context import InterpreterFactory
from aegis_dask.runtime.events import Events
from aegis_dask.runtime.hosts import Hosts
from aegis_dask.runtime.loading import Loaded, Loader
from aegis_dask.runtime.measure import WorkerReport
from aegis_dask.runtime.progress import ProgressCallback
from aegis_dask.runtime.result import Result, make_result
from aegis_dask.runtime.session import MoreWorkersError, Session, WorkerLostError
from aegis_dask.runtime.transfers import count_transfers
from aegis_dask.runtime.values import join_limbs, join_rows
from aegis_dask.runtime.watch import install_monitor, seen, watched
from aegis_dask.runtime.worker import PLUGIN, RunSpec

logger = logging.getLogger(__name__)

RESUMES = 3
"""How often a run survives the loss of a worker."""
JOIN_SECONDS = 30.0
"""How long a run waits for workers that are being restarted."""
RECONNECT_SECONDS = 1.0
LOAD = "load"
"""File of `runtime.load`."""
UNKNOWN_STAGE_SECONDS = 0.1
"""Assumed work of a stage where nothing is known of it."""


@dataclass(frozen=True)
class About:
    """What the dashboard is told of a run: its name, and what predictions are made from."""

    title: str = ""
    top_level: int | None = None
    machine: Machine | None = None
    resumed: int = 0


class Executor:
    """Runs programs on the workers of a Dask cluster.

    Make one with `Executor.local` or `Executor.connect`, and use it in a ``with`` block.

    Attributes
    ----------
    workers, threads
        Number of workers, and threads of the kernels in each.
    is_local
        Whether the workers share this machine with the client.
    machine
        Devices and links to plan for, if they are known: those of worker processes that `local`
        has started, unless Dask's configuration names others.

    Examples
    --------
    >>> with Executor.local(workers=2) as executor:                       # doctest: +SKIP
    ...     executor.prepare(params, evaluation_keys, weights)
    ...     result = executor.run(program, {"x": encrypted})
    ...     result.outputs["y"]
    """

    def __init__(
        self,
        client: Client,
        workers: int,
        threads: int | None,
        stack: ExitStack,
        *,
        in_process: bool = False,
        has_dashboard: bool = True,
        directory: Path | None = None,
        ship: bool = False,
        join_seconds: float = JOIN_SECONDS,
        takes_all: bool = False,
    ) -> None:
        self.client, self.workers, self.threads = client, workers, threads
        self.join_seconds, self._takes_all = join_seconds, takes_all
        self.machine: Machine | None = None
        self.is_local = client.cluster is not None
        self._stack, self._in_process, self._has_dashboard = stack, in_process, has_dashboard
        self._analyses: deque[tuple[Program, int | None, str, Analysis]] = deque(maxlen=16)
        self._addresses: list[str] = []
        self._hosts = Hosts(client, directory, ship)
        stack.callback(self._hosts.close)
        self._loader = Loader(client, self._hosts, in_process)
        stack.callback(self._loader.close)
        self._own: Loaded | None = None
        self._events = Events(client)
        self._again: Callable[[], Client] | None = None  # connects, if the cluster is not ours
        self._scheduler = ""
        self._lock = threading.RLock()  # of workers and files; runs go on side by side
        self._introduce()
        self.prepare()

    # -- opening and closing -----------------------------------------------------------------

    @classmethod
    def local(
        cls,
        workers: int = 2,
        threads_per_worker: int | None = None,
        *,
        processes: bool = True,
        dashboard: bool | int = False,
        memory_limit: str | float | None = None,
        protocol: str | None = None,
        directory: Path | None = None,
    ) -> Executor:
        """Start workers on this machine. They and the dashboard listen on loopback only.

        With processes, call it under ``if __name__ == "__main__"``: Python starts them by importing
        the main module.

        Parameters
        ----------
        workers
            Number of workers; each runs one task at a time.
        threads_per_worker
            Threads of the kernels in each; by default the cores are divided among them.
        processes
            Make workers processes, or threads of this one.
        dashboard
            Serve Dask's dashboard, at a free port or the one given.
        memory_limit
            Of each worker, bytes or such as ``"4GB"``, beside keys and weights, which workers
            share. One that exceeds it is restarted, and the run fails. By default an equal share of
            the memory of the machine.
        protocol
            ``"tcp://"`` for connections even between threads.
        directory
            Where to keep the files of keys and weights; by default with temporary files.
        """
        threads = threads_per_worker or max(1, cluster.cores() // max(1, workers))
        with ExitStack() as stack:
            client = cluster.start_local(
                workers, processes, dashboard, memory_limit, protocol, stack
            )
            executor = cls(
                client,
                workers,
                threads,
                stack,
                in_process=not processes,
                has_dashboard=dashboard is not False,
                directory=directory,
            )
            executor._stack = stack.pop_all()
        if processes and not config.machine():
            executor.machine = MACHINES["cpu"]
        return executor

    @classmethod
    def cuda(
        cls,
        workers: int | None = None,
        *,
        dashboard: bool | int = False,
        device_memory_limit: str | float | None = None,
        directory: Path | None = None,
    ) -> Executor:
        """Start a worker process per GPU of this machine.

        Parameters
        ----------
        workers
            Number of workers, the number of GPUs by default. More of them share the GPUs.
        dashboard
            Serve Dask's dashboard, at a free port or the one given.
        device_memory_limit
            Device memory per worker beyond which results are spilled to the host.
        directory
            As for `local`.

        Raises
        ------
        BackendError
            If no GPU can be used.
        ClusterError
            If dask-cuda is missing.
        """
        with ExitStack() as stack:
            client, count = cluster.start_cuda(workers, dashboard, device_memory_limit, stack)
            executor = cls(
                client,
                count,
                max(1, cluster.cores() // count),
                stack,
                has_dashboard=dashboard is not False,
                directory=directory,
            )
            executor._stack = stack.pop_all()
        return executor

    @classmethod
    def connect(
        cls,
        address: str,
        workers: int | None = None,
        *,
        timeout: float = 10.0,
        threads_per_worker: int | None = None,
        security: Any = None,
        directory: Path | None = None,
        ship: bool = False,
        insecure_transport: bool = False,
        join_seconds: float = JOIN_SECONDS,
    ) -> Executor:
        """Use a scheduler that is there, and its workers.

        Parameters
        ----------
        address
            Of the scheduler, for example ``tls://10.0.0.5:8786``.
        workers
            How many workers to wait for and use; by default those that have joined, one at least,
            and those that join while a run is under way.
        timeout
            Seconds to wait, for the scheduler and for workers.
        threads_per_worker
            Threads of the kernels in each; by default as many as Dask's of the worker.
        security
            `distributed.Security` for TLS, such as `runtime.security.load_security` makes; by
            default what Dask's configuration says (``aegis.tls``, ``distributed.comm.tls``).
        directory
            Where to keep the files of keys and weights on this host.
        ship
            Send files to the workers' host even if it is this one.
        insecure_transport
            Connect beyond loopback without encryption: whoever reaches the network in between can
            read and change everything, and run code here and there.
        join_seconds
            How long a run waits for workers in the place of those that are lost.

        Raises
        ------
        ClusterError
            If there is no scheduler, workers are missing, or a package or its version differs.
        SecurityError
            If certificates do not fit, or without encryption beyond loopback.
        """
        with ExitStack() as stack:

            def again() -> Client:
                return cluster.connect(
                    address, timeout, security, stack, insecure_transport=insecure_transport
                )

            client = again()
            found = cluster.wait_for_workers(client, workers or 1, timeout)
            cluster.check_software(client)
            threads = threads_per_worker or min(int(w["nthreads"]) for w in found.values())
            executor = cls(
                client,
                workers or len(found),
                threads,
                stack,
                directory=directory,
                ship=ship,
                join_seconds=join_seconds,
                takes_all=workers is None,
            )
            stack = executor._stack = stack.pop_all()
            executor._again = again
        return executor

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete files and close the connection, and the cluster if it is our own."""
        self._stack.close()

    @property
    def dashboard_link(self) -> str:
        """Address of Dask's dashboard, or ""."""
        if self._has_dashboard:
            with suppress(Exception):  # the scheduler may be gone, or have none
                if self.client.cluster is not None:  # Dask names the host, we listen on loopback
                    services = self.client.scheduler_info()["services"]
                    return f"http://127.0.0.1:{services['dashboard']}/status"
                return str(self.client.dashboard_link)
        return ""

    @property
    def addresses(self) -> list[str]:
        """Addresses of worker 0, 1, ... of the next run, if all stay."""
        return list(self._addresses)

    # -- context -----------------------------------------------------------------------------

    def prepare(
        self,
        params: Parameters | None = None,
        keys: EvaluationKeys | BootstrappingKeys | None = None,
        store: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Give the workers what they need, once for any number of runs.

        Parameters
        ----------
        params
            Parameters, unless nothing is encrypted.
        keys
            Evaluation keys, with those of bootstrapping for programs that refresh. The secret key
            stays here.
        store
            Weights by name.

        Raises
        ------
        ClusterError
            If workers are missing, or files cannot be brought to them.
        """
        old, self._own = self._own, self.load(params, keys, store)
        if old is not None:
            self.unload(old)

    @property
    def _prepared(self) -> Loaded:
        assert self._own is not None
        return self._own

    def load(
        self,
        params: Parameters | None = None,
        keys: EvaluationKeys | BootstrappingKeys | None = None,
        store: Mapping[str, NDArray[Any]] | None = None,
    ) -> Loaded:
        """Give the workers what runs of one client need, beside what they have been given before.

        The same weights are given once. Give the result to `run`, and to `unload` in the end.

        Raises
        ------
        ClusterError
            As `prepare`, which does the same for runs that name no context.
        """
        with self._lock:
            loaded = self._loader.load(params, keys, store or {})
            try:
                self._ready(loaded)
            except BaseException:
                self._loader.unload(loaded)
                raise
            return loaded

    def unload(self, loaded: Loaded) -> None:
        """Take back what `load` has given. No run may use it."""
        with self._lock:
            self._loader.unload(loaded)

    def adapt(self) -> int:
        """Take all workers that the cluster has now for the runs to come; return how many.

        Runs that are under way keep theirs. Of clusters that are ours the number stays.

        Raises
        ------
        ClusterError
            If the scheduler does not come back.
        """
        with self._lock:
            if self._again is not None:
                self._find_scheduler()
                self.workers = len(cluster.workers_of(self.client)) or self.workers
            return self.workers

    def _ready(
        self, loaded: Loaded, count: int | None = None, *, takes_fewer: bool = False
    ) -> dict[str, str]:
        """Wait for workers, and open a context where it is not; return their directories.

        In the order in which a run numbers the workers. With `takes_fewer` those that there are
        after the time to wait will do.
        """
        with self._lock:
            self._find_scheduler()
            count = count or self.workers
            try:
                found = cluster.wait_for_workers(self.client, count, self.join_seconds)
            except ClusterError:
                found = cluster.workers_of(self.client)
                if not takes_fewer or not found:
                    raise
            # Those of before first: one that joined late is taken if another is gone.
            ordered = sorted(cluster.in_order(found), key=lambda a: a not in self._addresses)
            chosen = set(ordered[:count])
            self._addresses = [a for a in cluster.in_order(found) if a in chosen]
            found_in = self._hosts.sync(self._addresses)
            where = {address: found_in[address] for address in self._addresses}
            self._loader.open(loaded, where)
            return where

    def _introduce(self) -> None:
        """Give scheduler and workers, those to come too, what they need of us."""
        self._scheduler = cluster.identity_of(self.client)["id"]
        on_their_own = self.is_local and not self._in_process
        self.client.register_plugin(plugin.AegisPlugin(on_their_own), name=PLUGIN)
        install_monitor(self.client)
        self.client.run(plugin.bury, self.client.run_on_scheduler(_clients), on_error="ignore")

    def _find_scheduler(self) -> None:
        """Notice that the scheduler has been started again; wait for it if it is away.

        Raises
        ------
        ClusterError
            If it does not come back.
        """
        deadline = time.monotonic() + self.join_seconds
        while True:
            try:
                if cluster.identity_of(self.client)["id"] != self._scheduler:
                    logger.warning("the scheduler has been started again")
                    self._loader.forget_workers()
                    self._introduce()
                return
            except (OSError, TimeoutError) as e:
                if self._again is None or time.monotonic() > deadline:
                    raise ClusterError(
                        f"the scheduler no longer answers ({e}); start it again at the same "
                        "address, or open a new Executor"
                    ) from e
            time.sleep(RECONNECT_SECONDS)
            with suppress(ClusterError):
                client = self._again()
                for user in (self, self._hosts, self._loader, self._events):
                    user.client = client

    # -- runs --------------------------------------------------------------------------------

    def plan(
        self,
        program: Program,
        *,
        place: Strategy = contiguous,
        stage_work: list[float] | None = None,
        target_seconds: float = TARGET_SECONDS,
        least_seconds: float = LEAST_SECONDS,
        replicated: Collection[int] = (),
        everywhere: bool = False,
        machine: Machine | None = None,
        top_level: int | None = None,
        interpreter: str | InterpreterFactory = "encrypted",
        loaded: Loaded | None = None,
        workers: int | None = None,
    ) -> Plan:
        """Return the tasks of a program on these workers (see `run`)."""
        planner = self._planner(
            program,
            place=place,
            stage_work=stage_work,
            target_seconds=target_seconds,
            least_seconds=least_seconds,
            replicated=replicated,
            everywhere=everywhere,
            machine=machine,
            top_level=top_level,
            interpreter=interpreter,
            loaded=loaded or self._prepared,
        )
        return planner.plan(workers or self.workers)

    def _planner(
        self,
        program: Program,
        *,
        stage_work: list[float] | None,
        machine: Machine | None,
        top_level: int | None,
        interpreter: str | InterpreterFactory,
        loaded: Loaded,
        **options: Any,
    ) -> Planner:
        sizes = None
        analysis = self._analyse(program, top_level, interpreter, loaded)
        if analysis is not None:
            sizes = analysis.node_bytes
            if stage_work is None:
                stage_work = [s / (self.threads or 1) for s in analysis.stage_work]
        if stage_work is None:
            stage_work = [UNKNOWN_STAGE_SECONDS] * len(program.stages)
        if machine is None and config.machine():
            machine = load_machine(config.machine())
        return Planner(program, stage_work, sizes, machine, **options)

    def _analyse(
        self,
        program: Program,
        top_level: int | None,
        interpreter: str | InterpreterFactory,
        loaded: Loaded,
    ) -> Analysis | None:
        params = loaded.context.params
        if params is None or program.slots != params.slots:
            return None
        name = repr(loaded.context.bootstrapping or params)
        for known, level, of, found in self._analyses:
            if known is program and (level, of) == (top_level, name):
                return found
        try:
            found = analyse(program, loaded.context.bootstrapping or params, top_level)
        except LevelError:
            if interpreter == "encrypted":
                raise
            return None  # other interpreters need no levels
        self._analyses.append((program, top_level, name, found))
        return found

    def run(
        self,
        program: Program,
        inputs: Mapping[str, Any],
        *,
        interpreter: str | InterpreterFactory = "encrypted",
        progress: ProgressCallback | None = None,
        place: Strategy = contiguous,
        stage_work: list[float] | None = None,
        target_seconds: float = TARGET_SECONDS,
        least_seconds: float = LEAST_SECONDS,
        replicated: Collection[int] = (),
        everywhere: bool = False,
        machine: Machine | None = None,
        top_level: int | None = None,
        resumes: int = RESUMES,
        grows: bool | None = None,
        loaded: Loaded | None = None,
        plan: Plan | None = None,
        checkpoint: Path | None = None,
        cancelled: threading.Event | None = None,
        title: str = "",
    ) -> Result:
        """Run a program. Several may run side by side, called from several threads.

        The residues of the outputs depend neither on the number of workers nor on the way in which
        the program is cut.

        Parameters
        ----------
        program
            The program.
        inputs
            Values by name.
        interpreter
            ``"encrypted"``, ``"simulated"``, or a function that makes one from a `Context` on each
            worker.
        progress
            Called with the `Progress` now and then.
        place
            Strategy that chooses the worker of each unit.
        stage_work
            Estimated seconds of every stage; by default from `program.symbolic.analyse`.
        target_seconds, least_seconds
            How long tasks should last, and how short they may get.
        replicated
            Stages that every worker computes for itself (see `placement.search`).
        everywhere
            Give every worker all results, needed or not: to compare with systems that do.
        machine
            Devices and links for which to search a plan (`placement.search`); how it is cut, placed
            and replicated is then not asked for. By default what Dask's configuration names as
            ``aegis.machine``, or no search.
        top_level
            Level of the inputs, for the estimate.
        plan
            Tasks to run, for this program and number of workers (`plan`, `placement.files`); none
            is then made, and nothing that says how is asked for.
        resumes
            How often a run in which a worker is lost is taken up again, after the last layer that
            is finished, with the same residues. Once another worker is in its place; if none comes,
            the rest is planned anew for those that are left. Not where the worker ran out of
            memory, which it would again.
        grows
            Begin with all workers that the cluster has, and whenever more have joined when a layer
            ends plan the rest anew, for all of them. By default where the executor was connected to
            a cluster without a number of workers, and no plan is given.
        loaded
            Keys and weights that `load` has given to the workers; by default those of `prepare`.
        checkpoint
            Directory for what is finished, layer by layer. A run that finds a checkpoint of its
            own, of the same program and inputs, goes on there, by the plan that it had if it was
            for as many workers; when it ends, the checkpoint is deleted.
        cancelled
            Ends the run when it is set.
        title
            What to call the run on the dashboard.

        Raises
        ------
        ProgramError
            If inputs are missing or unknown.
        RunCancelledError
            If it was cancelled.
        ClusterError
            If a task fails (the error of the task is its cause), or a worker is lost once too often
            or not replaced. The cluster is left clean, for another run.
        """
        _check_inputs(program, inputs)
        loaded = loaded or self._prepared
        workers = self.workers  # it may change meanwhile (`adapt`)
        if grows is None:
            grows = self._takes_all and plan is None
        if plan is not None:
            check_plan(plan, program, workers)
        elif grows:
            workers = self._count() or workers
        where = self._ready(loaded, workers)
        if top_level is None:
            top_level = max((_level(x) for x in inputs.values()), default=0) or None
        planner = self._planner(
            program,
            place=place,
            stage_work=stage_work,
            target_seconds=target_seconds,
            least_seconds=least_seconds,
            replicated=replicated,
            everywhere=everywhere,
            machine=machine,
            top_level=top_level,
            interpreter=interpreter,
            loaded=loaded,
        )
        about = About(title, top_level, self.machine if machine is None else machine)
        snapshot: Snapshot | None = Snapshot() if resumes or grows else None
        if checkpoint is not None:
            kind = interpreter if isinstance(interpreter, str) else type(interpreter).__qualname__
            run = identity(program, inputs, f"{loaded.weights} {kind}")
            snapshot = Checkpoint.open(checkpoint, run, loaded.context.params)
        resumed = 0
        while True:
            plan = _plan_for(planner, len(where), plan, snapshot)
            try:
                result = self._execute(
                    program,
                    inputs,
                    plan,
                    where,
                    interpreter,
                    progress,
                    loaded=loaded,
                    snapshot=snapshot,
                    cancelled=cancelled,
                    about=replace(about, resumed=resumed),
                    grows=grows,
                )
            except WorkerLostError as error:
                if snapshot is None or resumed == resumes:
                    raise
                resumed += 1
                logger.warning(
                    "%s; taken up again after %d of the groups of tasks", error, snapshot.groups
                )
                where = self._ready(loaded, len(where), takes_fewer=True)
            except MoreWorkersError as news:
                logger.info("%s; the rest is planned for all of them", news)
                where = self._ready(loaded, self._count(), takes_fewer=True)
            else:
                if checkpoint is not None:
                    shutil.rmtree(checkpoint, ignore_errors=True)
                return replace(result, resumed=resumed)

    def _count(self) -> int:
        """Return how many workers the cluster has."""
        with self._lock:
            self._find_scheduler()
            return len(cluster.workers_of(self.client))

    def record(
        self, program: Program, inputs: Mapping[str, CipherArray], late: bool = False
    ) -> Recording:
        """Return a program as kernel calls, for inputs of these levels and scales.

        With `late` sums of rotations are divided once (`placement.limbs.late`).

        Raises
        ------
        ClusterError
            If nothing is encrypted, or the program refreshes ciphertexts.
        """
        _check_inputs(program, inputs)
        context = self._prepared.context
        params = context.params
        if params is None:
            raise ClusterError(
                "dividing by limbs needs parameters and evaluation keys; give them to "
                "Executor.prepare first"
            )
        level = max(x.batch.level for x in inputs.values())
        required = analyse(program, context.bootstrapping or params, level).keys
        return record(program, params, required, inputs, context.store, late)

    def run_by_limbs(
        self,
        program: Program,
        inputs: Mapping[str, CipherArray],
        exchange: Exchange = "input-broadcast",
        *,
        progress: ProgressCallback | None = None,
    ) -> Result:
        """Run a program with every ciphertext divided among the workers by its limbs.

        That is how others run one (see `placement.limbs.rounds`), to compare with: it sends orders
        of magnitude more than `run`. The residues are the same (but see `exchange`).

        Parameters
        ----------
        program, inputs
            The program and its encrypted inputs. Programs that refresh are refused.
        exchange
            ``"broadcast"`` of what ModUp and ModDown need, ``"input-broadcast"``,
            ``"output-aggregation"``, or ``"cheapest"``: for every key switch the less of the last
            two, where sums of rotations are divided once, which rounds otherwise (the residues are
            those of `run` with `placement.limbs.late.LateDivision`).
        progress
            As for `run`.

        Raises
        ------
        ProgramError, ClusterError
            As `run`; and if the program refreshes ciphertexts, or its plaintexts are too large.
        """
        recording = self.record(program, inputs, late=exchange == "cheapest")
        plan, known = plan_by_limbs(recording, self.workers, exchange)
        loaded = self._prepared
        where = self._ready(loaded)
        return self._execute(
            program,
            inputs,
            plan,
            where,
            "encrypted",
            progress,
            (recording, known),
            loaded=loaded,
        )

    def _execute(
        self,
        program: Program,
        inputs: Mapping[str, Any],
        plan: Plan,
        where: dict[str, str],
        interpreter: str | InterpreterFactory,
        progress: ProgressCallback | None,
        by_limbs: tuple[Recording, LimbProgram] | None = None,
        *,
        loaded: Loaded,
        snapshot: Snapshot | None = None,
        cancelled: threading.Event | None = None,
        about: About | None = None,
        grows: bool = False,
    ) -> Result:
        known = {program.inputs[name]: value for name, value in inputs.items()}
        if snapshot is not None:
            known |= snapshot.known
        run = uuid.uuid4().hex[:8]
        addresses = tuple(where)
        spec = RunSpec(
            run,
            loaded.name,
            program,
            plan.tasks,
            interpreter,
            addresses,
            self._load_file(),
            by_limbs and by_limbs[1],
        )
        session = Session(
            self.client, self._events, spec, plan, progress, snapshot, cancelled, grows=grows
        )
        file = Path(f"run-{run}.pickle")
        threads = None if loaded.context.params is None else self.threads
        try:
            with self._connected(session):
                brief = self._brief(session, about or About(), loaded)
                with watched(self.client, brief), self._connected(session):
                    self._start(spec, file, where, threads)
                    pieces = session.execute(known)
                    reports: dict[str, WorkerReport] = self.client.run(
                        plugin.report_run, run, workers=list(addresses)
                    )
        finally:
            with self._lock:
                self._hosts.withdraw(file)
            with suppress(Exception):  # workers may be gone
                self.client.run(plugin.drop_run, run, on_error="ignore")
        if by_limbs is None:
            outputs = {name: join_rows(parts) for name, parts in pieces.items()}
        else:
            outputs = {name: _joined(*by_limbs, name, parts) for name, parts in pieces.items()}
        for name, node in program.outputs.items():
            if name not in outputs:  # an input that is an output, or it was known before
                outputs[name] = known[node]
        return self._result(session, brief, outputs, reports, loaded.context.params)

    @staticmethod
    @contextmanager
    def _connected(session: Session) -> Iterator[None]:
        """Say what it means when the block loses a connection."""
        try:
            yield
        except (OSError, TimeoutError, CancelledError) as e:
            session.check_workers()
            raise WorkerLostError(
                f"the connection to the scheduler or to a worker was lost: {e!r}. Run again; what "
                "has been restarted is taken up"
            ) from e

    def _brief(self, session: Session, about: About, loaded: Loaded) -> Brief:
        """Return what the dashboard shows of a run before it begins."""
        spec, groups = session.spec, session.groups
        first = groups[session.first].tasks[0] if session.first < len(groups) else 0
        return make_brief(
            session.program,
            session.plan,
            run=spec.run,
            addresses=spec.addresses,
            names=self._names(spec.addresses),
            title=about.title,
            client=self.client.id,
            analysis=self._analyse(session.program, about.top_level, spec.interpreter, loaded),
            machine=about.machine,
            first=first,
            resumed=about.resumed,
        )

    def _names(self, addresses: Sequence[str]) -> list[str]:
        """Return the workers' names, by Dask."""
        known = cluster.workers_of(self.client)
        return [str(known.get(a, {}).get("name", i)) for i, a in enumerate(addresses)]

    @property
    def _shares_cores(self) -> bool:
        """Whether the workers are processes that we have started on this machine."""
        return self.is_local and not self._in_process and self.workers > 1

    def _load_file(self) -> str:
        """Return the file in which workers that share this machine say what they do, or ""."""
        if not self._shares_cores:
            return ""
        path = self._hosts.root / LOAD
        with self._lock:
            if not path.exists():
                path.write_bytes(bytes(self.workers))
        return str(path)

    def _start(self, spec: RunSpec, file: Path, where: dict[str, str], threads: int | None) -> None:
        (self._hosts.root / file).write_bytes(cloudpickle.dumps(spec))
        with self._lock:
            self._hosts.publish(file)
            self._hosts.sync(list(spec.addresses))
        paths: dict[str, list[str]] = {}
        for address in spec.addresses:
            paths.setdefault(str(Path(where[address]) / file), []).append(address)
        for path, workers in paths.items():
            self.client.run(plugin.start_run, path, threads, workers=workers)

    def _result(
        self,
        session: Session,
        brief: Brief,
        outputs: dict[str, Any],
        reports: dict[str, WorkerReport],
        params: Parameters | None,
    ) -> Result:
        kind = session.spec.interpreter
        about = {
            "program": repr(session.program),
            "parameters": "none: nothing is encrypted" if params is None else repr(params),
            "interpreter": getattr(kind, "__name__", str(kind)),
            "kernel threads per worker": str(self.threads),
            "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        addresses = session.spec.addresses
        transfers = count_transfers(
            session.program,
            session.tasks,
            session.index_of,
            addresses,
            reports,
            session.sent,
            session.fetched,
        )
        return make_result(
            session.program,
            session.tasks,
            addresses,
            brief.names,
            reports,
            outputs={name: outputs[name] for name in session.program.outputs},
            transfers=transfers,
            begin=session.begin,
            seconds=session.seconds,
            dashboard=self.dashboard_link,
            about=about,
            view=seen(self.client, brief, session.begin, session.seconds, reports, transfers.pairs),
        )


def _plan_for(planner: Planner, workers: int, plan: Plan | None, snapshot: Snapshot | None) -> Plan:
    """Return a plan that goes on where a run has got to, and take note of it.

    A plan that is for as many workers stays.
    """
    if snapshot is not None and snapshot.plan is not None:
        if snapshot.plan.workers == workers:
            return snapshot.plan
        stages, known = snapshot.finished(planner.program)
        plan = planner.plan(workers, stages)
        logger.warning(
            "%d workers instead of %d: %d of %d stages are finished, the rest is planned anew",
            workers,
            snapshot.plan.workers,
            len(stages),
            len(planner.program.stages),
        )
        work = planner.stage_work
        share = sum(work[i] for i in stages) / (sum(work) or 1.0)
        snapshot.begin(plan, known, share)
        return plan
    if plan is None:
        plan = planner.plan(workers)
    if snapshot is not None:
        snapshot.begin(plan)
    return plan


def _joined(recording: Recording, known: LimbProgram, name: str, parts: list[Any]) -> CipherArray:
    """Return an output whose limbs workers 0, 1, .. have."""
    positions = known.positions(recording.program.outputs[name])
    return unrecorded(recording.outputs[name], join_limbs(parts, positions))


def _clients(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.clients)


def _level(value: Any) -> int:
    return int(getattr(getattr(value, "batch", None), "level", 0))


def _check_inputs(program: Program, inputs: Mapping[str, Any]) -> None:
    if set(inputs) != set(program.inputs):
        raise ProgramError(
            f"the program takes the inputs {sorted(program.inputs)}, given were {sorted(inputs)}"
        )
