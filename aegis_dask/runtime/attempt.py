"""One attempt at a run: what workers are told of it, the session, and what came of it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from aegis_dask.dashboard.brief import Brief, make_brief
from aegis_dask.errors import ClusterError
from aegis_dask.placement.devices import Machine
from aegis_dask.placement.limbs.plan import LimbProgram
from aegis_dask.placement.limbs.record import Recording, unrecorded
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Program
from aegis_dask.program.symbolic import Analysis
from aegis_dask.runtime import plugin
from aegis_dask.runtime.checkpoints import Snapshot
from aegis_dask.runtime.cluster import UnusableError, ask, is_lost
from aegis_dask.runtime.context import InterpreterFactory
from aegis_dask.runtime.loading import Loaded
from aegis_dask.runtime.measure import WorkerReport
from aegis_dask.runtime.progress import Progress, ProgressCallback
from aegis_dask.runtime.result import Result, make_result
from aegis_dask.runtime.session import DeviceLostError, Session, WorkerLostError
from aegis_dask.runtime.site import Site
from aegis_dask.runtime.transfers import count_transfers
from aegis_dask.runtime.values import join_limbs, join_rows
from aegis_dask.runtime.watch import seen, watched
from aegis_dask.runtime.worker import RunSpec


@dataclass(frozen=True)
class About:
    """What the dashboard and the report are told of a run.

    Attributes
    ----------
    title, dashboard
        Its name, and the address of Dask's dashboard.
    analysis, machine
        What predictions are made from.
    resumed
        How often it was taken up again.
    """

    title: str = ""
    dashboard: str = ""
    analysis: Analysis | None = None
    machine: Machine | None = None
    resumed: int = 0


@dataclass(frozen=True)
class Attempt:
    """What runs, where and how.

    Attributes
    ----------
    site
        The cluster.
    program, inputs
        What runs, and its inputs by name.
    interpreter
        As for `Executor.run`.
    loaded
        Keys and weights that the workers have.
    threads
        Of the kernels in each worker.
    progress, cancelled
        As for `Executor.run`.
    most
        See `runtime.session`.
    by_limbs
        For a run that divides ciphertexts by limbs.
    """

    site: Site
    program: Program
    inputs: Mapping[str, Any]
    interpreter: str | InterpreterFactory
    loaded: Loaded
    threads: int | None
    progress: ProgressCallback | None = None
    cancelled: threading.Event | None = None
    most: float = 0
    by_limbs: tuple[Recording, LimbProgram] | None = None

    def run(
        self, plan: Plan, where: dict[str, str], about: About, snapshot: Snapshot | None = None
    ) -> Result:
        """Run a plan.

        Parameters
        ----------
        plan
            The tasks.
        where
            Addresses of its workers, in order, and the directory of files on each.
        about
            What is told of it.
        snapshot
            Where to begin, and where to note what is finished.

        Raises
        ------
        ClusterError
            See `runtime.session`.
        """
        site, program, client = self.site, self.program, self.site.client
        known = {program.inputs[name]: value for name, value in self.inputs.items()}
        if snapshot is not None:
            known |= snapshot.known
        run = uuid.uuid4().hex[:8]
        spec = RunSpec(
            run,
            self.loaded.name,
            program,
            plan.tasks,
            self.interpreter,
            tuple(where),
            site.load_file(len(where)),
            self.by_limbs and self.by_limbs[1],
        )
        told = None if self.progress is None else _Told(self.progress)
        session = Session(
            client,
            site.events,
            spec,
            plan,
            told,
            snapshot,
            self.cancelled,
            most=self.most,
            title=about.title,
        )
        file = Path(f"run-{run}.pickle")
        try:
            _write(site.hosts.root / file, spec)
            with _connected(session, told):
                brief = self._brief(session, about)
                with watched(client, brief), _connected(session, told):
                    self._start(spec, file, where)
                    pieces = session.execute(known)
                    reports: dict[str, WorkerReport] = client.run(
                        plugin.report_run, run, workers=list(where)
                    )
        except DeviceLostError as e:
            if not site.restart(e.address):
                raise ClusterError(str(e)) from e
            raise
        finally:
            with site.lock:
                site.hosts.withdraw(file)
            with suppress(Exception):  # workers may be gone
                client.run(plugin.drop_run, run, on_error="ignore")
        outputs = {name: self._joined(name, parts) for name, parts in pieces.items()}
        for name, node in program.outputs.items():
            if name not in outputs:  # an input that is an output, or it was known before
                outputs[name] = known[node]
        return self._result(session, brief, outputs, reports, about)

    def _joined(self, name: str, parts: list[Any]) -> Any:
        """Return an output whose rows, or limbs, workers have given."""
        if self.by_limbs is None:
            return join_rows(parts)
        recording, known = self.by_limbs
        limbs = join_limbs(parts, known.positions(recording.program.outputs[name]))
        joined: CipherArray = unrecorded(
            recording.outputs[name], recording.params.ring.from_host(limbs)
        )
        return joined

    def _brief(self, session: Session, about: About) -> Brief:
        """Return what the dashboard shows of a run before it begins."""
        spec, groups = session.spec, session.groups
        return make_brief(
            session.program,
            session.plan,
            run=spec.run,
            addresses=spec.addresses,
            names=self.site.names(spec.addresses),
            title=about.title,
            client=self.site.client.id,
            analysis=about.analysis,
            machine=about.machine,
            first=groups[session.first].tasks[0] if session.first < len(groups) else 0,
            resumed=about.resumed,
        )

    def _start(self, spec: RunSpec, file: Path, where: dict[str, str]) -> None:
        """Tell the workers of the run."""
        site = self.site
        threads = None if self.loaded.context.params is None else self.threads
        with site.lock:
            site.hosts.publish(file)
            site.hosts.send(list(spec.addresses))
        paths: dict[str, list[str]] = {}
        for address in spec.addresses:
            paths.setdefault(str(Path(where[address]) / file), []).append(address)
        for path, workers in paths.items():
            ask(site.client, workers, "begin the run", plugin.start_run, path, threads)

    def _result(
        self,
        session: Session,
        brief: Brief,
        outputs: dict[str, Any],
        reports: dict[str, WorkerReport],
        about: About,
    ) -> Result:
        kind, params = self.interpreter, self.loaded.context.params
        words = {
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
        view = seen(
            self.site.client, brief, session.begin, session.seconds, reports, transfers.pairs
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
            dashboard=about.dashboard,
            about=words,
            view=view,
        )


class _Told:
    """Hands progress on, and remembers what that raised: it is no error of ours."""

    def __init__(self, progress: ProgressCallback) -> None:
        self.progress = progress
        self.error: BaseException | None = None

    def __call__(self, progress: Progress) -> None:
        try:
            self.progress(progress)
        except BaseException as e:
            self.error = e
            raise


def _write(path: Path, spec: RunSpec) -> None:
    try:
        path.write_bytes(cloudpickle.dumps(spec))
    except OSError as e:
        raise ClusterError(
            f"{path}, which tells the workers of the run, cannot be written: {e.strerror or e}; if "
            "the directory is gone, open a new Executor"
        ) from e


@contextmanager
def _connected(session: Session, told: _Told | None) -> Iterator[None]:
    """Say what it means when the block loses a worker or a connection."""
    try:
        yield
    except Exception as e:
        if told is not None and e is told.error:
            raise
        if _has_forgotten(session, e):
            raise WorkerLostError(f"{e}; a worker was started again: run again") from e
        if not is_lost(e):
            raise
        session.check_workers()
        raise WorkerLostError(
            f"the connection to the scheduler or to a worker was lost: {e!r}. Run again; what "
            "has been restarted is taken up"
        ) from e


def _has_forgotten(session: Session, error: Exception) -> bool:
    """Whether a worker no longer has what it was given: it has another process, or was cleared."""
    if isinstance(error, UnusableError):  # in the beginning
        return error.is_lost or isinstance(error.__cause__, (plugin.UnpreparedError, OSError))
    # A task that finds no run fails with a bare error of ours.
    if type(error) is not ClusterError or type(error.__cause__) is not ClusterError:
        return False
    workers = list(session.spec.addresses)
    with suppress(Exception):  # then the error is told as it is
        return not all(session.client.run(plugin.knows, session.spec.run, workers=workers).values())
    return False
