"""A job on several devices of a machine, simulated: time, bytes and memory of each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aegis_dask.placement.devices import Machine
from aegis_dask.placement.predict import predict
from aegis_dask.placement.search import search
from aegis_dask.placement.simulate import Simulation
from aegis_dask.placement.traffic import Transfers
from aegis_dask.service.job import Job
from aegis_dask.service.summary import operator_of


@dataclass(frozen=True)
class Scaled:
    """A job on a number of devices.

    Attributes
    ----------
    devices
        How many.
    tasks
        Tasks of the plan.
    simulation, traffic
        When they would run, and what they would send.
    single
        Seconds on one device.
    replicated
        Stages that every device computes for itself.
    key_bytes, weight_bytes
        What every device holds beside ciphertexts: all keys and all weights.
    """

    devices: int
    tasks: int
    simulation: Simulation
    traffic: Transfers
    single: float
    replicated: tuple[str, ...]
    key_bytes: int
    weight_bytes: int

    @property
    def speedup(self) -> float:
        """Over one device, Dask included on both sides."""
        return self.single / self.simulation.makespan

    @property
    def efficiency(self) -> float:
        """`speedup` per device."""
        return self.speedup / self.devices

    @property
    def device_bytes(self) -> int:
        """Most bytes on a device at a time: results, keys, weights."""
        return max(self.simulation.peak_bytes) + self.key_bytes + self.weight_bytes

    @property
    def fits(self) -> bool:
        """Whether that is within the memory of a device."""
        return self.device_bytes <= self.simulation.machine.device.memory_bytes

    @property
    def operators(self) -> dict[str, int]:
        """Operator -> bytes that its results take between devices."""
        out: Counter[str] = Counter()
        for stage, size in self.traffic.stages.items():
            out[operator_of(stage)] += size
        return dict(out)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        s = self.simulation
        return {
            "devices": self.devices,
            "tasks": self.tasks,
            "seconds": s.makespan,
            "replicated_stages": list(self.replicated),
            "speedup": self.speedup,
            "efficiency": self.efficiency,
            "bytes_between_devices": self.traffic.between_workers,
            "bytes_by_operator": self.operators,
            "exposed_seconds": list(s.exposed),
            "busy_seconds": list(s.busy),
            "ciphertext_bytes": list(s.peak_bytes),
            "device_bytes": self.device_bytes,
            "fits": self.fits,
        }


def scale(job: Job, machine: Machine, devices: Sequence[int]) -> list[Scaled]:
    """Search for the best plan of a job for each number of devices."""
    program, analysis = job.program, job.analysis
    weights = sum(a.size * a.itemsize for a in job.model.tensors().values())
    single = None
    out = []
    for count in sorted({1, *devices}):
        found = search(program, count, analysis.stage_work, analysis.node_bytes, machine)
        plan, simulation = found.plan, found.simulation
        single = single or simulation.makespan
        out.append(
            Scaled(
                devices=count,
                tasks=sum(t.kind != "input" for t in plan.tasks),
                simulation=simulation,
                traffic=predict(program, plan, analysis.node_bytes),
                single=single,
                replicated=tuple(program.stages[i].name for i in sorted(found.replicated)),
                key_bytes=job.keys.nbytes,
                weight_bytes=weights,
            )
        )
    return out
