"""Bodies of requests: how many at a time, what the disk has room for, and their arrival."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from aegis_dask.service.http.store import Incoming, Store, Upload

UPLOADS = 4
"""Of a client at a time, those included whose files are being checked."""
CHUNK_SECONDS = 60.0
"""How long the next bytes of a body may take to arrive."""
CLOSE = {"Connection": "close"}
"""Headers of a refusal that does not wait for the body."""


class Uploads:
    """Admits uploads and receives them; used within one event loop.

    Parameters
    ----------
    store
        Where they go.
    disk_bytes
        What its directory may hold, with all that may still arrive.
    """

    def __init__(self, store: Store, disk_bytes: int) -> None:
        self._store, self._disk_bytes = store, disk_bytes
        self._of: Counter[str] = Counter()  # client -> its uploads
        self._reserved = 0
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def receive(self, request: Request, client: str, limit: int) -> AsyncIterator[Upload]:
        """Give the file with a body of at most `limit` bytes; it is deleted unless it is taken in.

        Raises
        ------
        HTTPException
            If it is larger, or stops to arrive; if the client has too many uploads, or the disk no
            room.
        """
        size = _announced(request, limit)
        with self._turn(client):
            async with self._room(size):
                with self._store.incoming() as file:
                    yield await _arrived(request, file, size)

    @contextmanager
    def _turn(self, client: str) -> Iterator[None]:
        if self._of[client] >= UPLOADS:
            raise HTTPException(
                429,
                f"{UPLOADS} uploads of {client} are under way, and that is the most; wait for one "
                "to end",
                CLOSE,
            )
        self._of[client] += 1
        try:
            yield
        finally:
            self._of[client] -= 1

    @asynccontextmanager
    async def _room(self, size: int) -> AsyncIterator[None]:
        """Reserve disk."""
        async with self._lock:
            # Before the files are counted: an upload that ends meanwhile counts twice rather than
            # not at all.
            reserved = self._reserved
            settled = await run_in_threadpool(lambda: self._store.settled_size)
            if settled + reserved + size > self._disk_bytes:
                raise HTTPException(507, "the service's disk quota is used up; try later", CLOSE)
            self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size


def _announced(request: Request, limit: int) -> int:
    """Return how many bytes a body may have: what it says, or else the limit."""
    size = limit
    with suppress(ValueError):
        size = int(request.headers.get("content-length", ""))
    if size > limit:
        raise _too_large(limit)
    return size if size >= 0 else limit


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"at most {limit} bytes are taken here", CLOSE)


async def _arrived(request: Request, file: Incoming, limit: int) -> Upload:
    more = True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), CHUNK_SECONDS)
        except TimeoutError:
            raise HTTPException(
                408, f"nothing has arrived for {CHUNK_SECONDS:.0f} s", CLOSE
            ) from None
        if message["type"] == "http.disconnect":  # nobody reads this, and nothing is to be logged
            raise HTTPException(400, "the connection ended before the body")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        if file.bytes + len(chunk) > limit:  # also of what was announced: a body may have both
            raise _too_large(limit)
        file.write(chunk)
    return await run_in_threadpool(file.finish)
