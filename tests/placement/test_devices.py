from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_dask.errors import ClusterError
from aegis_dask.placement.devices import MACHINES, load_machine, machine_from_dict


@pytest.mark.parametrize("name", MACHINES)
def test_machines_are_read_as_they_are_written(name: str, tmp_path: Path) -> None:
    machine = load_machine(name)
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(machine.to_dict()))
    assert load_machine(str(path)) == machine


def test_devices_of_one_node_have_the_link_inside() -> None:
    machine = MACHINES["a100-40-pcie"]  # four per node
    assert machine.link(0, 3) == machine.inside
    assert machine.link(3, 4) == machine.between


def test_what_is_no_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="there is no machine 'h900'; choose from cpu, h200"):
        load_machine("h900")
    with pytest.raises(ClusterError, match="cannot be read"):
        load_machine(str(tmp_path / "missing.json"))
    data = MACHINES["cpu"].to_dict()
    with pytest.raises(ClusterError, match="'device'"):
        machine_from_dict({k: v for k, v in data.items() if k != "device"})
    with pytest.raises(ClusterError, match=r"not a positive number up to 1e[+]18: device.speed"):
        machine_from_dict({**data, "device": {**data["device"], "speed": 0}})
