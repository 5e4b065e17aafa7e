"""Tasks of a schedule by limbs: one for each round and device, and what they send each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from aegis_dask.errors import ClusterError
from aegis_dask.placement.limbs.record import Recording
from aegis_dask.placement.limbs.rounds import LIMB_BYTES, Exchange, Round, Schedule, schedule
from aegis_dask.placement.limbs.shard import Shard, State
from aegis_dask.placement.limbs.trace import View
from aegis_dask.placement.limbs.work import seconds
from aegis_dask.placement.tasks import Kind, Plan, Task
from aegis_dask.ring.backend import Array

CONSTANT_BYTES = 1 << 30
"""Most plaintexts that a program by limbs may carry: it is sent to every worker as a whole."""


@dataclass(frozen=True)
class LimbProgram:
    """What a worker must know to run its part.

    Attributes
    ----------
    schedule
        Rounds.
    inputs
        Node -> buffer.
    outputs
        Node -> view.
    """

    schedule: Schedule
    inputs: dict[int, int]
    outputs: dict[int, View]

    def positions(self, node: int) -> list[list[int]]:
        """Return where the limbs of every device are among those of an output."""
        s, view = self.schedule, self.outputs[node]
        limbs = s.limbs_of(view)
        return [s.positions(limbs, d) for d in range(s.devices)]

    def compute(self, task: Task, inputs: Sequence[Any], shard: Shard) -> Any:
        """Return what a task gives: a `State`, limbs for the others, or limbs of an output.

        Limbs of inputs and outputs are on the host.
        """
        ring = shard.ring
        if task.kind == "limbs":
            shard.state = inputs[0]
            (node,) = task.results
            view = self.outputs[node]
            limbs = self.schedule.limbs_of(view)
            return ring.to_host(shard.rows(view, self.schedule.owned(limbs, shard.device)))
        current = self.schedule.rounds[task.round]
        if task.kind == "share" and task.to >= 0:
            return shard.outgoing_to(current, inputs[0], task.stage, task.to)
        if task.kind == "share":
            return shard.outgoing(current, inputs[0], task.stage)
        if task.round == 0:
            state = State()
            for node, value in zip(task.results, inputs, strict=True):
                state[self.inputs[node]] = ring.from_host(value)
        else:
            state = inputs[0]
            before = self.schedule.rounds[task.round - 1]
            count = len(stages_of(before)) * self.schedule.devices
            received = self._received(before, inputs[1 : 1 + count])
            addends = self._addends(before, inputs[1 + count :], shard.device)
            shard.accept(before, state, received, addends)
        return shard.run(current, state)

    def _received(self, before: Round, shares: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Return what every device sent, in the order of the gathers."""
        devices = self.schedule.devices
        stages = stages_of(before)
        out = []
        for device in range(devices):
            parts = {stage: iter(shares[k * devices + device]) for k, stage in enumerate(stages)}
            out.append([next(parts[g.stage]) for g in before.gathers])
        return out

    def _addends(
        self, before: Round, shares: Sequence[Sequence[Array]], device: int
    ) -> list[list[Array]]:
        """Return what every other sender sent, in the order of the reductions."""
        keys = senders_to(before, device)
        parts = {key: iter(share) for key, share in zip(keys, shares, strict=True)}
        return [
            [next(parts[r.stage, d]) for d in sorted(r.senders - {device})]
            for r in before.reductions
        ]


def senders_to(round_: Round, device: int) -> list[tuple[int, int]]:
    """Return the stages for which a round sends addends to a device, and from where."""
    return sorted({(r.stage, d) for r in round_.reductions for d in r.senders - {device}})


def stages_of(round_: Round) -> list[int]:
    """Return the stages for which a round sends something."""
    return sorted({g.stage for g in round_.gathers})


