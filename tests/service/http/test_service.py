"""The service over HTTP: several clients, refusals, cancelling, ends and restarts."""

from __future__ import annotations

import json
import pickle
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest

from aegis_dask.ckks.serialization import dumps
from aegis_dask.errors import ClusterError, MissingKeyError, ServiceError
from aegis_dask.runtime.certificates import make_certificates
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.http import remote as remote_module
from aegis_dask.service.http import runner as runner_module
from aegis_dask.service.http.app import Limits
from aegis_dask.service.http.offers import Offer, Offers
from aegis_dask.service.http.remote import RemoteService, Status
from aegis_dask.service.http.runner import Runner
from aegis_dask.service.http.store import Incoming, Store
from aegis_dask.service.http.uploads import Uploads
from aegis_dask.service.job import Job
from tests.service.conftest import TOLERANCE
from tests.service.http.conftest import Person, Served, registered, serving
from tests.service.http.test_store import job_of


@pytest.fixture(scope="module")
def served(
    offered: Job, executor: Executor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("state") / "s", offered, executor) as served:
        yield served


def test_clients_with_keys_of_their_own_are_served_at_once(
    served: Served, people: dict[str, Person]
) -> None:
    def one(name: str) -> None:
        person = people[name]
        remote, keys = registered(served, name, person)
        with remote:
            (offer,) = remote.offers()
            assert offer["graph"] == "feed_forward"
            described = json.loads(json.dumps(served.job.to_dict()))
            assert remote.describe(offer["fingerprint"]) == described
            assert [k["id"] for k in remote.key_sets()] == [keys]
            seen = []
            y = remote.run(person.client, keys, person.x, watch=lambda s: seen.append(s.state))
            np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)
            assert seen[-1] == "done"
            (job,) = remote.jobs()
            assert (job.state, job.share, job.error) == ("done", 1.0, "")
            remote.cancel(job.id)
            assert remote.jobs() == []

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, people))


def test_nobody_sees_what_is_another_s(idle: Served, people: dict[str, Person]) -> None:
    alice, keys = registered(idle, "alice", people["alice"])
    bob = idle.remote("bob")
    x = people["alice"].client.encrypt(people["alice"].x)
    job = alice.submit(keys, x, 5)
    assert (job.state, job.position) == ("queued", 1)
    assert bob.jobs() == bob.key_sets() == []
    for attempt in (
        lambda: bob.status(job.id),
        lambda: bob.cancel(job.id),
        lambda: bob.result(job.id, idle.job),
        lambda: bob.remove_keys(keys),
        lambda: bob.submit(keys, x, 5),
    ):
        with pytest.raises(ServiceError, match=r"you have no (job|keys) '[0-9a-f]{16}'"):
            attempt()
    assert alice.status(job.id).state == "queued"


def refused(served: Served, method: str, path: str, **options: Any) -> tuple[int, str]:
    token = options.pop("token", served.remote("alice") and served.tokens["alice"])
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    response = httpx2.request(method, served.url + path, headers=headers, **options)
    return response.status_code, str(response.json()["detail"])


class Exploit:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_a_malicious_pickle_is_rejected_unread(
    idle: Served, people: dict[str, Person], tmp_path: Path
) -> None:
    _, keys = registered(idle, "alice", people["alice"])
    mark = tmp_path / "executed"
    bomb = pickle.dumps(Exploit(mark))
    submit = f"/v1/jobs?keys={keys}&length=5"
    offer = f"/v1/keys?offer={idle.job.fingerprint}"
    for path in (submit, offer):
        assert refused(idle, "POST", path, content=bomb, token="guess")[0] == 401
        assert refused(idle, "POST", path, content=bomb, token=None)[0] == 401
    # And with a token, by its first bytes.
    status, detail = refused(idle, "POST", submit, content=bomb)
    assert status == 422
    assert "not" in detail
    # Not HTTP at all.
    parts = urlsplit(idle.url)
    assert parts.port is not None
    with socket.create_connection(("127.0.0.1", parts.port)) as raw:
        raw.sendall(bomb + b"\r\n\r\n")
        raw.settimeout(5)
        answer = raw.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400")
    assert not mark.exists()
    assert not list((idle.store.directory / "incoming").iterdir())
    assert idle.store.queued() == []


