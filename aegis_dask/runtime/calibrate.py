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

import aegis_dask.runtime.serialization  # noqa: F401 - ciphertexts travel as they do in runs
from aegis_dask import config
from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator, SecretKey
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.config import CUDA
from aegis_dask.errors import InsecureParametersWarning
from aegis_dask.placement.devices import Device, Link, Machine
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.symbolic import analyse
from aegis_dask.ring.cuda_backend.device import device_count
from aegis_dask.ring.registry import backend_name, device_name
from aegis_dask.ring.threads import get_threads, set_threads
from aegis_dask.runtime import cluster

PRESET, GPU_PRESET = "insecure-n12-d40", "n16-d40"
"""Of the kernels' measurement: security does not matter, on a CPU size hardly."""
TASK_SECONDS = 0.01
HOPS = 40
MOVED_BYTES = 1 << 27
ARRAYS = 3
DEGREE = 31
ROUNDS = 3
REPEATS = 12


def measure_machine() -> Machine:
    """Return this machine as a plan sees it, with workers that are linked through it.

    A worker has one thread of the CPU, or a GPU if that is the backend; two share the only one, to
    see what goes between them. Takes half a minute, on a machine that does nothing else.

    Raises
    ------
    BackendError
        If the backend that is asked for cannot be used here.
    """
    gpus = device_count() if backend_name() == CUDA else 0
    with ExitStack() as stack:
        if gpus:
            client, _ = cluster.start_cuda(max(gpus, 2), False, None, stack)
        else:
            client = cluster.start_local(2, True, False, None, None, stack)
        first, second = cluster.in_order(cluster.wait_for_workers(client, 2, 60.0))[:2]
        same = _hop(client, first, first)
        across = _hop(client, first, second)
        moving = _moving(client, first, second)
        copies = [client.submit(_copying, workers=[first], pure=False) for _ in range(ROUNDS)]
        copying = median(f.result() for f in copies)
        speed = min(_speeds(client, [first] if gpus == 1 else [first, second]))
        name, memory = client.submit(_device, workers=[first], pure=False).result()
    latency = max(across - same, 1e-4)
    kind = "between GPUs of one host" if gpus else "TCP on one host"
    inside = Link(f"{kind} (measured)", moving, latency)
    device = Device(f"{name} (measured)", memory, speed, copying)
    return Machine(device, gpus or 64, inside, Link("Ethernet 1 Gbit/s", 125e6, 1e-3), 0.001, same)


def _device() -> tuple[str, int]:
    """Return name and bytes of what computes in this process."""
    if backend_name() != CUDA:
        return "a thread of this CPU", int(MEMORY_LIMIT // 2)
    from aegis_dask.ring.cuda_backend.device import this_device

    return device_name(), this_device().memory() * config.device_workers()


def _speeds(client: Client, workers: list[str]) -> list[float]:
    """Return `kernel_speed` of workers that compute at the same time."""
    for w in workers:  # kernels are loaded, so that the measurements coincide
        client.submit(kernel_speed, workers=[w], pure=False).result()
    together = [client.submit(kernel_speed, workers=[w], pure=False) for w in workers]
    return [future.result() for future in together]


def kernel_speed() -> float:
    """Return how many times faster one thread, or a GPU, computes than the estimates say."""
    params = _parameters()

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
    arithmetic: Any = Encrypted(Evaluator(params, keys))
    x = _repeated(_encrypted(params, secret, analysis.top_level), 4)

    def work() -> None:
        run(program, arithmetic, {"x": x}, {})
        params.ring.synchronize()

    before = get_threads()
    set_threads(1)
    try:
        seconds = _typical(work)
    finally:
        set_threads(before)
    return sum(analysis.stage_work) / seconds


def _parameters() -> Parameters:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return Parameters.preset(GPU_PRESET if backend_name() == CUDA else PRESET)


def _encrypted(params: Parameters, secret: SecretKey, level: int | None = None) -> Ciphertext:
    return Encryptor(params, secret).encrypt(np.zeros(params.slots), level=level)


def _repeated(one: Ciphertext, count: int) -> CipherArray:
    ring = one.params.ring
    data = np.repeat(ring.to_host(one.data), count, axis=0)
    return CipherArray(one.with_data(ring.from_host(data)), (count,))


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


def _made(size: int) -> CipherArray:
    params = _parameters()
    one = _encrypted(params, KeyGenerator(params).secret_key())
    return _repeated(one, max(size // one.nbytes, 1))


def _moving(client: Client, a: str, b: str) -> float:
    """Return the bytes per second at which two workers get what the other one has, both at once."""
    rates = []
    for _ in range(ROUNDS):
        made: dict[str, list[Any]] = {}
        for w in (a, b):
            made[w] = [
                client.submit(_made, MOVED_BYTES, workers=[w], pure=False) for _ in range(ARRAYS)
            ]
            client.submit(_bytes, made[w], workers=[w], pure=False).result()
        start = time.perf_counter()
        fetching = [
            client.submit(_bytes, made[source], workers=[w], pure=False)
            for w, source in ((a, b), (b, a))
        ]
        moved: int = min(future.result() for future in fetching)
        rates.append(moved / (time.perf_counter() - start))
    return median(rates)


def _bytes(arrays: list[CipherArray]) -> int:
    return sum(x.nbytes for x in arrays)


def _copying() -> float:
    """Return the bytes per second, read and written, of putting arrays together."""
    params = _parameters()
    arithmetic = Encrypted(Evaluator(params, EvaluationKeys(params)))
    x = _made(MOVED_BYTES // 2)
    params.ring.synchronize()
    start = time.perf_counter()
    y = arithmetic.join([x, x])
    params.ring.synchronize()
    seconds = time.perf_counter() - start
    return float(2 * y.nbytes / seconds)
