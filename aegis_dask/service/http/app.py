"""The HTTP interface of a service: version 1, described by OpenAPI at ``/v1/openapi.json``.

Bodies are files of `ckks.serialization`, as they are: nothing that a client sends is unpickled or
executed. A request without a valid token is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict

from aegis_dask._version import __version__
from aegis_dask.errors import AegisError, SerializationError, ServiceError
from aegis_dask.ring.memory import release
from aegis_dask.service.http.metrics import registry_of
from aegis_dask.service.http.offers import Offer
from aegis_dask.service.http.runner import Runner
from aegis_dask.service.http.store import ENDED, JobRecord, KeySet, Store, Upload
from aegis_dask.service.http.uploads import Uploads
from aegis_dask.service.messages import most_bytes, most_keys_bytes

logger = logging.getLogger(__name__)

READS = 2
"""Files that are checked at a time: each is in memory as a whole."""
LONGEST_WAIT = 60.0
POLL_SECONDS = 0.1
"""Between looks of who waits at what this process knows of the job."""
READ_SECONDS = 1.0
"""Between looks at the database, where another process may have deleted it."""
IDENTIFIER = Query(pattern=r"^[0-9a-f]{16}$", description="Identifier, 16 hexadecimal digits")
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Quotas.

    Attributes
    ----------
    jobs
        Of a client that have not ended.
    key_sets
        Of a client.
    disk_bytes
        Of the service's directory.
    """

    jobs: int = 16
    key_sets: int = 2
    disk_bytes: int = 100 << 30


class OfferModel(BaseModel):
    """Something that the service computes."""

    fingerprint: str
    graph: str
    model: str
    weights: str
    tokens: int
    is_secure: bool
    keys: int
    keys_bytes: int
    request_bytes: int


class KeysModel(BaseModel):
    """Evaluation keys that are registered."""

    id: str
    offer: str
    sha256: str
    bytes: int
    created: float


class JobModel(BaseModel):
    """A job; `changes` counts what has changed, for waiting."""

    model_config = ConfigDict(extra="forbid")

    id: str
    keys: str
    offer: str
    length: int
    state: str
    position: int | None
    share: float
    stage: str
    created: float
    started: float | None
    finished: float | None
    error: str
    changes: int


class Health(BaseModel):
    """That the service is there; `trouble` says why jobs are not run, and is "" if they are."""

    version: str
    workers: int
    queued: int
    running: int
    trouble: str


_bearer = HTTPBearer(auto_error=False, description="The token that the operator gave you")


