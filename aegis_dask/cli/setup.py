"""From options to a model, a calibration, a job and a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis_dask.cli.options import CONNECT_SECONDS, ClusterKind
from aegis_dask.errors import ClusterError, TextError

if TYPE_CHECKING:
    from aegis_dask.models.calibration import Calibration
    from aegis_dask.models.checkpoint import BertModel
    from aegis_dask.models.graphs import Graph
    from aegis_dask.runtime.executor import Executor
    from aegis_dask.service.job import Job
    from aegis_dask.service.local import Prepared
    from aegis_dask.service.sources import Ids
    from aegis_dask.terminal import Terminal


DEFAULT_LENGTH = 32


@dataclass(frozen=True)
class JobOptions:
    """The options that say what runs."""

    graph: str
    model: Path | None
    sha256: str | None
    calibration: Path | None
    length: int | None
    insecure: bool
    scale_bits: int


@dataclass(frozen=True)
class ClusterOptions:
    """The options that say where it runs."""

    scheduler: str | None
    workers: int | None
    kind: ClusterKind
    tls: Path | None
    insecure_transport: bool
    timeout: float = CONNECT_SECONDS

    @property
    def cuda(self) -> bool:
        """Whether a worker is started for every GPU of this machine."""
        if self.kind != ClusterKind.AUTO:
            return self.kind == ClusterKind.CUDA
        if self.scheduler is not None or find_spec("dask_cuda") is None:
            return False
        from aegis_dask.config import CUDA
        from aegis_dask.ring.registry import backend_name

        return backend_name() == CUDA

    def open(self) -> Executor:
        """Connect to the scheduler, or start workers."""
        from aegis_dask.runtime.executor import Executor
        from aegis_dask.service import local

        if self.scheduler is None or self.cuda:  # the two together are refused
            return local.open_executor(self.scheduler, self.workers, cuda=self.cuda)
        address, security = find_scheduler(self.scheduler, self.tls)
        return Executor.connect(
            address,
            self.workers,
            timeout=self.timeout,
            security=security,
            insecure_transport=self.insecure_transport,
        )


def find_scheduler(address: str, tls: Path | None) -> tuple[str, Any]:
    """Return the address and the certificates for ``tls://...`` or ``@NAME``.

    Raises
    ------
    ClusterError
        If there is no cluster of that name.
    SecurityError
        If the directory holds no certificates.
    """
    from aegis_dask.runtime import standing
    from aegis_dask.runtime.security import load_security

    security = None if tls is None else load_security(tls)
    if not address.startswith("@"):
        return address, security
    found, own = standing.find(address[1:])
    return found, security or own


@dataclass(frozen=True, eq=False)
class Source:
    """Model (cut to the layers of the graph) and graph."""

    graph: Graph
    model: BertModel

    def tokenize(self, text: str) -> Ids:
        """Return the token ids of a text.

        Raises
        ------
        TextError
            If it is empty or too long.
        """
        from aegis_dask.models.text import Tokenizer

        return Tokenizer.for_model(self.model).encode(text)


def open_source(options: JobOptions, model: BertModel | None = None) -> Source:
    """Load graph and model; the model may have been loaded for another graph."""
    from aegis_dask.models.graphs import load_graph
    from aegis_dask.service.sources import first_layers, open_model

    graph = load_graph(options.graph)
    model = model or open_model(options.model, options.sha256)
    return Source(graph, first_layers(model, graph.layers))


def find_calibration(
    source: Source, path: Path | None, length: int, terminal: Terminal
) -> Calibration:
    """Return the calibration of a file, or measure one on texts cut to `length` tokens."""
    from aegis_dask.service.sources import measure_calibration, saved_calibration

    model = source.model
    found = saved_calibration(model, path)
    if found is not None:
        return found
    count = len(model.layers)
    terminal.note(
        f"No calibration of {model.name} is given: measuring {count} "
        f"{'layer' if count == 1 else 'layers'} on the texts of the library, cut to {length} "
        "tokens. 'aegis calibrate' does it once and for all."
    )
    with terminal.step("Calibrating"):
        return measure_calibration(model, length)


def room_for(options: JobOptions, source: Source) -> int:
    """Return the positions of jobs for any text of at most the length that is asked for.

    Raises
    ------
    TextError
        If the model has fewer.
    """
    from aegis_dask.service.job import positions_for

    most = source.model.config.max_positions
    wanted = options.length or min(DEFAULT_LENGTH, most)
    if wanted > most:
        raise TextError(f"--length is {wanted}, {source.model.name} has positions for {most}")
    return positions_for(wanted)


def job_with_room(
    options: JobOptions, source: Source, calibration: Calibration, positions: int
) -> Job:
    """Build the job of a graph for texts of any length up to a number of positions."""
    from aegis_dask.service.job import make_job

    return make_job(
        source.model,
        calibration,
        source.graph,
        positions,
        tokens=positions,
        scale_bits=options.scale_bits,
        allow_insecure=options.insecure,
    )


def prepare(
    options: JobOptions, source: Source, ids: Ids, terminal: Terminal, *, encrypted: bool = True
) -> Prepared:
    """Build the job of a text and check that the text is inside the calibrated ranges."""
    from aegis_dask.service import local
    from aegis_dask.service.job import make_job, positions_for

    wanted = options.length or len(ids)
    if wanted < len(ids):
        raise TextError(
            f"the text has {len(ids)} tokens, --length makes room for {wanted}; give a larger one "
            "or a shorter text"
        )
    positions = positions_for(wanted)
    calibration = find_calibration(source, options.calibration, positions, terminal)
    job = make_job(
        source.model,
        calibration,
        source.graph,
        len(ids),
        tokens=positions,
        scale_bits=options.scale_bits,
        allow_insecure=options.insecure,
        encrypted=encrypted,
    )
    with terminal.step("Checking the text against the calibrated ranges"):
        prepared = local.prepare(job, ids)
    if job.params is not None:
        terminal.warn_if_insecure(job.parameters)
        local.check_memory(job)
    return prepared


@contextmanager
def cluster(options: ClusterOptions, terminal: Terminal) -> Iterator[Executor]:
    """Open an executor, and close it afterwards."""
    there = options.scheduler
    with ExitStack() as stack:
        where = "workers on this machine" if there is None else f"the cluster at {there}"
        with terminal.step(f"Connecting to {where}"):
            executor = stack.enter_context(options.open())
        if executor.dashboard_link:
            terminal.note(f"Dashboard: {executor.dashboard_link}")
        yield executor


def check_cluster(options: ClusterOptions) -> None:
    """Fail at once if a scheduler or the GPUs cannot be used, before work is done."""
    if options.scheduler is not None:
        options.open().close()
    elif options.tls is not None or options.insecure_transport:
        raise ClusterError(
            "--tls and --insecure-transport say how to reach a scheduler; give its address with "
            "--scheduler, or leave them out"
        )
    elif options.cuda:
        from aegis_dask.ring.cuda_backend.device import require_cupy

        require_cupy()


def check_writable(*files: Path | None) -> None:
    """Refuse files whose folder is missing, before work is done.

    Raises
    ------
    SerializationError
        Naming the file.
    """
    from aegis_dask.errors import SerializationError

    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise SerializationError(
                f"{file} cannot be written: give a file in a folder that exists"
            )


def plan_for(machine: str | None) -> None:
    """Let runs of this process search plans for a machine.

    Raises
    ------
    ClusterError
        If there is none of that name.
    """
    if machine is not None:
        import dask.config

        from aegis_dask import config
        from aegis_dask.placement.devices import load_machine

        load_machine(machine)
        dask.config.set({config.MACHINE: machine})
