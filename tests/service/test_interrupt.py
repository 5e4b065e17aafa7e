"""Ctrl-C in the middle of a run."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aegis_dask.cli.command import repeat_lost_interrupts
from tests.service.conftest import TEXT
from tests.service.memory import descendants

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="needs /proc to see which processes are left"
)
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_a_run_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, ended_by: signal.Signals
) -> None:
    """A terminal sends SIGINT to all processes, workers included; others end the command alone."""
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "aegis_dask.cli", "run", "bert_layer", "--insecure"),
            *("--model", checkpoint, "--text", TEXT),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        text=True,
        start_new_session=True,
    )
    try:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("Dashboard"):  # workers are there, keys are being made
                break
        time.sleep(3)
        assert run.poll() is None
        processes = descendants(run.pid)
        assert len(processes) >= 3
        assert any(tmp_path.glob("aegis-*"))
        if ended_by == signal.SIGINT:
            os.killpg(run.pid, ended_by)
        else:
            run.send_signal(ended_by)
        _, errors = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert run.returncode == 128 + ended_by, errors
    assert "Interrupted." in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 10
    while left := [p for p in processes if Path(f"/proc/{p}").exists()]:
        assert time.monotonic() < deadline, f"processes {left} are left"
        time.sleep(0.1)
    assert not any(tmp_path.glob("aegis-*"))


def test_an_interrupt_in_a_callback_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", repeat_lost_interrupts)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(phase: str, info: object) -> None:
        gc.callbacks.remove(interrupted)
        raise KeyboardInterrupt

    def collect_and_wait() -> None:
        gc.collect()  # the exception is ignored
        time.sleep(10)

    gc.callbacks.append(interrupted)
    try:
        # Both inside: on a busy machine the second interrupt may come before the sleep.
        with pytest.raises(KeyboardInterrupt):
            collect_and_wait()
    finally:
        signal.signal(signal.SIGINT, handler)
