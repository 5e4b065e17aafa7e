"""``aegis bench``: encrypt, compute and decrypt, with precision and times on this machine."""

from __future__ import annotations

import json
import math
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

import aegis_dask as aegis
from aegis_dask.circuits.approximation import gelu
from aegis_dask.ckks.security import SECURITY_BITS
from aegis_dask.config import CPU
from aegis_dask.errors import InsecureParametersWarning
from aegis_dask.ring.backend import Ring
from aegis_dask.ring.registry import backend_name, device_name
from aegis_dask.ring.threads import get_threads, set_threads

T = TypeVar("T")

MIN_PRECISION_BITS = 20.0
DIMENSION = 128
ROTATION = 1
"""Also a baby step of the matrix product, so it needs no key of its own."""
ACTIVATION_RANGE = 4.0
"""The polynomial fits ``GELU(4 t) / 4``: values in [-1, 1] stand for activations in [-4, 4]."""
PRECISION_FAILURE = 1

_WARM_UP_PRESET, _WARM_UP_DIMENSION = "insecure-n10-d40", 16

_SERVER_NOTE = (
    "The server side (Evaluator) held public evaluation keys only: every operation ran without "
    "the secret key."
)


@dataclass(frozen=True)
class Operation:
    """One row of the results; precision is that of the decrypted result."""

    name: str
    level_before: int | None
    level_after: int
    seconds: float
    precision: aegis.PrecisionStats


@dataclass(frozen=True)
class Report:
    """What one run of the workload measured; sizes in bytes, times in seconds."""

    params: aegis.Parameters
    degree: int
    fit_error: float
    operations: tuple[Operation, ...]
    evaluation_keys: int
    evaluation_key_bytes: int
    public_key_bytes: int
    ciphertext_bytes: int
    matrix_bytes: int
    key_seconds: float
    matrix_seconds: float
    decryption_seconds: float
    total_seconds: float

    @property
    def passed(self) -> bool:
        """Whether every result has at least `MIN_PRECISION_BITS` bits."""
        return all(op.precision.worst >= MIN_PRECISION_BITS for op in self.operations)


