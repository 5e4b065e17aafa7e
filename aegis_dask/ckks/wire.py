"""The container of written objects: a preamble, a JSON header and raw tensors.

======  =====  ================================================================
offset  bytes  content (numbers are little-endian)
======  =====  ================================================================
0       8      magic
8       8      format version
16      8      size of the header, a multiple of 64
24      8      size of the payload
32      32     SHA-256 of bytes 0 to 31 and of the header
64             header: JSON in UTF-8, padded with spaces
..             payload: tensors without gaps, each at a multiple of 64 bytes
======  =====  ================================================================

The header describes every tensor (type, shape, place, SHA-256), so any one can be read alone and in
place, and every byte of a file is covered by a checksum. The checksums find damage; they are no
signature. Nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from reprlib import repr as shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.strict_json import parse_object
from aegis_dask.errors import IntegrityError, SerializationError

Buffer = bytes | bytearray | memoryview
Bytes = NDArray[np.uint8]
Reader = Callable[[int, int], Bytes]
"""``read(offset, size)`` returns writable bytes, or fewer where the data end."""

MAGIC = b"\x89AEGIS\r\n"  # neither text nor ASCII: a transfer that changes line ends destroys it
FORMAT_VERSION = 2
"""What is written. Version 2 added the levels of evaluation keys."""
OLDEST_VERSION = 1
"""Versions from here on are read."""
ALIGNMENT = 64
MAX_HEADER = 4 << 20
MAX_TENSORS = 16384
MAX_AXES = 4

_FIXED = struct.Struct("<8sQQQ")
PREAMBLE = _FIXED.size + hashlib.sha256().digest_size
MOST_OVERHEAD = PREAMBLE + MAX_HEADER
"""Bytes that a container can have beside its tensors."""
RESIDUE_BYTES = 4

_DTYPES: dict[str, np.dtype[Any]] = {"uint32": np.dtype("<u4"), "int8": np.dtype("i1")}
_ENTRY_KEYS = {"dtype", "shape", "offsets", "sha256"}
_TENSOR_NAME = re.compile(r"[a-z0-9_/]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the payload, ``[begin, end)``, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    sha256: str


@dataclass(frozen=True)
class Container:
    """A parsed container: its header fields, and its tensors, read on demand.

    Attributes
    ----------
    fields
        The header without the tensors: JSON data that nobody has checked yet.
    entries
        Tensor name -> entry, checked against the size of the payload.
    version
        Format version that the data were written in.
    """

    fields: dict[str, Any]
    entries: dict[str, Entry]
    version: int
    _read: Reader
    _payload: int

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor of the checked shape and type, over the memory that was read.

        Raises
        ------
        IntegrityError
            If its bytes do not have the SHA-256 of the header, or end early.
        """
        entry = self.entries[name]
        raw = self._read(self._payload + entry.begin, entry.end - entry.begin)
        found = hashlib.sha256(raw.data).hexdigest()
        if found != entry.sha256:
            raise IntegrityError(
                f"tensor {name!r} is damaged: its SHA-256 is {found}, the header says "
                f"{entry.sha256}; fetch the data again"
            )
        return raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)


# -- writing --------------------------------------------------------------------------------


