"""A job on several devices of a machine, simulated: time, bytes and memory of each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aegis_dask.circuits.operators import operator_of
from aegis_dask.placement.devices import Machine
from aegis_dask.placement.predict import predict
from aegis_dask.placement.search import search
from aegis_dask.placement.simulate import Simulation
from aegis_dask.placement.tasks import Plan
from aegis_dask.placement.traffic import Transfers, format_bytes
from aegis_dask.service.job import Job
from aegis_dask.service.keys import keys_by_worker


@dataclass(frozen=True)
class Scaled:
    """A job on a number of devices.

    Attributes
    ----------
    devices
        How many.
    tasks
        Tasks of the plan.
    plan, simulation, traffic
        The plan, when its tasks would run, and what they would send.
    single
        Seconds on one device.
    replicated
        Stages that every device computes for itself.
    peak_stages
        Of every device, the stage after which it holds the most.
    key_bytes
        All evaluation keys.
    key_bytes_by_device
        The keys of what each device does, which are those that it must hold.
    weight_bytes
        All weights, which every device holds.
    """

    devices: int
    tasks: int
    plan: Plan
    simulation: Simulation
    traffic: Transfers
    single: float
    replicated: tuple[str, ...]
    peak_stages: tuple[str, ...]
    key_bytes: int
    key_bytes_by_device: tuple[int, ...]
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
        """Most bytes on a device at a time: results, all keys, weights."""
        return max(self.simulation.peak_bytes) + self.key_bytes + self.weight_bytes

    @property
    def needed_bytes(self) -> int:
        """The same with the keys that a device needs instead of all."""
        held = zip(self.simulation.peak_bytes, self.key_bytes_by_device, strict=True)
        return max(results + keys for results, keys in held) + self.weight_bytes

    @property
    def ciphertext_bytes(self) -> int:
        """The same without keys and weights."""
        return max(self.simulation.peak_bytes)

    @property
    def fits(self) -> bool:
        """Whether that is within the memory of a device."""
        return self.device_bytes <= self.simulation.machine.device.memory_bytes

    def shortage(self) -> str:
        """Say why it does not fit and what would help, or nothing if it does."""
        if self.fits:
            return ""
        device = self.simulation.machine.device
        fixed = self.key_bytes + self.weight_bytes
        worst = max(range(self.devices), key=lambda d: self.simulation.peak_bytes[d])
        held = self.simulation.peak_bytes[worst]
        where = "1 device" if self.devices == 1 else f"{self.devices} devices"
        text = (
            f"On {where} it does not fit: {device.name} has "
            f"{format_bytes(device.memory_bytes)}, {format_bytes(self.device_bytes)} are needed. "
            f"Evaluation keys take {format_bytes(self.key_bytes)}, weights "
            f"{format_bytes(self.weight_bytes)}, ciphertexts up to {format_bytes(held)}, when "
            f"{self.peak_stages[worst]} has ended. "
        )
        if fixed > device.memory_bytes:
            return text + (
                "Keys and weights alone are too much, whatever the number of devices: take devices "
                "with more memory"
            )
        return text + "Take more devices, devices with more memory, or shorter texts"

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
            "key_bytes": list(self.key_bytes_by_device),
            "device_bytes": self.device_bytes,
            "needed_bytes": self.needed_bytes,
            "fits": self.fits,
            "shortage": self.shortage(),
        }


def scale(job: Job, machine: Machine, devices: Sequence[int]) -> list[Scaled]:
    """Search for the best plan of a job for each number of devices."""
    program, analysis = job.program, job.analysis
    weights = sum(a.size * a.itemsize for a in job.model.tensors().values())
    single = None
    out = []
    for count in sorted({1, *devices}):
        found = search(
            program,
            count,
            analysis.stage_work,
            analysis.node_bytes,
            machine,
            reserved_bytes=job.keys.nbytes + weights,
        )
        plan, simulation = found.plan, found.simulation
        single = single or simulation.makespan
        out.append(
            Scaled(
                devices=count,
                tasks=sum(t.kind != "input" for t in plan.tasks),
                plan=plan,
                simulation=simulation,
                traffic=predict(program, plan, analysis.node_bytes),
                single=single,
                replicated=tuple(program.stages[i].name for i in sorted(found.replicated)),
                peak_stages=tuple(
                    program.stages[plan.tasks[i].stage].name for i in simulation.peak_tasks
                ),
                key_bytes=job.keys.nbytes,
                key_bytes_by_device=tuple(k.nbytes for k in keys_by_worker(analysis, plan)),
                weight_bytes=weights,
            )
        )
    return out
