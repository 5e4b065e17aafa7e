"""A running service of a tiny model, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from aegis_dask.models.checkpoint import BertModel, load_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.text import Tokenizer, embed
from aegis_dask.runtime.executor import Executor
from aegis_dask.service.client import KEYS, Client
from aegis_dask.service.http.app import Limits, make_app
from aegis_dask.service.http.listen import configure
from aegis_dask.service.http.offers import Offers
from aegis_dask.service.http.remote import RemoteService
from aegis_dask.service.http.runner import Runner
from aegis_dask.service.http.store import Store
from aegis_dask.service.job import Job, read_job
from aegis_dask.service.server import read_bundle
from tests.service.conftest import TEXT

GRAPH = "feed_forward"


@dataclass
class Served:
    """A service: its address, parts, and the tokens of its clients."""

    url: str
    runner: Runner
    store: Store
    job: Job
    tokens: dict[str, str] = field(default_factory=dict)

    def remote(self, name: str = "alice") -> RemoteService:
        if name not in self.tokens:
            self.tokens[name] = self.store.add_client(name)
        return RemoteService(self.url, self.tokens[name])


@contextmanager
def serving(
    directory: Path,
    job: Job,
    executor: Executor,
    *,
    limits: Limits | None = None,
    starts: bool = True,
    certificates: Path | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Serve a job on a free port."""
    store = Store(directory, serves=True)
    store.recover()
    runner = Runner(store, Offers([job]), executor, **options)
    tls: tuple[Path, ...] = ()
    if certificates is not None:
        tls = certificates / "cluster.pem", certificates / "cluster.key"
    app = make_app(runner, limits or Limits())
    server = uvicorn.Server(configure(app, "127.0.0.1", 0, *tls))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    if starts:
        runner.start()
    try:
        scheme = "https" if tls else "http"
        yield Served(f"{scheme}://127.0.0.1:{port}", runner, store, job)
    finally:
        server.should_exit = True
        thread.join(10)
        runner.close()
        store.close()


@pytest.fixture(scope="session")
def offered(checkpoint: Path, keys: Path) -> Job:
    """The job for which `keys` are."""
    job, _ = read_bundle(keys / "bundle", load_bert(checkpoint), load_graph(GRAPH))
    return job


@pytest.fixture(scope="session")
def executor() -> Iterator[Executor]:
    with Executor.local(2, 1, processes=False) as executor:
        yield executor


@dataclass
class Person:
    """A client with keys of its own, an input and what should come back."""

    client: Client
    bundle: Path
    x: NDArray[np.float64]
    expected: NDArray[np.float64]

    @property
    def keys_file(self) -> Path:
        return self.bundle / KEYS


def make_person(model: BertModel, job: Job, directory: Path) -> Person:
    client = Client.create(read_job(job.to_dict(), model, load_graph(GRAPH), allow_insecure=True))
    client.save_bundle(directory / "bundle")
    x, _ = embed(model, Tokenizer.for_model(model).encode(TEXT))
    given = client.job.input_of(x)
    expected = client.job.reference(given)
    assert expected is not None
    return Person(client, directory / "bundle", given, expected)


@pytest.fixture(scope="session")
def people(
    model: BertModel, offered: Job, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Person]:
    return {
        name: make_person(model, offered, tmp_path_factory.mktemp(name))
        for name in ("alice", "bob")
    }


@pytest.fixture
def idle(offered: Job, executor: Executor, tmp_path: Path) -> Iterator[Served]:
    """A service that accepts jobs and runs none."""
    limits = Limits(jobs=2, key_sets=1)
    with serving(tmp_path / "s", offered, executor, limits=limits, starts=False) as served:
        yield served


def registered(served: Served, name: str, person: Person) -> tuple[RemoteService, str]:
    remote = served.remote(name)
    return remote, remote.register(person.client.job, person.keys_file)