def frame(fields: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> list[Buffer]:
    """Return the pieces of a container, in order; the tensors are not copied.

    Parameters
    ----------
    fields
        JSON-ready header fields (integers, strings, booleans, lists, dictionaries).
    tensors
        Name -> C-contiguous uint32 or int8 array of 1 to 4 axes. All but the last must be multiples
        of 64 bytes.

    Raises
    ------
    SerializationError
        If the header exceeds its bound.
    """
    entries: dict[str, Any] = {}
    pieces: list[Buffer] = []
    begin = 0
    for name, array in tensors.items():
        piece = array.data.cast("B")
        entries[name] = {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "offsets": [begin, begin + piece.nbytes],
            "sha256": hashlib.sha256(piece).hexdigest(),
        }
        begin += piece.nbytes
        pieces.append(piece)
    text = json.dumps({**fields, "tensors": entries}, sort_keys=True, separators=(",", ":"))
    header = text.encode()
    header += b" " * (-len(header) % ALIGNMENT)
    if len(header) > MAX_HEADER or len(tensors) > MAX_TENSORS:
        raise SerializationError(
            f"{len(tensors)} tensors need a header of {len(header)} bytes, at most {MAX_TENSORS} "
            f"and {MAX_HEADER} can be read back; write the object in several parts"
        )
    fixed = _FIXED.pack(MAGIC, FORMAT_VERSION, len(header), begin)
    return [fixed, hashlib.sha256(fixed + header).digest(), header, *pieces]


# -- reading --------------------------------------------------------------------------------


def open_buffer(data: Buffer) -> Container:
    """Parse a container in memory; tensors share a writable, aligned buffer, else they are copies.

    Raises
    ------
    SerializationError
        If these are not the bytes of a container.
    IntegrityError
        If they are damaged or incomplete.
    """
    try:
        view = memoryview(data).cast("B")
    except TypeError:
        raise SerializationError(
            f"a contiguous bytes-like object was expected, {type(data).__name__} was given"
        ) from None
    return _open_view(view)


@contextmanager
def open_file(path: str | os.PathLike[str], *, use_mmap: bool = False) -> Iterator[Container]:
    """Parse the container in a file; its tensors can be read inside the ``with`` block.

    Parameters
    ----------
    path
        The file.
    use_mmap
        Let tensors be private (copy-on-write) maps of the file, shared by the processes that read
        it. The file must not be changed in place while they live; replacing it is safe.

    Raises
    ------
    SerializationError
        If the file is not a container.
    IntegrityError
        If it is damaged or incomplete.
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if use_mmap and size:  # an empty file has no map; the parser says what is wrong with it
            # Copy-on-write, not read-only: what is read otherwise can be written to as well.
            yield _open_view(memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)))
            return

        def read(offset: int, count: int) -> Bytes:
            out = _aligned(count)
            file.seek(offset)
            return out[: file.readinto(out.data)]

        yield _parse(size, read)


def _open_view(view: memoryview) -> Container:
    content = np.frombuffer(view, np.uint8)

    def read(offset: int, count: int) -> Bytes:
        part = content[offset : offset + count]
        if part.flags.writeable and part.ctypes.data % 4 == 0:
            return part
        out = _aligned(part.size)
        out[:] = part
        return out

    return _parse(content.size, read)


def _aligned(count: int) -> Bytes:
    raw = np.empty(count + ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + count]


def _parse(size: int, read: Reader) -> Container:
    start = read(0, min(size, PREAMBLE)).tobytes()
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise SerializationError(
            f"these are not data of aegis_dask: they begin with {start[: len(MAGIC)]!r}, not with "
            f"{MAGIC!r}"
        )
    if len(start) < PREAMBLE:
        raise IntegrityError(
            f"the data are truncated: {size} bytes, the preamble alone has {PREAMBLE}"
        )
    _, version, header_size, payload_size = _FIXED.unpack_from(start)
    if not OLDEST_VERSION <= version <= FORMAT_VERSION:
        raise SerializationError(
            f"the data are of format version {version}, this library reads versions "
            f"{OLDEST_VERSION} to {FORMAT_VERSION}; read them with the version that wrote them"
        )
    if header_size > MAX_HEADER or header_size % ALIGNMENT:
        raise IntegrityError(
            f"the header has {header_size} bytes; it has a multiple of {ALIGNMENT}, at most "
            f"{MAX_HEADER}"
        )
    expected = PREAMBLE + header_size + payload_size
    if size != expected:
        raise IntegrityError(
            f"the data are {'truncated' if size < expected else 'too long'}: {size} bytes, the "
            f"preamble says {expected}"
        )
    header = read(PREAMBLE, header_size).tobytes()
    if hashlib.sha256(start[: _FIXED.size] + header).digest() != start[_FIXED.size :]:
        raise IntegrityError("the header is damaged: its SHA-256 differs; fetch the data again")
    fields = parse_object(header, "the header")
    entries = _parse_entries(fields.pop("tensors", None), payload_size)
    return Container(fields, entries, version, read, PREAMBLE + header_size)


def _parse_entries(tensors: Any, payload_size: int) -> dict[str, Entry]:
    if not isinstance(tensors, dict) or len(tensors) > MAX_TENSORS:
        raise SerializationError(
            f"the header needs an object 'tensors' of at most {MAX_TENSORS} entries, found "
            f"{shorten(tensors)}"
        )
    entries = {name: _parse_entry(name, entry) for name, entry in tensors.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin != position or entry.begin % ALIGNMENT:
            raise SerializationError(
                f"tensor {name!r} begins at byte {entry.begin} of the payload and the one before "
                f"ends at {position}; there are no gaps, and each begins at a multiple of "
                f"{ALIGNMENT}"
            )
        position = entry.end
    if position != payload_size:
        raise SerializationError(
            f"the tensors fill {position} bytes and the payload has {payload_size}"
        )
    return entries


def _parse_entry(name: str, entry: Any) -> Entry:
    if not _TENSOR_NAME.fullmatch(name):
        raise SerializationError(f"{shorten(name)} is no name of a tensor")
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise SerializationError(
            f"tensor {name!r} is described by {shorten(entry)}, expected exactly "
            f"{', '.join(sorted(_ENTRY_KEYS))}"
        )
    dtype, digest = entry["dtype"], entry["sha256"]
    shape = _integers(f"the shape of tensor {name!r}", entry["shape"], 1, MAX_AXES, 1)
    begin, end = _integers(f"the offsets of tensor {name!r}", entry["offsets"], 2, 2, 0)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise SerializationError(
            f"tensor {name!r} has dtype {shorten(dtype)}; there are {', '.join(_DTYPES)}"
        )
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise SerializationError(f"the SHA-256 of tensor {name!r} is {shorten(digest)}")
    size = prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != size:
        raise SerializationError(
            f"tensor {name!r} of shape {shape} has {size} bytes, its offsets {begin} to {end} "
            f"leave {end - begin}"
        )
    return Entry(dtype, shape, begin, end, digest)


def _integers(what: str, value: Any, fewest: int, most: int, smallest: int) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or not fewest <= len(value) <= most
        or not all(type(v) is int and smallest <= v < 1 << 63 for v in value)
    ):
        raise SerializationError(
            f"{what} is {shorten(value)}; {fewest} to {most} integers from {smallest} were expected"
        )
    return tuple(value)
