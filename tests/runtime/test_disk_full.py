"""A disk that is full while keys and weights are written: a message, and nothing is left behind."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ClusterError
from aegis_dask.runtime.context import Context, read_context, write_context, write_weights
from aegis_dask.runtime.executor import Executor

STORE = {"small": np.ones(10), "large": np.ones((200, 200))}
ROOM = r"cannot be written: .*; TMPDIR or directory= names another place with room"


@contextmanager
def full_disk() -> Iterator[None]:
    """Let this process write no file beyond 32 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_are_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(ClusterError, match=ROOM):
        write_weights(STORE, tmp_path / "weights-x")
    assert not list(tmp_path.iterdir())
    assert len(write_weights(STORE, tmp_path / "weights-x")) == len(STORE) + 1


def test_a_context_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    params = Parameters.preset("insecure-n10-d40")
    keys: EvaluationKeys = KeyGenerator(params).evaluation_keys(
        KeyGenerator(params).secret_key(), rotations=[1]
    )
    with full_disk(), pytest.raises(ClusterError, match=ROOM):
        write_context(Context(params, keys), tmp_path / "c")
    assert not list(tmp_path.iterdir())
    write_context(Context(params, keys), tmp_path / "c")
    assert read_context(tmp_path / "c").keys is not None


def test_weights_can_be_loaded_once_there_is_room(tmp_path: Path) -> None:
    with Executor.local(1, 1, directory=tmp_path) as executor:
        for _ in range(2):
            with full_disk(), pytest.raises(ClusterError, match=ROOM):
                executor.load(store=STORE)
        loaded = executor.load(store=STORE)
        (found,) = tmp_path.glob(f"aegis-*/{loaded.weights}")
        assert len(list(found.iterdir())) == len(STORE) + 1
        executor.unload(loaded)
        assert not found.exists()
