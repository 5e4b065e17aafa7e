"""Measurements behind the claims of `benchmarks.claims.placement`."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import Any

import numpy as np

from aegis_dask.models.calibration import calibrate
from aegis_dask.models.checkpoint import load_minilm, named_config, shape_only
from aegis_dask.models.corpus import passages, sentences
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.programs import INPUT, OUTPUT
from aegis_dask.models.text import Tokenizer
from aegis_dask.placement.devices import MACHINES, Link
from aegis_dask.placement.simulate import simulate
from aegis_dask.placement.tasks import Plan, Task
from aegis_dask.runtime.executor import Executor
from aegis_dask.service import local
from aegis_dask.service.client import Client
from aegis_dask.service.comparison import COLUMNS, FASTEST, FEWEST, Comparison, compare, schemes
from aegis_dask.service.job import Job, make_job
from aegis_dask.service.scaling import Scaled, scale
from aegis_dask.service.sources import assumed_calibration, cut, first_layers
from benchmarks.claims import Finding
from benchmarks.claims._throttled import GIGABIT, Throttle

TOKENS = 2048
SHORT = 32


def _job(graph_name: str, layers: int | None = None) -> Job:
    """Return a job on BERT-base at 2,048 tokens."""
    graph = load_graph(graph_name)
    shape = shape_only(named_config("bert-base", TOKENS))
    model = first_layers(shape, graph.layers if layers is None else layers)
    return make_job(model, assumed_calibration(model), graph, TOKENS)


@lru_cache
def scaled(machine: str) -> dict[int, Scaled]:
    """Return a layer on 1, 4, 8 and 16 devices of a machine."""
    return {s.devices: s for s in scale(_job("bert_layer"), MACHINES[machine], [1, 4, 8, 16])}


def efficiency(machine: str, devices: int) -> Finding:
    """Simulated speed-up over one device, per device."""
    rows = scaled(machine)
    curve = ", ".join(f"{n}: {s.efficiency:.1%}" for n, s in rows.items())
    return Finding(round(rows[devices].efficiency, 4), f"simulated, speeds estimated; {curve}")


def speedup(machine: str, devices: int) -> Finding:
    """Simulated speed-up over one device."""
    return Finding(round(scaled(machine)[devices].speedup, 3), "simulated, speeds estimated")


def memory_saved(machine: str, devices: int) -> Finding:
    """Share of one device's memory that each of several does without, the keys that it needs in."""
    rows = scaled(machine)
    one, several = rows[1], rows[devices]
    keys = max(several.key_bytes_by_device)
    note = (
        f"{several.needed_bytes / 1e9:.1f} of {one.device_bytes / 1e9:.1f} GB; keys "
        f"{keys / 1e9:.1f} of {one.key_bytes / 1e9:.1f} GB; with all keys "
        f"{1 - several.device_bytes / one.device_bytes:.1%}, without any "
        f"{1 - several.ciphertext_bytes / one.ciphertext_bytes:.1%}"
    )
    return Finding(round(1 - several.needed_bytes / one.device_bytes, 4), note)


@lru_cache
def comparisons() -> list[Comparison]:
    """Compare strategies for a layer on four devices on PCIe, with our primes and the paper's."""
    job = _job("bert_layer")
    return [compare(job, MACHINES["h200-pcie"], 4, s) for s in schemes(job.analysis)]


def saved(part: str) -> Finding:
    """Share of the strongest other strategy's bytes that ours saves, of both sets of primes."""
    found, notes = [], []
    for c in comparisons():
        found.append(c.saved(part, FEWEST))
        (ours,) = (s for s in c.strategies if s.name == FEWEST)
        other = c.strongest(part)
        notes.append(
            f"{c.scheme}: {ours.sent[part] / 1e9:.2f} GB in {ours.seconds:.2f} s against "
            f"{other.sent[part] / 1e9:.2f} GB in {other.seconds:.2f} s ({other.name})"
        )
    return Finding(round(min(found), 4), "; ".join(notes))


def saved_by_columns() -> Finding:
    """Share of the bytes of a feed-forward network in shards that ours saves, of both primes."""
    found = [c.saved("feed-forward", FEWEST, COLUMNS) for c in comparisons()]
    notes = [f"{c.scheme}: {s:.1%}" for c, s in zip(comparisons(), found, strict=True)]
    return Finding(round(min(found), 4), "; ".join(notes))


def never_worse() -> Finding:
    """How many strategies are simulated to be faster than the search, of both sets of primes."""
    faster = 0
    for c in comparisons():
        (ours,) = (s for s in c.strategies if s.name == FASTEST)
        faster += sum(s.seconds < ours.seconds for s in c.strategies)
    return Finding(faster, "strategies faster than the search")


@lru_cache
def planned() -> tuple[float, float]:
    """Return seconds and GiB for planning twelve layers on eight devices."""
    begin = time.perf_counter()
    job = _job("bert_model", 12)
    scale(job, MACHINES["h200-nvlink"], [8])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return time.perf_counter() - begin, peak / 2**30


def planning_seconds() -> Finding:
    """Return the seconds."""
    return Finding(round(planned()[0], 1), "job, refreshes, search and simulation included")


def planning_memory() -> Finding:
    """Return the memory."""
    return Finding(round(planned()[1], 2), "peak of the process")


