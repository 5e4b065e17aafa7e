"""Measurements behind the claims of `benchmarks.claims.placement`."""

from __future__ import annotations

import resource
import time
from functools import lru_cache
from typing import Any

import numpy as np

from aegis_dask.models.calibration import calibrate
from aegis_dask.models.checkpoint import load_minilm, named_config, shape_only
from aegis_dask.models.corpus import passages, sentences
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.programs import OUTPUT
from aegis_dask.models.text import Tokenizer
from aegis_dask.placement.devices import MACHINES
from aegis_dask.runtime.executor import Executor
from aegis_dask.service import local
from aegis_dask.service.client import Client
from aegis_dask.service.job import Job, make_job
from aegis_dask.service.scaling import Scaled, scale
from aegis_dask.service.server import Server
from aegis_dask.service.sources import assumed_calibration, cut, first_layers
from benchmarks.claims import Finding

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
    """Share of one device's memory that each of several does without, keys included."""
    rows = scaled(machine)
    one, several = rows[1].device_bytes, rows[devices].device_bytes
    note = f"{several / 1e9:.1f} of {one / 1e9:.1f} GB; keys {rows[1].key_bytes / 1e9:.1f} GB each"
    return Finding(round(1 - several / one, 4), note)


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


@lru_cache
def two_workers() -> dict[str, Any]:
    """Run a MiniLM layer on one and on two workers of one thread, in turns."""
    model = first_layers(load_minilm(), 1)
    assert model.path is not None
    tokenizer = Tokenizer(model.path, 1 << 30)
    text, *others = passages()
    samples = [cut(tokenizer.encode(t), SHORT) for t in (*sentences(), *others)]
    ids = cut(tokenizer.encode(text), SHORT)
    graph = load_graph("bert_layer")
    job = make_job(model, calibrate(model, samples), graph, len(ids), tokens=SHORT)
    prepared = local.prepare(job, ids)
    client = Client.create(job)
    keys, x = client.evaluation_keys(), client.encrypt(prepared.x)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    outputs = []
    for workers in (1, 2):
        with Executor.local(workers, 1) as executor:
            server = Server(job, keys, executor)
            for _ in range(3):
                result = server.evaluate(x, len(prepared.x), None)
                seconds[workers].append(result.seconds)
                outputs.append(result.outputs[OUTPUT].batch.data)
    assert all(np.array_equal(o, outputs[0]) for o in outputs)
    return {"one": seconds[1], "two": seconds[2]}


def measured_speedup() -> Finding:
    """Return the least time on one worker over the least on two."""
    found = two_workers()
    note = "; ".join(f"{k}: {', '.join(f'{s:.1f}' for s in v)} s" for k, v in found.items())
    return Finding(round(min(found["one"]) / min(found["two"]), 3), note)
