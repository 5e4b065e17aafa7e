"""How a service listens, and what connections without a request may take from it: not much."""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

CONNECTIONS = 500
"""At a time; requests on more are answered with 503."""
HEAD_SECONDS = 10.0
"""A connection that has no request for so long, or twice that, is closed."""


class PromptProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn that closes connections on which no request begins.

    Those of strangers count among the `CONNECTIONS` too. uvicorn closes a connection that is silent
    after an answer, but not one that has never sent anything, nor one that sends a head byte by
    byte.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        self._seen: RequestResponseCycle | None = None
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Close the connection if it has had no request since the last look."""
        cycle: RequestResponseCycle | None = self.cycle  # of the last request whose head is there
        if cycle is self._seen and (cycle is None or cycle.response_complete):
            self.transport.close()
            return
        self._seen = cycle
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)


def configure(
    app: FastAPI,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
) -> uvicorn.Config:
    """Return the settings of the server; with TLS if there are a certificate and its key."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        http=PromptProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=10,
    )
