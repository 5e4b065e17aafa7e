"""The server: evaluates requests on a cluster with evaluation keys only."""

from __future__ import annotations

from pathlib import Path

from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.serialization import load
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.progress import ProgressCallback
from aegis_dask.runtime.result import Result
from aegis_dask.service.client import JOB, KEYS, read_json
from aegis_dask.service.job import Job, read_job
from aegis_dask.service.messages import Message


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

    def __init__(self, job: Job, keys: EvaluationKeys, executor: Executor) -> None:
        self.job, self.executor = job, executor
        executor.prepare(job.params, keys, job.model.tensors())

    @classmethod
    def open(cls, bundle: Path, model: BertModel, graph: Graph, executor: Executor) -> Server:
        """Read the bundle that a client wrote (`Client.save_bundle`)."""
        job = read_job(read_json(bundle / JOB), model, graph)
        keys = load(bundle / KEYS, job.params, expect=EvaluationKeys)
        return cls(job, keys, executor)

    def evaluate(
        self, x: CipherArray, length: int, progress: ProgressCallback | None = None
    ) -> Result:
        """Run the job on encrypted hidden states."""
        job = self.job.for_length(length)
        return self.executor.run(job.program, {INPUT: x}, progress=progress)

    def answer(
        self, request: Path, response: Path, progress: ProgressCallback | None = None
    ) -> Result:
        """Evaluate a request and write the response.

        Raises
        ------
        SerializationError
            If the request is damaged or of another job, or the response exists.
        """
        job = self.job
        message = Message.load(request, job.analysis.params, job.fingerprint, job.layout.shape)
        result = self.evaluate(message.values, message.length, progress)
        Message(job.fingerprint, message.length, result.outputs[OUTPUT]).save(response)
        return result
