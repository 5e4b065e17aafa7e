"""Files that are larger than they can be are refused before they are read."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_dask.errors import SerializationError
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import load_graph
from aegis_dask.service.client import Client
from aegis_dask.service.messages import Message
from aegis_dask.service.server import read_bundle

SIZE = 10 << 30


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def inflated(folder: Path, name: str, target: Path) -> Path:
    """A copy of a folder of which one file goes on with 10 GB of zeros, which take no disk."""
    shutil.copytree(folder, target)
    os.truncate(target / name, SIZE)
    return target


@pytest.mark.parametrize("name", ["message.json", "ciphertexts.aegis"])
def test_a_huge_message_is_refused(
    name: str, model: BertModel, keys: Path, request_folder: Path, tmp_path: Path
) -> None:
    client = Client.open(keys / "client", model, load_graph("feed_forward"))
    message = inflated(request_folder, name, tmp_path / "message")
    with pytest.raises(SerializationError, match=rf"{name} has .* bytes"):
        Message.load(message, client.job)


@pytest.mark.parametrize("name", ["job.json", "keys.aegis"])
def test_a_huge_bundle_is_refused(name: str, model: BertModel, keys: Path, tmp_path: Path) -> None:
    bundle = inflated(keys / "bundle", name, tmp_path / "bundle")
    with pytest.raises(SerializationError, match=rf"{name} has .* bytes"):
        read_bundle(bundle, model, load_graph("feed_forward"))
