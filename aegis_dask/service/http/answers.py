"""What a service answers, read by a client to whom it is a stranger: bounded, typed, printable."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from reprlib import repr as shorten
from typing import Any

from aegis_dask.ckks.header import read_integer
from aegis_dask.ckks.parameters import MAX_LOG_N
from aegis_dask.ckks.strict_json import MAX_DEPTH, parse_object
from aegis_dask.errors import SerializationError
from aegis_dask.service.http.store import STATES

MAX_NAME = 256
MAX_TEXT = 1000
"""Characters that are shown of an error."""
MAX_ERROR = 1 << 16
"""Bytes of an answer that refuses; of a longer one only the status is told."""
_MAX_COUNT = (1 << 63) - 1
_MAX_TIME = 1 << 40

Reader = Callable[[str, Any], Any]
"""Its name in messages and a value -> the value, or `SerializationError`."""


def read_answer(text: bytes | bytearray) -> Any:
    """Return what JSON says, an object or a list.

    Raises
    ------
    SerializationError
        If it is none, or stranger than ours is (see `ckks.strict_json`).
    """
    what = "the answer"
    data = parse_object(b'{"answer":' + text + b"}", what, floats=True, depth=MAX_DEPTH + 1)
    if list(data) != ["answer"]:  # a bracket that closes ours
        raise SerializationError(f"{what} is not JSON")
    return data["answer"]


def read_fields(what: str, data: Any, fields: Mapping[str, Reader]) -> dict[str, Any]:
    """Return the fields of an object that we know; a later version may have others too.

    Raises
    ------
    SerializationError
        If one is missing, or is not what it should be.
    """
    if not isinstance(data, dict) or not fields.keys() <= data.keys():
        raise SerializationError(f"the service's answer does not describe {what}")
    return {name: read(f"{name} of {what}", data[name]) for name, read in fields.items()}


def read_list(what: str, data: Any, fields: Mapping[str, Reader]) -> list[dict[str, Any]]:
    """Return a list of objects, as `read_fields` does one.

    Raises
    ------
    SerializationError
        If it is none.
    """
    if not isinstance(data, list):
        raise SerializationError(f"the service's answer is {shorten(data)}, not a list")
    return [read_fields(what, each, fields) for each in data]


def read_refusal(text: bytes | bytearray) -> str | None:
    """Return why the service refuses, as it can be shown; None if that cannot be read."""
    try:
        detail = read_answer(text)["detail"]
        if isinstance(detail, list):  # of the framework's own checks
            detail = "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['msg']}" for d in detail)
    except (SerializationError, LookupError, TypeError):
        return None
    return plain(detail) if isinstance(detail, str) else None


def plain(text: str) -> str:
    """Return a text of somebody else as it can be shown: printable, and not endless."""
    shown = "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])
    return shown if len(text) <= MAX_TEXT else f"{shown}..."


def _matching(pattern: str, meaning: str) -> Reader:
    compiled = re.compile(pattern)

    def read(what: str, value: Any) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise SerializationError(f"{what} is {shorten(value)}; {meaning} are needed")
        return value

    return read


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise SerializationError(
            f"{what} is {shorten(value)}; at most {MAX_NAME} printable characters are needed"
        )
    return value


def _text(what: str, value: Any) -> str:
    """Return a message, which may have several lines."""
    if not isinstance(value, str):
        raise SerializationError(f"{what} is {shorten(value)}; a text is needed")
    return plain(value)


def _state(what: str, value: Any) -> str:
    if value not in STATES:
        raise SerializationError(f"{what} is {shorten(value)}; it can be {', '.join(STATES)}")
    return str(value)


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SerializationError(f"{what} is {shorten(value)}; true or false is needed")
    return value


def _integer(low: int, high: int = _MAX_COUNT) -> Reader:
    return lambda what, value: read_integer(what, value, low, high)


def _number(high: float) -> Reader:
    def read(what: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 <= value <= high:
            raise SerializationError(f"{what} is {shorten(value)}; a number 0 to {high} is needed")
        return float(value)

    return read


def _optional(read: Reader) -> Reader:
    return lambda what, value: None if value is None else read(what, value)


_IDENTIFIER = _matching(r"[0-9a-f]{16}", "16 hexadecimal digits")
_SHA256 = _matching(r"[0-9a-f]{64}", "64 hexadecimal digits")
_TOKENS = _integer(1, 1 << (MAX_LOG_N - 1))
_TIME = _number(_MAX_TIME)

OFFER: dict[str, Reader] = {
    "fingerprint": _SHA256,
    "graph": _name,
    "model": _name,
    "weights": _optional(_SHA256),
    "tokens": _TOKENS,
    "is_secure": _flag,
    "keys": _integer(0),
    "keys_bytes": _integer(0),
    "request_bytes": _integer(0),
}
KEYS: dict[str, Reader] = {
    "id": _IDENTIFIER,
    "offer": _SHA256,
    "sha256": _SHA256,
    "bytes": _integer(0),
    "created": _TIME,
}
JOB: dict[str, Reader] = {
    "id": _IDENTIFIER,
    "state": _state,
    "position": _optional(_integer(1)),
    "share": _number(1),
    "stage": _name,
    "length": _TOKENS,
    "error": _text,
    "created": _TIME,
    "started": _optional(_TIME),
    "finished": _optional(_TIME),
    "changes": _integer(0),
}
