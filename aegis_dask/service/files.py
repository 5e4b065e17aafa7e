"""Directories of keys, requests and responses: new ones only, for their owner's eyes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.files import PRIVATE, write_atomically
from aegis_dask.ckks.strict_json import read_object
from aegis_dask.errors import SerializationError

MAX_JSON = 16 << 20
"""Bytes of a file that holds calibrated ranges; those of the largest models take one million."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the operating system while reading `path` into ours.

    Raises
    ------
    SerializationError
        If the file is missing or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise SerializationError(
            f"there is no file {path}; is the directory complete, and the right one?"
        ) from None
    except OSError as e:
        raise SerializationError(f"{path} cannot be read: {e.strerror or e}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the operating system while writing `path` into ours.

    Raises
    ------
    SerializationError
        If it cannot be written.
    """
    try:
        yield
    except OSError as e:
        raise SerializationError(f"{path} cannot be written: {e.strerror or e}") from None


def check_new(directory: Path) -> None:
    """Refuse a directory that exists, before any work is done for it.

    Raises
    ------
    SerializationError
        If it exists.
    """
    if directory.exists() or directory.is_symlink():
        raise SerializationError(
            f"{directory} exists, and is never overwritten; give another name or remove it"
        )


def make_directory(directory: Path) -> None:
    """Make a directory that only its owner may read.

    Raises
    ------
    SerializationError
        If it exists or cannot be made.
    """
    check_new(directory)
    with writing(directory):
        directory.mkdir(mode=0o700, parents=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON for its owner only."""
    with writing(path):
        path.touch(mode=PRIVATE)
        path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def write_array(path: Path, values: NDArray[np.float64]) -> None:
    """Write a result in the format of ``.npy`` for its owner only; an existing file is replaced.

    Raises
    ------
    SerializationError
        If it cannot be written.
    """
    buffer = BytesIO()
    np.save(buffer, values, allow_pickle=False)
    with writing(path):
        write_atomically(path, [buffer.getbuffer()], mode=PRIVATE)


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes.

    Raises
    ------
    SerializationError
        If there is none, or it is larger or stranger than ours are (see `ckks.strict_json`).
    """
    with reading(path):
        return read_object(path, limit, floats=True)


def check_size(path: Path, limit: int) -> None:
    """Refuse a file that is larger than what it should hold, before it is read.

    Raises
    ------
    SerializationError
        If it is larger, or there is none.
    """
    with reading(path):
        size = path.stat().st_size
    if size > limit:
        raise SerializationError(
            f"{path} has {size} bytes, what belongs there at most {limit}; it is not of this job"
        )


def size_of(directory: Path) -> int:
    """Return the bytes of all files in a directory."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
