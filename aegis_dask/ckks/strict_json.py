"""JSON from others: bounded in size, nesting and numbers, every name once."""

from __future__ import annotations

import json
import os
import re
from math import isfinite
from reprlib import repr as shorten
from typing import Any, NoReturn

import numpy as np

from aegis_dask.errors import SerializationError

MAX_DEPTH = 8
MAX_CONTAINERS = 1 << 16
MAX_INTEGER_DIGITS = 32

# Matches at every quote, terminated or not: a failed match would be tried again at the next one.
_STRING = re.compile(rb'"[^"\\]*+(?:\\(?:.|\Z)[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
# Brackets become +1 and -1 (as int8), everything else is deleted.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def parse_object(
    text: bytes,
    what: str,
    *,
    floats: bool = False,
    depth: int = MAX_DEPTH,
    containers: int = MAX_CONTAINERS,
) -> dict[str, Any]:
    """Return a JSON object.

    Parameters
    ----------
    text
        UTF-8. It takes up to some 16 times its size while it is read.
    what
        Its name in messages, such as ``"the header"``.
    floats
        Whether numbers may have a fraction or an exponent; they are finite then.
    depth
        How deep lists and objects may be nested.
    containers
        How many of them there may be.

    Raises
    ------
    SerializationError
        If it is something else, is nested deeper or has more lists and objects than it may, names
        something twice, or has a number that is not allowed or a string that is not text.
    """
    _check_nesting(text, what, depth, containers)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise SerializationError(f"{what} has an object with two keys of the same name")
        return out

    def integer(digits: str) -> int:
        if len(digits) > MAX_INTEGER_DIGITS:
            raise SerializationError(
                f"{what} has an integer of {len(digits)} digits, at most {MAX_INTEGER_DIGITS} can "
                "be"
            )
        return int(digits)

    def refused(number: str) -> NoReturn:
        kind = "finite" if floats else "an integer"
        raise SerializationError(
            f"{what} has the number {shorten(number)}; every number in it is {kind}"
        )

    def fraction(digits: str) -> float:
        value = float(digits)
        return value if isfinite(value) else refused(digits)

    try:
        data = json.loads(
            text.decode(),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=fraction if floats else refused,
            parse_constant=refused,
        )
        if b"\\u" in text:  # half of a surrogate pair is no text: it could not even be printed
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        raise SerializationError(f"{what} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise SerializationError(f"{what} is {shorten(data)}, not a JSON object")
    return data


def read_object(
    path: str | os.PathLike[str],
    limit: int,
    *,
    floats: bool = False,
    depth: int = MAX_DEPTH,
    containers: int = MAX_CONTAINERS,
) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes.

    Raises
    ------
    SerializationError
        If the file is larger, or for what `parse_object` refuses.
    OSError
        If it cannot be read.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        # A read takes the memory that it is asked for at once, whatever the file holds.
        text = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
    if len(text) > limit:
        raise SerializationError(
            f"{name} has more than {limit} bytes, which is more than it can need"
        )
    return parse_object(text, name, floats=floats, depth=depth, containers=containers)


def _check_nesting(text: bytes, what: str, depth: int, containers: int) -> None:
    """Refuse nesting before the JSON parser, which recurses in C, runs.

    An empty list takes two bytes of text and 64 of memory, so their number is bounded too.
    """
    if text.count(b"[") + text.count(b"{") <= depth:
        return
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(_STEPS, _OTHERS), np.int8)
    if brackets.size > 2 * containers:
        raise SerializationError(f"{what} has more than {containers} lists and objects")
    if np.max(np.cumsum(brackets, dtype=np.int32), initial=0) > depth:
        raise SerializationError(f"{what} is nested more than {depth} levels deep")
