"""The server: evaluates requests on a cluster with evaluation keys only."""

from __future__ import annotations

from pathlib import Path

from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.placement.files import SavedPlan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.progress import ProgressCallback
from aegis_dask.runtime.result import Result
from aegis_dask.service.client import JOB, KEYS
from aegis_dask.service.files import check_new, check_size, read_json, reading
from aegis_dask.service.job import Job, read_job
from aegis_dask.service.keys import AnyKeys
from aegis_dask.service.messages import Message, most_keys_bytes, read_keys


class Server:
    """Runs one job for one client's keys.

    Parameters
    ----------
    job
        What runs.
    keys
        The client's evaluation keys.
    executor
        A cluster; it is given keys and weights.
    """

    def __init__(self, job: Job, keys: AnyKeys, executor: Executor) -> None:
        self.job, self.executor = job, executor
        executor.prepare(job.params, keys, job.model.tensors())

    @classmethod
    def open(cls, bundle: Path, model: BertModel, graph: Graph, executor: Executor) -> Server:
        """Read the bundle that a client wrote (`Client.save_bundle`).

        Raises
        ------
        SerializationError
            If a file is missing or damaged.
        ParameterError
            If the job is for another model or graph.
        """
        job, keys = read_bundle(bundle, model, graph)
        return cls(job, keys, executor)

    def evaluate(
        self,
        x: CipherArray,
        length: int,
        progress: ProgressCallback | None = None,
        plan: SavedPlan | None = None,
    ) -> Result:
        """Run the job on encrypted hidden states of `length` tokens, by a plan if one is given.

        Raises
        ------
        ClusterError
            If a task fails or a worker is lost, or the plan is for something else.
        """
        job, executor = self.job.for_length(length), self.executor
        if plan is not None:
            plan.check(job.program, executor.workers)
        return executor.run(
            job.program,
            {INPUT: x},
            progress=progress,
            machine=executor.machine,
            plan=None if plan is None else plan.plan,
            title=f"{job.graph.name} on {job.model.name}",
        )

    def answer(
        self, request: Path, response: Path, progress: ProgressCallback | None = None
    ) -> Result:
        """Evaluate a request and write the response into a new directory.

        Raises
        ------
        SerializationError
            If the request is damaged or of another job, or the response exists.
        ClusterError
            If a task fails or a worker is lost.
        """
        job = self.job
        check_new(response)
        message = Message.load(request, job, job.analysis.top_level)
        result = self.evaluate(message.values, message.length, progress)
        Message(job.fingerprint, message.length, result.outputs[OUTPUT]).save(response)
        return result


def read_bundle(bundle: Path, model: BertModel, graph: Graph) -> tuple[Job, AnyKeys]:
    """Return job and evaluation keys of a bundle (see `Server.open`)."""
    # Whether its data are safe with them was for the client to say.
    job = read_job(read_json(bundle / JOB), model, graph, allow_insecure=True)
    check_size(bundle / KEYS, most_keys_bytes(job))
    with reading(bundle / KEYS):
        return job, read_keys(bundle / KEYS, job)
