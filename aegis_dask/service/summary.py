"""What a run took and how exact it was, as plain data: for tables, JSON and reports."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

from aegis_dask.circuits.operators import operator_of
from aegis_dask.ckks.bootstrapping.parameters import AnyParameters, scheme_of
from aegis_dask.ckks.precision import PrecisionStats
from aegis_dask.ckks.security import SECURITY_BITS
from aegis_dask.placement.traffic import CLIENT
from aegis_dask.program.refresh import Placement
from aegis_dask.runtime.result import Operator, Result
from aegis_dask.service.job import Job
from aegis_dask.service.local import Outcome


def group_stages(result: Result) -> dict[str, Operator]:
    """Return tasks and seconds per operator, over all layers, in the order of the program."""
    calls: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for stage, measured in result.stages.items():
        name = operator_of(stage)
        calls[name] += measured.calls
        seconds[name] += measured.seconds
    return {name: Operator(calls[name], seconds[name]) for name in calls}


def describe_parameters(given: AnyParameters) -> dict[str, Any]:
    """Return JSON-ready figures of parameters."""
    params = scheme_of(given)
    return {
        "name": params.name,
        "ring_degree": params.ring_degree,
        "slots": params.slots,
        "levels": params.max_level,
        "scale_bits": params.literal.scale_bits,
        "log2_qp": round(params.log2_key_modulus, 1),
        "security_bits": SECURITY_BITS if given.is_secure else None,
    }


def describe_job(job: Job, length: int) -> dict[str, Any]:
    """Return JSON-ready figures of a job and a text."""
    out: dict[str, Any] = {
        "graph": job.graph.name,
        "model": job.model.name,
        "layers": len(job.layers),
        "tokens": length,
        "positions": job.packing.tokens,
        "depth": job.depth,
    }
    if job.params is not None:
        out["parameters"] = describe_parameters(job.parameters)
        out["bootstrapping"] = None if job.placement is None else _describe_placement(job.placement)
    return out


def _describe_placement(placement: Placement) -> dict[str, Any]:
    """Return JSON-ready figures of where a program refreshes."""
    budget = placement.budget
    return {
        "bootstraps": placement.bootstraps,
        "sites": len(placement.sites),
        "input_level": budget.input_level,
        "output_level": budget.output_level,
        "usable_levels": budget.output_level - budget.input_level,
    }


def describe_precision(stats: PrecisionStats) -> dict[str, float | None]:
    """Return JSON-ready figures of a precision."""
    return {
        "max_error": stats.max_error,
        "worst_bits": _finite(stats.worst),
        "mean_bits": _finite(stats.mean),
    }


def _finite(bits: float) -> float | None:
    """Return None for an exact result, which JSON has no number for."""
    return round(bits, 2) if math.isfinite(bits) else None


def describe_result(result: Result) -> dict[str, Any]:
    """Return JSON-ready measurements of a cluster."""
    pairs = {
        f"{_place(a)} -> {_place(b)}": count for (a, b), count in result.transfers.pairs.items()
    }
    return {
        "seconds": round(result.seconds, 3),
        "tasks": result.tasks,
        "operators": [
            {"name": name, "tasks": o.calls, "seconds": round(o.seconds, 3)}
            for name, o in group_stages(result).items()
        ],
        "bytes": dict(sorted(pairs.items())),
        "bytes_between_workers": result.transfers.between_workers,
        "scheduling_share": round(result.scheduling_share, 4),
        "workers": [
            {
                "address": w.address,
                "tasks": w.tasks,
                "busy_seconds": round(w.busy_seconds, 3),
                "peak_memory_bytes": w.peak_memory,
                "device_memory_bytes": w.device_memory,
            }
            for w in result.workers
        ],
        "resumed": result.resumed,
        "dashboard": result.dashboard,
    }


def _place(worker: int) -> str:
    return "client" if worker == CLIENT else f"worker {worker}"


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """Return JSON-ready figures of a run."""
    prepared = outcome.prepared
    against = "simulated" if prepared.reference is None else "float64"
    return {
        **describe_job(prepared.job, len(prepared.x)),
        "interpreter": outcome.interpreter,
        "evaluation_keys": outcome.keys,
        "evaluation_key_bytes": outcome.key_bytes,
        "step_seconds": {step: round(s, 3) for step, s in outcome.seconds.items()},
        "run": describe_result(outcome.result),
        "precision": {"against": against, **describe_precision(outcome.precision)},
    }


def report_precision(outcome: Outcome) -> dict[str, object]:
    """Return what a report says of the precision."""
    stats, noise = outcome.precision, outcome.circuit_precision
    against = (
        "the simulated program" if outcome.prepared.reference is None else "the model in float64"
    )
    return {
        "compared with": against,
        "largest error": f"{stats.max_error:.2e}",
        "bits, worst value": f"{stats.worst:.1f}",
        "bits, mean error": f"{stats.mean:.1f}",
        "largest error against the same circuit without encryption": f"{noise.max_error:.2e}",
    }
