"""Checkpoints on disk: another process goes on, damage is noticed, the disk stays bounded."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.placement.planner import Planner
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime import checkpoints
from aegis_dask.runtime.checkpoints import Checkpoint, identity
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.serialization import Results
from aegis_dask.runtime.session import RunCancelledError
from tests.conftest import Log
from tests.runtime.programs import SLOTS, SlowFactory, chain

LAYERS, ROWS = 4, 4
PROGRAM = chain(4 * LAYERS, ROWS)
X = np.arange(ROWS * SLOTS).reshape(ROWS, SLOTS) % 7 + 0j
EXPECTED = run(PROGRAM, Simulated(), {"x": X}, {})["y"]
OPTIONS: dict[str, Any] = {"stage_work": [1.0] * len(PROGRAM.stages)}
PARAMS = Parameters.preset("insecure-n10-d40")


class Stopping:
    """An event that is set once a checkpoint knows of some groups: the run ends there."""

    def __init__(self, directory: Path, groups: int) -> None:
        self.index, self.groups = directory / "index.json", groups

    def is_set(self) -> bool:
        return self.index.exists() and json.loads(self.index.read_text())["groups"] >= self.groups


def stopped(tmp_path: Path, groups: int = 2) -> Path:
    """Run until some layers are finished, then cancel; return the checkpoint."""
    directory, log = tmp_path / "checkpoint", tmp_path / "log"
    log.write_text("")
    with Executor.local(2, 1, processes=False) as executor, pytest.raises(RunCancelledError):
        executor.run(
            PROGRAM,
            {"x": X},
            interpreter=SlowFactory(log, 0.05),
            checkpoint=directory,
            cancelled=Stopping(directory, groups),  # type: ignore[arg-type]
            **OPTIONS,
        )
    return directory


def finish(tmp_path: Path, directory: Path, x: Any = X, workers: int = 2) -> int:
    """Run to the end with a checkpoint; return the rotations that were done."""
    log = tmp_path / "log"
    log.write_text("")
    with Executor.local(workers, 1, processes=False) as executor:
        result = executor.run(
            PROGRAM,
            {"x": x},
            interpreter=SlowFactory(log, 0.05),
            checkpoint=directory,
            **OPTIONS,
        )
    expected = run(PROGRAM, Simulated(), {"x": x}, {})["y"]
    assert np.array_equal(result.outputs["y"], expected)
    assert not directory.exists()
    return len(log.read_text().split())


WHOLE = 4 * LAYERS * 2
"""Rotations of a run on two workers."""


def test_another_executor_goes_on_after_the_last_finished_layer(tmp_path: Path) -> None:
    directory = stopped(tmp_path)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in directory.iterdir())
    assert len(list(directory.glob("*.value"))) <= 4  # of the last finished layer, not of all
    assert finish(tmp_path, directory) <= WHOLE - 2 * 4 * 2


@pytest.mark.parametrize("workers", [1, 4])
def test_another_number_of_workers_goes_on_too(tmp_path: Path, workers: int) -> None:
    directory = stopped(tmp_path)
    parts = max(2, workers)  # of every stage
    assert finish(tmp_path, directory, workers=workers) <= (LAYERS - 2) * 4 * parts


def test_a_checkpoint_of_other_inputs_is_not_used(tmp_path: Path) -> None:
    directory = stopped(tmp_path)
    assert finish(tmp_path, directory, X + 1) == WHOLE


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, log: Log) -> None:
    directory = stopped(tmp_path)
    value = next(directory.glob("*.value"))
    data = bytearray(value.read_bytes())
    data[-1] ^= 1
    value.write_bytes(data)
    assert finish(tmp_path, directory) == WHOLE
    assert "is damaged: its SHA-256 is another" in log.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', "\x00"])
def test_a_malformed_index_is_not_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    found = Checkpoint.open(tmp_path, "r", None)
    assert (found.groups, found.values) == (0, {})


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    (directory / "folder").mkdir(parents=True)
    others = [directory / "thesis.tex", directory / "a.value", directory / "folder" / "data"]
    for file in others:
        file.write_text("mine")
    with Executor.local(2, 1, processes=False) as executor:
        executor.run(PROGRAM, {"x": X}, interpreter="simulated", checkpoint=directory, **OPTIONS)
    assert sorted(p for p in directory.rglob("*") if p.is_file()) == sorted(others)


def test_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    secret = KeyGenerator(PARAMS).secret_key()
    batch = Encryptor(PARAMS, secret).encrypt(np.zeros((4, SLOTS)))
    values = {3: CipherArray(batch, (2, 2)), 5: Results((CipherArray(batch[0], (1,)), X))}
    plan = Planner(PROGRAM, OPTIONS["stage_work"]).plan(2)
    written = Checkpoint.open(tmp_path / "c", "r", PARAMS)
    written.begin(plan, {7: CipherArray(batch, (4,))}, 0.25)
    written.update(2, values)
    found = Checkpoint.open(tmp_path / "c", "r", PARAMS)
    assert (found.plan, found.groups, found.share) == (plan, 2, 0.25)
    assert np.array_equal(found.known[7].batch.data, batch.data)
    assert found.values[3].shape == (2, 2)
    assert np.array_equal(found.values[3].batch.data, batch.data)
    assert isinstance(found.values[5], Results)
    assert np.array_equal(found.values[5][0].batch.data, batch[0].data)
    assert np.array_equal(found.values[5][1], X)
    assert Checkpoint.open(tmp_path / "c", "another", PARAMS).groups == 0


def test_a_full_disk_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    assert finish(tmp_path, tmp_path / "checkpoint") == WHOLE
    assert "the run goes on, but its checkpoint" in log.text
    assert "No space left" in log.text


def test_the_identity_tells_runs_apart() -> None:
    same = identity(PROGRAM, {"x": X})
    assert same == identity(chain(4 * LAYERS, ROWS), {"x": X.copy()})
    assert same != identity(chain(4 * LAYERS, ROWS + 1), {"x": X})
    assert same != identity(PROGRAM, {"x": X + 1})
    assert same != identity(PROGRAM, {"x": X}, "weights")
