"""Expanded evaluation keys in a directory that the processes of a host map into memory.

Worker processes that open one directory share its pages: keys are held once per host, and are read
from disk when they are used. Both halves of every key are there, so opening makes nothing. It is
working storage for one machine; to keep or send keys use `serialization`, which writes half as much
and checks every residue on the way in.

``index.json`` names the keys in order. ``keys.bin`` holds for each of them b and a, raw
little-endian ``uint32[digit, prime, N]``, each at a multiple of `ALIGNMENT` bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from reprlib import repr as shorten
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.files import PRIVATE, sync_directory
from aegis_dask.ckks.header import check_keys, read_galois_element, read_integer, read_seeds
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.ckks.strict_json import read_object
from aegis_dask.errors import IncompatibleError, IntegrityError, SerializationError

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Array, Ring

Shape = tuple[int, int, int]
Halves = tuple[NDArray[np.uint32], NDArray[np.uint32]]

ALIGNMENT = 4096
"""A page of memory."""
INDEX, DATA = "index.json", "keys.bin"

_KIND, _VERSION = "expanded keys", 1
_MAX_INDEX = 16 << 20
_DTYPE = np.dtype("<u4")
_INDEX_KEYS = {"format", "version", "parameters", "fingerprint", "keys"}
_KEY_KEYS = {"element", "level", "seed", "sha256"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class _Entry:
    """A key of the index, checked; `element` is None for the relinearisation key."""

    element: int | None
    level: int
    seed: bytes
    sha256: tuple[str, str]

    def shape(self, params: Parameters) -> Shape:
        digits, limbs = params.key_digits(self.level), params.key_limbs(self.level)
        return len(digits), len(limbs), params.ring_degree

    def __str__(self) -> str:
        kind = "relinearisation key" if self.element is None else f"Galois key {self.element}"
        return f"the {kind}"


# -- writing --------------------------------------------------------------------------------


def save_expanded(keys: EvaluationKeys, directory: str | os.PathLike[str]) -> None:
    """Write both halves of all keys to a new directory, completely or not at all.

    The directory and its files are for their owner only. Halves that have not been expanded yet are
    made one at a time and are not kept in `keys`.

    Parameters
    ----------
    keys
        Evaluation keys, of any levels.
    directory
        Where to write; it must not exist.

    Raises
    ------
    SerializationError
        If the directory exists, also when another process was faster.
    OSError
        If it cannot be written; nothing is left behind.
    """
    with new_directory(directory, "open_expanded") as temporary:
        with new_file(temporary / DATA) as file:
            entries = [_write_key(file, *item) for item in _ordered(keys)]
        write_index(temporary, _KIND, keys.params, entries)


def _ordered(keys: EvaluationKeys) -> Iterator[tuple[int | None, EvaluationKey]]:
    every: list[tuple[int | None, EvaluationKey]] = [*sorted(keys.galois.items())]
    if keys.relinearisation is not None:
        every.insert(0, (None, keys.relinearisation))
    for element, key in every:
        check_same(keys, key)
        yield element, key


def _write_key(file: BinaryIO, element: int | None, key: EvaluationKey) -> dict[str, Any]:
    # What has been expanded is there already; otherwise it is not to stay in memory.
    half = vars(key)["a"] if "a" in vars(key) else key.expand()
    digests = write_halves(file, key.params.ring, key.b, half)
    return {"element": element, "level": key.level, "seed": key.seed.hex(), "sha256": digests}


@contextmanager
def new_directory(directory: str | os.PathLike[str], opener: str) -> Iterator[Path]:
    """Make a directory for its owner only, completely or not at all.

    Parameters
    ----------
    directory
        What the directory that is given to the ``with`` block becomes afterwards.
    opener
        The function that opens it, which the error names.

    Raises
    ------
    SerializationError
        If the directory exists, also when another process was faster.
    OSError
        If it cannot be written; nothing is left behind.
    """
    target = Path(directory)
    _refuse_existing(target, opener)
    temporary = target.parent / f".{secrets.token_hex(8)}.aegis.tmp"
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        _sync(temporary)
        _refuse_existing(target, opener)
        try:
            os.rename(temporary, target)
        except OSError:
            _refuse_existing(target, opener)  # another process has made it since
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone if all went well
    _sync(target.parent)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Make a file for its owner only; after the ``with`` block it is on disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, PRIVATE), "wb") as file:
        yield file
        _finish(file)


def write_halves(file: BinaryIO, ring: Ring, b: Array, a: Array) -> list[str]:
    """Append both halves of a key; return their SHA-256."""
    digests = []
    for data in (b, a):
        array = np.ascontiguousarray(ring.to_host(data), _DTYPE)
        file.write(bytes(-file.tell() % ALIGNMENT))
        piece = array.data.cast("B")
        file.write(piece)
        digests.append(hashlib.sha256(piece).hexdigest())
    return digests


def write_index(
    directory: Path, kind: str, params: Parameters, keys: list[dict[str, Any]], **fields: Any
) -> None:
    """Write the index of keys of a kind, with `fields` of that kind."""
    index = {
        "format": f"aegis-dask {kind}",
        "version": _VERSION,
        "parameters": params.name,
        "fingerprint": params.fingerprint,
        **fields,
        "keys": keys,
    }
    with new_file(directory / INDEX) as file:
        file.write(json.dumps(index, indent=1).encode())


def _finish(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with suppress(OSError):  # not every file system can synchronise a directory
        sync_directory(path)


def _refuse_existing(path: Path, opener: str) -> None:
    if os.path.lexists(path):
        raise SerializationError(
            f"{path} exists; open it with {opener}, or remove it or choose another name"
        )


# -- reading --------------------------------------------------------------------------------


def open_expanded(
    directory: str | os.PathLike[str], params: Parameters, *, verify: bool = False
) -> EvaluationKeys:
    """Map the keys that `save_expanded` wrote, read-only.

    Parameters
    ----------
    directory
        The directory. It may be removed while keys are mapped, but not changed.
    params
        The parameters that the keys must belong to.
    verify
        Read everything and compare checksums. Without it sizes are checked, residues are not: open
        what your own processes have written.

    Returns
    -------
    EvaluationKeys
        Keys whose halves are `numpy.memmap`.

    Raises
    ------
    SerializationError
        If the directory does not hold such keys, or is of another version.
    IntegrityError
        If the data are damaged or incomplete.
    IncompatibleError
        If they belong to other parameters.
    OSError
        If they cannot be read.
    """
    path = Path(directory)
    index = read_index(path / INDEX, _KIND, params)
    entries = [_read_entry(entry, params) for entry in index["keys"]]
    check_order(path / INDEX, [e.element for e in entries])
    keys: dict[int | None, EvaluationKey] = {}
    halves = map_halves(path / DATA, [e.shape(params) for e in entries])
    for entry, (b, a) in zip(entries, halves, strict=True):
        if verify:
            verify_halves(path / DATA, str(entry), (b, a), entry.sha256)
        key = EvaluationKey(params, params.ring.keep(b), entry.seed, entry.level)
        vars(key)["a"] = params.ring.keep(a)  # where cached_property keeps it
        keys[entry.element] = key
    galois = {element: key for element, key in keys.items() if element is not None}
    return EvaluationKeys(params, keys.get(None), galois)


def map_halves(path: Path, shapes: Sequence[Shape]) -> list[Halves]:
    """Map a file of `write_halves`, read-only: keys of these shapes, and nothing else.

    Raises
    ------
    IntegrityError
        If the file has another size.
    """
    places, total = _layout(shapes)
    size = path.stat().st_size
    if size != total:
        raise IntegrityError(
            f"{path} has {size} bytes, its index describes {total}; write the keys again"
        )
    # A map of nothing is impossible; an empty set has no file to map.
    words = np.memmap(path, _DTYPE, "r") if shapes else np.empty(0, _DTYPE)
    out = []
    for shape, (b, a) in zip(shapes, places, strict=True):
        first, second = (words[at // 4 : at // 4 + prod(shape)].reshape(shape) for at in (b, a))
        out.append((first, second))
    return out


def _layout(shapes: Sequence[Shape]) -> tuple[list[tuple[int, int]], int]:
    """Return where both halves of every key begin, and the size of the file."""
    places, end = [], 0
    for shape in shapes:
        size = _DTYPE.itemsize * prod(shape)
        b = end + -end % ALIGNMENT
        a = b + size + -size % ALIGNMENT
        places.append((b, a))
        end = a + size
    return places, end


def verify_halves(path: Path, what: str, halves: Halves, sha256: tuple[str, str]) -> None:
    """Raise `IntegrityError` if a half of a key has another SHA-256."""
    for name, half, expected in zip("ba", halves, sha256, strict=True):
        found = hashlib.sha256(half.data.cast("B")).hexdigest()
        if found != expected:
            raise IntegrityError(
                f"half {name} of {what} in {path} is damaged: its SHA-256 is {found}, the index "
                f"says {expected}; write the keys again"
            )


def read_index(
    path: Path, kind: str, params: Parameters, names: Collection[str] = ()
) -> dict[str, Any]:
    """Return the index of keys of a kind and of these parameters.

    What its fields hold is unchecked, except that ``keys`` is a list.

    Parameters
    ----------
    path
        The file.
    kind, params
        As for `write_index`.
    names
        Names of the fields of that kind.

    Raises
    ------
    SerializationError
        If it is not such an index, or of another version.
    IncompatibleError
        If the keys belong to other parameters.
    OSError
        If it cannot be read.
    """
    index = read_object(path, _MAX_INDEX)
    if index.get("format") != f"aegis-dask {kind}":
        raise SerializationError(f"{path} is no index of {kind}")
    if index.get("version") != _VERSION:
        raise SerializationError(
            f"{path} is of version {shorten(index.get('version'))}, this library reads version "
            f"{_VERSION}; write the keys again"
        )
    check_keys(f"{path}", index, _INDEX_KEYS | set(names))
    if index["fingerprint"] != params.fingerprint:
        raise IncompatibleError(
            f"{path} holds keys of parameters {shorten(index['parameters'])} with fingerprint "
            f"{shorten(index['fingerprint'])}, {params!r} was expected with {params.fingerprint}"
        )
    if not isinstance(index["keys"], list):
        raise SerializationError(f"the keys in {path} are {shorten(index['keys'])}, not a list")
    return index


def check_order(path: Path, order: Sequence[int | None]) -> None:
    """Raise `SerializationError` unless the numbers of an index's keys ascend, None before all."""
    if any(b is None or (a is not None and a >= b) for a, b in pairwise(order)):
        raise SerializationError(f"{path} names keys twice or not in order")


def _read_entry(entry: Any, params: Parameters) -> _Entry:
    if not isinstance(entry, dict):
        raise SerializationError(f"a key of the index is {shorten(entry)}, not an object")
    check_keys("a key of the index", entry, _KEY_KEYS)
    element = entry["element"]
    if element is not None:
        element = read_galois_element(str(element), params.ring_degree)
    return _Entry(
        element,
        read_integer("the level of a key", entry["level"], 0, params.max_level),
        read_seeds("a key", entry["seed"], 1),
        read_digests(entry["sha256"]),
    )


def read_digests(value: Any) -> tuple[str, str]:
    """Return the SHA-256 of both halves of a key."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(d, str) and _SHA256.fullmatch(d) for d in value)
    ):
        raise SerializationError(f"the SHA-256 of a key are {shorten(value)}; two are needed")
    return value[0], value[1]
