"""A whole model encrypted end to end, 128-bit secure: `python -m benchmarks.model`.

Runs all layers of all-MiniLM-L6-v2 on a text that did not take part in the calibration, on local
worker processes. Prints times per operator, bootstraps per layer beside eager placement, memory of
the whole host with shared pages counted once, and the similarity of the decrypted sentence
embedding to float64; writes the record as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from aegis_dask.models.calibration import calibrate
from aegis_dask.models.checkpoint import load_minilm
from aegis_dask.models.corpus import passages, sentences
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.text import Tokenizer, cosine, pool
from aegis_dask.service import local
from aegis_dask.service.job import make_job, positions_for
from aegis_dask.service.plan import compare, estimate
from aegis_dask.service.sources import cut
from aegis_dask.service.summary import describe_outcome
from aegis_dask.terminal import Terminal
from benchmarks._measure import machine_info
from benchmarks._memory import HostMemory

RESULTS = Path("benchmarks/results/model.json")
GRAPH = "bert_model"


def prepare(tokens: int) -> local.Prepared:
    """Calibrate without the first passage, and build the job that runs on it."""
    model, graph = load_minilm(), load_graph(GRAPH)
    assert model.path is not None
    tokenizer = Tokenizer(model.path, 1 << 30)
    text, *others = passages()
    samples = [cut(tokenizer.encode(t), tokens) for t in (*sentences(), *others)]
    ids = cut(tokenizer.encode(text), tokens)
    job = make_job(model, calibrate(model, samples), graph, len(ids), tokens=positions_for(tokens))
    return local.prepare(job, ids)


def measure(tokens: int, workers: int) -> dict[str, Any]:
    """Run the model; return the record."""
    begin = time.perf_counter()
    with HostMemory() as memory:
        prepared = prepare(tokens)
        job = prepared.job
        with local.open_executor(None, workers, dashboard=False) as executor:
            outcome = local.run_encrypted(prepared, executor, Terminal(False))
    seconds = time.perf_counter() - begin
    valid = np.ones(len(prepared.x), bool)
    found, expected = (pool(h, valid) for h in (outcome.output, prepared.expected))
    assert job.placement is not None
    per_layer = estimate(job).bootstraps_per_layer
    _, eager, careless = compare(job.placement).values()
    return {
        **describe_outcome(outcome),
        "total_seconds": round(seconds, 1),
        "cosine": cosine(found, expected),
        "bootstraps": {
            "total": job.placement.bootstraps,
            "per_layer": [per_layer.get(f"layer{i}", 0) for i in range(len(job.layers))],
            "eager": {
                "same_limits": eager.bootstraps if eager else None,
                "any_value": careless.bootstraps if careless else None,
            },
        },
        "host_peak_bytes": memory.peak,
        "host_peak_at_seconds": round(memory.at, 1),
        "machine": machine_info(),
    }


def markdown(record: dict[str, Any]) -> str:
    """Return the record as tables."""
    run, boots = record["run"], record["bootstraps"]
    lines = [
        "| operator | tasks | s |",
        "|---|---|---|",
        *(f"| {o['name']} | {o['tasks']} | {o['seconds']:.1f} |" for o in run["operators"]),
        "",
        "| | |",
        "|---|---|",
        f"| tokens, layers | {record['tokens']}, {record['layers']} |",
        f"| parameters | {record['parameters']['name']}, {record['parameters']['security_bits']} "
        "bits |",
        f"| workers | {len(run['workers'])} |",
        f"| evaluation | {run['seconds']:.0f} s |",
        f"| all steps, calibration and keys included | {record['total_seconds']:.0f} s |",
        f"| bootstraps per layer | {', '.join(map(str, boots['per_layer']))} |",
        f"| bootstraps, eager placement | {boots['eager']['same_limits']} "
        f"({boots['eager']['any_value']} of values of any size and precision), here "
        f"{boots['total']} |",
        f"| evaluation keys | {record['evaluation_keys']}, "
        f"{record['evaluation_key_bytes'] / 2**30:.1f} GiB |",
        f"| peak memory of the host | {record['host_peak_bytes'] / 2**30:.1f} GiB |",
        f"| cosine similarity of the sentence embedding to float64 | {record['cosine']:.6f} |",
        f"| largest error of a hidden state | {record['precision']['max_error']:.1e} |",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser("benchmarks.model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--tokens", type=int, default=128, help="tokens of the text, 128 by default"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes, 2 by default")
    parser.add_argument("--json", type=Path, default=RESULTS, help=f"the record, {RESULTS}")
    options = parser.parse_args(arguments)
    record = measure(options.tokens, options.workers)
    record["command"] = (
        f"python -m benchmarks.model --tokens {options.tokens} --workers {options.workers}"
    )
    print(markdown(record))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
