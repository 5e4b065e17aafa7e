"""What operations would launch, move and execute on a GPU: `python -m benchmarks.gpu_model`.

It needs no GPU: a device that only records (`benchmarks._recording`) gives the launches of
operations of the scheme, of bootstrapping and of layers of BERT-base, with what the host takes to
prepare them. Bytes follow from the operands, instructions from the compiled kernels. The predicted
time is the larger of both at an H200's rates, launch by launch. It knows no caches and no latencies
beyond a constant: to find what is worth changing, not to replace `benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.models.calibration import calibrate
from aegis_dask.models.checkpoint import random_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.placement.devices import GPU_SPEED
from aegis_dask.placement.plan import make_plan
from aegis_dask.program.symbolic import analyse
from aegis_dask.ring.cuda_backend import sources
from aegis_dask.runtime.context import Context
from aegis_dask.runtime.graph import make_ranks
from aegis_dask.runtime.worker import RunSpec, RunState
from aegis_dask.service.client import Client
from aegis_dask.service.job import make_job
from benchmarks._gpu_sections import short_texts
from benchmarks._measure import machine_info
from benchmarks._recording import Launch, Log, recording
from benchmarks._tables import number, table
from benchmarks.gpu import BASE, PRESET

LOG_N = 16
N = 1 << LOG_N
ROW = 4 * N
"""Bytes of a limb."""
BANDWIDTH = 4.2e12
"""Bytes per second: seven eighths of an H200's 4.8 TB/s (data sheet)."""
ISSUE = 132 * 4 * 1.755e9
"""Instructions of warps per second: four schedulers of 132 multiprocessors, at a usual clock."""
L2_BANDWIDTH = 5.5e12
"""Bytes per second between the L2 cache and the multiprocessors, assumed."""
GAP_SECONDS = 1.5e-6
"""Between launches that follow each other, assumed."""
REPEATS = 5


# -- what launches cost --------------------------------------------------------------------------

# Instructions of a thread, from disassembled sm_90 code (N = 2^16); tests/cuda/test_compile.py
# notices when the code grows.
_STRAIGHT = {
    "ntt_rows": 554,
    "ntt_tails": 681,
    "intt_rows": 638,
    "intt_tails": 700,
    "ntt_tails_divide": 1000,
    "add": 56,
    "sub": 56,
    "negate": 44,
    "multiply": 121,
    "multiply_runs": 90,
    "add_runs": 78,
    "tensor": 218,
    "from_signed": 50,
    "automorphism": 37,
    "automorphism_multiply_add": 60,
    "uniform": 1500,
    "encode_residues": 50,
    "encode_stage": 150,
}
# Limbs that a launch of element-wise kernels reads and writes, for each limb of its operand.
_ROWS = {
    "add": 3.0,
    "sub": 3.0,
    "negate": 2.0,
    "multiply": 3.0,
    "multiply_runs": 2.0,
    "add_runs": 2.0,
    "tensor": 7.0,
    "from_signed": 3.0,
    "automorphism": 2.0,
    "automorphism_multiply_add": 4.0,
}
_ONE_POINT = {"from_signed", "automorphism", "automorphism_multiply_add"}


@dataclass
class Cost:
    """Bytes moved at least, instructions of warps, and bytes that blocks read and write."""

    size: float
    instructions: float
    through: float = 0.0

    @property
    def seconds(self) -> float:
        """Predicted time."""
        times = self.size / BANDWIDTH, self.instructions / ISSUE, self.through / L2_BANDWIDTH
        return max(times) + GAP_SECONDS


def _pieces(launch: Launch, each: int) -> float:
    return launch.grid[0] * each * sources.THREADS / N


def _transform(launch: Launch) -> float:
    """Bytes of a launch of a transform: its rows twice, and twiddles."""
    rows, limbs = launch.grid[0] * launch.grid[2], launch.grid[2]
    size = 2 * rows * ROW + limbs * N // 16 * 8
    if launch.kernel == "ntt_tails_divide":
        size += rows * ROW * (1.5 if launch.arguments[7] else 1)
    return size


