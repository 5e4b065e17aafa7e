"""The fuzzer: a short run of it over every parser, and faults that it must find."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.errors import SerializationError
from aegis_dask.ring.threads import get_threads, set_threads
from benchmarks.fuzzing import Target
from benchmarks.fuzzing.engine import (
    Schedule,
    Tally,
    choose_targets,
    judge,
    limited_memory,
    make_input,
    run,
    run_watched,
    scratch,
    warm_up,
)
from benchmarks.fuzzing.examples import Examples, written
from tests.fuzzing_targets import EXAMPLE, dying, hanging, refuse

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="memory is limited and measured as Linux does"
)
INPUTS = 20_000
PLACES = 80
"""Different lines of the library that refuse one of these inputs: about this many, or more."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Kernels of so small a ring gain nothing from more."""
    before = get_threads()
    set_threads(1)
    yield
    set_threads(before)


@pytest.fixture(scope="module")
def targets() -> Iterator[list[Target]]:
    with scratch() as folder:
        yield choose_targets(folder)


def test_every_parser_takes_or_refuses_every_input(targets: list[Target]) -> None:
    warm_up(targets)
    with limited_memory(1 << 30):
        report = run(Schedule(targets), 3, range(INPUTS), sample=50)
    assert [(f.target, f.what) for f in report.failures] == []
    assert report.inputs == INPUTS
    assert report.tallies.keys() == {t.name for t in targets}
    # The inputs reach deep: some are valid, and all kinds of checks refuse the others.
    assert sum(t.accepted for t in report.tallies.values()) > INPUTS // 50
    assert len({place for t in report.tallies.values() for place in t.places}) >= PLACES
    assert all(t.places for t in report.tallies.values())


def test_every_example_is_valid(targets: list[Target]) -> None:
    for target in targets:
        accepted = 0
        for example in target.examples:
            tally = Tally()
            assert judge(target, example, tally) is None
            accepted += tally.accepted
        assert accepted or target.name == "rebuilt-parameters", target.name


def test_an_input_is_made_again(targets: list[Target]) -> None:
    """Examples do not depend on the process, nor inputs on which others were made before."""
    again = Examples()
    assert written(again.fresh(0, 1)) == written(Examples().fresh(0, 1))
    for target in targets:
        inputs = [make_input(target, 5, i) for i in range(30)]
        assert inputs[::-1] == [make_input(target, 5, i) for i in reversed(range(30))]
        assert len(set(inputs)) > 20
        assert inputs != [make_input(target, 6, i) for i in range(30)]


def fault_of(parse: object, measured: bool = False, **limits: object) -> str | None:
    target = Target("faulty", (EXAMPLE,), parse, "bytes", **limits)  # type: ignore[arg-type]
    return judge(target, EXAMPLE, Tally(), measured)


def test_faults_are_found() -> None:
    def spin(data: bytes) -> None:
        sum(range(3_000_000))

    def claim(data: bytes) -> None:
        np.empty(1 << 40, np.uint8)

    def unprintable(data: bytes) -> None:
        raise SerializationError("\ud800")

    assert fault_of(refuse) is None
    assert fault_of(refuse, measured=True) is None
    assert "ZeroDivisionError" in (fault_of(lambda data: 1 // 0) or "")
    assert "CPU time" in (fault_of(spin, seconds=1e-4) or "")
    assert "bytes of memory" in (fault_of(lambda data: bytearray(9 << 20), measured=True) or "")
    assert "cannot be printed" in (fault_of(unprintable) or "")
    with limited_memory(1 << 30):
        assert "MemoryError" in (fault_of(claim) or "")


def test_a_process_that_dies_is_a_failure_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("benchmarks.fuzzing.engine.MEMORY", folder)
    report = run_watched(dying, 1, 200, 2)
    assert list(folder.iterdir()) == []
    assert {f.target for f in report.failures} == {"dying"}
    assert {f.data for f in report.failures} == {bytes([7])}
    assert "exit status" in report.failures[0].what
    assert report.inputs == 200
    path = report.failures[0].save(tmp_path)
    assert path.read_bytes() == bytes([7])
    assert f"--index {report.failures[0].index}" in path.with_suffix(".txt").read_text()


def test_an_input_that_does_not_end_is_a_failure() -> None:
    report = run_watched(hanging, 1, 50, 1, silence=4.0)  # the second input hangs, no other does
    (failure,) = report.failures
    assert (failure.index, failure.data) == (1, bytes([7]))
    assert "did not end within 4 s" in failure.what
    assert report.inputs == 50
