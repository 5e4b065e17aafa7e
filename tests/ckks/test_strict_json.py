"""JSON from others, and the readers that use it: what a fuzzer or an attacker found to break."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aegis_dask.ckks.parameters import Parameters, ParametersLiteral
from aegis_dask.ckks.strict_json import MAX_CONTAINERS, parse_object, read_object
from aegis_dask.errors import (
    ClusterError,
    InsecureParametersError,
    RangeError,
    SerializationError,
)
from aegis_dask.models.calibration import Calibration, typical_calibration
from aegis_dask.models.checkpoint import BertConfig
from aegis_dask.placement.devices import MACHINES, load_machine, machine_from_dict
from aegis_dask.ring.registry import get_ring
from aegis_dask.service.files import check_size, read_json


def test_an_object_is_read() -> None:
    text = '{"a": [1, -2, {"b": null}], "[{": "\\u00e9 \\ud83d\\ude00", "c": true}'
    assert parse_object(text.encode(), "it") == json.loads(text)
    assert parse_object(b'{"a": 1.5e3}', "it", floats=True) == {"a": 1500.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is not JSON"),
        (b"\xff{}", "it is not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "two keys of the same name"),
        (b'{"a": 1.5}', "every number in it is an integer"),
        (b'{"a": NaN}', "every number in it is an integer"),
        (b'{"a": 1e5}', "every number in it is an integer"),
        (b'{"a": ' + b"9" * 33 + b"}", "33 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b'{"a":' * 100_000, "nested"),
        (b'{"a": ' + b"[" * 8 + b"]" * 8 + b"}", "nested"),
        (b'{"a": [' + b"[]," * MAX_CONTAINERS + b"[]]}", "lists and objects"),
    ],
)
def test_what_is_not_ours_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        parse_object(text, "it")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_are_finite(number: str) -> None:
    with pytest.raises(SerializationError, match="every number in it is finite"):
        parse_object(b'{"a": %s}' % number.encode(), "it", floats=True)


def test_brackets_in_strings_are_text() -> None:
    text = json.dumps({"a": "[" * 1000, 'b"\\': '"[[[[[[[[[[[['}).encode()
    assert parse_object(text, "it")["a"] == "[" * 1000


def test_a_file_takes_memory_of_its_own_size_not_of_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    path.write_bytes(b'{"a": 1}')
    tracemalloc.start()
    try:
        read_json(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # of holes
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError, match="more than 65536 bytes"):
            read_object(path, 1 << 16)
        with pytest.raises(SerializationError, match="10737418240 bytes"):
            check_size(path, 1 << 20)
        with pytest.raises(ClusterError, match="more than 65536 bytes"):
            load_machine(str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_node": "8"}, "per_node"),
        ({"per_node": 2.5}, "not an integer: per_node"),
        ({"per_node": True}, "per_node"),
        ({"task_seconds": -1}, "0 to 1e[+]18: task_seconds"),
        ({"hop_seconds": math.nan}, "hop_seconds"),
        ({"device": "abc"}, "is wrong"),
        ({"inside": {"name": "x", "bytes_per_second": 1, "latency_seconds": []}}, "latency"),
        ({"inside": {"name": "\x1b[2J", "bytes_per_second": 1, "latency_seconds": 0}}, "printable"),
        ({"more": 1}, "more"),
    ],
)
def test_a_strange_machine_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        machine_from_dict({**MACHINES["cpu"].to_dict(), **change})


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(model="\x1b[2J"),
        lambda d: d.update(model=7),
        lambda d: d.update(sha256="0"),
        lambda d: d.update(texts=1.5),
        lambda d: d.update(layers="abc"),
        lambda d: d["layers"][0].update(gelu_low="-1"),
        lambda d: d["layers"][0].update(gelu_low=-(10**400)),
        lambda d: d["layers"][0].update(gelu_low=-1e300),
        lambda d: d["layers"][0]["attention"].update(distances={"01": [0.0, 0.0]}),
        lambda d: d["layers"][0]["attention"].update(distances={str(10**9): [0.0, 0.0]}),
    ],
)
def test_a_strange_calibration_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    data = typical_calibration(BertConfig(1, 8, 2, 16)).to_dict()
    assert Calibration.from_dict(json.loads(json.dumps(data)))
    data = json.loads(json.dumps(data))
    change(data)
    with pytest.raises(RangeError):
        Calibration.from_dict(data)


def test_a_ring_that_nothing_is_computed_in_takes_no_tables() -> None:
    params = Parameters(ParametersLiteral(17, 60, (60,) * 42, 16, 7, 50))
    get_ring(Parameters.preset("n13-d30").chain)  # imports
    tracemalloc.start()
    try:
        get_ring(params.chain)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_insecure_parameters_are_refused_before_their_digits_are_searched() -> None:
    """Which takes time that grows with the square of the number of primes."""
    with pytest.raises(InsecureParametersError, match="modulus of"):
        Parameters(ParametersLiteral(10, 60, (60,) * 256, 40, 1, 40))
