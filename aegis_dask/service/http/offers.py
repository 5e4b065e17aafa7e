"""What a service offers: jobs that it has chosen, for whatever keys and inputs of clients."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from aegis_dask.ckks.files import PRIVATE, write_atomically
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.serialization import load
from aegis_dask.errors import AegisError, ServiceError
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Program
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.loading import Loaded
from aegis_dask.service.http.store import Store
from aegis_dask.service.job import Job, read_job
from aegis_dask.service.keys import AnyKeys
from aegis_dask.service.messages import check_batch, read_keys

PLANS_BYTES = 512 << 20
"""For programs and plans of an offer, those of the lengths of text that were used last."""
NODE_BYTES, TASK_BYTES = 1_000, 4_000
"""Of a program and a plan, as measured on BERT-base: 40 MB with 2,048 tokens and 8 workers."""


class Offer:
    """A job that clients may make keys for, and what is worked out once for all of them.

    Parameters
    ----------
    job
        For texts of as many tokens as there are positions.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.fingerprint = job, job.fingerprint
        self.description = job.to_dict()
        self._plans: OrderedDict[int, tuple[Program, Plan]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def summary(self) -> dict[str, Any]:
        """What clients see in a list."""
        job = self.job
        return {
            "fingerprint": self.fingerprint,
            "graph": job.graph.name,
            "model": job.model.name,
            "weights": job.model.sha256,
            "tokens": job.packing.tokens,
            "is_secure": job.parameters.is_secure,
            "keys": job.keys.count,
            "keys_bytes": job.keys.nbytes,
            "request_bytes": self.request_bytes,
        }

    @property
    def request_bytes(self) -> int:
        """Size of an input in memory; a fresh one takes half of that on the way."""
        params = self.job.analysis.params
        limbs = len(params.limbs(self.job.analysis.top_level))
        return prod(self.job.layout.shape) * 2 * limbs * 4 * params.ring_degree

    def read_keys(self, path: Path) -> AnyKeys:
        """Check and return evaluation keys.

        Raises
        ------
        AegisError
            If the file is no keys, damaged, or of other parameters.
        """
        return read_keys(path, self.job)

    def read_request(self, path: Path) -> CipherArray:
        """Check and return an input.

        Raises
        ------
        AegisError
            If the file is no ciphertexts, damaged, of other parameters, or of another shape.
        """
        job = self.job
        batch = load(path, job.params, expect=Ciphertext)
        check_batch(batch, job.layout.shape, job.analysis.top_level, "the request")
        return CipherArray(batch, job.layout.shape)

    def planned(self, length: int, executor: Executor, loaded: Loaded) -> tuple[Program, Plan]:
        """Return program and plan for texts of some length."""
        with self._lock:  # the second waits for the first rather than search too
            found = self._plans.get(length)
            if found is None or found[1].workers != executor.workers:
                # The program stays when workers come and go: capturing it takes the longest.
                program = self.job.for_length(length).program if found is None else found[0]
                top = self.job.analysis.top_level
                plan = executor.plan(
                    program, machine=executor.machine, top_level=top, loaded=loaded
                )
                found = program, plan
            self._plans[length] = found
            self._plans.move_to_end(length)
            while len(self._plans) > 1 and self._plans_bytes > PLANS_BYTES:
                self._plans.popitem(last=False)
            return found

    @property
    def _plans_bytes(self) -> int:
        """Memory of what is held, roughly."""
        return sum(
            NODE_BYTES * len(program.nodes) + TASK_BYTES * len(plan.tasks)
            for program, plan in self._plans.values()
        )


class Offers:
    """The offers of a service, by fingerprint.

    Parameters
    ----------
    jobs
        What is offered.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._offers = {offer.fingerprint: offer for offer in map(Offer, jobs)}

    def __iter__(self) -> Any:
        return iter(self._offers.values())

    def __contains__(self, fingerprint: str) -> bool:
        return fingerprint in self._offers

    def __getitem__(self, fingerprint: str) -> Offer:
        try:
            return self._offers[fingerprint]
        except KeyError:
            raise ServiceError(
                f"nothing is offered with the fingerprint {fingerprint[:64]!r}; get the list of "
                "offers"
            ) from None

    def save(self, store: Store) -> None:
        """Write what is offered, for the next start to offer the same."""
        for offer in self:
            text = json.dumps(offer.description)
            write_atomically(store.offer_path(offer.fingerprint), [text.encode()], mode=PRIVATE)


def offered_before(
    store: Store, graph: Graph, model: BertModel, tokens: int, insecure: bool
) -> Job | None:
    """Return what was offered at an earlier start for a graph, a model and a number of positions.

    Its ranges may have been measured then; the keys that clients have registered are for it.
    """
    for path in sorted((store.directory / "offers").glob("*.json")):
        try:
            data = json.loads(path.read_bytes())
            if (data["graph"], data["tokens"]) != (graph.name, tokens):
                continue
            job = read_job(data, model, graph, allow_insecure=insecure)
        except (AegisError, ValueError, KeyError, TypeError):
            continue  # of another model or version: its keys are of no use
        if job.parameters.is_secure != insecure:
            return job
    return None
