"""What the machine can do: its clock, and the bandwidth of copying and of reading.

Run in the process whose operations they are compared with, after them: same threads, same hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# First, so that LLVM's vector width is chosen before Numba is imported.
from aegis_dask.ring.numba_backend import elementwise, simd  # isort: skip
from aegis_dask.ring.numba_backend.jit import OPTIONS  # isort: skip
import numba
import numpy as np
from numba import int64, prange, uint32, uint64

from benchmarks._measure import measure

_ROW = 1 << 14
_CLOCK_STEPS = 4_000_000
_DRAM_BYTES = 512 << 20
"""Far beyond the share of a cache that one virtual machine keeps."""


@numba.njit(parallel=True, **OPTIONS)
def _dependent_adds(out: Any, steps: int, a: Any, b: Any) -> None:
    """One chain of ``steps`` additions and as many exclusive-ors per thread."""
    for i in prange(out.shape[0]):
        s = uint64(i)
        for _ in range(steps):
            s = (s + a) ^ b  # the exclusive-or keeps the compiler from folding the sum
        out[i] = s


@numba.njit(parallel=True, **OPTIONS)
def _read(out: Any, x: Any, rows: int, n: int) -> None:
    """Read rows of n words; the sums only keep the loads alive."""
    for i in prange(rows):
        s0 = s1 = s2 = s3 = simd.vsplat(uint32(0))
        o = int64(i) * n
        for c in range(o, o + n, 64):
            s0 = simd.vadd(s0, simd.vload(x, c))
            s1 = simd.vadd(s1, simd.vload(x, c + 16))
            s2 = simd.vadd(s2, simd.vload(x, c + 32))
            s3 = simd.vadd(s3, simd.vload(x, c + 48))
        simd.vstore(out, 16 * int64(i), simd.vadd(simd.vadd(s0, s1), simd.vadd(s2, s3)))


def _fastest(fn: Callable[[], object], budget_s: float) -> float:
    return measure(fn, budget_s).min_ms / 1e3


def clock_ghz(threads: int, budget_s: float = 0.3) -> float:
    """Clock while every thread runs a chain of dependent one-cycle instructions."""
    out = np.zeros(threads, np.uint64)
    a, b = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
    seconds = _fastest(lambda: _dependent_adds(out, _CLOCK_STEPS, a, b), budget_s)
    return 2 * _CLOCK_STEPS / seconds / 1e9


def copy_ms(size: int, budget_s: float = 0.5) -> float:
    """Milliseconds to copy `size` bytes into an array that exists.

    The faster of the engine's parallel copy and NumPy's (one thread).
    """
    rows = max(1, size // (4 * _ROW))
    # Touched, so that no page is mapped in the measured part.
    source, target = _touched(rows * _ROW), _touched(rows * _ROW)
    ours = _fastest(lambda: elementwise.copy(target, source, rows, _ROW), budget_s / 2)
    numpys = _fastest(lambda: np.copyto(target, source), budget_s / 2)
    return min(ours, numpys) * 1e3 * size / source.nbytes


def read_gb_s(size: int = _DRAM_BYTES, budget_s: float = 0.5) -> float:
    """Bandwidth of reading an array that no cache holds, in GB/s."""
    rows = size // (4 * _ROW)
    source, sums = _touched(rows * _ROW), np.zeros(16 * rows, np.uint32)
    return source.nbytes / _fastest(lambda: _read(sums, source, rows, _ROW), budget_s) / 1e9


def _touched(words: int) -> Any:
    raw = np.ones(words + 16, np.uint32)
    skip = -raw.ctypes.data % 64 // 4
    return raw[skip : skip + words]


if __name__ == "__main__":
    begin = time.perf_counter()
    count = numba.get_num_threads()
    print(f"{count} threads: {clock_ghz(count):.2f} GHz, read {read_gb_s():.1f} GB/s from memory")
    for mib in (1, 22, 34, 64, 512):
        ms = copy_ms(mib << 20)
        print(f"copy {mib} MiB: {ms:.3f} ms, {2 * (mib << 20) / ms / 1e6:.1f} GB/s (read + write)")
    print(f"{time.perf_counter() - begin:.1f} s")
