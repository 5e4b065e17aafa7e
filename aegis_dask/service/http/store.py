"""What a service must not forget: clients, evaluation keys and jobs, in one directory.

A database (SQLite) and a file for every set of keys, request and result. A file is complete before
the database names it, and files that it does not name are deleted when the service starts; so an
accepted job survives the end of the service, and nothing else does.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aegis_dask.ckks.files import PRIVATE
from aegis_dask.errors import ServiceError

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
ENDED = STATES[2:]
ATTEMPTS = 3
"""How often a job is begun, if the service or the cluster ends each time."""
FOLDERS = ("incoming", "keys", "requests", "results", "checkpoints", "offers")
_VERSION = 1
_TABLES = """
CREATE TABLE clients(name TEXT PRIMARY KEY, token BLOB NOT NULL UNIQUE, created REAL NOT NULL);
CREATE TABLE keys(
  id TEXT PRIMARY KEY, client TEXT NOT NULL, offer TEXT NOT NULL, sha256 TEXT NOT NULL,
  bytes INTEGER NOT NULL, created REAL NOT NULL, UNIQUE(client, offer, sha256)
);
CREATE TABLE jobs(
  id TEXT PRIMARY KEY, client TEXT NOT NULL, keys TEXT NOT NULL, offer TEXT NOT NULL,
  length INTEGER NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, state TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL,
  error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX by_state ON jobs(state, created);
CREATE INDEX by_client ON jobs(client, created);
"""


@dataclass(frozen=True)
class KeySet:
    """Evaluation keys that a client has registered; `offer` is the fingerprint of their job."""

    id: str
    client: str
    offer: str
    sha256: str
    bytes: int
    created: float


@dataclass(frozen=True)
class JobRecord:
    """A job that has been accepted; times are seconds since 1970, None if not yet."""

    id: str
    client: str
    keys: str
    offer: str
    length: int
    sha256: str
    bytes: int
    state: State
    attempts: int
    created: float
    started: float | None
    finished: float | None
    error: str


@dataclass(frozen=True)
class Upload:
    """A file that has arrived, and waits to be taken in."""

    path: Path
    sha256: str
    bytes: int


class Store:
    """The directory of a service.

    Parameters
    ----------
    directory
        Made if it is missing, for its owner only.
    serves
        The service that runs the jobs: there can be one.

    Raises
    ------
    ServiceError
        If another service uses it, or it is of another version.
    """

    def __init__(self, directory: Path, *, serves: bool = False) -> None:
        self.directory = directory
        self._guard: sqlite3.Connection | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in FOLDERS:
                (directory / folder).mkdir(mode=0o700, exist_ok=True)
            path = directory / "service.sqlite"
            path.touch(mode=PRIVATE)
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._lock = threading.RLock()
            with self._lock:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                (version,) = self._database.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    self._database.executescript(_TABLES)
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
        except (OSError, sqlite3.Error) as e:
            raise ServiceError(f"the directory {directory} cannot be used: {e}") from None
        if serves:
            self._guard = _only(directory)
        if version not in (0, _VERSION):
            raise ServiceError(
                f"{directory} is of version {version} of the service, this one writes {_VERSION}; "
                "use the other one, or a new directory"
            )

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()
            if self._guard is not None:
                self._guard.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite itself ends it when the disk is full
                    self._database.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    # -- clients -----------------------------------------------------------------------------

    def add_client(self, name: str) -> str:
        """Let a client in, and return its token, which is not kept: only a hash of it is.

        Raises
        ------
        ServiceError
            If there is one of that name, or the name is none.
        """
        if not name or len(name) > 64 or not all(c.isalnum() or c in "-_.@" for c in name):
            raise ServiceError(
                f"{name!r} is no name of a client; take up to 64 letters, digits and -_.@"
            )
        token = secrets.token_urlsafe(32)
        try:
            with self._transaction() as database:
                database.execute(
                    "INSERT INTO clients VALUES (?, ?, ?)", (name, _hash(token), time.time())
                )
        except sqlite3.IntegrityError:
            raise ServiceError(f"there is a client {name} already; remove it first") from None
        return token

    def remove_client(self, name: str) -> None:
        """Let a client in no more; its keys and jobs are deleted, and queued ones not run.

        Raises
        ------
        ServiceError
            If there is none of that name.
        """
        if name not in self.clients():
            raise ServiceError(f"there is no client {name}; there are: {self._names()}")
        with self._transaction() as database:
            jobs, keys = self.jobs(name), self.keys(name)
            for table, column in (("clients", "name"), ("jobs", "client"), ("keys", "client")):
                database.execute(f"DELETE FROM {table} WHERE {column} = ?", (name,))
        for job in jobs:
            self.delete_files(job.id)
        for each in keys:
            _delete(self.keys_path(each.id))

    def clients(self) -> dict[str, float]:
        """Return name -> when it was added, of all clients."""
        return dict(self._rows("SELECT name, created FROM clients ORDER BY name"))

    def _names(self) -> str:
        return ", ".join(self.clients()) or "none"

    def client_of(self, token: str) -> str | None:
        """Return whose token it is."""
        found = self._rows("SELECT name FROM clients WHERE token = ?", _hash(token))
        return found[0][0] if found else None

    # -- files -------------------------------------------------------------------------------

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Give a file to write what arrives; it is deleted unless it has been taken in."""
        path = self.directory / "incoming" / secrets.token_hex(16)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            try:
                yield Incoming(path, file)
            finally:
                with suppress(OSError):
                    path.unlink()

    def keys_path(self, identifier: str) -> Path:
        """Return the file of a set of keys."""
        return self.directory / "keys" / f"{identifier}.aegis"

    def request_path(self, identifier: str) -> Path:
        """Return the file with a job's input."""
        return self.directory / "requests" / f"{identifier}.aegis"

    def result_path(self, identifier: str) -> Path:
        """Return the file with a job's output."""
        return self.directory / "results" / f"{identifier}.aegis"

    def checkpoint_path(self, identifier: str) -> Path:
        """Return the directory of a job's checkpoint."""
        return self.directory / "checkpoints" / identifier

    def offer_path(self, fingerprint: str) -> Path:
        """Return the file that describes what is offered."""
        return self.directory / "offers" / f"{fingerprint}.json"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return _size_of(self.directory)

    @property
    def settled_size(self) -> int:
        """Bytes of all files but those that are arriving."""
        return _size_of(self.directory, without="incoming")

    def _sweep(self) -> None:
        """Delete files that nothing in the database names."""
        keys = {row[0] for row in self._rows("SELECT id FROM keys")}
        jobs = dict(self._rows("SELECT id, state FROM jobs"))
        live = {i for i, state in jobs.items() if state not in ENDED}
        done = {i for i, state in jobs.items() if state == "done"}
        wanted = {"keys": keys, "requests": live, "results": done, "checkpoints": live}
        for folder, names in wanted.items():
            for path in (self.directory / folder).iterdir():
                if path.name.removesuffix(".aegis") not in names:
                    _delete(path)

    def recover(self) -> int:
        """After a start: queue again what was running, delete leftovers; return how many queued.

        A job during which the service ended too often has failed.
        """
        for path in (self.directory / "incoming").iterdir():
            _delete(path)
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ? "
                "WHERE state = 'running' AND attempts >= ?",
                (time.time(), f"the service ended {ATTEMPTS} times while it ran", ATTEMPTS),
            )
            database.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
        self._sweep()
        return len(self.queued())

    # -- keys --------------------------------------------------------------------------------

    def known_keys(self, client: str, offer: str, sha256: str) -> KeySet | None:
        """Return keys that a client has registered already."""
        query = "SELECT * FROM keys WHERE client = ? AND offer = ? AND sha256 = ?"
        return next((KeySet(*row) for row in self._rows(query, client, offer, sha256)), None)

    def check_key_sets(self, client: str, most: int) -> None:
        """Refuse more keys.

        Raises
        ------
        ServiceError
            If the client has `most` sets of keys.
        """
        if len(self.keys(client)) >= most:
            raise ServiceError(
                f"{most} sets of keys are registered for {client}, and that is the most; remove one"
            )

    def add_keys(self, client: str, offer: str, upload: Upload, most: int) -> KeySet:
        """Take in evaluation keys; the same ones a second time are the first ones.

        Raises
        ------
        ServiceError
            If the client has `most` sets of keys.
        """
        with self._lock:
            known = self.known_keys(client, offer, upload.sha256)
            if known is not None:
                return known
            self.check_key_sets(client, most)
            new = KeySet(
                secrets.token_hex(8), client, offer, upload.sha256, upload.bytes, time.time()
            )
            with _moved(upload, self.keys_path(new.id)), self._transaction() as database:
                database.execute(
                    "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?)",
                    (new.id, client, offer, new.sha256, new.bytes, new.created),
                )
            return new

    def keys(self, client: str) -> list[KeySet]:
        """Return the keys of a client."""
        query = "SELECT * FROM keys WHERE client = ? ORDER BY created"
        return [KeySet(*row) for row in self._rows(query, client)]

    def find_keys(self, client: str, identifier: str) -> KeySet | None:
        """Return a set of keys of a client."""
        query = "SELECT * FROM keys WHERE client = ? AND id = ?"
        return next((KeySet(*row) for row in self._rows(query, client, identifier)), None)

    def has_keys(self, identifier: str) -> bool:
        """Return whether there is a set of keys, of whichever client."""
        return bool(self._rows("SELECT 1 FROM keys WHERE id = ?", identifier))

    def remove_keys(self, identifier: str) -> None:
        """Delete keys.

        Raises
        ------
        ServiceError
            If a job still needs them.
        """
        with self._lock:
            query = "SELECT id FROM jobs WHERE keys = ? AND state IN ('queued', 'running')"
            if self._rows(query, identifier):
                raise ServiceError("a job that has not ended uses these keys; cancel it first")
            with self._transaction() as database:
                database.execute("DELETE FROM keys WHERE id = ?", (identifier,))
            _delete(self.keys_path(identifier))

    # -- jobs --------------------------------------------------------------------------------

    def known_job(self, keys: KeySet, length: int, sha256: str) -> JobRecord | None:
        """Return the job that a request has made already, unless that has failed."""
        query = (
            "SELECT * FROM jobs WHERE client = ? AND keys = ? AND length = ? AND sha256 = ? "
            "AND state IN ('queued', 'running', 'done')"
        )
        rows = self._rows(query, keys.client, keys.id, length, sha256)
        return next((JobRecord(*row) for row in rows), None)

    def check_jobs(self, client: str, most: int) -> None:
        """Refuse more jobs.

        Raises
        ------
        ServiceError
            If the client has `most` jobs that have not ended.
        """
        query = "SELECT id FROM jobs WHERE client = ? AND state IN ('queued', 'running')"
        if len(self._rows(query, client)) >= most:
            raise ServiceError(
                f"{most} jobs of {client} have not ended yet, and that is the most; wait for one, "
                "or cancel one"
            )

    def add_job(self, keys: KeySet, length: int, upload: Upload, most: int) -> JobRecord:
        """Accept a job; the same request a second time is the first one, unless that has failed.

        Raises
        ------
        ServiceError
            If the client has `most` jobs that have not ended.
        """
        with self._lock:
            known = self.known_job(keys, length, upload.sha256)
            if known is not None:
                return known
            self.check_jobs(keys.client, most)
            job = JobRecord(
                secrets.token_hex(8),
                *(keys.client, keys.id, keys.offer, length, upload.sha256, upload.bytes),
                *("queued", 0, time.time(), None, None, ""),
            )
            with _moved(upload, self.request_path(job.id)), self._transaction() as database:
                database.execute(
                    "INSERT INTO jobs(id, client, keys, offer, length, sha256, bytes, state, "
                    "created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(job.id, job.client, job.keys, job.offer, job.length, job.sha256),
                        *(job.bytes, job.state, job.created),
                    ),
                )
            return job

    def find_job(self, client: str, identifier: str) -> JobRecord | None:
        """Return a job of a client."""
        query = "SELECT * FROM jobs WHERE client = ? AND id = ?"
        return next((JobRecord(*row) for row in self._rows(query, client, identifier)), None)

    def has_job(self, identifier: str) -> bool:
        """Return whether there is a job, of whichever client."""
        return bool(self._rows("SELECT 1 FROM jobs WHERE id = ?", identifier))

    def delete_files(self, identifier: str) -> None:
        """Delete what a job has on disk."""
        for path in (self.request_path, self.result_path, self.checkpoint_path):
            _delete(path(identifier))

    def jobs(self, client: str) -> list[JobRecord]:
        """Return the jobs of a client, the oldest first."""
        query = "SELECT * FROM jobs WHERE client = ? ORDER BY created"
        return [JobRecord(*row) for row in self._rows(query, client)]

    def queued(self) -> list[JobRecord]:
        """Return the jobs that wait, the oldest first."""
        query = "SELECT * FROM jobs WHERE state = 'queued' ORDER BY created, rowid"
        return [JobRecord(*row) for row in self._rows(query)]

    def position(self, identifier: str) -> int | None:
        """Return a job's place among those that wait, from 1; None if it does not."""
        query = (
            "SELECT count(*) FROM jobs AS own JOIN jobs AS other ON other.state = 'queued' "
            "AND (other.created, other.rowid) <= (own.created, own.rowid) "
            "WHERE own.id = ? AND own.state = 'queued'"
        )
        return self._rows(query, identifier)[0][0] or None

    def positions(self) -> dict[str, int]:
        """Return the places of all jobs that wait."""
        query = "SELECT id FROM jobs WHERE state = 'queued' ORDER BY created, rowid"
        return {row[0]: 1 + i for i, row in enumerate(self._rows(query))}

    def count(self) -> dict[str, int]:
        """Return state -> number of jobs."""
        return dict(self._rows("SELECT state, count(*) FROM jobs GROUP BY state"))

    def begin(self, identifier: str) -> bool:
        """Note that a job runs; False if it no longer waits."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), identifier),
            )
            return changed.rowcount == 1

    def put_back(self, identifier: str, *, again: bool) -> None:
        """Queue a job that ran; `again` if the attempt counts."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET state = 'queued', started = NULL, attempts = attempts - ? "
                "WHERE id = ? AND state = 'running'",
                (0 if again else 1, identifier),
            )

    def end(self, identifier: str, state: State, error: str = "") -> bool:
        """Note how a job has ended; False if it has ended already. Its request is deleted."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE jobs SET state = ?, finished = ?, error = ? "
                "WHERE id = ? AND state IN ('queued', 'running')",
                (state, time.time(), error, identifier),
            )
        if changed.rowcount == 1:
            _delete(self.request_path(identifier))
            _delete(self.checkpoint_path(identifier))
        return changed.rowcount == 1

    def remove_job(self, identifier: str) -> None:
        """Forget a job that has ended, with its result."""
        with self._transaction() as database:
            database.execute(f"DELETE FROM jobs WHERE id = ? AND state IN {ENDED}", (identifier,))
        _delete(self.result_path(identifier))

    def expire(self, seconds: float) -> int:
        """Forget jobs that ended longer ago; return how many."""
        query = f"SELECT id FROM jobs WHERE finished < ? AND state IN {ENDED}"
        old = [row[0] for row in self._rows(query, time.time() - seconds)]
        for identifier in old:
            self.remove_job(identifier)
        return len(old)


class Incoming:
    """A file that is being received.

    Parameters
    ----------
    path, file
        The file, open for writing.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises
        ------
        OSError
            If the disk is full.
        """
        self._file.write(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)

    def finish(self) -> Upload:
        """Bring everything to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return Upload(self._path, self._digest.hexdigest(), self.bytes)


def _only(directory: Path) -> sqlite3.Connection:
    """Return a lock of the directory, which ends with this process.

    Raises
    ------
    ServiceError
        If another process has it.
    """
    path = directory / "serving.sqlite"
    path.touch(mode=PRIVATE)
    guard = sqlite3.connect(path, timeout=0, check_same_thread=False, isolation_level=None)
    try:
        guard.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        guard.close()
        raise ServiceError(
            f"another service uses {directory}; end it, or take another directory"
        ) from None
    return guard


@contextmanager
def _moved(upload: Upload, path: Path) -> Iterator[None]:
    """Move a file to its place, and delete it if the database does not get to name it."""
    os.replace(upload.path, path)
    try:
        yield
    except BaseException:
        _delete(path)
        raise


def _hash(token: str) -> bytes:
    # Tokens are 256 random bits: nothing is gained by a slow hash.
    return hashlib.sha256(token.encode()).digest()


def _size_of(directory: Path, without: str = "") -> int:
    """Return the bytes of all files in a directory, perhaps without one of its folders."""
    total = 0
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if name != without or Path(folder) != directory]
        for name in files:
            with suppress(OSError):  # one that has just gone
                total += os.stat(os.path.join(folder, name)).st_size
    return total


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
