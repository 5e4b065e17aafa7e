"""Connections without a request do not keep others out."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from aegis_dask.runtime.certificates import make_certificates
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.http import listen
from aegis_dask.service.job import Job
from tests.service.http.conftest import Person, Served, registered, serving

SECONDS = 1.0
MOST = 8


@pytest.fixture
def prompt(
    offered: Job, executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """A service with few connections and little patience."""
    monkeypatch.setattr(listen, "HEAD_SECONDS", SECONDS)
    monkeypatch.setattr(listen, "CONNECTIONS", MOST)
    with serving(tmp_path / "s", offered, executor, starts=False) as served:
        yield served


def connect(served: Served) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", urlsplit(served.url).port))
    raw.settimeout(10)
    return raw


def health(served: Served) -> int:
    return httpx2.get(served.url + "/v1/health").status_code


@pytest.mark.parametrize("sent", [b"", b"GET /v1/hea"])
def test_connections_without_a_request_end(prompt: Served, sent: bytes) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(prompt)) for _ in range(MOST)]
        for each in idle:
            each.sendall(sent)
        assert health(prompt) == 503
        for each in idle:
            assert each.recv(1) == b""
        assert health(prompt) == 200


def test_a_first_request_buys_no_more(prompt: Served) -> None:
    with connect(prompt) as raw:
        raw.sendall(b"GET /v1/health HTTP/1.1\r\nHost: h\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - start < 10:
                raw.sendall(b"G")  # uvicorn's own limit ends with the first byte
                time.sleep(SECONDS / 10)
        assert time.monotonic() - start < 9


def test_requests_and_bodies_may_take_longer(prompt: Served, people: dict[str, Person]) -> None:
    remote, keys = registered(prompt, "alice", people["alice"])
    job = remote.submit(keys, people["alice"].client.encrypt(people["alice"].x), 5)
    start = time.monotonic()
    assert remote.news(job, 2.5 * SECONDS) == job
    assert time.monotonic() - start > 2.4 * SECONDS
    with connect(prompt) as raw:
        token = prompt.tokens["alice"]
        raw.sendall(
            f"POST /v1/jobs?keys={keys}&length=5 HTTP/1.1\r\nHost: h\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: 10\r\n\r\n".encode()
        )
        for _ in range(10):
            raw.sendall(b"0")
            time.sleep(SECONDS / 4)
        assert raw.recv(1000).startswith(b"HTTP/1.1 422")


def test_silent_connections_end_with_tls_too(
    offered: Job, executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "HEAD_SECONDS", SECONDS)
    make_certificates(tmp_path / "certs")
    context = ssl.create_default_context(cafile=str(tmp_path / "certs" / "ca.pem"))
    with (
        serving(
            tmp_path / "s", offered, executor, starts=False, certificates=tmp_path / "certs"
        ) as served,
        context.wrap_socket(connect(served), server_hostname="127.0.0.1") as stream,
    ):
        assert stream.recv(1) == b""
