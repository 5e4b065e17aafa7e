"""Client and server in one process, which starts or is given a cluster: what `aegis run` does.

The cluster gets evaluation keys, weights and ciphertexts only, as it would from another machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Protocol

import numpy as np
from distributed import system
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.bootstrapper import working_bytes as bootstrapping_bytes
from aegis_dask.ckks.noise import NoiseModel
from aegis_dask.ckks.precision import PrecisionStats, precision_stats
from aegis_dask.errors import ClusterError, ParameterError, RangeError
from aegis_dask.models.calibration import check_inside
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.models.text import embed
from aegis_dask.placement.files import SavedPlan
from aegis_dask.placement.traffic import format_bytes
from aegis_dask.ring.memory import release
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.progress import ProgressCallback
from aegis_dask.runtime.result import Result
from aegis_dask.service.client import Client
from aegis_dask.service.job import Job
from aegis_dask.service.server import Server
from aegis_dask.service.sources import Ids

Float = NDArray[np.float64]
TEMPORARIES = 1.5
"""What a stage takes while it computes, beside what it is given and gives."""
DELICATE = 1024
"""How much smaller than softmax denominators the noise must be to need no look at it."""
NOISE_SHARE, NOISY_RANGE = 0.05, 1.5
"""What the noise may change, of the largest result; and how far inputs of polynomials may be from
the middle of their ranges with it, which simulations of texts at a limit pass by little."""


class Watch(Protocol):
    """Tells the user what is going on."""

    def step(self, message: str) -> AbstractContextManager[None]:
        """Show that something has begun, until it ends."""

    def bar(self, message: str) -> AbstractContextManager[ProgressCallback]:
        """Show the progress of a run."""

    def note(self, message: str) -> None:
        """Say something."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A job and the input of one text, checked against the calibrated ranges.

    Attributes
    ----------
    job
        What will run.
    x
        What is encrypted, float64 ``[length, features]``.
    reference
        The result in float64, if the graph says how.
    simulated
        The result of the same circuit without encryption.
    """

    job: Job
    x: Float
    reference: Float | None
    simulated: Float

    @property
    def expected(self) -> Float:
        """What the result is compared with."""
        return self.simulated if self.reference is None else self.reference


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run and how exact it was.

    Attributes
    ----------
    prepared
        Job, input and what the result should be.
    result
        Measurements of the cluster.
    output
        Float64 ``[length, features]``.
    interpreter
        ``"encrypted"`` or ``"simulated"``.
    keys, key_bytes
        Number of evaluation keys and their size in memory.
    seconds
        Step -> seconds.
    """

    prepared: Prepared
    result: Result
    output: Float
    interpreter: str
    keys: int = 0
    key_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> PrecisionStats:
        """Against float64, or against the simulated program if the graph has no reference."""
        return precision_stats(self.prepared.expected, self.output)

    @property
    def circuit_precision(self) -> PrecisionStats:
        """Against the simulated program: the noise of the encryption alone."""
        return precision_stats(self.prepared.simulated, self.output)


def prepare(job: Job, ids: Ids) -> Prepared:
    """Look up a text's embeddings and check that the circuit can take them.

    Raises
    ------
    TextError
        If the text is too long.
    RangeError
        If a value leaves the range that a polynomial was fitted on, or the noise of the encryption
        would spoil the result.
    """
    job = job.for_length(len(ids))
    embedded, valid = embed(job.model, ids)
    check_inside(job.model, job.calibration, embedded, valid)
    x = job.input_of(embedded)
    simulated, largest = job.simulate(x)
    # Graphs of the user's own may compute what calibration has never seen.
    if not largest <= 1 or not np.isfinite(simulated).all():
        raise RangeError(
            f"graph {job.graph.name}: an input of a polynomial is {largest:.3g} times the "
            "calibrated range for this text; the encrypted result would be meaningless. Calibrate "
            "with texts like this one, or give the graph inputs like those of the calibrated layers"
        )
    if job.params is not None and _is_delicate(job):
        _check_noise(job, x, simulated)
    return Prepared(job, x, job.reference(x), simulated)


def _is_delicate(job: Job) -> bool:
    """Whether the noise may disturb the softmax: sums of it are near the smallest denominators."""
    sums = 2.0 ** -_noise_bits(job) * sqrt(job.packing.tokens)
    return any(layer.fits.inverse.t0 - 1 < DELICATE * sums for layer in job.layers)


def _noise_bits(job: Job) -> float:
    """Return -log2 of the error of an operation."""
    model = NoiseModel(job.analysis.params)
    return model.bits(model.rounding(1))


def _check_noise(job: Job, x: Float, simulated: Float) -> None:
    """Refuse a text whose result the noise of the encryption would spoil.

    The longer a text, the smaller some of its denominators are beside the largest one, and 1/y of
    what the noise makes negative is anything. Twice the noise is simulated, for what one draw of it
    does not show.
    """
    bits = _noise_bits(job)
    with np.errstate(all="ignore"):
        noisy, largest = job.simulate(x, bits - 1)
        error = float(np.abs(noisy - simulated).max())
    if not error <= NOISE_SHARE * np.abs(simulated).max() or not largest <= NOISY_RANGE:
        raise RangeError(
            f"the noise of the encryption (2^-{bits:.0f} in each operation) would spoil the result "
            f"for this text of {len(x)} tokens: some of its softmax denominators are too small "
            "beside others. Take a shorter text and keys for fewer tokens, or a larger scale "
            "(--scale-bits 45) if the program needs no bootstrapping"
        )


