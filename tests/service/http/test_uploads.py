"""Uploads side by side: quotas hold, and nobody waits for somebody else's."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from aegis_dask.errors import ServiceError
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.http import uploads as uploads_module
from aegis_dask.service.http.app import Limits
from aegis_dask.service.http.offers import Offer
from aegis_dask.service.job import Job
from aegis_dask.service.messages import most_keys_bytes
from tests.service.http.conftest import Person, Served, registered, serving


class RawUpload:
    """A request whose body is sent as a test wants."""

    def __init__(self, served: Served, path: str, *headers: str, name: str = "alice") -> None:
        served.remote(name).close()
        self.socket = socket.create_connection(("127.0.0.1", urlsplit(served.url).port))
        self.socket.settimeout(10)
        head = [
            f"POST {path} HTTP/1.1",
            *("Host: h", f"Authorization: Bearer {served.tokens[name]}", *headers),
        ]
        self.socket.sendall("\r\n".join([*head, "", ""]).encode())

    def __enter__(self) -> RawUpload:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def status(self) -> int:
        return int(self.socket.recv(1000).split()[1])


def arriving(served: Served, count: int) -> None:
    """Wait until so many files are arriving."""
    incoming = served.store.directory / "incoming"
    deadline = time.monotonic() + 10
    while len(list(incoming.iterdir())) != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_uploads_that_arrive_count_towards_the_disk_quota(
    offered: Job, executor: Executor, tmp_path: Path, people: dict[str, Person]
) -> None:
    most = most_keys_bytes(offered)
    assert people["alice"].keys_file.stat().st_size < most // 4
    limits = Limits(disk_bytes=int(2.5 * most))
    with serving(tmp_path / "s", offered, executor, limits=limits, starts=False) as served:
        path = f"/v1/keys?offer={offered.fingerprint}"
        endless, full = "Transfer-Encoding: chunked", f"Content-Length: {most}"
        with RawUpload(served, path, endless) as one, RawUpload(served, path, full) as two:
            one.send(b"1\r\n0\r\n")
            two.send(b"\0" * (most // 2))  # what is there counts once
            arriving(served, 2)
            for each in (endless, full):
                with RawUpload(served, path, each, name="bob") as third:
                    assert third.status() == 507
            # There is room for half of the largest.
            assert served.remote("bob").register(offered, people["bob"].keys_file)
        arriving(served, 0)
        with RawUpload(served, path, full, name="bob") as third:
            arriving(served, 1)


def test_a_body_is_no_larger_than_it_says(idle: Served) -> None:
    path = f"/v1/keys?offer={idle.job.fingerprint}"
    both = ("Content-Length: 5", "Transfer-Encoding: chunked")
    with RawUpload(idle, path, *both) as upload:
        upload.send(b"5\r\n12345\r\n1\r\n6\r\n")
        assert upload.status() == 413
    arriving(idle, 0)


def test_a_client_that_goes_away_is_nothing_to_log(
    idle: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[object] = []
    monkeypatch.setattr(
        logging.getLogger("uvicorn.error"), "error", lambda *given, **_: logged.append(given)
    )
    with RawUpload(idle, f"/v1/keys?offer={idle.job.fingerprint}", "Content-Length: 9") as upload:
        upload.send(b"1")
        arriving(idle, 1)
    arriving(idle, 0)
    assert idle.remote("alice").key_sets() == []  # by then it would have been
    assert logged == []


def test_a_quota_of_keys_holds_against_uploads_at_once(
    idle: Served, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, real = threading.Barrier(2), Offer.read_keys

    def read(offer: Offer, path: Path) -> Any:
        both.wait(10)  # both have been found to be within the quota
        return real(offer, path)

    monkeypatch.setattr(Offer, "read_keys", read)
    remote, job = idle.remote("alice"), idle.job

    def register(name: str) -> str:
        try:
            return remote.register(job, people[name].keys_file)
        except ServiceError as e:
            return str(e)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(register, people))
    assert sum("1 sets of keys are registered for alice" in a for a in answers) == 1
    assert len(remote.key_sets()) == 1
    assert len(list((idle.store.directory / "keys").iterdir())) == 1


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Checks of requests that take until this is set."""
    proceed, real = threading.Event(), Offer.read_request

    def read(offer: Offer, path: Path) -> Any:
        proceed.wait(60)
        return real(offer, path)

    monkeypatch.setattr(Offer, "read_request", read)
    yield proceed
    proceed.set()


def test_checks_that_wait_keep_nobody_out(
    idle: Served,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
    stuck: threading.Event,
) -> None:
    monkeypatch.setattr(uploads_module, "UPLOADS", 100)
    remote, keys = registered(idle, "alice", people["alice"])
    with ExitStack() as stack:
        for i in range(60):  # there are 40 threads
            path = f"/v1/jobs?keys={keys}&length=5"
            stack.enter_context(RawUpload(idle, path, "Content-Length: 2")).send(b"%02d" % i)
        arriving(idle, 60)
        start = time.monotonic()
        assert httpx2.get(idle.url + "/v1/health", timeout=30).status_code == 200
        assert len(remote.key_sets()) == 1
        assert time.monotonic() - start < 5
        stuck.set()
    arriving(idle, 0)


def test_a_client_has_a_few_uploads_at_a_time(
    idle: Served, people: dict[str, Person], stuck: threading.Event
) -> None:
    remote, keys = registered(idle, "alice", people["alice"])
    path = f"/v1/jobs?keys={keys}&length=5"
    with ExitStack() as stack:
        for i in range(2):  # half of them are checked, half arrive
            stack.enter_context(RawUpload(idle, path, "Content-Length: 1")).send(b"%d" % i)
            stack.enter_context(RawUpload(idle, path, "Content-Length: 2")).send(b"%d" % i)
        arriving(idle, 4)
        x = people["alice"].client.encrypt(people["alice"].x)
        with pytest.raises(ServiceError, match="4 uploads of alice are under way"):
            remote.submit(keys, x, 5)
        assert len(remote.key_sets()) == 1
        offer = f"/v1/keys?offer={idle.job.fingerprint}"
        with RawUpload(idle, offer, "Content-Length: 1", name="bob"):
            arriving(idle, 5)
        stuck.set()
    arriving(idle, 0)
    assert remote.submit(keys, x, 5).state == "queued"


def test_what_is_known_is_not_checked_again(
    idle: Served, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    x = person.client.encrypt(person.x)
    job = remote.submit(keys, x, 5)

    def read(offer: Offer, path: Path) -> Any:
        raise AssertionError("it is known")

    monkeypatch.setattr(Offer, "read_keys", read)
    monkeypatch.setattr(Offer, "read_request", read)
    assert remote.register(person.client.job, person.keys_file) == keys
    assert remote.submit(keys, x, 5).id == job.id
    assert len(remote.jobs()) == 1