def test_a_body_without_a_token_is_not_waited_for(idle: Served) -> None:
    parts = urlsplit(idle.url)
    assert parts.port is not None
    with socket.create_connection(("127.0.0.1", parts.port)) as raw:
        raw.sendall(
            b"POST /v1/keys?offer=x HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999999\r\n\r\n"
        )
        raw.settimeout(5)
        assert raw.recv(1000).startswith(b"HTTP/1.1 401")


def test_what_is_wrong_is_said(idle: Served, people: dict[str, Person]) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    x = person.client.encrypt(person.x)
    data = dumps(x.batch)
    submit = f"/v1/jobs?keys={keys}&length="
    assert refused(idle, "POST", submit + "33", content=data) == (
        422,
        "the length must be 1 to 32",
    )
    assert refused(idle, "POST", submit + "0", content=data)[0] == 422
    assert refused(idle, "POST", "/v1/jobs?keys=../../x&length=3", content=data)[0] == 422
    assert refused(idle, "POST", "/v1/keys?offer=nothing", content=b"")[0] == 409
    status, detail = refused(idle, "POST", submit + "5", content=data[:-1])
    assert status == 422
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    status, detail = refused(idle, "POST", submit + "5", content=bytes(damaged))
    assert (status, "is damaged" in detail) == (422, True)
    assert str(idle.store.directory) not in detail
    half = dumps(x.batch[0])
    assert "holds 1 ciphertexts" in refused(idle, "POST", submit + "5", content=half)[1]
    too_much = b"\0" * (person.client.job.keys.nbytes + (17 << 20))
    assert refused(idle, "POST", submit + "5", content=too_much)[0] == 413
    # Without a length in advance, too.
    chunks = (b"\0" * (1 << 20) for _ in range(1000))
    assert refused(idle, "POST", submit + "5", content=chunks)[0] == 413
    with pytest.raises(ServiceError, match="has no result: it is queued"):
        remote.result(remote.submit(keys, x, 5).id, idle.job)
    assert not list((idle.store.directory / "incoming").iterdir())


def test_quotas(idle: Served, people: dict[str, Person]) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    assert remote.register(person.client.job, person.keys_file) == keys  # the same ones again
    with pytest.raises(ServiceError, match="1 sets of keys are registered for alice"):
        remote.register(person.client.job, people["bob"].keys_file)
    for _ in range(2):
        remote.submit(keys, person.client.encrypt(person.x), 5)
    x = person.client.encrypt(person.x)
    with pytest.raises(ServiceError, match="2 jobs of alice have not ended yet"):
        remote.submit(keys, x, 5)
    with pytest.raises(ServiceError, match="has not ended uses these keys"):
        remote.remove_keys(keys)
    for job in remote.jobs():
        remote.cancel(job.id)
    assert [job.state for job in remote.jobs()] == ["cancelled", "cancelled"]
    remote.remove_keys(keys)
    assert remote.key_sets() == []


def test_a_full_disk_is_said_and_leaves_nothing(
    idle: Served, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Incoming, "write", full)
        with pytest.raises(ServiceError, match="cannot write its disk"):
            remote.submit(keys, person.client.encrypt(person.x), 5)
    assert not list((idle.store.directory / "incoming").iterdir())
    assert remote.submit(keys, person.client.encrypt(person.x), 5).state == "queued"


FULL = "database or disk is full"


