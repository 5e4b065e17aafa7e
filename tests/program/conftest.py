from __future__ import annotations

from collections.abc import Iterator

import pytest

from aegis_dask.ring.threads import get_threads, set_threads


@pytest.fixture(scope="module", autouse=True)
def one_kernel_thread() -> Iterator[None]:
    """Rings of N = 2^10 gain nothing from more, and lose much on a busy machine."""
    before = get_threads()
    set_threads(1)
    yield
    set_threads(before)
