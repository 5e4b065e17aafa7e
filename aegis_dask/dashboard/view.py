"""What there is to see of a run: plain data, the same for the page, the report and a file.

Names, sizes, times and counts only. Nothing here is a value that was computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from aegis_dask.errors import SerializationError

T = TypeVar("T")
FORMAT = "aegis-run-1"
"""Format of a file with a run."""
MOST_BYTES = 50_000_000
"""Larger files are not read: a run takes some hundred kilobytes."""

RUNNING, FINISHED, FAILED, CANCELLED, LOST = "running", "finished", "failed", "cancelled", "lost"
CONTINUED = "continued"
"""States of a run. A lost one has lost a worker; if it is taken up again, that is a run of its own,
which begins with what this one has done. So does the one after a continued one, on more workers."""
STATES = (RUNNING, FINISHED, FAILED, CANCELLED, LOST, CONTINUED)


@dataclass(frozen=True)
class Layer:
    """A layer of the model: tasks, the share of its work that is done, and when.

    `begin` and `end` are seconds since the run began, `end` of the last task so far; `remaining` is
    the time until it is finished, if that can be told yet. `seconds` are those of its tasks, on all
    devices together.
    """

    name: str
    tasks: int
    done: int
    share: float
    seconds: float
    begin: float | None
    end: float | None
    remaining: float | None


@dataclass(frozen=True)
class Operator:
    """An operator, over all layers: tasks, those that are done, and their seconds."""

    name: str
    tasks: int
    done: int
    seconds: float


@dataclass(frozen=True)
class Column:
    """Stages that follow each other in one layer, drawn as one column of the levels.

    Levels are None where nothing is known of them. A refresh takes `refreshes` bootstraps, from
    level `refreshed_from` to `refreshed_to`.
    """

    name: str
    stages: int
    layer: int
    share: float
    low: int | None
    high: int | None
    refreshes: int
    refreshed_from: int | None
    refreshed_to: int | None


@dataclass(frozen=True)
class Segment:
    """A device at work: seconds since the run began, what it did most, and the time in tasks."""

    start: float
    stop: float
    operator: int
    busy: float


@dataclass(frozen=True)
class Device:
    """A worker in a run.

    `held` are bytes of results that it has, `peak` the most it had, `planned_peak` what the plan
    said; `process` is the memory of its process, `limit` what that may take; 0 where unknown.
    """

    name: str
    address: str
    tasks: int
    done: int
    busy: float
    held: int
    peak: int
    planned_peak: int | None
    process: int
    limit: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Pair:
    """Bytes of residues that one device sent another: measured so far, and planned if known."""

    source: int
    destination: int
    measured: int
    planned: int | None


@dataclass(frozen=True)
class Slow:
    """A task that took long: its number, stage and kind, device, and seconds."""

    task: int
    stage: str
    device: int
    start: float
    seconds: float


@dataclass(frozen=True)
class Trouble:
    """What went wrong: seconds since the run began, where, and what."""

    seconds: float
    where: str
    what: str


@dataclass(frozen=True)
class RunView:
    """A run.

    Attributes
    ----------
    run, title, parameters
        Its name in the keys of its tasks, and what it is.
    state, message
        One of `STATES`, and why it failed.
    resumed
        How often it was taken up again before.
    date
        Unix time at which it began.
    seconds, predicted_seconds, remaining
        Since it began, or until it ended; what the plan said; to go, if that can be told yet.
    tasks, done, share
        Tasks, those that are finished, and the share of the work that they are.
    refreshes, refreshed
        Bootstraps, and those that are done.
    precision_bits
        What the parameters leave after one product, or None where nothing is encrypted.
    layers, operators, columns, devices, pairs, slowest, trouble
        See their classes.
    """

    run: str
    title: str
    parameters: str
    state: str
    message: str
    resumed: int
    date: float
    seconds: float
    predicted_seconds: float | None
    remaining: float | None
    tasks: int
    done: int
    share: float
    refreshes: int
    refreshed: int
    precision_bits: float | None
    layers: tuple[Layer, ...]
    operators: tuple[Operator, ...]
    columns: tuple[Column, ...]
    devices: tuple[Device, ...]
    pairs: tuple[Pair, ...]
    slowest: tuple[Slow, ...]
    trouble: tuple[Trouble, ...]

    def to_json(self) -> str:
        """Return the text that `read_view` reads."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)


def read_view(path: Path) -> RunView:
    """Read a run from a file.

    Raises
    ------
    SerializationError
        If it cannot be read, or is not what `RunView.to_json` writes.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SerializationError(f"{path} is larger than the {MOST_BYTES} bytes of any run")
        return parse_view(path.read_bytes())
    except OSError as e:
        raise SerializationError(f"{path} cannot be read: {e.strerror or e}") from e
    except SerializationError as e:
        raise SerializationError(f"{path} is not a run that 'aegis run --record' wrote: {e}") from e


def parse_view(text: str | bytes) -> RunView:
    """Return the run that `RunView.to_json` wrote.

    Raises
    ------
    SerializationError
        If it is something else.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise SerializationError(f"it is not JSON ({e})") from e
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise SerializationError(f"it does not say that its format is {FORMAT}")
    view: RunView = decode(RunView, data, "run")
    _check(view)
    return view


def decode(kind: Any, data: Any, where: str) -> Any:
    """Return data from JSON as a dataclass, or a tuple of them, every field there and of its type.

    Raises
    ------
    SerializationError
        Naming the field that is not as expected.
    """
    if is_dataclass(kind):
        names, hints = _fields(kind)  # type: ignore[arg-type]
        if not isinstance(data, Mapping) or set(data) != names:
            raise SerializationError(f"{where} does not have the fields {sorted(names)}")
        return kind(**{n: decode(hints[n], data[n], f"{where}.{n}") for n in sorted(names)})  # type: ignore[operator]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise SerializationError(f"{where} is not a list")
        return tuple(decode(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(data))
    if origin is UnionType:
        if data is None and NoneType in arguments:
            return None
        return decode(next(a for a in arguments if a is not NoneType), data, where)
    allowed = (int, float) if kind is float else (kind,)
    right = isinstance(data, allowed) and not isinstance(data, bool)
    if not right or (isinstance(data, float) and not isfinite(data)):
        raise SerializationError(f"{where} is {data!r:.40}, not of type {kind.__name__}")
    return kind(data)


@lru_cache
def _fields(kind: Any) -> tuple[frozenset[str], dict[str, Any]]:
    return frozenset(f.name for f in fields(kind)), get_type_hints(kind)


def _check(view: RunView) -> None:
    """Refuse indices that point nowhere."""
    devices, operators, layers = (
        range(len(x)) for x in (view.devices, view.operators, view.layers)
    )
    right = (
        view.state in STATES
        and all(p.source in devices and p.destination in devices for p in view.pairs)
        and all(s.device in devices for s in view.slowest)
        and all(c.layer in layers for c in view.columns)
        and all(s.operator in operators for d in view.devices for s in d.segments)
    )
    if not right:
        raise SerializationError("it names a state, device, operator or layer that there is not")
