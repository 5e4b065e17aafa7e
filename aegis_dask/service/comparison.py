"""Strategies side by side: what each would send for one job, feed-forward and attention apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from aegis_dask.placement.devices import Machine
from aegis_dask.placement.limbs.rounds import Exchange
from aegis_dask.placement.limbs.volume import Scheme, paper, scheme_of, volumes
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.predict import predict
from aegis_dask.placement.search import plain, rotating, search
from aegis_dask.placement.simulate import simulate
from aegis_dask.placement.strategy import SHARD, Contiguous
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.symbolic import Analysis
from aegis_dask.service.job import Job
from aegis_dask.service.scaling import Scaled

FEED_FORWARD = re.compile(r"(layer\d+/)?(norm1/scale|feed-forward/.*|norm2/(?!scale).*)")
"""Stages whose results feed-forward networks take: what is sent counts for who takes it."""
ATTENTION = "attention"
FORWARD = "feed-forward"


@dataclass(frozen=True)
class Compared:
    """A strategy.

    Attributes
    ----------
    name
        Of the strategy.
    is_ours
        Whether it is one of this library's, or stands for another system's.
    sent
        ``attention`` and ``feed-forward`` (each with its inputs and the LayerNorm after it) ->
        bytes that devices send each other.
    seconds
        Simulated time; of limb-parallel ones the least that it can be, without waiting.
    counts
        Parts for which it stands for the other system; in the rest it does as we do.
    """

    name: str
    is_ours: bool
    sent: Mapping[str, int]
    seconds: float
    counts: frozenset[str] = frozenset((ATTENTION, FORWARD))

    @property
    def total(self) -> int:
        """Bytes of both."""
        return sum(self.sent.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "strategy": self.name,
            "ours": self.is_ours,
            "bytes": dict(self.sent),
            "total_bytes": self.total,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Comparison:
    """All strategies with one set of primes.

    Attributes
    ----------
    scheme
        Name of the primes.
    devices
        How many.
    strategies
        Others' first.
    """

    scheme: str
    devices: int
    strategies: tuple[Compared, ...]

    def strongest(self, part: str) -> Compared:
        """Return the one of the others that sends least for a part, of the AEGIS paper's kinds.

        Those are limb-parallel and replicating ones.
        """
        others = (s for s in self.strategies if not s.is_ours and s.name != COLUMNS)
        return min(others, key=lambda s: s.sent[part])

    def saved(self, part: str, ours: str, other: str | None = None) -> float:
        """Return the share of another strategy's bytes, the strongest's, that one of ours saves."""
        rows = {s.name: s for s in self.strategies}
        against = self.strongest(part) if other is None else rows[other]
        return 1 - rows[ours].sent[part] / against.sent[part]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "primes": self.scheme,
            "devices": self.devices,
            "strategies": [s.to_dict() for s in self.strategies],
        }


COLUMNS = "feed-forward by columns and rows"
FASTEST, FEWEST = "search: least time", "search: fewest bytes"
SLOWER = 1.05
"""Time that the plan with the fewest bytes may take, in that of the strongest other strategy."""


def schemes(analysis: Analysis) -> list[Scheme]:
    """Return our primes, and those of the AEGIS paper where the program refreshes."""
    out = [scheme_of(analysis.params)]
    if analysis.bootstrapping is not None:
        out.append(paper(analysis.bootstrapping.output_level))
    return out


def compare(job: Job, machine: Machine, devices: int, scheme: Scheme | None = None) -> Comparison:
    """Compare strategies for a job.

    Limb-parallel ones are counted, in all variants of `placement.limbs`, the last as Cinnamon would
    run it. *Replicated* is ciphertext-parallel:
    every device has every result of an operator. Its second variant computes rotations where they
    are used instead of sending them. *By columns and rows* is Megatron-LM's split of the
    feed-forward network; attention is as we do it, since heads share ciphertexts. The others are
    plans.

    Parameters
    ----------
    job, machine, devices
        What runs, and where.
    scheme
        Primes by which bytes are counted; those of the job by default.
    """
    analysis = job.analysis
    scheme = scheme_of(analysis.params) if scheme is None else scheme
    found = _Comparing(analysis, machine, devices, scheme)
    strategies = [
        found.limbs("limb-parallel: broadcast", "broadcast"),
        found.limbs("limb-parallel: input broadcast", "input-broadcast"),
        found.limbs("limb-parallel: output aggregation", "output-aggregation"),
        found.limbs("limb-parallel: the less of both", "cheapest"),
        found.replicated("ciphertexts replicated", frozenset()),
        found.replicated("ciphertexts replicated, not rotated ones", rotating(job.program, True)),
        found.columns(job.split_by_columns(devices)),
        found.planned("AEGIS: what is needed", found.plain()),
    ]
    fastest = found.planned(FASTEST, found.search())
    others = (s for s in strategies if not s.is_ours and s.name != COLUMNS)
    strongest = min(others, key=lambda s: s.total)
    frugal = found.planned(FEWEST, found.search(SLOWER * strongest.seconds))
    return Comparison(scheme.name, devices, (*strategies, fastest, frugal))


class _Comparing:
    def __init__(self, analysis: Analysis, machine: Machine, devices: int, scheme: Scheme) -> None:
        self.analysis, self.program = analysis, analysis.program
        self.machine, self.devices, self.scheme = machine, devices, scheme
        self.sizes = [
            prod(n.shape) * scheme.ciphertext_bytes(level, n.components)
            for n, level in zip(self.program.nodes, analysis.levels, strict=True)
        ]

    def limbs(self, name: str, exchange: Exchange) -> Compared:
        found = volumes(self.analysis, self.scheme, self.devices, exchange)
        work = sum(self.analysis.stage_work) / self.machine.device.speed
        link = self.machine.inside.bytes_per_second
        least = (work + sum(found.values()) / link) / self.devices
        return Compared(name, False, _by_part(found), least)

    def replicated(self, name: str, local: frozenset[int]) -> Compared:
        speed = self.machine.device.speed
        plan = make_plan(
            self.program,
            self.devices,
            self.analysis.stage_work,
            node_bytes=self.sizes,
            target_seconds=0.5 * speed,
            least_seconds=0.005 * speed,
            replicated=local,
            everywhere=True,
        )
        return self._compared(name, False, plan)

    def columns(self, split: Job) -> Compared:
        """Return the job whose feed-forward networks are in shards, one to a device."""
        found = _Comparing(split.analysis, self.machine, self.devices, self.scheme)
        program, speed = split.program, self.machine.device.speed
        local = {i for i in rotating(program, True) if not SHARD.search(program.stages[i].name)}
        bandwidth = self.machine.inside.bytes_per_second / speed
        hop = self.machine.hop_seconds * speed
        plan = make_plan(
            program,
            self.devices,
            split.analysis.stage_work,
            node_bytes=found.sizes,
            place=Contiguous(bandwidth, hop, self.devices),
            bandwidth=bandwidth,
            hop_seconds=hop,
            target_seconds=0.5 * speed,
            least_seconds=0.005 * speed,
            replicated=local,
        )
        return replace(found._compared(COLUMNS, False, plan), counts=frozenset((FORWARD,)))

    def plain(self) -> Plan:
        a = self.analysis
        return plain(self.program, self.devices, a.stage_work, self.sizes, self.machine)

    def search(self, within_seconds: float | None = None) -> Plan:
        a = self.analysis
        return search(
            self.program, self.devices, a.stage_work, self.sizes, self.machine, within_seconds
        ).plan

    def planned(self, name: str, plan: Plan) -> Compared:
        return self._compared(name, True, plan)

    def _compared(self, name: str, is_ours: bool, plan: Plan) -> Compared:
        traffic = predict(self.program, plan, self.sizes)
        seconds = simulate(self.program, plan, self.sizes, self.machine).makespan
        return Compared(name, is_ours, _by_part(traffic.stages), seconds)


def _by_part(stages: Mapping[str, int]) -> dict[str, int]:
    out = Counter({ATTENTION: 0, FORWARD: 0})
    for stage, size in stages.items():
        out[FORWARD if FEED_FORWARD.fullmatch(stage) else ATTENTION] += size
    return dict(out)


def explain(job: Job, scaled: Scaled, words: str) -> Sequence[str]:
    """Say for the stages whose names contain `words` where a plan puts them, and why."""
    program, analysis = job.program, job.analysis
    machine, devices = scaled.simulation.machine, scaled.devices
    bandwidth = machine.inside.bytes_per_second
    out = []
    for stage in program.stages:
        if words not in stage.name or not program.results(stage):
            continue
        seconds = analysis.stage_work[stage.index] / machine.device.speed
        size = sum(analysis.node_bytes[i] for i in program.results(stage))
        owners = {
            t.owner
            for t in scaled.plan.tasks
            for p in t.steps
            if p.task.stage == stage.index and p.task.kind != "pick"
        }
        moved = size * (devices - 1) / devices / bandwidth
        cost = f"{1e3 * seconds:.3g} ms of work, results of {size / 1e9:.3g} GB"
        if stage.name in scaled.replicated:
            why = (
                f"every device computes all of it ({cost}): to be sent the rest would take each "
                f"{1e3 * moved:.3g} ms on {machine.inside.name}, to compute it takes "
                f"{1e3 * seconds * (devices - 1) / devices:.3g} ms"
            )
        elif len(owners) > 1:
            why = (
                f"cut over its {stage.over} rows on {len(owners)} devices ({cost}); rows stay "
                "where those that they are made of are"
            )
        else:
            why = (
                f"on device {min(owners, default=0)} as a whole ({cost}): where it can begin "
                "first, its arguments and earlier work considered"
            )
            if stage.over:
                why += f"; cut into {devices} it would be shorter than tasks should be"
        out.append(f"{stage.name}: {why}.")
    return out
