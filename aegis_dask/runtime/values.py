"""Values outside workers: rows of inputs, and outputs put together, without an interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from aegis_dask.program.encrypted import CipherArray
from aegis_dask.ring.backend import concatenate


def rows_of(value: Any, start: int, stop: int) -> Any:
    """Return rows of the leading axis."""
    if isinstance(value, CipherArray):
        inner = prod(value.shape[1:])
        batch = value.batch[start * inner : stop * inner]
        return CipherArray(batch, (stop - start, *value.shape[1:]))
    return value[start:stop]


def limbs_of(value: CipherArray, positions: Sequence[int]) -> Any:
    """Return some limbs of all ciphertexts, in memory of their own: an array."""
    return value.batch.params.ring.to_host(value.batch.data)[:, :, list(positions)]


def join_limbs(parts: Sequence[Any], positions: Sequence[Sequence[int]]) -> Any:
    """Put limbs together: those of each part have these positions."""
    first, count = parts[0], sum(map(len, positions))
    out = np.empty((*first.shape[:-2], count, first.shape[-1]), first.dtype)
    for part, where in zip(parts, positions, strict=True):
        out[..., list(where), :] = part
    return out


def join_rows(parts: Sequence[Any]) -> Any:
    """Put rows together along the leading axis."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, CipherArray):
        data = concatenate(first.batch.params.ring, [p.batch.data for p in parts])
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:])
        return CipherArray(first.batch.with_data(data), shape)
    return np.concatenate(list(parts))
