"""Parsers with faults, for tests of the fuzzer; processes that it starts import them from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

from aegis_dask.errors import SerializationError
from benchmarks.fuzzing import Target

EXAMPLE = bytes(range(64))


def refuse(data: bytes) -> None:
    raise SerializationError("refused")


def die(data: bytes) -> None:
    if data and data[0] == 7:
        os.abort()


def hang(data: bytes) -> None:
    if data and data[0] == 7:
        time.sleep(1000)


def seven(rng: object, examples: object) -> bytes:
    """Input that the two above do not take, once in a while."""
    return bytes([getattr(rng, "randrange")(40)])  # noqa: B009


def dying(folder: Path) -> list[Target]:
    return [Target("dying", (EXAMPLE,), die, seven), Target("good", (EXAMPLE,), refuse, "bytes")]


def hanging(folder: Path) -> list[Target]:
    return [Target("hanging", (EXAMPLE,), hang, seven)]
