"""Measurements behind the claims of the `layer` group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _similarity
from benchmarks.claims import Finding

TEXT = "The committee approved the new budget for the hospital after a long debate about costs."


@cache
def demo(*options: str) -> dict[str, Any]:
    """Run `aegis demo` with an empty kernel cache, as on a fresh machine, and return its results.

    ``seconds_in_all`` is the duration of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.html")
        command = [sys.executable, "-m", "aegis_dask.cli", "demo", "--json", *options]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, "--report", str(report)],
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "AEGIS_CACHE_DIR": str(Path(folder, "cache"))},
            cwd=folder,
        )
        seconds = time.perf_counter() - begin
        if done.returncode != 0:
            raise RuntimeError(f"aegis demo ended with {done.returncode}: {done.stderr[-500:]}")
        out: dict[str, Any] = json.loads(done.stdout)
        out["seconds_in_all"] = seconds
        out["report_bytes"] = report.stat().st_size if report.is_file() else 0
    return out


def similarity(quick: bool, what: str) -> Finding:
    """Cosine similarities of six simulated layers on the bundled sentence pairs."""
    found = _sentences(12 if quick else None)
    value = {"mean": np.mean, "worst": np.min}[what](found.cosines)
    enough = quick or len(found.pairs) >= 200
    return Finding(round(float(value), 7), str(found), sound=enough)


@cache
def _sentences(limit: int | None) -> _similarity.Similarities:
    return _similarity.sentences(limit)


def long_similarity() -> Finding:
    """Worst cosine similarity on texts of 512 tokens."""
    found = _similarity.long_texts(512)
    return Finding(round(min(found.cosines), 7), str(found), sound=min(found.lengths) == 512)


def different_residues(quick: bool) -> Finding:
    """Run one encrypted MiniLM layer in several configurations, count those that differ."""
    from aegis_dask.models.calibration import calibrate
    from aegis_dask.models.checkpoint import load_minilm
    from aegis_dask.models.corpus import sentences
    from aegis_dask.models.graphs import load_graph
    from aegis_dask.models.text import Tokenizer, embed
    from aegis_dask.runtime.executor import Executor
    from aegis_dask.service.client import Client
    from aegis_dask.service.job import make_job
    from aegis_dask.service.server import Server

    warnings.simplefilter("ignore")
    model = load_minilm()
    tokenizer = Tokenizer.for_model(model)
    ids = tokenizer.encode(TEXT)
    one = model.first_layers(1)
    texts = [t for t in map(tokenizer.encode, sentences()) if len(t) <= 32]
    graph = load_graph("bert_layer")
    job = make_job(one, calibrate(one, texts), graph, len(ids), allow_insecure=True)
    client = Client.create(job)
    keys, x = client.evaluation_keys(), client.encrypt(embed(model, ids)[0])

    def residues(executor: Executor) -> Any:
        with executor:
            result = Server(job, keys, executor).evaluate(x, len(ids))
            return result.outputs["output"].batch.data

    configurations: list[tuple[str, dict[str, Any]]] = [
        ("1 worker process", {"workers": 1}),
        ("2 worker processes", {"workers": 2}),
        ("4 worker processes", {"workers": 4}),
        ("1 thread worker", {"workers": 1, "processes": False}),
        ("2 thread workers", {"workers": 2, "processes": False}),
        ("4 thread workers over TCP", {"workers": 4, "processes": False, "protocol": "tcp://"}),
    ]
    if quick:
        configurations = configurations[:2]
    results = {name: residues(Executor.local(**how)) for name, how in configurations}
    if not quick:
        results["2 workers of a separate scheduler"] = _on_separate_cluster(residues)
    first = next(iter(results.values()))
    different = [name for name, data in results.items() if not np.array_equal(data, first)]
    note = f"{first.size} residues in each of {len(results)} configurations"
    if different:
        note += f"; not as with one worker: {', '.join(different)}"
    return Finding(len(different), note)


def _on_separate_cluster(residues: Any) -> Any:
    """Run on `dask scheduler` and two `dask worker` processes."""
    from aegis_dask.runtime.executor import Executor

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scheduler.json")
        dask = [sys.executable, "-m", "dask"]
        where = ["--scheduler-file", str(file)]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = [
            subprocess.Popen(
                [
                    *dask,
                    "scheduler",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    "0",
                    "--no-dashboard",
                    *where,
                ],
                **quiet,
            )
        ]
        try:
            deadline = time.monotonic() + 60
            while not file.is_file() and time.monotonic() < deadline:
                time.sleep(0.1)
            worker = [*dask, "worker", "--nthreads", "1", "--no-dashboard", *where]
            started += [subprocess.Popen(worker, **quiet) for _ in range(2)]
            address = json.loads(file.read_text())["address"]
            return residues(Executor.connect(address, workers=2, timeout=60))
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                process.wait(30)


_CAPTURE = """
import json, time
begin = time.perf_counter()
from aegis_dask.circuits.packing import Packing
from aegis_dask.models.calibration import typical_calibration
from aegis_dask.models.checkpoint import named_config, shape_only
from aegis_dask.models.programs import bert_program, encoder_layers
from aegis_dask.program.symbolic import analyse
from aegis_dask.program.parameters import parameters_for
config = named_config("bert-base", 2048)
layers = encoder_layers(shape_only(config), typical_calibration(config))
program = bert_program(shape_only(config), layers, Packing(32768, 2048, 2048))
one = bert_program(shape_only(config), layers[:1], Packing(32768, 2048, 2048))
analysis = analyse(one, parameters_for(one.depth, 32768, allow_insecure=True))
# Not getrusage: its maximum includes what the parent held when it forked.
line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
peak = int(line.split()[1]) * 1024
print(json.dumps({
    "seconds": time.perf_counter() - begin,
    "bytes": peak,
    "operations": len(program.nodes),
    "plain_products": len(layers) * analysis.total.counts["plain_products"],
}))
"""


@cache
def _captured() -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CAPTURE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-500:])
    out: dict[str, float] = json.loads(done.stdout)
    return out


def symbolic_seconds() -> Finding:
    """Seconds to capture and count BERT-base, 12 layers, 2,048 tokens, in a new process."""
    found = _captured()
    note = f"{found['operations']} operations, {found['plain_products']} plaintext products"
    return Finding(round(found["seconds"], 2), note)


def symbolic_memory() -> Finding:
    """Peak memory of that process."""
    return Finding(round(_captured()["bytes"] / 2**30, 3))