class Full:
    """A database that refuses some statements while it is full, and is real otherwise."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real, self.refuses, self.count = served.store._database, "", 0
        monkeypatch.setattr(served.store, "_database", self)

    def execute(self, statement: str, *values: Any) -> Any:
        if self.refuses and statement.startswith(self.refuses):
            self.count += 1
            raise sqlite3.OperationalError(FULL)
        return self.real.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("refuses", ["SELECT * FROM jobs WHERE state", "UPDATE jobs", "COMMIT"])
def test_jobs_go_on_when_the_database_can_be_written_again(
    served: Served,
    people: dict[str, Person],
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    refuses: str,
) -> None:
    monkeypatch.setattr(runner_module, "RETRY_SECONDS", 0.1)
    person = people["alice"]
    remote, keys = registered(served, "alice", person)
    full = Full(served, monkeypatch)
    health = served.url + "/v1/health"
    with monkeypatch.context() as patch:  # it is full when a job is to be taken
        patch.setattr(served.store, "begin", lambda _: False)
        job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
        full.refuses = refuses
    eventually(lambda: full.count > 4)
    answer = httpx2.get(health)
    assert answer.status_code == 503
    assert "cannot read or write its directory" in answer.json()["trouble"]
    full.refuses = ""
    assert remote.wait(job.id, timeout=30).state == "done"
    eventually(lambda: httpx2.get(health).status_code == 200)
    assert httpx2.get(health).json()["trouble"] == ""
    held = Held(monkeypatch, executor)  # and when one ends
    job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
    assert held.started.wait(10)
    full.refuses, full.count = refuses, 0
    held.proceed.set()
    eventually(lambda: full.count > 4)
    full.refuses = ""
    assert remote.wait(job.id, timeout=30).state == "done"
    y = person.client.decrypt(remote.result(job.id, served.job), len(person.x))
    np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)
    eventually(lambda: served.runner.trouble == "")


def test_what_the_database_refuses_is_said_and_leaves_nothing(
    idle: Served, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    full = Full(idle, monkeypatch)
    for full.refuses in ("INSERT", "COMMIT", "SELECT"):
        with pytest.raises(ServiceError, match=rf"cannot write its disk \({FULL}\); try later"):
            remote.submit(keys, person.client.encrypt(person.x), 5)
    full.refuses = ""
    for folder in ("requests", "incoming"):
        assert not list((idle.store.directory / folder).iterdir())
    assert remote.submit(keys, person.client.encrypt(person.x), 5).state == "queued"


def test_health_tells_when_nothing_runs_jobs(
    offered: Job, executor: Executor, tmp_path: Path
) -> None:
    with serving(tmp_path / "s", offered, executor) as served:
        assert httpx2.get(served.url + "/v1/health").json()["trouble"] == ""
        served.runner.close()
        answer = httpx2.get(served.url + "/v1/health")
        assert answer.status_code == 503
        assert "nothing runs jobs any more" in answer.json()["trouble"]


def test_a_disk_quota_is_kept(
    offered: Job, executor: Executor, tmp_path: Path, people: dict[str, Person]
) -> None:
    limits = Limits(disk_bytes=1 << 20)
    with serving(tmp_path / "s", offered, executor, limits=limits, starts=False) as served:
        remote = served.remote()
        with pytest.raises(ServiceError, match="disk quota is used up"):
            remote.register(people["alice"].client.job, people["alice"].keys_file)


class Held:
    """Keeps runs of an executor from ending until they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, executor: Executor) -> None:
        self.started, self.proceed = threading.Event(), threading.Event()
        real = executor.run

        def run(*arguments: Any, **options: Any) -> Any:
            self.started.set()
            cancelled: threading.Event = options["cancelled"]
            while not self.proceed.is_set():
                if cancelled.wait(0.01):
                    self.proceed.set()
            return real(*arguments, **options)

        monkeypatch.setattr(executor, "run", run)


def test_a_job_that_runs_is_cancelled(
    served: Served,
    people: dict[str, Person],
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Held(monkeypatch, executor)
    person = people["alice"]
    remote, keys = registered(served, "alice", person)
    job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
    assert held.started.wait(10)
    assert remote.status(job.id).state == "running"
    remote.cancel(job.id)
    assert remote.wait(job.id, timeout=10).state == "cancelled"
    with pytest.raises(ServiceError, match="has no result: it is cancelled"):
        remote.result(job.id, served.job)
    monkeypatch.undo()
    y = remote.run(person.client, keys, person.x)
    np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)


