"""Simulate one layer of several shapes, on texts of several lengths, on 1 to 64 devices.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --shapes bert-large,llama-3-8b --tokens 512 --machine h200-pcie

Plans are searched for the machine, as `aegis plan --devices` does. The shape llama-3-8b has the
sizes and the gate of that model in the layer that there is here: LayerNorm for RMSNorm, no rotary
positions, and a key and value head for every query head. (In this packing a head that four queries
share would have to be in the blocks of all four, so that its projection costs as much.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from aegis_dask.models.checkpoint import SHAPES, named_config, shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.placement.devices import load_machine
from aegis_dask.service.job import Job, make_job
from aegis_dask.service.scaling import scale
from aegis_dask.service.sources import assumed_calibration, first_layers
from benchmarks._tables import table


def layer(shape: str, tokens: int) -> Job:
    """Return the job of one layer."""
    graph = load_graph("bert_layer")
    model = first_layers(shape_only(named_config(shape, tokens)), graph.layers)
    return make_job(model, assumed_calibration(model), graph, tokens)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for every shape and length."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--shapes", default="bert-base", help=", ".join(SHAPES))
    parser.add_argument("--tokens", default="128,2048", help="lengths of the text")
    parser.add_argument("--devices", default="1,2,4,8,16,32,64", help="numbers of devices")
    parser.add_argument("--machine", default="h200-nvlink", help="as for aegis plan")
    args = parser.parse_args(argv)
    shapes = args.shapes.split(",")
    if unknown := [s for s in shapes if s not in SHAPES]:
        parser.error(f"no shapes {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    try:
        lengths = [int(t) for t in args.tokens.split(",")]
        devices = [int(d) for d in args.devices.split(",")]
    except ValueError as e:
        parser.error(f"--tokens and --devices are numbers with commas between: {e}")
    if min(*lengths, *devices) < 1:
        parser.error("--tokens and --devices are positive")
    machine = load_machine(args.machine)
    rows = []
    for shape in shapes:
        for tokens in lengths:
            begin = time.perf_counter()
            found = [s for s in scale(layer(shape, tokens), machine, devices)]
            one = found[0].simulation.makespan
            cells = [f"{s.efficiency:.0%}" for s in found[1:]]
            most = found[-1]
            memory = f"{found[0].device_bytes / 1e9:.0f} / {most.needed_bytes / 1e9:.0f}"
            sent = f"{most.traffic.between_workers / 1e9:.1f}"
            spent = f"{time.perf_counter() - begin:.0f}"
            rows.append([shape, f"{tokens:,}", f"{one:.2f}", *cells, memory, sent, spent])
    counts = [f"{s.devices}" for s in found[1:]]
    memory = f"GB, 1 / {most.devices}"
    header = [
        "shape",
        "tokens",
        "s on 1",
        *counts,
        memory,
        f"GB sent, {most.devices}",
        "planned, s",
    ]
    print(
        f"One layer on {machine.device.name}, {machine.per_node} to a node, {machine.inside.name}"
    )
    print(f"within and {machine.between.name} between nodes: efficiency by number of devices.\n")
    print(table(header, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