def plan_by_limbs(
    recording: Recording, devices: int, exchange: Exchange
) -> tuple[Plan, LimbProgram]:
    """Return the tasks of a program divided by limbs, and what its workers must know.

    Raises
    ------
    ClusterError
        If there is no such exchange, or the plaintexts of the program are too large to be sent.
    """
    size = recording.constant_bytes
    if size > CONSTANT_BYTES:
        raise ClusterError(
            f"the plaintexts of the program take {size / 1e9:.1f} GB; divided by limbs it is sent "
            f"to every worker with them, up to {CONSTANT_BYTES / 1e9:.1f} GB. Use a smaller model"
        )
    program = recording.program
    views = {program.outputs[name]: recording.output_view(name) for name in recording.outputs}
    keep = [v.buffer for v in views.values()]
    plan = schedule(
        recording.params.chain, recording.buffers, recording.instructions, devices, exchange, keep
    )
    inputs = {program.inputs[name]: recording.input_buffer(name) for name in recording.inputs}
    known = LimbProgram(plan, inputs, views)
    return _Tasks(recording, known).run(), known


class _Tasks:
    def __init__(self, recording: Recording, known: LimbProgram) -> None:
        self.program, self.known, self.schedule = recording.program, known, known.schedule
        self.tasks: list[Task] = []

    def emit(self, kind: Kind, stage: int, sources: Sequence[int], owner: int, **more: Any) -> int:
        index = len(self.tasks)
        results = more.pop("results", ())
        self.tasks.append(
            Task(index, kind, stage, None, tuple(sources), (), results, owner, index, **more)
        )
        return index

    def run(self) -> Plan:
        s, devices = self.schedule, range(self.schedule.devices)
        nodes = tuple(self.known.inputs)
        last: list[list[int]] = []
        for d in devices:
            last.append([])
            for node in nodes:
                buffer = self.known.inputs[node]
                rows = tuple(s.positions(s.limbs(buffer), d))
                stage = self.program.nodes[node].stage
                size = self.bytes(buffer, len(rows))
                more = {"results": (node,), "limbs": rows, "payload": size}
                last[d].append(self.emit("input", stage, (), d, **more))
        alive = set(self.known.inputs.values())
        shares: list[int] = []
        addends: list[list[int]] = [[] for _ in devices]
        for number, current in enumerate(s.rounds):
            stage = current.steps[0].instruction.stage if current.steps else 0
            alive |= {g for step in current.steps for g in step.gathered if g is not None}
            alive |= {
                step.instruction.out for step in current.steps if step.instruction.out is not None
            }
            if number:
                alive |= {r.buffer for r in s.rounds[number - 1].reductions}
            alive -= set(current.dropped)
            for d in devices:
                work = sum(seconds(s, step, d) for step in current.steps)
                held = sum(s.nbytes(b, d) for b in alive)
                more = {"seconds": work, "round": number, "payload": held}
                results = nodes if number == 0 else ()
                sources = [*last[d], *shares, *addends[d]]
                last[d] = [self.emit("round", stage, sources, d, results=results, **more)]
            shares = []
            for stage in stages_of(current):
                for d in devices:
                    sent = [s.sent(g, d) for g in current.gathers if g.stage == stage]
                    more = {"round": number, "payload": sum(sent)}
                    shares.append(self.emit("share", stage, last[d], d, **more))
            addends = [[] for _ in devices]
            for to in devices:
                for stage, d in senders_to(current, to):
                    sizes = [
                        s.sent_to(r, to)
                        for r in current.reductions
                        if r.stage == stage and d in r.senders
                    ]
                    more = {"round": number, "payload": sum(sizes), "to": to}
                    addends[to].append(self.emit("share", stage, last[d], d, **more))
        outputs: dict[str, tuple[int, ...]] = {}
        for name, node in self.program.outputs.items():
            view = self.known.outputs[node]
            if view.buffer in self.known.inputs.values():
                continue  # an input: the caller has it
            pieces = []
            for d in devices:
                size = self.bytes(view.buffer, len(s.owned(s.limbs(view.buffer), d)))
                stage = self.program.nodes[node].stage
                more = {"results": (node,), "payload": size}
                pieces.append(self.emit("limbs", stage, last[d], d, **more))
            outputs[name] = tuple(pieces)
        return Plan(self.tasks, outputs, s.devices)

    def bytes(self, buffer: int, limbs: int) -> int:
        """Return the bytes of so many limbs of a buffer."""
        b = self.schedule.buffers[buffer]
        return prod(b.shape) // max(1, b.shape[b.axis]) * limbs * LIMB_BYTES
