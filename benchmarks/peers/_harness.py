"""What all peers share: presets, command line, JSON lines, and check-before-timing.

Runs inside the peer's own subprocess; valid on Python 3.10 like `benchmarks._measure`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._measure import machine_info, measure, peak_rss_bytes

Vector = npt.NDArray[np.float64]

#: Order of execution: operations that need many keys come last, so that the peak memory recorded
#: with the ones before them is not theirs.
OPS = (
    "keygen_relin",
    "keygen_rotation",
    "encode",
    "encrypt",
    "decrypt",
    "add",
    "multiply_plain",
    "rescale",
    "multiply_relin_rescale",
    "rotate",
    "chebyshev_31",
    "hoisted_rotations_8",
    "matvec_128",
)
HOISTED_STEPS = tuple(range(1, 9))
MATVEC_SIZE = 128
MATVEC_BABY_STEPS = 16
TOLERANCE = 1e-4
#: Exit status of a peer whose library cannot be imported.
EXIT_MISSING = 3


@dataclass(frozen=True)
class Preset:
    """Modulus chain of one ring size: a first prime and `levels` primes of the scale's size."""

    levels: int
    scale_bits: int
    first_bits: int


PRESETS: Mapping[int, Preset] = {
    16: Preset(levels=24, scale_bits=50, first_bits=60),
    15: Preset(levels=10, scale_bits=50, first_bits=60),
    13: Preset(levels=2, scale_bits=40, first_bits=50),
}


@dataclass(frozen=True)
class Options:
    """Parsed command line of a peer."""

    threads: int
    logn: int
    levels: int
    scale_bits: int
    first_bits: int
    ops: tuple[str, ...]
    budget_s: float
    quiet_wait_s: float


@dataclass(frozen=True)
class Case:
    """One operation, ready to run: what is timed, its result's largest error, and its notes."""

    run: Callable[[], Any]
    error: Callable[[Any], float]
    describe: Callable[[Any], Mapping[str, Any]] = lambda _result: {}


class UnsupportedError(Exception):
    """The library, or these parameters, cannot do the operation; the text says why."""


class Reporter:
    """Prints one JSON object per line, each naming library, threads and ring size."""

    def __init__(self, lib: str, options: Options) -> None:
        """Remember what every line repeats."""
        self.lib = lib
        self._common = {"lib": lib, "threads": options.threads, "logn": options.logn}

    def emit(self, kind: str, **fields: Any) -> None:
        """Print one line of the given kind: params, time, size, skip or error."""
        print(json.dumps({"kind": kind, **self._common, **fields}), flush=True)


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line every peer understands."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--logn", type=int, default=16, choices=sorted(PRESETS))
    parser.add_argument("--levels", type=int, help="default: the preset of the ring size")
    parser.add_argument("--ops", default="all", help="'all' or names separated by commas")
    parser.add_argument("--budget", type=float, default=1.5, help="seconds per operation")
    parser.add_argument("--quiet-wait", type=float, default=0, help="seconds to wait for quiet")
    args = parser.parse_args(argv)
    wanted = OPS if args.ops == "all" else tuple(args.ops.split(","))
    unknown = sorted(set(wanted) - set(OPS))
    if unknown:
        parser.error(f"unknown operations {', '.join(unknown)}; known: {', '.join(OPS)}")
    preset = PRESETS[args.logn]
    return Options(
        threads=args.threads,
        logn=args.logn,
        levels=preset.levels if args.levels is None else args.levels,
        scale_bits=preset.scale_bits,
        first_bits=preset.first_bits,
        ops=tuple(op for op in OPS if op in wanted),
        budget_s=args.budget,
        quiet_wait_s=args.quiet_wait,
    )


def report_missing(lib: str, reason: ImportError) -> int:
    """Say on stdout that the library cannot be imported, and return the exit status for it."""
    print(json.dumps({"kind": "missing", "lib": lib, "reason": str(reason)}), flush=True)
    return EXIT_MISSING


def report_params(reporter: Reporter, options: Options, **params: Any) -> None:
    """Print the line that describes parameters and machine."""
    reporter.emit("params", **{"levels": options.levels, **params}, machine=machine_info())


def run_cases(
    reporter: Reporter, options: Options, builders: Mapping[str, Callable[[], Case]]
) -> None:
    """Check, then time, each wanted operation; a failure ends that operation only."""
    for op in options.ops:
        builder = builders.get(op)
        if builder is None:
            reporter.emit("skip", op=op, reason=f"not measured for {reporter.lib}")
            continue
        try:
            _run_case(reporter, options, op, builder())
        except UnsupportedError as reason:
            reporter.emit("skip", op=op, reason=str(reason))
        except Exception as error:  # a peer's failure must not hide the remaining figures
            reporter.emit("error", op=op, error=f"{type(error).__name__}: {error}")


def _run_case(reporter: Reporter, options: Options, op: str, case: Case) -> None:
    begin = time.perf_counter()
    result = case.run()
    first_s = time.perf_counter() - begin
    error = case.error(result)
    notes = case.describe(result)
    del result
    if not error < TOLERANCE:  # also catches NaN
        reporter.emit("error", op=op, error=f"wrong result: {error:.3g} >= {TOLERANCE:g}")
        return
    timed = measure(
        case.run,
        options.budget_s,
        # A long operation was warmed by its check; repeating that costs more than it tells.
        warm=0 if first_s > options.budget_s else 1,
        quiet_wait_s=options.quiet_wait_s,
        op=op,
        lib=reporter.lib,
        threads=options.threads,
        extra={**notes, "max_error": error, "peak_rss_bytes": peak_rss_bytes()},
    )
    reporter.emit("time", **asdict(timed))


def max_error(actual: npt.ArrayLike, expected: Vector) -> float:
    """Largest absolute difference over the slots."""
    return float(np.max(np.abs(np.asarray(actual)[: len(expected)] - expected)))


def logistic(x: Any) -> Any:
    """The function that chebyshev_31 approximates on [-1, 1]."""
    return 1.0 / (1.0 + np.exp(-x))


def sample(rng: np.random.Generator, slots: int) -> Vector:
    """Uniform slot values in [-1, 1]."""
    return rng.uniform(-1.0, 1.0, slots)


def matvec_matrix(rng: np.random.Generator) -> Vector:
    """Random 128x128 matrix that keeps values near 1."""
    spread = MATVEC_SIZE**-0.5
    return rng.uniform(-spread, spread, (MATVEC_SIZE, MATVEC_SIZE))


def bsgs_diagonals(matrix: Vector) -> dict[tuple[int, int], Vector]:
    """Diagonals by (giant step, baby step), each rotated right by its giant step.

    With them M x = sum over g of rotate_g(sum over b of diagonal[g, b] * rotate_b(x)), all
    rotations to the left.
    """
    size = len(matrix)
    row = np.arange(size)
    return {
        (giant, baby): np.roll(matrix[row, (row + giant + baby) % size], giant)
        for giant in range(0, size, MATVEC_BABY_STEPS)
        for baby in range(MATVEC_BABY_STEPS)
    }


def tile(values: Vector, slots: int) -> Vector:
    """Values repeated over all slots, so that a slot rotation rotates them cyclically."""
    return np.tile(values, slots // len(values))
