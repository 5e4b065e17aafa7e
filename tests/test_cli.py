import sys
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from aegis_dask import __version__
from aegis_dask.cli import app
from aegis_dask.errors import LevelError


def run_demo(monkeypatch: pytest.MonkeyPatch, outcome: Any, *arguments: str) -> tuple[Any, dict]:
    """Run ``aegis demo`` over a stand-in that raises or returns `outcome`."""
    received: dict[str, Any] = {}

    def run(**options: Any) -> int:
        received.update(options)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    stand_in = ModuleType("aegis_dask.demo")
    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aegis_dask.demo", stand_in)
    return CliRunner().invoke(app, ["demo", *arguments]), received


def test_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"aegis {__version__}\n")


def test_demo_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--preset", "tiny", "--threads", "2", "--seed", "7", "--json"]
    result, received = run_demo(monkeypatch, 0, *options)
    assert result.exit_code == 0
    assert received == {"preset": "tiny", "threads": 2, "seed": 7, "as_json": True}


def test_demo_exits_with_the_status_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_demo(monkeypatch, 1)
    assert result.exit_code == 1


def test_a_user_error_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_demo(monkeypatch, LevelError("level 0 has [nothing] left"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: level 0 has [nothing] left\n"


def test_an_interrupt_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_demo(monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_demo(monkeypatch, ZeroDivisionError())
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_bad_option_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    result, received = run_demo(monkeypatch, 0, "--threads", "0")
    assert (result.exit_code, received) == (2, {})