def run(
    preset: str = "n16-d40",
    threads: int | None = None,
    seed: int | None = None,
    as_json: bool = False,
) -> int:
    """Run the workload and print its results.

    Parameters
    ----------
    preset
        Name of a parameter set.
    threads
        Threads to compute with, all cores by default.
    seed
        Seed of the input values, never of keys or encryption randomness.
    as_json
        Print one JSON object instead of tables.

    Returns
    -------
    int
        Exit status: 0 if every result has at least 20 bits of precision, else 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)  # shown by _announce instead
        params = aegis.Parameters.preset(preset)
        warm_up = aegis.Parameters.preset(_WARM_UP_PRESET)
    if threads is not None:
        set_threads(threads)
    _announce(params)
    rng = np.random.default_rng(seed)
    start = perf_counter()
    # Compiles or loads the kernels, which are the same for every ring, on a small one. Its keys
    # are thrown away.
    measure(warm_up, _WARM_UP_DIMENSION, np.random.default_rng(0))
    preparation = perf_counter() - start
    report = measure(params, DIMENSION, rng)
    if as_json:
        sys.stdout.write(json.dumps(_as_dict(report, preparation), allow_nan=False) + "\n")
    else:
        _print_tables(report, preparation)
    return 0 if report.passed else PRECISION_FAILURE


def measure(params: aegis.Parameters, dimension: int, rng: np.random.Generator) -> Report:
    """Run the workload once, with a matrix of ``dimension x dimension``."""
    timed = partial(_timed, params.ring)
    start = perf_counter()
    values, vector, matrix = _inputs(params, dimension, rng)
    degree = (1 << min(4, params.max_level - 1)) - 1  # leaves one level for the matrix
    coefficients = aegis.chebyshev_coefficients(_activation, degree)
    transform, matrix_seconds = timed(lambda: aegis.LinearTransform.from_matrix(params, matrix))

    client, key_seconds = timed(lambda: _Client(params, {ROTATION, *transform.rotations}))
    x, encryption_seconds = timed(lambda: client.encryptor.encrypt(values), repeats=2)
    v = client.encryptor.encrypt(np.tile(vector, params.slots // dimension))

    server = aegis.Evaluator(params, client.evaluation_keys)
    product = np.tile(matrix @ vector, params.slots // dimension)

    def polynomial(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.polynomial.chebyshev.chebval(t, coefficients), np.float64)

    def in_sequence(ct: aegis.Ciphertext) -> aegis.Ciphertext:
        ct = server.chebyshev(server.linear_transform(ct, transform), coefficients)
        return server.rotate(ct, ROTATION)

    tasks = (
        _Task(
            f"polynomial of degree {degree}",
            x,
            lambda ct: server.chebyshev(ct, coefficients),
            polynomial(values),
        ),
        _Task(
            f"rotation by {ROTATION}",
            x,
            lambda ct: server.rotate(ct, ROTATION),
            np.roll(values, -ROTATION),
        ),
        _Task(
            f"{dimension} x {dimension} matrix times vector",
            v,
            lambda ct: server.linear_transform(ct, transform),
            product,
        ),
        _Task("the three in sequence", v, in_sequence, np.roll(polynomial(product), -ROTATION)),
    )
    results = [timed(task.run, repeats=2) for task in tasks]

    fresh, decryption_seconds = timed(lambda: client.decryptor.decrypt(x), repeats=2)
    stats = aegis.precision_stats(values, fresh)
    operations = [Operation("encryption", None, x.level, encryption_seconds, stats)]
    for task, (result, seconds) in zip(tasks, results, strict=True):
        stats = aegis.precision_stats(task.expected, client.decryptor.decrypt(result))
        operations.append(Operation(task.name, task.operand.level, result.level, seconds, stats))

    grid = np.linspace(-1, 1, 2001)
    return Report(
        params=params,
        degree=degree,
        fit_error=float(np.max(np.abs(polynomial(grid) - _activation(grid)))),
        operations=tuple(operations),
        evaluation_keys=1 + len(client.evaluation_keys.galois),
        evaluation_key_bytes=params.evaluation_key_bytes,
        public_key_bytes=client.public_key.b.nbytes + client.public_key.a.nbytes,
        ciphertext_bytes=x.nbytes,
        matrix_bytes=transform.nbytes,
        key_seconds=key_seconds,
        matrix_seconds=matrix_seconds,
        decryption_seconds=decryption_seconds,
        total_seconds=perf_counter() - start,
    )


class _Client:
    """Makes the keys, encrypts and decrypts; only the evaluation keys leave it."""

    def __init__(self, params: aegis.Parameters, rotations: set[int]) -> None:
        generator = aegis.KeyGenerator(params)
        secret_key = generator.secret_key()
        self.public_key = generator.public_key(secret_key)
        self.evaluation_keys = generator.evaluation_keys(secret_key, rotations=rotations)
        self.encryptor = aegis.Encryptor(params, self.public_key)
        self.decryptor = aegis.Decryptor(params, secret_key)


@dataclass(frozen=True)
class _Task:
    """An operation on the server and the values that its result should decrypt to."""

    name: str
    operand: aegis.Ciphertext
    compute: Callable[[aegis.Ciphertext], aegis.Ciphertext]
    expected: NDArray[np.float64]

    def run(self) -> aegis.Ciphertext:
        return self.compute(self.operand)


def _inputs(
    params: aegis.Parameters, dimension: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return one value per slot, a vector, and a matrix that keeps vectors within [-1, 1]."""
    values = rng.uniform(-1, 1, params.slots)
    vector = rng.uniform(-1, 1, dimension)
    matrix = rng.uniform(-1, 1, (dimension, dimension))
    return values, vector, matrix / np.abs(matrix).sum(axis=1, keepdims=True)