@dataclass(frozen=True)
class TwoWorkers:
    """A layer on one and on two workers of one thread: seconds of every run, and as simulated."""

    one: list[float]
    two: list[float]
    simulated: float


LAYER_TOKENS = 128


@lru_cache
def two_workers() -> TwoWorkers:
    """Run a MiniLM layer on one and on two workers of one thread, and simulate the latter.

    On a small ring (no security), where nothing is refreshed: at 128 bits four bootstraps of single
    ciphertexts, one after the other, are a third of the work. What is simulated is the plan that
    runs, with the work of every stage as measured on one worker.
    """
    job, keys, x = _small(LAYER_TOKENS)
    assert job.params is not None
    machine = MACHINES["cpu"]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    outputs = []
    stages: dict[str, list[float]] = {}
    plan = None
    for workers in (1, 2):
        with Executor.local(workers, 1) as executor:
            executor.prepare(job.params, keys, job.model.tensors())
            for _ in range(4):
                result = executor.run(job.program, {INPUT: x}, machine=machine)
                seconds[workers].append(result.seconds)
                outputs.append(result.outputs[OUTPUT].batch.data)
                if workers == 1:
                    for name, stage in result.stages.items():
                        stages.setdefault(name, []).append(stage.seconds)
            plan = executor.plan(job.program, machine=machine, top_level=x.batch.level)
    assert all(np.array_equal(o, outputs[0]) for o in outputs)
    assert plan is not None
    names = [s.name for s in job.program.stages]
    measured = [median(stages.get(name, [0.0])) for name in names]
    ratios = [
        m / e if e and m else 1.0 for m, e in zip(measured, job.analysis.stage_work, strict=True)
    ]
    found = simulate(job.program, _timed(plan, ratios), job.analysis.node_bytes, machine)
    return TwoWorkers(seconds[1], seconds[2], found.makespan)


def _timed(plan: Plan, ratios: list[float]) -> Plan:
    """Return a plan whose tasks take as many times longer as their stages do."""

    def timed(t: Task) -> Task:
        parts = tuple(replace(p, task=timed(p.task)) for p in t.parts)
        if parts:
            return replace(t, parts=parts, seconds=sum(p.task.seconds for p in parts))
        return replace(t, seconds=t.seconds * ratios[t.stage])

    return replace(plan, tasks=[timed(t) for t in plan.tasks])


def _small(tokens: int) -> tuple[Job, Any, Any]:
    """Return a MiniLM layer on a small ring, keys, and an encrypted text of that many tokens."""
    model = first_layers(load_minilm(), 1)
    assert model.path is not None
    tokenizer = Tokenizer(model.path, 1 << 30)
    text, *others = passages()
    samples = [cut(tokenizer.encode(t), tokens) for t in (*sentences(), *others)]
    ids = cut(tokenizer.encode(text), tokens)
    ranges = calibrate(model, samples)
    graph = load_graph("bert_layer")
    job = make_job(model, ranges, graph, len(ids), tokens=tokens, allow_insecure=True)
    prepared = local.prepare(job, ids)
    client = Client.create(job)
    return job, client.evaluation_keys(), client.encrypt(prepared.x)


def measured_speedup() -> Finding:
    """Return the least time on one worker over the least on two."""
    found = two_workers()
    note = f"one: {_listed(found.one)} s; two: {_listed(found.two)} s"
    return Finding(round(min(found.one) / min(found.two), 3), note)


def prediction() -> Finding:
    """Return by how much the simulated time on two workers differs from the least measured."""
    found = two_workers()
    off = abs(found.simulated / min(found.two) - 1)
    return Finding(round(off, 4), f"simulated {found.simulated:.1f} s; two: {_listed(found.two)} s")


@lru_cache
def throttled() -> dict[str, Any]:
    """Run a layer over a link of 1 Gbit/s, as placed without a search and with one."""
    job, keys, x = _small(SHORT)
    assert job.params is not None
    slow = Link("1 Gbit/s", GIGABIT, MACHINES["cpu"].inside.latency_seconds)
    machine = replace(MACHINES["cpu"], inside=slow, between=slow)
    out: dict[str, Any] = {}
    outputs = []
    with Executor.local(2, 1) as executor:
        executor.client.register_plugin(Throttle())
        executor.prepare(job.params, keys, job.model.tensors())
        for name, chosen in (("off", None), ("on", machine)):
            runs = [executor.run(job.program, {INPUT: x}, machine=chosen) for _ in range(3)]
            best = min(runs, key=lambda r: r.seconds)
            outputs += [r.outputs[OUTPUT].batch.data for r in runs]
            out[name] = {
                "exposed": min(r.scheduling.dispatch for r in runs),
                "seconds": best.seconds,
                "bytes": best.transfers.between_workers,
            }
    assert all(np.array_equal(o, outputs[0]) for o in outputs)
    return out


def exposed_saved() -> Finding:
    """Return the share of the waiting for data and scheduling that the search saves."""
    found = throttled()
    off, on = found["off"], found["on"]
    note = "; ".join(
        f"{name}: {v['exposed']:.2f} s exposed of {v['seconds']:.2f} s, {v['bytes'] / 1e6:.0f} MB"
        for name, v in found.items()
    )
    return Finding(round(1 - on["exposed"] / off["exposed"], 4), note)


def _listed(seconds: list[float]) -> str:
    return ", ".join(f"{s:.1f}" for s in seconds)
