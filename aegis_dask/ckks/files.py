"""Files that are complete or absent, and files that only their owner reads."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from aegis_dask.errors import SerializationError

PRIVATE = 0o600
"""Permissions of a file with a secret: its owner reads and writes it."""


def write_atomically(
    path: str | os.PathLike[str],
    pieces: Iterable[bytes | bytearray | memoryview],
    *,
    mode: int = 0o666,
    overwrite: bool = True,
) -> None:
    """Write a file completely or not at all.

    Parameters
    ----------
    path
        The file. An existing one stays as it is until the new one is safely on disk.
    pieces
        Content, in order.
    mode
        Permissions from the moment the file exists, less the umask.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    SerializationError
        If the file exists and may not be replaced.
    OSError
        If the file cannot be written; no part of it is left behind.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.aegis.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _publish_new(temporary, path)
    finally:
        with suppress(OSError):  # gone if all went well
            os.unlink(temporary)
    with suppress(OSError):  # not every file system can synchronise a directory
        sync_directory(path.parent)


def _publish_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails if the file exists, without a moment in between
        return
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not os.path.lexists(path):
            os.replace(temporary, path)
            return
    raise SerializationError(f"{path} exists; choose another name, or pass overwrite=True")


def sync_directory(path: Path) -> None:
    """Wait until the entries of a directory are on disk.

    Raises
    ------
    OSError
        If the file system cannot do that.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_private(path: str | os.PathLike[str]) -> None:
    """Check that only the owner of a file has access to it.

    Raises
    ------
    SerializationError
        If the group or others may read, write or execute it.
    OSError
        If there is no such file.
    """
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):  # elsewhere it says nothing
        raise SerializationError(
            f"{os.fspath(path)} has mode {mode:04o}, so others may have read the secret key in it; "
            f"make new keys, or run chmod {PRIVATE:o} on it if you are sure that nobody has"
        )
