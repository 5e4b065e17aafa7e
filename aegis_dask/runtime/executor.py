"""The executor: runs programs on a Dask cluster."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed import Client
from numpy.typing import NDArray

from aegis_dask import config
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ClusterError, LevelError, ProgramError
from aegis_dask.placement.cut import LEAST_SECONDS, TARGET_SECONDS
from aegis_dask.placement.devices import MACHINES, Machine, load_machine
from aegis_dask.placement.files import check_plan
from aegis_dask.placement.limbs.plan import plan_by_limbs
from aegis_dask.placement.limbs.record import Recording, record
from aegis_dask.placement.limbs.rounds import Exchange
from aegis_dask.placement.planner import Planner
from aegis_dask.placement.strategy import Strategy, contiguous
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Program
from aegis_dask.program.symbolic import Analysis, analyse
from aegis_dask.runtime import cluster
from aegis_dask.runtime.attempt import About, Attempt
from aegis_dask.runtime.checkpoints import Checkpoint, Snapshot, identity
from aegis_dask.runtime.context import InterpreterFactory
from aegis_dask.runtime.loading import Loaded
from aegis_dask.runtime.progress import ProgressCallback
from aegis_dask.runtime.result import Result
from aegis_dask.runtime.session import MoreWorkersError, WorkerLostError
from aegis_dask.runtime.site import Site

logger = logging.getLogger(__name__)

RESUMES = 3
"""How often a run survives the loss of a worker."""
JOIN_SECONDS = 30.0
"""How long a run waits for workers that are being restarted."""
UNKNOWN_STAGE_SECONDS = 0.1
"""Assumed work of a stage where nothing is known of it."""


class Executor:
    """Runs programs on the workers of a Dask cluster.

    Make one with `Executor.local` or `Executor.connect`, and use it in a ``with`` block.

    Attributes
    ----------
    workers, threads
        Number of workers, and threads of the kernels in each.
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
        self.workers, self.threads, self._takes_all = workers, threads, takes_all
        self.machine: Machine | None = None
        self._stack, self._has_dashboard = stack, has_dashboard
        self._analyses: deque[tuple[Program, int | None, str, Analysis]] = deque(maxlen=16)
        self._own: Loaded | None = None
        self._site = Site(
            client,
            stack,
            directory=directory,
            ship=ship,
            in_process=in_process,
            join_seconds=join_seconds,
        )
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

            def connect(closing: ExitStack) -> Client:
                return cluster.connect(
                    address, timeout, security, closing, insecure_transport=insecure_transport
                )

            def again() -> Client:
                with ExitStack() as closing:
                    client = connect(closing)
                    closing.pop_all()  # the site closes it
                return client

            client = connect(stack)
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
            executor._stack = stack.pop_all()
        executor._site.again, executor._site.checked = again, set(found)
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
        return list(self._site.addresses)

    @property
    def client(self) -> Client:
        """Dask's client of the cluster; another one once the scheduler was started again."""
        return self._site.client

    @property
    def is_local(self) -> bool:
        """Whether the workers share this machine with the client."""
        return self._site.is_local

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
        site = self._site
        with site.lock:
            loaded = site.loader.load(params, keys, store or {})
            try:
                site.ready(loaded, self.workers, takes_fewer=self._takes_all)
            except BaseException:
                site.loader.unload(loaded)
                raise
            return loaded

    def unload(self, loaded: Loaded) -> None:
        """Take back what `load` has given. No run may use it."""
        with self._site.lock:
            self._site.loader.unload(loaded)

    def adapt(self) -> int:
        """Take all workers that the cluster has now for the runs to come; return how many.

        Runs that are under way keep theirs. Of clusters that are ours the number stays.

        Raises
        ------
        ClusterError
            If the scheduler does not come back.
        """
        if self._site.again is not None:
            self.workers = self._site.count() or self.workers
        return self.workers

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
                speed = loaded.speed(self.threads or 1)
                stage_work = [s / speed for s in analysis.stage_work]
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
        for known, level, of, found in list(self._analyses):  # other threads append
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
            the rest is planned anew for those that are left, and again when one does. Not where the
            worker ran out of memory, which it would again.
        grows
            Begin with all workers that the cluster has, and whenever more have joined when a layer
            ends plan the rest anew, for all of them. By default where the executor was connected to
            a cluster without a number of workers, and no plan is given.
        loaded
            Keys and weights that `load` has given to the workers; by default those of `prepare`.
        checkpoint
            Directory for what is finished, layer by layer. A run that finds a checkpoint of its
            own, of the same program and inputs, goes on there, by the plan that it had if it was
            for as many workers; when it ends, its files are deleted, and no others there.
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
            If a task fails (the error of the task is its cause), a worker is lost once too often,
            or none is left. The cluster is left clean, for another run.
        """
        _check_inputs(program, inputs)
        loaded = loaded or self._prepared
        workers = self.workers  # it may change meanwhile (`adapt`)
        if grows is None:
            grows = self._takes_all and plan is None
        if plan is not None:
            workers = plan.workers if grows else workers  # others join when a layer ends
            check_plan(plan, program, workers)
        elif grows:
            workers = self._site.count() or workers
        if top_level is None:
            top_level = max((_level(x) for x in inputs.values()), default=0) or None
        about = About(
            title,
            self.dashboard_link,
            self._analyse(program, top_level, interpreter, loaded),
            self.machine if machine is None else machine,
        )
        most = inf if grows else workers
        attempt = Attempt(
            self._site,
            program,
            inputs,
            interpreter,
            loaded,
            self.threads,
            progress,
            cancelled,
            most,
        )
        snapshot: Snapshot | None = Snapshot() if resumes or grows else None
        if checkpoint is not None:
            kind = interpreter if isinstance(interpreter, str) else type(interpreter).__qualname__
            run = identity(program, inputs, f"{loaded.weights} {kind}")
            snapshot = Checkpoint.open(checkpoint, run, loaded.context.params)
        resumed = 0
        planner: Planner | None = None
        count, takes_fewer, is_growing = workers, grows, False
        while True:
            try:
                if is_growing:
                    count = int(min(self._site.count(), most))
                where = self._site.ready(loaded, count, takes_fewer=takes_fewer)
                if is_growing and len(where) < count:
                    attempt = replace(attempt, most=len(where))  # of no use, and still there
                count, takes_fewer, is_growing = len(where), True, False
                if planner is None:  # the workers have said what they compute on
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
                plan = _plan_for(planner, len(where), plan, snapshot)
                result = attempt.run(plan, where, replace(about, resumed=resumed), snapshot)
            except WorkerLostError as error:
                if snapshot is None or resumed == resumes:
                    raise
                resumed += 1
                takes_fewer = True
                logger.warning(
                    "%s; taken up again after %d of the groups of tasks", error, snapshot.groups
                )
            except MoreWorkersError as news:
                logger.info("%s; the rest is planned for all of them", news)
                is_growing = True
            else:
                if isinstance(snapshot, Checkpoint):
                    snapshot.delete()
                return replace(result, resumed=resumed)

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
            As `run`; and if the program refreshes ciphertexts, its plaintexts are too large, or
            some workers compute on GPUs and others do not.
        """
        recording = self.record(program, inputs, late=exchange == "cheapest")
        plan, known = plan_by_limbs(recording, self.workers, exchange)
        loaded = self._prepared
        where = self._site.ready(loaded, self.workers)
        kinds = {loaded.opened[address] for address in where}
        if len(kinds) > 1:  # limbs travel as they are; whole ciphertexts go through the host
            raise ClusterError(
                f"the workers have different backends, {', '.join(sorted(kinds))}, and limbs go "
                "between workers of one; use Executor.run, or workers of one kind"
            )
        about = About(
            dashboard=self.dashboard_link,
            analysis=self._analyse(program, None, "encrypted", loaded),
        )
        attempt = Attempt(
            self._site,
            program,
            inputs,
            "encrypted",
            loaded,
            self.threads,
            progress,
            by_limbs=(recording, known),
        )
        return attempt.run(plan, where, about)


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
    if plan is None or plan.workers != workers:
        plan = planner.plan(workers)
    if snapshot is not None:
        snapshot.begin(plan)
    return plan


def _level(value: Any) -> int:
    return int(getattr(getattr(value, "batch", None), "level", 0))


def _check_inputs(program: Program, inputs: Mapping[str, Any]) -> None:
    if set(inputs) != set(program.inputs):
        raise ProgramError(
            f"the program takes the inputs {sorted(program.inputs)}, given were {sorted(inputs)}"
        )