def test_waiting_ends_in_time(idle: Served, people: dict[str, Person]) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    job = remote.submit(keys, person.client.encrypt(person.x), 5)
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"is queued after 0\.3 s"):
        remote.wait(job.id, timeout=0.3)
    assert time.monotonic() - start < 5


def test_who_waits_reads_no_queue(
    offered: Job,
    executor: Executor,
    tmp_path: Path,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits(jobs=1000)
    with serving(tmp_path / "s", offered, executor, limits=limits, starts=False) as served:
        remote, identifier = registered(served, "alice", people["alice"])
        keys = served.store.find_keys("alice", identifier)
        assert keys is not None
        jobs = [job_of(served.store, keys, b"%d" % i, 1000) for i in range(200)]
        statements: list[str] = []
        served.store._database.set_trace_callback(statements.append)
        listed = remote.jobs()
        assert [job.position for job in listed] == list(range(1, 201))
        assert len(statements) < 10
        statements.clear()
        waiting = Status(**{**asdict(listed[-1]), "changes": 0})
        start = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(lambda _: remote.news(waiting, 1.0), range(8)))
        assert 1.0 <= time.monotonic() - start < 5
        assert [status.position for status in seen] == [200] * 8
        assert len(statements) < 8 * 5
        assert not any(s.startswith("SELECT * FROM jobs WHERE state") for s in statements)
        # What happens is heard of soon all the same.
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(remote.news, waiting, 20.0)
            time.sleep(0.3)
            remote.cancel(jobs[-1].id)
            assert told.result(5).state == "cancelled"