def _activation(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``GELU(4 t) / 4``."""
    return gelu(ACTIVATION_RANGE * t) / ACTIVATION_RANGE


def _timed(ring: Ring, function: Callable[[], T], repeats: int = 1) -> tuple[T, float]:
    """Return the result and the seconds of the fastest of `repeats` runs."""
    best = math.inf
    for _ in range(repeats):
        ring.synchronize()  # a GPU has only been told what to do when a function returns
        start = perf_counter()
        result = function()
        ring.synchronize()
        best = min(best, perf_counter() - start)
    return result, best


def _announce(params: aegis.Parameters) -> None:
    """Warn of insecure parameters, on stderr so that JSON stays clean."""
    if not params.is_secure:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]warning:[/] {params.name} is insecure and meant for tests; it protects "
            "nothing"
        )


def _peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _computed_on() -> tuple[str, str]:
    if backend_name() == CPU:
        return "CPU threads", str(get_threads())
    return "computed on", device_name()


def _milliseconds(seconds: float) -> str:
    """Return text with enough digits for a GPU's rotation, too."""
    return f"{seconds * 1e3:,.1f}" if seconds >= 1e-2 else f"{seconds * 1e3:.3g}"


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _print_tables(report: Report, preparation: float) -> None:
    params = report.params
    console = Console()
    secure = params.is_secure
    header = Table.grid(padding=(0, 2))
    header.add_column(style="dim")
    header.add_column()
    peak = _peak_memory()
    keys = report.evaluation_keys
    for name, value in (
        ("parameters", params.name),
        ("ring degree N", f"2^{params.literal.log_n} = {params.ring_degree:,}"),
        ("slots", f"{params.slots:,}"),
        ("levels", f"{params.max_level}, scale 2^{params.literal.scale_bits}"),
        ("log2 QP", f"{params.log2_key_modulus:.0f}"),
        ("security", f"{SECURITY_BITS} bits" if secure else "[bold red]none (insecure)[/]"),
        (
            "evaluation keys",
            f"{keys} of {_megabytes(report.evaluation_key_bytes)} = "
            f"{_megabytes(keys * report.evaluation_key_bytes)} in memory",
        ),
        ("public key", _megabytes(report.public_key_bytes)),
        ("fresh ciphertext", _megabytes(report.ciphertext_bytes)),
        ("encoded matrix", _megabytes(report.matrix_bytes)),
        _computed_on(),
    ):
        header.add_row(name, value)
    console.print(header)

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("operation")
    for column in ("level", "ms", "worst bits", "mean bits"):
        table.add_column(column, justify="right")
    for op in report.operations:
        before = "" if op.level_before is None else f"{op.level_before} -> "
        good = op.precision.worst >= MIN_PRECISION_BITS
        table.add_row(
            op.name,
            f"{before}{op.level_after}",
            _milliseconds(op.seconds),
            f"[{'green' if good else 'bold red'}]{op.precision.worst:.1f}[/]",
            f"{op.precision.mean:.1f}",
        )
    console.print(table)

    console.print(
        "Times are the faster of two runs. Precision is -log2 of the error against float64 "
        "arithmetic on the same polynomial; that polynomial differs from GELU(4t)/4 on [-1, 1] by "
        f"at most {report.fit_error:.1e}."
    )
    console.print(_SERVER_NOTE)
    console.print(
        f"Keys {report.key_seconds:.1f} s, matrix encoding {report.matrix_seconds:.1f} s, "
        f"decryption {report.decryption_seconds * 1e3:,.0f} ms; total {report.total_seconds:.1f} s "
        f"after {preparation:.1f} s to load or compile the kernels"
        + (f"; peak memory {_megabytes(peak)}." if peak is not None else ".")
    )
    if not report.passed:
        console.print(
            f"[bold red]A result has less than {MIN_PRECISION_BITS:.0f} bits of precision.[/]"
        )


def _as_dict(report: Report, preparation: float) -> dict[str, Any]:
    params = report.params
    peak = _peak_memory()
    return {
        "version": aegis.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "parameters": {
            "preset": params.name,
            "ring_degree": params.ring_degree,
            "slots": params.slots,
            "levels": params.max_level,
            "scale_bits": params.literal.scale_bits,
            "log2_qp": round(params.log2_key_modulus, 2),
            "security_bits": SECURITY_BITS if params.is_secure else None,
        },
        "backend": backend_name(),
        "device": device_name(),
        "threads": get_threads(),
        "evaluation_keys": report.evaluation_keys,
        "evaluation_key_bytes": report.evaluation_key_bytes,
        "public_key_bytes": report.public_key_bytes,
        "ciphertext_bytes": report.ciphertext_bytes,
        "matrix_bytes": report.matrix_bytes,
        "operations": [
            {
                "name": op.name,
                "level_before": op.level_before,
                "level_after": op.level_after,
                "milliseconds": round(op.seconds * 1e3, 3),
                "worst_bits": _finite(op.precision.worst),
                "mean_bits": _finite(op.precision.mean),
            }
            for op in report.operations
        ],
        "polynomial_degree": report.degree,
        "polynomial_fit_error": report.fit_error,
        "minimum_precision_bits": MIN_PRECISION_BITS,
        "passed": report.passed,
        "key_seconds": round(report.key_seconds, 3),
        "matrix_seconds": round(report.matrix_seconds, 3),
        "decryption_milliseconds": round(report.decryption_seconds * 1e3, 3),
        "preparation_seconds": round(preparation, 3),
        "total_seconds": round(report.total_seconds, 3),
        "peak_memory_bytes": peak,
    }


def _finite(bits: float) -> float | None:
    """Return None for an exact result, which JSON has no number for."""
    return round(bits, 2) if math.isfinite(bits) else None