def _convert(launch: Launch, threads: float) -> tuple[float, float]:
    polys = launch.grid[0] * sources.CONVERT_COLUMNS / N
    size = instructions = 0.0
    for count, targets in launch.sizes:
        rounds = -(-targets // (sources.CONVERT_SHARES * sources.VECTOR))
        size += polys * (count + targets) * ROW
        instructions += 90 + 5 * count + rounds * (60 + 12 * (count + 1))
    return size, instructions * threads / launch.grid[1]


# Of the following: bytes that memory moves at least, instructions of a thread, and bytes that all
# blocks read and write: keys for every polynomial, operands for every tile.


def _inner_products(a: tuple[int, ...], batch: int, limbs: int) -> tuple[float, float, float]:
    keys, count, added = a[20], a[22], a[26]
    own, shared = batch * (count + 2 * keys) * limbs + batch * added, 2 * keys * count * limbs
    instructions = 80 + count * (12 + 18 * keys) + 70 * keys
    return (own + shared) * ROW, instructions, (own + batch * shared) * ROW


def _tails_inner(a: tuple[int, ...], batch: int) -> tuple[float, float, float]:
    count, limbs = a[8], a[9]
    own, shared = batch * (count + 2) * limbs, 2 * count * limbs
    instructions = 200 + (count - 0.8) * 585 + count * 100
    return (own + shared) * ROW + limbs * N // 2, instructions, (own + batch * shared) * ROW


def _divide_products(launch: Launch) -> tuple[float, float, float]:
    a, (pairs, _, limbs) = launch.arguments, launch.grid
    count, batch = a[7], a[17]
    digits, keys = batch * (count + 1), 2 * count * pairs // batch
    size = (4 * pairs + digits + keys) * limbs * ROW
    through = (4 + 1 + 3 * count) * pairs * limbs * ROW
    return size, 2300 + 116 * count, through


def _matrix(launch: Launch) -> tuple[float, float, float]:
    outs, inner, runs, polys, add, limbs = launch.arguments[8:14]
    is_thin = launch.kernel == "gemm_thin"
    each = sources.THIN if is_thin else sources.TILE
    points, written = polys * limbs * ROW, outs * (1 + add)
    read = inner * -(-outs // each)
    size = ((read if is_thin else inner) + written) * points + 4 * limbs * runs * outs * inner
    # Every tile of columns reads its weights; threads of few outputs find theirs in the L1 cache.
    through = (read + written + (0 if is_thin else outs * inner / each)) * points
    few = min(outs, sources.THIN)
    thin = 60 + inner * (6 + 3 * few) + 25 * few
    return size, thin if is_thin else 250 + -(-inner // 16) * 420, through


def _contract(launch: Launch) -> tuple[float, float, float]:
    rows, outs, terms, limbs = launch.arguments[7:11]
    written = 3 * rows * outs * limbs * ROW
    size = 2 * terms * (rows + outs) * limbs * ROW + written
    tiles = launch.grid[0] * 4 * sources.PAIR * terms * limbs * ROW
    return size, 200 + terms * 80, tiles + written


def cost(launch: Launch) -> Cost:
    """Return what a launch moves and executes.

    Raises
    ------
    KeyError
        For a kernel that is not known here.
    """
    kernel, a = launch.kernel, launch.arguments
    if kernel in ("copy", "fill"):
        return Cost((2 if kernel == "copy" else 1) * a[0], a[0] / 64)
    x, y, z = launch.grid
    threads = x * y * z * sources.threads(kernel, LOG_N) / 32
    if kernel == "convert":
        return Cost(*_convert(launch, threads))
    through = 0.0
    if kernel == "inner_products":
        size, each, through = _inner_products(a, x, z)
    elif kernel == "ntt_tails_divide_products":
        size, each, through = _divide_products(launch)
    elif kernel == "ntt_tails_inner":
        size, each, through = _tails_inner(a, x)
    elif kernel in ("gemm", "gemm_thin"):
        size, each, through = _matrix(launch)
    elif kernel == "contract":
        size, each, through = _contract(launch)
    else:
        each = _STRAIGHT[kernel]
        if kernel in _ROWS:
            points = 1 if kernel in _ONE_POINT else sources.VECTOR
            size = _ROWS[kernel] * _pieces(launch, points) * y * ROW
        elif "ntt" in kernel:
            size = _transform(launch)
        else:  # 32 bytes a thread: words of a key stream, or of weights
            size = 32 * 32 * threads
    return Cost(size, each * threads, through)


@dataclass(frozen=True)
class Prediction:
    """What an operation would take.

    Attributes
    ----------
    name
        The operation.
    launches
        Kernels, copies and fillings.
    size, instructions
        Bytes moved at least, and instructions of warps.
    seconds
        Predicted, of the GPU.
    host_seconds
        Measured here: to prepare the launches, without what the driver takes (2 to 3 us each).
    memory
        The most bytes of the device at a time, keys and weights among them.
    kernels
        Predicted seconds of each.
    tasks
        Predicted seconds of every task, for what runs as tasks of Dask's.
    """

    name: str
    launches: int
    size: float
    instructions: float
    seconds: float
    host_seconds: float
    memory: int
    kernels: dict[str, float]
    tasks: tuple[float, ...] = ()


def predict(name: str, log: Log, call: Callable[[], Sequence[int]]) -> Prediction:
    """Record a call, and time others; it returns how many launches each of its tasks made."""
    call()
    log.launches.clear()
    log.peak = log.held
    counts = call()
    costs = [(launch.kernel, cost(launch)) for launch in log.launches]
    log.launches.clear()
    ends = [0, *itertools.accumulate(counts)]
    tasks = tuple(sum(c.seconds for _, c in costs[a:b]) for a, b in itertools.pairwise(ends))
    log.listens, best = False, float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
    log.listens = True
    kernels: Counter[str] = Counter()
    for kernel, c in costs:
        kernels[kernel] += c.seconds  # type: ignore[assignment]
    return Prediction(
        name,
        len(costs),
        sum(c.size for _, c in costs),
        sum(c.instructions for _, c in costs),
        sum(c.seconds for _, c in costs),
        best,
        log.peak,
        {k: float(v) for k, v in kernels.most_common()},
        tasks,
    )


# -- operations ----------------------------------------------------------------------------------


def operations(log: Log) -> list[Prediction]:
    """Predict operations on one ciphertext at the top level, and bootstrapping."""
    bootstrapping = BootstrappingParameters.preset(PRESET)
    params = bootstrapping.params
    steps = list(range(1, 9))
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    ev = Evaluator(params, generator.evaluation_keys(secret, rotations=steps))
    encryptor, zeros = Encryptor(params, secret), np.zeros(params.slots)
    x, y = encryptor.encrypt(zeros), encryptor.encrypt(zeros)
    keys = bootstrapping_keys(bootstrapping, secret, Bootstrapper(bootstrapping).required_keys)
    ours = Bootstrapper(bootstrapping, keys)
    low = encryptor.encrypt(zeros, level=ours.input_level)
    limbs = params.extended_limbs(params.max_level)
    every = params.ring.empty((len(limbs), params.ring_degree))
    calls: dict[str, Callable[[], Any]] = {
        f"ntt of {len(limbs)} limbs": lambda: params.ring.ntt(every, limbs),
        "add": lambda: ev.add(x, y),
        "multiply, relinearise, rescale": lambda: ev.multiply(x, y),
        "rotate": lambda: ev.rotate(x, 1),
        "8 hoisted rotations": lambda: ev.rotate_many(x, steps),
        "bootstrap, complex slots": lambda: ours.refresh(low, False),
        "bootstrap, real slots": lambda: ours.refresh(low, True),
    }

    def alone(call: Callable[[], Any]) -> Callable[[], Sequence[int]]:
        def run() -> Sequence[int]:
            call()
            return ()

        return run

    return [predict(name, log, alone(call)) for name, call in calls.items()]


class _Worker:
    """What tasks need of the worker that runs them."""

    address = name = "gpu"

    def log_event(self, topic: str, message: Any) -> None:
        """Tell nobody."""


def layer(log: Log, tokens: int) -> Prediction:
    """Predict an encoder layer of BERT-base on one worker, whose weights are prepared.

    Its tasks are those that `Executor.run` makes, and their results are held as Dask holds them.
    """
    rng = np.random.default_rng(0)
    model = random_bert(BASE, 0)
    samples = short_texts(rng, BASE, tokens)
    job = make_job(
        model, calibrate(model, samples), load_graph("bert_layer"), tokens, tokens=tokens
    )
    client = Client.create(job)
    context = Context(job.params, client.evaluation_keys(), model.tensors())
    x = client.encrypt(rng.uniform(-0.5, 0.5, (tokens, BASE.hidden)))
    analysis = analyse(job.program, context.bootstrapping or job.params)
    work = [seconds / GPU_SPEED for seconds in analysis.stage_work]
    plan = make_plan(job.program, 1, work, node_bytes=analysis.node_bytes)
    spec = RunSpec("run", "", job.program, plan.tasks, "encrypted", (_Worker.address,))
    users = Counter(i for task in plan.tasks for i in set(task.sources))

    def run() -> list[int]:
        state = RunState(spec, context, threading.Lock(), None)
        left, values, counts = users.copy(), dict[int, Any](), []
        for i in np.argsort(make_ranks(plan.tasks), kind="stable"):
            task, before = plan.tasks[i], len(log.launches)
            if task.kind == "input":
                values[task.index] = x
                continue
            values[task.index] = state.run(task.index, [values[k] for k in task.sources], _Worker())
            left.subtract(set(task.sources))
            for k in set(task.sources):
                if not left[k]:
                    del values[k]
            counts.append(len(log.launches) - before)
        return counts

    return predict(f"layer of BERT-base, {tokens:,} tokens", log, run)


def markdown(found: Sequence[Prediction], kernels: int = 4) -> str:
    """Return predictions as a table, with the kernels that take longest."""
    rows = []
    for p in found:
        scale, unit = (1e6, "us") if p.seconds < 1e-3 else (1e3, "ms")
        most = ", ".join(f"{k} {v / p.seconds:.0%}" for k, v in list(p.kernels.items())[:kernels])
        times = (p.size / BANDWIDTH, p.instructions / ISSUE, p.seconds, p.host_seconds)
        shown = [f"{number(t * scale)} {unit}" for t in times]
        memory = f"{p.memory / 1e9:.1f} GB"
        tasks = f"{len(p.tasks)} of {1e3 * median(p.tasks):.0f} ms" if p.tasks else ""
        rows.append([p.name, f"{p.launches:,}", *shown, memory, tasks, most])
    header = [
        *("", "launches", "bytes", "instructions", "predicted", "host", "memory"),
        *("tasks (median)", "of which"),
    ]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_model", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[128, 2048], metavar="TOKENS")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    with recording() as log:
        found = operations(log)
        found += [layer(log, tokens) for tokens in args.tokens]
    if args.json:
        print(json.dumps({**machine_info(), "predictions": [asdict(p) for p in found]}, indent=1))
    else:
        print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