def check_memory(job: Job, workers: int = 1) -> None:
    """Refuse a job whose evaluation keys and ciphertexts do not fit the memory of this machine.

    Keys are counted once, since workers share them; what the largest stage works on once per
    worker.

    Raises
    ------
    ParameterError
        If they do not fit.
    """
    analysis = job.analysis
    each = TEMPORARIES * analysis.working_bytes
    if analysis.bootstrapping is not None:
        each = max(each, bootstrapping_bytes(analysis.bootstrapping))
    keys, values = job.keys.nbytes, int(workers * each)
    if keys + values > system.MEMORY_LIMIT:
        raise ParameterError(
            f"{job.keys.count} evaluation keys take {format_bytes(keys)} and ciphertexts "
            f"{format_bytes(values)} on {workers} worker{'s' * (workers > 1)}, this machine has "
            f"{format_bytes(system.MEMORY_LIMIT)} of memory; use a larger machine, fewer workers, "
            "or --insecure to try a small ring on data that need no protection"
        )


def open_executor(
    scheduler: str | None,
    workers: int | None,
    dashboard: bool = True,
    cuda: bool = False,
    *,
    security: Any = None,
    insecure_transport: bool = False,
) -> Executor:
    """Connect to a scheduler, or start worker processes on this machine, on its GPUs if `cuda`.

    `security` and `insecure_transport` are those of `Executor.connect`.

    Raises
    ------
    ClusterError
        If the scheduler cannot be reached, or workers are missing or do not start.
    """
    if scheduler is not None:
        if cuda:
            raise ClusterError(
                "a scheduler was given and a cluster of this machine's GPUs was asked for; leave "
                "one out (workers of a scheduler use their GPUs by themselves)"
            )
        return Executor.connect(
            scheduler, workers, security=security, insecure_transport=insecure_transport
        )
    try:
        if cuda:
            return Executor.cuda(workers, dashboard=dashboard)
        return Executor.local(2 if workers is None else workers, dashboard=dashboard)
    except (OSError, TimeoutError, RuntimeError) as e:
        raise ClusterError(
            f"workers cannot be started on this machine ({type(e).__name__}: {e}); try fewer with "
            "--workers"
        ) from e


def run_encrypted(
    prepared: Prepared, executor: Executor, watch: Watch, plan: SavedPlan | None = None
) -> Outcome:
    """Make keys, encrypt, evaluate on the cluster, by a plan if one is given, decrypt.

    Raises
    ------
    ParameterError
        If the keys exceed the memory of this machine.
    ClusterError
        If a task fails or a worker is lost, or the plan is for something else.
    """
    job, seconds = prepared.job, dict[str, float]()
    if plan is not None:
        plan.check(job.program, executor.workers)
    check_memory(job, executor.workers if executor.is_local else 1)
    with watch.step("Making keys"), _timed(seconds, "keys"):
        client = Client.create(job)
        keys = client.evaluation_keys()
    with watch.step("Encrypting"), _timed(seconds, "encryption"):
        x = client.encrypt(prepared.x)
    with watch.step("Giving keys and weights to the workers"), _timed(seconds, "preparation"):
        server = Server(job, keys, executor)
        size, count = keys.nbytes, job.keys.count
        del keys  # the workers have them in files
        release()
    with watch.bar("evaluating") as progress, _timed(seconds, "evaluation"):
        result = server.evaluate(x, len(prepared.x), progress, plan)
    with watch.step("Decrypting"), _timed(seconds, "decryption"):
        output = client.decrypt(result.outputs[OUTPUT])
    return Outcome(prepared, result, output, "encrypted", count, size, seconds)


def run_simulated(
    prepared: Prepared, executor: Executor, watch: Watch, plan: SavedPlan | None = None
) -> Outcome:
    """Run the same program on the cluster without encryption."""
    job, seconds = prepared.job, dict[str, float]()
    if plan is not None:
        plan.check(job.program, executor.workers)
    packing, layout = job.packing, job.layout
    with watch.step("Giving weights to the workers"), _timed(seconds, "preparation"):
        executor.prepare(store=job.model.tensors())
        x = packing.pack(prepared.x, layout).astype(np.complex128)
    with watch.bar("evaluating") as progress, _timed(seconds, "evaluation"):
        result = executor.run(
            job.program,
            {INPUT: x},
            interpreter="simulated",
            progress=progress,
            title=f"{job.graph.name} on {job.model.name}, simulated",
            plan=None if plan is None else plan.plan,
        )
    output = packing.unpack(result.outputs[OUTPUT], layout)
    return Outcome(prepared, result, output, "simulated", seconds=seconds)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
