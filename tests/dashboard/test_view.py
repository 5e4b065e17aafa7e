"""A run in a file: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.dashboard.log import RunLog
from aegis_dask.dashboard.view import RunView, parse_view, read_view
from aegis_dask.errors import SerializationError
from tests.dashboard.synthetic import make_events, make_run


def some_view() -> RunView:
    brief = make_run(200, workers=2, layers=2)
    log = RunLog(brief, 0.0)
    for event in make_events(brief, 0.0, share=0.5):
        log.task(event)
    log.note_trouble(3.0, "somewhere", "something")
    return log.view(9.0)


TEXT = some_view().to_json()


def changed(path: tuple[Any, ...], value: Any) -> str:
    data = json.loads(TEXT)
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps(data)


def test_a_file_gives_the_run_that_was_written(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(TEXT)
    assert read_view(file) == some_view()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format"),
        ('{"format": "other"}', "format"),
        ('{"format": "aegis-run-1"}', "fields"),
        (changed(("tasks",), "7"), "run.tasks"),
        (changed(("tasks",), True), "run.tasks"),
        (changed(("seconds",), None), "run.seconds"),
        (changed(("seconds",), float("nan")), "run.seconds"),
        (changed(("more",), 1), "fields"),
        (changed(("layers",), {}), "run.layers"),
        (changed(("layers", 0, "tasks"), 1.5), r"run.layers\[0\].tasks"),
        (changed(("devices", 1, "segments", 0, "operator"), 99), "there is not"),
        (changed(("slowest", 0, "device"), -1), "there is not"),
        (changed(("pairs", 0, "source"), 2), "there is not"),
        (changed(("columns", 0, "layer"), 17), "there is not"),
        (changed(("state",), "sleeping"), "there is not"),
    ],
)
def test_what_is_not_a_run_is_refused(text: str, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        parse_view(text)


def test_a_file_that_is_missing_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SerializationError, match="cannot be read"):
        read_view(tmp_path / "none.json")
    file = tmp_path / "run.json"
    file.write_text(TEXT)
    monkeypatch.setattr("aegis_dask.dashboard.view.MOST_BYTES", 100)
    with pytest.raises(SerializationError, match="larger"):
        read_view(file)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.binary(max_size=4))
def test_damaged_files_are_refused_or_read_but_never_crash(at: int, junk: bytes) -> None:
    damaged = TEXT.encode()[:at] + junk + TEXT.encode()[at + 1 :]
    with suppress(SerializationError):
        parse_view(damaged)
