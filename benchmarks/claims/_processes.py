"""Fresh processes: programs that are timed from their start, and test runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.claims import Claim, Finding

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ran:
    """A finished program: seconds from its start to its end, its output."""

    seconds: float
    output: str
    errors: str


def run_python(code: str, environment: Mapping[str, str] | None = None) -> Ran:
    """Run a program in a fresh interpreter, from the root of the checkout.

    Raises
    ------
    RuntimeError
        If it fails, with the last line it wrote to stderr.
    """
    env = {**os.environ, **(environment or {})}
    # As on a user's machine, whatever the setting here: modules are byte-compiled once.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
    return Ran(seconds, done.stdout, done.stderr)


def pytest_command(*arguments: str) -> list[str]:
    """The command as it is shown."""
    quoted = [f"'{a}'" if " " in a else a for a in arguments]
    return ["python", "-m", "pytest", "-q", *quoted]


def pytest(*arguments: str) -> Finding:
    """Run tests; the value is the number that passed."""
    return tests_of(sys.executable, "-m", "pytest", "-q", *arguments)


def tests_of(*command: str) -> Finding:
    """Run a command that runs pytest; the value is the number of tests that passed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    passed = re.search(r"(\d+) passed", lines[-1])
    return Finding(
        int(passed[1]) if passed else 0,
        "" if done.returncode == 0 else f"exit status {done.returncode}: {lines[-1]}",
        sound=done.returncode == 0,
    )


def passing(name: str, *arguments: str, slow: bool = False) -> Claim:
    """The claim that these tests pass."""
    return Claim(
        name,
        ">= 1",
        "tests passed, none failed",
        partial(pytest, *arguments),
        command=" ".join(pytest_command(*arguments)),
        slow=slow,
    )