def test_keys_may_take_long_to_check(
    idle: Served, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people["alice"]
    assert idle.remote("alice")
    token = idle.tokens["alice"]
    real, checked = Offer.read_keys, threading.Event()

    def read(offer: Offer, path: Path) -> Any:
        time.sleep(1.5)
        checked.set()
        return real(offer, path)

    monkeypatch.setattr(Offer, "read_keys", read)
    size = person.keys_file.stat().st_size
    with RemoteService(idle.url, token, timeout=0.5) as impatient:
        with monkeypatch.context() as patch:
            patch.setattr(remote_module, "CHECKED_BYTES", size * 1000)
            with pytest.raises(ServiceError, match=r"has not answered in time; .*: ask again"):
                impatient.register(person.client.job, person.keys_file)
            assert checked.wait(10)
            eventually(lambda: len(impatient.key_sets()) == 1)
        # What the service has after all is not sent again.
        (keys,) = impatient.key_sets()
        with monkeypatch.context() as patch:
            patch.setattr(Uploads, "receive", None)
            assert impatient.register(person.client.job, person.keys_file) == keys["id"]
        impatient.remove_keys(keys["id"])
        monkeypatch.setattr(remote_module, "CHECKED_BYTES", size / 10)
        assert impatient.register(person.client.job, person.keys_file) != keys["id"]


def test_a_restart_loses_no_accepted_job(
    offered: Job,
    executor: Executor,
    tmp_path: Path,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = people["alice"]
    with monkeypatch.context() as patch, serving(tmp_path / "s", offered, executor) as first:
        held = Held(patch, executor)
        remote, keys = registered(first, "alice", person)
        jobs = [
            remote.submit(keys, person.client.encrypt(person.x), len(person.x)) for _ in range(3)
        ]
        assert held.started.wait(10)
        token = first.tokens["alice"]
    with serving(tmp_path / "s", offered, executor) as second:
        remote = RemoteService(second.url, token)
        for job in jobs:
            ended = remote.wait(job.id, timeout=60)
            assert ended.state == "done", ended.error
            y = person.client.decrypt(remote.result(job.id, offered), ended.length)
            np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)
    assert not list((tmp_path / "s" / "checkpoints").iterdir())
    assert not list((tmp_path / "s" / "requests").iterdir())


def test_results_expire_while_there_is_always_a_job(
    offered: Job,
    executor: Executor,
    tmp_path: Path,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = people["alice"]
    options: dict[str, Any] = {"at_once": 1, "keep_seconds": 0.5}
    with serving(tmp_path / "s", offered, executor, **options) as served:
        remote, keys = registered(served, "alice", person)
        first = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
        remote.wait(first.id, timeout=30)
        held = Held(monkeypatch, executor)
        second = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
        assert held.started.wait(10)
        eventually(lambda: [job.id for job in remote.jobs()] == [second.id])
        assert not list((tmp_path / "s" / "results").iterdir())


def test_a_client_that_is_removed_leaves_nothing_that_runs(
    offered: Job,
    executor: Executor,
    tmp_path: Path,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = people["alice"]
    before = len(executor._site.loader._loaded)
    with serving(tmp_path / "s", offered, executor) as served:
        held = Held(monkeypatch, executor)
        remote, keys = registered(served, "alice", person)
        job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
        assert held.started.wait(10)
        other = Store(tmp_path / "s")  # as `aegis clients remove` does, in a process of its own
        served.store.checkpoint_path(job.id).mkdir(exist_ok=True)
        other.remove_client("alice")
        other.close()
        served.store.checkpoint_path(job.id).mkdir()  # a layer that ends just then
        eventually(lambda: served.runner.running(job.id) is None)
        eventually(lambda: served.runner.keys_bytes == 0)
        assert len(executor._site.loader._loaded) == before
        for folder in ("keys", "requests", "results", "checkpoints"):
            assert not list((tmp_path / "s" / folder).iterdir())


@pytest.mark.parametrize("how", ["late", "killed", "lost"])
def test_the_end_of_the_service_costs_no_attempt(
    offered: Job,
    executor: Executor,
    tmp_path: Path,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    person = people["alice"]
    started, proceed = threading.Event(), threading.Event()

    def run(*_: Any, **options: Any) -> Any:
        started.set()
        if how == "lost":
            options["cancelled"].wait(30)
        else:  # it loads keys, and hears nothing
            proceed.wait(30)
        raise ClusterError("the cluster has gone")

    with serving(tmp_path / "s", offered, executor) as served:
        monkeypatch.setattr(executor, "run", run)
        remote, keys = registered(served, "alice", person)
        job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
        assert started.wait(10)
        if how == "killed":
            end = threading.Thread(target=served.runner.close)
            end.start()
            eventually(lambda: remote.status(job.id).state == "queued")
        else:
            served.runner.close(timeout=0.2 if how == "late" else 30)
        left = served.store.find_job("alice", job.id)
        proceed.set()
        if how == "killed":
            end.join()
    assert left is not None
    assert (left.state, left.attempts) == ("queued", 0)
    with closing(Store(tmp_path / "s")) as store:
        assert store.find_job("alice", job.id) == left


def test_a_job_of_an_offer_that_is_not_there_waits_for_it(
    offered: Job,
    executor: Executor,
    tmp_path: Path,
    people: dict[str, Person],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = people["alice"]
    with serving(tmp_path / "s", offered, executor, starts=False) as served:
        remote, keys = registered(served, "alice", person)
        job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
        token = served.tokens["alice"]
    store = Store(tmp_path / "s")
    said: list[str] = []
    monkeypatch.setattr(runner_module.logger, "warning", lambda m, *a: said.append(m % a))
    runner = Runner(store, Offers([]), executor)
    runner.start()
    time.sleep(0.5)
    runner.close()
    assert runner.stranded == 1
    assert said == ["1 jobs wait for offers that are not there"]
    left = store.find_job("alice", job.id)
    assert left is not None
    assert (left.state, left.attempts) == ("queued", 0)
    store.close()
    with serving(tmp_path / "s", offered, executor) as served:
        remote = RemoteService(served.url, token)
        ended = remote.wait(job.id, timeout=60)
        y = remote.decrypted(person.client, ended, len(person.x))
        np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)


def test_what_the_cluster_could_not_do_is_tried_again(
    served: Served,
    people: dict[str, Person],
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "RETRY_SECONDS", 0.0)
    person = people["alice"]
    remote, keys = registered(served, "alice", person)
    real, failures = executor.run, [ClusterError("a worker was lost")]

    def run(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(executor, "run", run)
    y = remote.run(person.client, keys, person.x)
    np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)
    failures[:] = [ClusterError("lost for good")] * 9
    with pytest.raises(ServiceError, match="has failed: the cluster could not run it, 3 times"):
        remote.run(person.client, keys, person.x)
    assert len(failures) == 6
    own = ClusterError("task 3 failed: no key")
    own.__cause__ = MissingKeyError("no key")
    failures[:] = [own] * 9
    with pytest.raises(ServiceError, match="has failed: no key"):
        remote.run(person.client, keys, person.x)
    assert len(failures) == 8  # the same again would fail again
    failures[:] = [ZeroDivisionError("secret detail")]  # type: ignore[list-item]
    with pytest.raises(ServiceError, match="an internal error; see the service's log"):
        remote.run(person.client, keys, person.x)


def test_keys_give_way_to_others(
    offered: Job, executor: Executor, tmp_path: Path, people: dict[str, Person]
) -> None:
    before = len(executor._site.loader._loaded)
    with serving(tmp_path / "s", offered, executor, keys_bytes=1, at_once=1) as served:
        for _ in range(2):
            for name, person in people.items():
                remote, keys = registered(served, name, person)
                y = remote.run(person.client, keys, person.x)
                np.testing.assert_allclose(y, person.expected, atol=TOLERANCE)
                time.sleep(0.1)  # the runner lets go of them
                assert len(executor._site.loader._loaded) <= before + 1
    assert len(executor._site.loader._loaded) == before


def test_an_interface_is_described(served: Served) -> None:
    described = httpx2.get(served.url + "/v1/openapi.json").json()
    assert described["info"]["title"] == "aegis_dask"
    submit = described["paths"]["/v1/jobs"]["post"]
    assert "application/octet-stream" in submit["requestBody"]["content"]
    assert submit["security"] == [{"HTTPBearer": []}]
    health = httpx2.get(served.url + "/v1/health").json()
    assert health["workers"] == 2
    metrics = httpx2.get(served.url + "/metrics").text
    assert 'aegis_service_jobs{state="queued"} 0.0' in metrics
    for name in ("busy_seconds_total", "keys_bytes", "disk_bytes"):
        assert f"\naegis_service_{name} " in metrics
    for path in ("/docs", "/redoc", "/openapi.json", "/"):
        assert httpx2.get(served.url + path).status_code == 404


def test_certificates_of_the_cluster_serve_the_service_too(
    offered: Job, executor: Executor, tmp_path: Path
) -> None:
    certificates = tmp_path / "certs"
    make_certificates(certificates)
    with serving(
        tmp_path / "s", offered, executor, starts=False, certificates=certificates
    ) as served:
        token = served.store.add_client("alice")
        with RemoteService(served.url, token, ca=certificates / "ca.pem") as remote:
            assert len(remote.offers()) == 1
        with (
            RemoteService(served.url, token) as remote,
            pytest.raises(ServiceError, match=r"cannot be reached: .*certificate"),
        ):
            remote.offers()
        with (
            RemoteService(served.url.replace("https", "http"), token) as remote,
            pytest.raises(ServiceError, match="cannot be reached"),
        ):
            remote.offers()


@pytest.mark.parametrize("url", ["", "host", "ftp://host", "http://", "://"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ServiceError, match="is no address of a service"):
        RemoteService(url, "token")


def test_tokens_do_not_travel_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="in the clear; use https"):
        RemoteService("http://aegis.example.org:8765", "token")
    monkeypatch.delenv("AEGIS_TOKEN", raising=False)
    with pytest.raises(ServiceError, match="no token is given"):
        RemoteService("https://aegis.example.org:8765")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_dask.service.http.remote.RETRIES", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        RemoteService(f"http://127.0.0.1:{port}", "token") as remote,
        pytest.raises(ServiceError, match=r"cannot be reached: .*; check address"),
    ):
        remote.offers()
