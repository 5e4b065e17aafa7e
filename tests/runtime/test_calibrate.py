"""This machine, measured for plans."""

from __future__ import annotations

import json
from pathlib import Path

from aegis_dask.placement.devices import load_machine
from tests.service.conftest import json_of, refused


def test_this_machine_is_measured_and_planned_for(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    found = json_of("bench", "--calibrate", path)
    machine = load_machine(str(path))
    assert machine.to_dict() == found["machine"] == json.loads(path.read_text())
    assert 0.1 < machine.device.speed < 100
    assert 1e-4 <= machine.hop_seconds < 0.1
    assert 1e7 < machine.inside.bytes_per_second < 1e11
    assert 1e8 < machine.device.bytes_per_second < 1e12
    message = refused("bench", "--calibrate", tmp_path / "here.toml")
    assert "does not end in .json" in message
