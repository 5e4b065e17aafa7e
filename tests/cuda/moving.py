"""The emulated GPU as a backend, and comparisons with the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.config
import numpy as np

from benchmarks._moving import host, moved
from tests.emulation.device import EMULATION, register

__all__ = ["assert_same", "emulation", "host", "moved"]


@contextmanager
def emulation() -> Iterator[None]:
    """Let every ring be that of the emulated GPU."""
    register()
    with dask.config.set({"aegis.backend": EMULATION}):
        yield


def assert_same(found: Any, expected: Any, what: str = "") -> None:
    """Compare a ciphertext of the configured backend with residues of the CPU's."""
    assert np.array_equal(host(found), expected), what
