"""What a job would take, counted on symbols before anything is encrypted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aegis_dask.ckks.parameters import PRESETS, Parameters
from aegis_dask.errors import ParameterError
from aegis_dask.program.graph import Program
from aegis_dask.program.refresh import minimum_cut
from aegis_dask.program.symbolic import COUNTED, Cost, RequiredKeys, analyse
from aegis_dask.service.job import Job
from aegis_dask.service.summary import operator_of


@dataclass(frozen=True, eq=False)
class Estimate:
    """Counts of a program.

    Attributes
    ----------
    params
        With what it was counted: parameters that fit, or the largest secure ones, whose levels do
        not suffice.
    fits
        Whether the parameters have enough levels. If not, values are refreshed to the top level
        where an operation needs more than they have left, for the counts only.
    operators
        Operator -> counts, and ``ciphertexts`` that it gives to others.
    keys
        Evaluation keys.
    key_bytes, input_bytes, output_bytes, weight_bytes, live_bytes
        Sizes in memory: of all keys, of the ciphertexts that go in and come out, of the model's
        weights, and of the largest set of values that are needed at the same time.
    seconds
        Estimated time on one thread.
    depth
        Levels on the longest path.
    bootstraps
        How many refreshes a good placement takes if they give all levels back.
    total
        Counts of the whole program.
    """

    params: Parameters
    fits: bool
    operators: dict[str, Cost]
    keys: RequiredKeys
    key_bytes: int
    input_bytes: int
    output_bytes: int
    weight_bytes: int
    live_bytes: int
    seconds: float
    depth: int
    bootstraps: int
    total: Cost = field(default_factory=Cost)

    @property
    def memory_bytes(self) -> int:
        """Memory of one machine that runs everything."""
        return self.key_bytes + self.weight_bytes + self.live_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "depth": self.depth,
            "fits": self.fits,
            "least_bootstraps": self.bootstraps,
            "operators": [
                {"name": name, **_counts(cost), "seconds": round(cost.seconds, 3)}
                for name, cost in self.operators.items()
            ],
            "total": _counts(self.total),
            "one_thread_seconds": round(self.seconds, 3),
            "evaluation_keys": self.keys.count,
            "evaluation_key_bytes": self.key_bytes,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "weight_bytes": self.weight_bytes,
            "ciphertext_memory_bytes": self.live_bytes,
            "memory_bytes": self.memory_bytes,
        }


def _counts(cost: Cost) -> dict[str, int]:
    return {what: cost.counts.get(what, 0) for what in (*COUNTED, "levels")}


def largest_parameters(slots: int, scale_bits: int) -> Parameters:
    """Return the secure parameters with the most levels, to count with where none has enough.

    Raises
    ------
    ParameterError
        If there are none with so many slots and that scale.
    """
    presets = [p for p in PRESETS.values() if not p.insecure and p.scale_bits == scale_bits]
    if not presets:
        known = sorted({p.scale_bits for p in PRESETS.values() if not p.insecure})
        raise ParameterError(
            f"there are parameters with scale 2^b for b in {known}, not 2^{scale_bits}"
        )
    best = max(presets, key=lambda p: (p.log_n, len(p.level_bits)))
    if 1 << (best.log_n - 1) < slots:
        raise ParameterError(
            f"{slots} slots are needed, the largest secure ring has {1 << (best.log_n - 1)}"
        )
    return Parameters.preset(best.name)


def estimate(job: Job, params: Parameters) -> Estimate:
    """Count a job with parameters, whether or not they have enough levels."""
    program, fits = job.program, job.program.depth <= params.max_level
    analysis = analyse(program, params, refresh=not fits)
    operators: dict[str, Cost] = {}
    for stage in program.stages:
        name = operator_of(stage.name)
        cost = operators[name] = operators.get(name, Cost()) + analysis.stage_cost(stage)
        cost.counts["levels"] = max(cost.counts["levels"], _depth_of(program, stage.nodes))
    keys, sizes = analysis.keys, analysis.node_bytes
    other = max(keys.conjugation or 0, keys.relinearisation or 0)
    key_bytes = sum(params.key_bytes(level) for level in keys.rotations.values())
    key_bytes += (keys.count - len(keys.rotations)) * params.key_bytes(other)
    total = analysis.total
    total.counts["levels"] = program.depth
    return Estimate(
        params=params,
        fits=fits,
        operators=operators,
        keys=keys,
        key_bytes=key_bytes,
        input_bytes=sum(sizes[i] for i in program.inputs.values()),
        output_bytes=sum(sizes[i] for i in program.outputs.values()),
        weight_bytes=sum(a.size * a.itemsize for a in job.model.tensors().values()),
        live_bytes=_largest_live(program, sizes),
        seconds=total.seconds,
        depth=program.depth,
        bootstraps=0 if fits else minimum_cut(program, params.max_level).bootstraps,
        total=total,
    )


def _depth_of(program: Program, nodes: list[int]) -> int:
    """Return the levels on the longest path inside a stage."""
    inside = set(nodes)
    depth: dict[int, int] = {}
    for i in nodes:
        node = program.nodes[i]
        before = max((depth[j] for j in node.inputs if j in inside), default=0)
        depth[i] = before + node.op.depth
    return max(depth.values(), default=0)


def _largest_live(program: Program, sizes: list[int]) -> int:
    """Return the most bytes that are alive between stages, each stage run after the other."""
    end = len(program.stages)
    final = set(program.outputs.values())
    change: Counter[int] = Counter()
    for stage in program.stages:
        for i in program.results(stage):
            uses = [program.nodes[j].stage for j in program.consumers[i]]
            last = end if i in final else max(uses, default=stage.index)
            change[stage.index] += sizes[i]
            change[last + 1] -= sizes[i]
    largest = live = 0
    for index in sorted(change):
        live += change[index]
        largest = max(largest, live)
    return largest
