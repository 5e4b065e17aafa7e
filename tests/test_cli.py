"""The command line itself: statuses, messages, help and completion."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from aegis_dask import __version__
from aegis_dask.cli import app
from aegis_dask.errors import LevelError

ROOT = Path(__file__).parents[1]
COMMANDS = (
    *("demo", "bench", "plan", "calibrate", "run", "verify"),
    *("keys", "encrypt", "evaluate", "decrypt"),
)
GROUPS = [
    *(("certs", name) for name in ("make", "show")),
    *(("cluster", name) for name in ("up", "scale", "status", "down")),
]


def run_bench(monkeypatch: pytest.MonkeyPatch, outcome: Any, *arguments: str) -> tuple[Any, dict]:
    """Run ``aegis bench`` over a stand-in that raises or returns `outcome`."""
    received: dict[str, Any] = {}

    def run(**options: Any) -> int:
        received.update(options)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    stand_in = ModuleType("aegis_dask.bench")
    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aegis_dask.bench", stand_in)
    return CliRunner().invoke(app, ["bench", *arguments]), received


def test_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"aegis {__version__}\n")


def test_bench_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--preset", "tiny", "--threads", "2", "--seed", "7", "--json"]
    result, received = run_bench(monkeypatch, 0, *options)
    assert result.exit_code == 0
    assert received == {"preset": "tiny", "threads": 2, "seed": 7, "as_json": True}


def test_a_command_exits_with_the_status_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_bench(monkeypatch, 1)
    assert result.exit_code == 1


def test_a_user_error_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_bench(monkeypatch, LevelError("level 0 has [nothing] left"))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: level 0 has [nothing] left\n"


def test_an_interrupt_is_one_line_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_bench(monkeypatch, KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run_bench(monkeypatch, ZeroDivisionError())
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_bad_option_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    result, received = run_bench(monkeypatch, 0, "--threads", "0")
    assert (result.exit_code, received) == (2, {})


@pytest.mark.parametrize("command", [*((name,) for name in COMMANDS), *GROUPS], ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "TODO" not in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("run", "bert_layer"),
        ("run", "bert_layer", "--text"),
        ("run", "bert_layer", "--text", "x", "--interpreter", "magic"),
        ("run", "bert_layer", "--text", "x", "--workers", "0"),
        ("verify", "bert_layer", "--text", "x", "--tolerance", "-1"),
        ("plan",),
        ("plan", "bert_layer", "--length", "0"),
        ("keys", "bert_layer"),
        ("encrypt", "--text", "x"),
        ("evaluate", "--bundle", "x"),
        ("decrypt",),
        ("calibrate", "stray"),
        ("certs", "make"),
        ("certs", "make", "x", "--days", "0"),
        ("cluster", "up", "--workers", "0"),
        ("cluster", "up", "--port", "70000"),
        ("cluster", "scale"),
        ("cluster", "scale", "many"),
        ("nothing",),
    ],
)
def test_incomplete_or_unknown_arguments_are_refused(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr


def test_help_loads_neither_numba_nor_dask_nor_models() -> None:
    program = (
        "import sys; sys.argv = ['aegis', '--help']\n"
        "from aegis_dask.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'dask', 'distributed', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {sorted(heavy)}' if heavy else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_shell_can_complete_commands() -> None:
    result = subprocess.run(
        # The shell is found among the processes that have called this one.
        ["bash", "-c", f"{sys.executable} -m aegis_dask.cli --show-completion; exit $?"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "complete" in result.stdout
