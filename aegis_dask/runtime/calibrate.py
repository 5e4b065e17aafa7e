"""Measuring this machine, for plans: kernels, copies, Dask's latency, transfers between workers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np
from distributed import Client
from distributed.system import MEMORY_LIMIT

from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import InsecureParametersWarning
from aegis_dask.placement.devices import Device, Link, Machine
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.symbolic import analyse
from aegis_dask.ring.threads import get_threads, set_threads
from aegis_dask.runtime import cluster

PRESET = "insecure-n12-d40"
"""Of the kernels' measurement: security does not matter, size hardly."""
TASK_SECONDS = 0.01
HOPS = 40
MOVED_BYTES = 1 << 27
ARRAYS = 3
DEGREE = 31
ROUNDS = 3
REPEATS = 12


def measure_machine() -> Machine:
    """Return this machine as a plan sees it: workers of one thread, linked through loopback.

    Takes half a minute, on a machine that does nothing else.
    """
    with ExitStack() as stack:
        client = cluster.start_local(2, True, False, None, None, stack)
        first, second = cluster.in_order(cluster.wait_for_workers(client, 2, 60.0))
        same = _hop(client, first, first)
        across = _hop(client, first, second)
        moving = _moving(client, first, second)
        copies = [client.submit(_copying, workers=[first], pure=False) for _ in range(ROUNDS)]
        copying = median(f.result() for f in copies)
        memory = int(MEMORY_LIMIT // 2)
        speed = min(_speeds(client, [first, second]))
    latency = max(across - same, 1e-4)
    loopback = Link("TCP on one host (measured)", moving, latency)
    device = Device("a thread of this CPU (measured)", memory, speed, copying)
    return Machine(device, 64, loopback, Link("Ethernet 1 Gbit/s", 125e6, 1e-3), 0.001, same)


def _speeds(client: Client, workers: list[str]) -> list[float]:
    """Return `kernel_speed` of workers that compute at the same time."""
    for w in workers:  # kernels are loaded, so that the measurements coincide
        client.submit(kernel_speed, workers=[w], pure=False).result()
    together = [client.submit(kernel_speed, workers=[w], pure=False) for w in workers]
    return [future.result() for future in together]


def kernel_speed() -> float:
    """Return how many times faster one thread computes than the estimates say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        params = Parameters.preset(PRESET)

    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        y = x.chebyshev([1 / DEGREE] * (DEGREE + 1))
        z = (y * y).rotate(1) + y.rotations(range(4)).rotate_sum([1, 2, 3, 4])
        c.output("y", z)

    program = capture(params.slots, build)
    analysis = analyse(program, params)
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(secret, rotations=analysis.keys.rotations)
    encryptor = Encryptor(params, secret)
    one = encryptor.encrypt(np.zeros(params.slots), level=analysis.top_level)
    x = CipherArray(one.with_data(np.repeat(one.data, 4, axis=0)), (4,))
    arithmetic: Any = Encrypted(Evaluator(params, keys))
    before = get_threads()
    set_threads(1)
    try:
        seconds = _typical(lambda: run(program, arithmetic, {"x": x}, {}))
    finally:
        set_threads(before)
    return sum(analysis.stage_work) / seconds


def _typical(work: Callable[[], Any]) -> float:
    work()  # kernels are compiled or loaded
    out = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        out.append(time.perf_counter() - start)
    return median(out)


def _sleep(x: Any) -> Any:
    time.sleep(TASK_SECONDS)
    return x


def _hop(client: Client, a: str, b: str) -> float:
    """Return the seconds from the end of a task to the start of the next, on these workers."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        future = client.submit(_sleep, 0, workers=[a], pure=False)
        for i in range(HOPS):
            future = client.submit(_sleep, future, workers=[a if i % 2 else b], pure=False)
        future.result()
        total = time.perf_counter() - start
        found.append((total - (HOPS + 1) * TASK_SECONDS) / HOPS)
    return max(min(found), 1e-4)


def _made(size: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 1 << 30, size // 4, np.uint32)


def _moving(client: Client, a: str, b: str) -> float:
    """Return the bytes per second at which two workers get what the other one has, both at once."""
    rates = []
    for _ in range(ROUNDS):
        made: dict[str, list[Any]] = {}
        for w in (a, b):
            seeds = range(ARRAYS)
            made[w] = [client.submit(_made, MOVED_BYTES, k, workers=[w], pure=False) for k in seeds]
            client.submit(_count, made[w], workers=[w], pure=False).result()
        start = time.perf_counter()
        fetching = [
            client.submit(_count, made[source], workers=[w], pure=False)
            for w, source in ((a, b), (b, a))
        ]
        for future in fetching:
            future.result()
        rates.append(ARRAYS * MOVED_BYTES / (time.perf_counter() - start))
    return median(rates)


def _count(arrays: list[Any]) -> int:
    return sum(len(x) for x in arrays)


def _copying() -> float:
    """Return the bytes per second, read and written, of putting arrays together."""
    x = np.ones(MOVED_BYTES // 8, np.uint32)
    start = time.perf_counter()
    y = np.concatenate([x, x])
    return 2 * y.nbytes / (time.perf_counter() - start)
