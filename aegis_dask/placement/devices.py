"""Devices, links, and machines made of them: what a plan is priced for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aegis_dask.ckks.strict_json import read_object
from aegis_dask.errors import ClusterError, SerializationError

MAX_NAME = 64
MAX_FILE = 1 << 16
"""Bytes of a file that describes a machine."""


@dataclass(frozen=True)
class Device:
    """A worker's device.

    Attributes
    ----------
    name
        For tables.
    memory_bytes
        What it can hold.
    speed
        Work per second, in seconds of one thread of the CPU that the estimates of
        `program.symbolic` were calibrated on.
    bytes_per_second
        Memory bandwidth: the price of sums, joins and copies between tasks.
    """

    name: str
    memory_bytes: int
    speed: float
    bytes_per_second: float


@dataclass(frozen=True)
class Link:
    """A connection of one device to the others of a kind, in each direction.

    Attributes
    ----------
    name
        For tables.
    bytes_per_second
        Bandwidth of one device in one direction.
    latency_seconds
        Before the first byte.
    """

    name: str
    bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True)
class Machine:
    """Devices of one kind in nodes of one size.

    Attributes
    ----------
    device
        Every device.
    per_node
        Devices of a node.
    inside, between
        Links within a node and between nodes.
    task_seconds
        What a task costs beside its work: Dask's scheduling on the worker.
    hop_seconds
        From the end of a task to the start of one that waited for it, through the scheduler; the
        latency of the link comes on top where it runs on another worker. Measured on two cores
        with tasks of 10 to 30 ms: 2.3 to 3.3 ms on one worker, 4.2 to 4.9 ms across two.
    """

    device: Device
    per_node: int
    inside: Link
    between: Link
    task_seconds: float = 0.001
    hop_seconds: float = 0.003

    def link(self, a: int, b: int) -> Link:
        """Return the link between two devices."""
        return self.inside if a // self.per_node == b // self.per_node else self.between

    def to_dict(self) -> dict[str, Any]:
        """Return what `machine_from_dict` reads."""
        return asdict(self)


def machine_from_dict(data: Mapping[str, Any]) -> Machine:
    """Return the machine that `Machine.to_dict` describes.

    Raises
    ------
    ClusterError
        If fields are missing, unknown, or not numbers that make sense.
    """
    try:
        machine = Machine(
            **{
                **data,
                "device": Device(**data["device"]),
                "inside": Link(**data["inside"]),
                "between": Link(**data["between"]),
            }
        )
    except (KeyError, TypeError) as e:
        raise ClusterError(
            f"the description of the machine is wrong: {e}; it has the fields of Machine, Device "
            "and Link"
        ) from e
    _check(machine)
    return machine


LEAST, MOST = 1e-12, 1e18
"""What a positive number of a description is between."""


def _check(machine: Machine) -> None:
    device, inside, between = machine.device, machine.inside, machine.between
    positive = {
        "device.memory_bytes": device.memory_bytes,
        "device.speed": device.speed,
        "device.bytes_per_second": device.bytes_per_second,
        "per_node": machine.per_node,
        "inside.bytes_per_second": inside.bytes_per_second,
        "between.bytes_per_second": between.bytes_per_second,
    }
    times = {
        "inside.latency_seconds": inside.latency_seconds,
        "between.latency_seconds": between.latency_seconds,
        "task_seconds": machine.task_seconds,
        "hop_seconds": machine.hop_seconds,
    }
    names = {"device.name": device.name, "inside.name": inside.name, "between.name": between.name}
    problems = {
        f"not a positive number up to {MOST:g}": [
            name for name, value in positive.items() if not _is_number(value, LEAST)
        ],
        f"not a number from 0 to {MOST:g}": [
            name for name, value in times.items() if not _is_number(value, 0)
        ],
        f"not a printable name of at most {MAX_NAME} characters": [
            name
            for name, value in names.items()
            if not (isinstance(value, str) and value.isprintable() and len(value) <= MAX_NAME)
        ],
        "not an integer": [] if isinstance(machine.per_node, int) else ["per_node"],
    }
    wrong = [f"{problem}: {', '.join(found)}" for problem, found in problems.items() if found]
    if wrong:
        raise ClusterError(f"the description of the machine is wrong: {'; '.join(wrong)}")


def _is_number(value: object, low: float) -> bool:
    return type(value) in (int, float) and low <= value <= MOST  # type: ignore[operator]


GIB = 1 << 30
_LINKS = {
    # Bandwidths per device and direction: data sheets. Latencies: a Dask worker's, measured on
    # loopback; no device link is slower to begin than the event loop that asks for the data.
    "nvlink": Link("NVLink 4", 450e9, 5e-4),
    "nvlink-a100": Link("NVLink 3", 300e9, 5e-4),
    "pcie": Link("PCIe 4.0 x16", 25e9, 5e-4),
    "infiniband": Link("InfiniBand NDR", 50e9, 5e-4),
    "ethernet-10": Link("Ethernet 10 Gbit/s", 1.25e9, 1e-3),
    "ethernet": Link("Ethernet 1 Gbit/s", 125e6, 1e-3),
    # Both directions at once, with two cores that also serialise (aegis bench --calibrate).
    "loopback": Link("TCP on one host", 0.4e9, 2e-3),
}
GPU_SPEED = 200.0
"""Of a GPU of which nothing else is known, beside a thread of a CPU: to cut runs into tasks."""
_DEVICES = {
    "cpu": Device("a CPU thread", 8 * GIB, 1.0, 8e9),
    # Never measured: the memory traffic of a key switch at the copy bandwidth, over the time of one
    # CPU thread. Half of that is assumed to be reached.
    "h200": Device("H200 (estimated)", 139 * GIB, 215.0, 4.0e12),
    "a100-80": Device("A100 80 GB (estimated)", 79 * GIB, 85.0, 1.6e12),
    "a100-40": Device("A100 40 GB (estimated)", 39 * GIB, 70.0, 1.3e12),
}
MACHINES: Mapping[str, Machine] = {
    "cpu": Machine(_DEVICES["cpu"], 64, _LINKS["loopback"], _LINKS["ethernet"]),
    "h200-nvlink": Machine(_DEVICES["h200"], 8, _LINKS["nvlink"], _LINKS["infiniband"]),
    "h200-pcie": Machine(_DEVICES["h200"], 8, _LINKS["pcie"], _LINKS["infiniband"]),
    "h200-ethernet": Machine(_DEVICES["h200"], 8, _LINKS["ethernet-10"], _LINKS["ethernet-10"]),
    "a100-80-nvlink": Machine(_DEVICES["a100-80"], 8, _LINKS["nvlink-a100"], _LINKS["infiniband"]),
    "a100-40-nvlink": Machine(_DEVICES["a100-40"], 4, _LINKS["nvlink-a100"], _LINKS["infiniband"]),
    "a100-40-pcie": Machine(_DEVICES["a100-40"], 4, _LINKS["pcie"], _LINKS["infiniband"]),
}
"""Machines by name."""


def load_machine(name: str) -> Machine:
    """Return a machine by name, or from a JSON file.

    Raises
    ------
    ClusterError
        If there is neither, or the file is wrong.
    """
    if name in MACHINES:
        return MACHINES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise ClusterError(
            f"there is no machine {name!r}; choose from {', '.join(MACHINES)}, or give a .json file"
        )
    try:
        data = read_object(path, MAX_FILE, floats=True)
    except (OSError, SerializationError) as e:
        raise ClusterError(f"{path} cannot be read as the description of a machine: {e}") from e
    return machine_from_dict(data)