async def _client_of(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    """Return whose token came with a request."""
    store: Store = request.app.state.store
    name = None
    if given is not None:
        name = await run_in_threadpool(store.client_of, given.credentials)
    if name is None:
        raise HTTPException(
            401,
            "a token is needed, and one that the operator has given to a client",
            {"WWW-Authenticate": "Bearer", "Connection": "close"},
        )
    return name


Caller = Annotated[str, Depends(_client_of)]


def make_app(runner: Runner, limits: Limits) -> FastAPI:
    """Return the application; the runner is started and closed by the caller."""
    app = FastAPI(
        title="aegis_dask",
        version=__version__,
        description="Transformer inference on encrypted data. No key that can decrypt gets here.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    store, offers = runner.store, runner.offers
    uploads, reading = Uploads(store, limits.disk_bytes), asyncio.Semaphore(READS)
    app.state.store = store
    registry = registry_of(runner)

    @app.exception_handler(AegisError)
    async def refused(_: Request, error: AegisError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409 if isinstance(error, ServiceError) else 422)

    @app.exception_handler(OSError)
    @app.exception_handler(sqlite3.Error)
    async def no_disk(_: Request, error: OSError | sqlite3.Error) -> JSONResponse:
        logger.error("the disk: %s", error)
        why = error.strerror if isinstance(error, OSError) else error
        return JSONResponse(
            {"detail": f"the service cannot write its disk ({why}); try later"}, 507
        )

    async def check(read: Callable[[Path], Any], upload: Upload) -> None:
        """Read a file as it will be read later, to refuse it now."""
        async with reading:  # here, not in the thread: those are for everybody, and few
            await run_in_threadpool(_check, read, upload)

    def find_keys(client: str, identifier: str) -> KeySet:
        return _there(store.find_keys(client, identifier), "keys", identifier)

    def find_job(client: str, identifier: str) -> JobRecord:
        return _there(store.find_job(client, identifier), "job", identifier)

    def job_model(job: JobRecord) -> JobModel:
        return model_of(job, store.position(job.id))

    def job_models(client: str) -> list[JobModel]:
        positions = store.positions()
        return [model_of(job, positions.get(job.id)) for job in store.jobs(client)]

    def model_of(job: JobRecord, position: int | None) -> JobModel:
        running = runner.running(job.id)
        progress = None if running is None else running.progress
        return JobModel(
            id=job.id,
            keys=job.keys,
            offer=job.offer,
            length=job.length,
            state=job.state,
            position=position if job.state == "queued" else None,
            share=1.0 if job.state == "done" else 0.0 if progress is None else progress.share,
            stage="" if progress is None else progress.stage,
            created=job.created,
            started=job.started,
            finished=job.finished,
            error=job.error,
            changes=0 if running is None else running.changes,
        )

    def heard(identifier: str) -> int:
        """Return what tells whether something has happened to a job, without the database."""
        running = runner.running(identifier)
        return -1 if running is None else running.changes

    @app.get("/v1/health")
    async def health(response: Response) -> Health:
        """Say that the service is there, with status 503 if it runs no jobs; needs no token."""
        count = await run_in_threadpool(store.count)
        trouble = runner.trouble
        if trouble:
            response.status_code = 503
        return Health(
            version=__version__,
            workers=runner.executor.workers,
            queued=count.get("queued", 0),
            running=count.get("running", 0),
            trouble=trouble,
        )

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """Return metrics for Prometheus; needs no token, and names nobody."""
        text = await run_in_threadpool(generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/offers")
    async def list_offers(client: Caller) -> list[OfferModel]:
        """List what the service computes."""
        return [OfferModel(**offer.summary) for offer in offers]

    @app.get("/v1/offers/{fingerprint}")
    async def get_offer(client: Caller, fingerprint: str) -> dict[str, Any]:
        """Return a job's description, from which clients make keys."""
        offer: Offer = offers[fingerprint]
        return offer.description

    @app.post("/v1/keys", status_code=201, openapi_extra=BODY)
    async def add_keys(request: Request, client: Caller, offer: str) -> KeysModel:
        """Register evaluation keys for an offer; the body is their file."""
        chosen = offers[offer]
        async with uploads.receive(request, client, most_keys_bytes(chosen.job)) as upload:
            keys = await run_in_threadpool(store.known_keys, client, offer, upload.sha256)
            if keys is None:
                most = limits.key_sets
                await run_in_threadpool(store.check_key_sets, client, most)  # it is the cheaper
                await check(chosen.read_keys, upload)
                keys = await run_in_threadpool(store.add_keys, client, offer, upload, most)
            return _keys_model(keys)

    @app.get("/v1/keys")
    async def list_keys(client: Caller) -> list[KeysModel]:
        """List your evaluation keys."""
        return [_keys_model(k) for k in await run_in_threadpool(store.keys, client)]

    @app.delete("/v1/keys/{identifier}", status_code=204)
    async def remove_keys(client: Caller, identifier: str) -> None:
        """Delete evaluation keys that no job needs any more."""
        found = await run_in_threadpool(find_keys, client, identifier)
        await run_in_threadpool(store.remove_keys, found.id)
        await run_in_threadpool(runner.forget_keys, found.id)

    @app.post("/v1/jobs", status_code=202, openapi_extra=BODY)
    async def add_job(
        request: Request,
        client: Caller,
        keys: Annotated[str, IDENTIFIER],
        length: Annotated[int, Query(ge=1, description="Tokens of the text")],
    ) -> JobModel:
        """Accept a job: the body is the file of its encrypted input.

        Once this has been answered the job survives the end of the service. The same body again
        gives the same job, so a request whose answer was lost can be repeated.
        """
        found = await run_in_threadpool(find_keys, client, keys)
        offer = offers[found.offer]
        if length > offer.job.packing.tokens:
            raise HTTPException(422, f"the length must be 1 to {offer.job.packing.tokens}")
        async with uploads.receive(request, client, most_bytes(offer.job)) as upload:
            job = await run_in_threadpool(store.known_job, found, length, upload.sha256)
            if job is None:
                await run_in_threadpool(store.check_jobs, client, limits.jobs)
                await check(offer.read_request, upload)
                job = await run_in_threadpool(store.add_job, found, length, upload, limits.jobs)
        await run_in_threadpool(runner.wake)  # it may wait for the database
        return await run_in_threadpool(job_model, job)

    @app.get("/v1/jobs")
    async def list_jobs(client: Caller) -> list[JobModel]:
        """List your jobs, the oldest first."""
        return await run_in_threadpool(job_models, client)

    @app.get("/v1/jobs/{identifier}")
    async def get_job(
        client: Caller,
        identifier: str,
        wait: Annotated[float, Query(ge=0, description="Seconds to wait for news")] = 0.0,
        state: str = "",
        changes: int = -1,
    ) -> JobModel:
        """Return a job; with `wait` as soon as it differs from the `state` and `changes` given."""
        deadline = time.monotonic() + min(wait, LONGEST_WAIT)
        while True:
            before = heard(identifier)
            job = await run_in_threadpool(find_job, client, identifier)
            is_news = (job.state, max(0, before)) != (state, changes) or job.state in ENDED
            if is_news or time.monotonic() >= deadline:
                return await run_in_threadpool(job_model, job)
            again = min(deadline, time.monotonic() + READ_SECONDS)
            while heard(identifier) == before and time.monotonic() < again:
                await asyncio.sleep(POLL_SECONDS)

    @app.get("/v1/jobs/{identifier}/result", response_class=FileResponse)
    async def get_result(client: Caller, identifier: str) -> Response:
        """Return the file of the encrypted result."""
        job = await run_in_threadpool(find_job, client, identifier)
        path: Path = store.result_path(job.id)
        if job.state != "done" or not path.exists():
            raise ServiceError(f"job {job.id} has no result: it is {job.state}")
        return FileResponse(path, media_type="application/octet-stream")

    @app.delete("/v1/jobs/{identifier}", status_code=204)
    async def remove_job(client: Caller, identifier: str) -> None:
        """Cancel a job that has not ended, or forget one that has, with its result."""
        job = await run_in_threadpool(find_job, client, identifier)
        if not await run_in_threadpool(runner.cancel, job.id):
            await run_in_threadpool(store.remove_job, job.id)

    return app


def _check(read: Callable[[Path], Any], upload: Upload) -> None:
    try:
        read(upload.path)
    except AegisError as error:  # where the file lies here is the operator's business
        message = str(error).replace(str(upload.path), "the body")
        raise SerializationError(message) from None
    finally:
        release()


def _keys_model(keys: KeySet) -> KeysModel:
    return KeysModel(
        id=keys.id, offer=keys.offer, sha256=keys.sha256, bytes=keys.bytes, created=keys.created
    )


def _there(found: T | None, what: str, identifier: str) -> T:
    if found is None:
        raise HTTPException(404, f"you have no {what} {identifier[:64]!r}")
    return found
