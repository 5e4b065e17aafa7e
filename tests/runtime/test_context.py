"""Contexts in files: what a process holds of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.runtime.context import Context, read_context, write_context, write_weights


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_contexts_with_the_same_weights_open_their_files_once(tmp_path: Path) -> None:
    store = {str(i): np.full(3, i) for i in range(20)}
    write_weights(store, tmp_path / "weights")

    def open_files() -> int:
        held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return sum(path.startswith(str(tmp_path)) for path in held)

    contexts = []
    for name in "abc":
        write_context(Context(), tmp_path / name, "weights")
        contexts.append(read_context(tmp_path / name))
        for key, value in contexts[-1].store.items():
            assert np.array_equal(value, store[key])
        assert open_files() == len(store)
    del contexts, value
    assert open_files() == 0
