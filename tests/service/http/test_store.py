"""What a service keeps: accepted jobs survive, nothing else does."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from aegis_dask.errors import ServiceError
from aegis_dask.service.http.store import ATTEMPTS, JobRecord, KeySet, Store


def keys_of(store: Store, client: str, content: bytes = b"keys", most: int = 9) -> KeySet:
    with store.incoming() as file:
        file.write(content)
        return store.add_keys(client, "offer", file.finish(), most)


def job_of(store: Store, keys: KeySet, content: bytes = b"request", most: int = 9) -> JobRecord:
    with store.incoming() as file:
        file.write(content)
        return store.add_job(keys, 5, file.finish(), most)


def test_a_job_goes_its_way(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.add_client("alice")
    job = job_of(store, keys_of(store, "alice"))
    assert store.request_path(job.id).read_bytes() == b"request"
    assert [j.id for j in store.queued()] == [job.id]
    assert store.begin(job.id)
    assert not store.begin(job.id)
    store.result_path(job.id).write_bytes(b"result")
    assert store.end(job.id, "done")
    assert not store.end(job.id, "cancelled")
    assert not store.request_path(job.id).exists()
    assert store.count() == {"done": 1}
    assert store.expire(3600) == 0
    assert store.expire(-1) == 1
    assert not store.result_path(job.id).exists()
    assert store.jobs("alice") == []


def test_accepted_jobs_survive_the_end_of_the_service(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = keys_of(store, "alice")
    jobs = [job_of(store, keys, f"request {i}".encode()) for i in range(3)]
    store.begin(jobs[0].id)
    store.checkpoint_path(jobs[0].id).mkdir()
    (tmp_path / "incoming" / "half").write_bytes(b"half an upload")
    (tmp_path / "requests" / "unnamed.aegis").write_bytes(b"moved, not accepted")
    # No close: the process is gone.
    again = Store(tmp_path)
    assert again.recover() == 3
    assert [j.id for j in again.queued()] == [j.id for j in jobs]
    assert again.checkpoint_path(jobs[0].id).exists()
    assert not list((tmp_path / "incoming").iterdir())
    assert len(list((tmp_path / "requests").iterdir())) == 3
    assert again.keys("alice") == [keys]


def test_a_job_that_ends_the_service_fails_in_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = job_of(store, keys_of(store, "alice"))
    for _ in range(ATTEMPTS):
        assert store.recover() == 1
        assert store.begin(job.id)
    assert store.recover() == 0
    found = store.find_job("alice", job.id)
    assert found is not None
    assert (found.state, found.error) == ("failed", "the service ended 3 times while it ran")


def test_putting_back_counts_only_what_was_tried(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job = job_of(store, keys_of(store, "alice"))
    for again, attempts in ((False, 0), (True, 1), (False, 1)):
        store.begin(job.id)
        store.put_back(job.id, again=again)
        (found,) = store.queued()
        assert found.attempts == attempts


def test_the_same_twice_is_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = keys_of(store, "alice")
    assert keys_of(store, "alice") == keys
    assert keys_of(store, "bob").id != keys.id
    job = job_of(store, keys)
    assert job_of(store, keys).id == job.id
    store.end(job.id, "failed", "why")
    assert job_of(store, keys).id != job.id
    assert not list((tmp_path / "incoming").iterdir())


def test_quotas_of_jobs_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = keys_of(store, "alice")
    job_of(store, keys, b"1", 2)
    job_of(store, keys, b"2", 2)
    with pytest.raises(ServiceError, match="2 jobs of alice have not ended yet"):
        job_of(store, keys, b"3", 2)
    assert not list((tmp_path / "incoming").iterdir())
    with pytest.raises(ServiceError, match="has not ended uses these keys"):
        store.remove_keys(keys.id)


def test_quotas_of_keys_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = keys_of(store, "alice", b"1", 1)
    with pytest.raises(ServiceError, match="1 sets of keys are registered for alice"):
        keys_of(store, "alice", b"2", 1)
    assert keys_of(store, "alice", b"1", 1) == keys
    assert keys_of(store, "bob", b"2", 1).client == "bob"
    assert len(list((tmp_path / "keys").iterdir())) == 2
    assert not list((tmp_path / "incoming").iterdir())


def test_positions_in_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    keys = keys_of(store, "alice")
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 5.0)  # all at the same time
        jobs = [job_of(store, keys, f"{i}".encode()) for i in range(4)]
    store.begin(jobs[1].id)
    assert [store.position(job.id) for job in jobs] == [1, None, 2, 3]
    assert store.positions() == {jobs[i].id: place for place, i in enumerate((0, 2, 3), 1)}
    assert [job.id for job in store.queued()] == list(store.positions())
    assert store.position("none") is None


def test_what_arrives_is_told_from_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = store.size
    assert store.settled_size == before
    with store.incoming() as file:
        file.write(b"12345")
        upload = file.finish()
        assert (store.size, store.settled_size) == (before + 5, before)
        assert store.add_keys("alice", "offer", upload, 1).bytes == 5
    assert store.size == store.settled_size >= before + 5


def test_tokens_are_not_kept_and_work_once_given(tmp_path: Path) -> None:
    store = Store(tmp_path)
    token = store.add_client("alice")
    assert store.client_of(token) == "alice"
    assert store.client_of(token[:-1]) is None
    assert store.client_of("") is None
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert token.encode() not in kept
    with pytest.raises(ServiceError, match="there is a client alice already"):
        store.add_client("alice")
    for name in ("", "a/b", "a" * 65, "a b", "../x"):
        with pytest.raises(ServiceError, match="is no name"):
            store.add_client(name)
    keys = keys_of(store, "alice")
    job = job_of(store, keys)
    store.remove_client("alice")
    assert store.client_of(token) is None
    assert store.queued() == []
    assert not store.keys_path(keys.id).exists()
    assert not store.request_path(job.id).exists()
    with pytest.raises(ServiceError, match="there is no client alice; there are: none"):
        store.remove_client("alice")


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "state", serves=True)
    job_of(store, keys_of(store, "alice"))
    for path in (tmp_path / "state").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.name.endswith(("-wal", "-shm")):  # SQLite's, in a private directory
            continue
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_one_service_at_a_time(tmp_path: Path) -> None:
    first = Store(tmp_path, serves=True)
    with pytest.raises(ServiceError, match="another service uses"):
        Store(tmp_path, serves=True)
    Store(tmp_path).close()  # `aegis clients` works meanwhile
    first.close()
    Store(tmp_path, serves=True).close()


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot be used"):
        Store(tmp_path / "file")
    store = Store(tmp_path / "state")
    store._database.execute("PRAGMA user_version = 9")
    store.close()
    with pytest.raises(ServiceError, match="is of version 9"):
        Store(tmp_path / "state")
