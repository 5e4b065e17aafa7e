"""Residues in tests, wherever the kernels are: see ``--backend`` of `tests.conftest`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ring.cuda_backend.residency import KeptArray


def host(x: Any) -> NDArray[Any]:
    """Return an array as one of NumPy's."""
    if isinstance(x, KeptArray):
        return x.host
    found: NDArray[Any] = x.get() if hasattr(x, "get") else x
    return found


def same(x: Any, y: Any) -> bool:
    """Whether two arrays are equal."""
    return np.array_equal(host(x), host(y))


def equal(x: Ciphertext, y: Ciphertext) -> bool:
    """Whether residues, level and scale are the same."""
    return (x.level, x.scale) == (y.level, y.scale) and same(x.data, y.data)
