"""The CUDA sources as one text per ring degree, and the kernels that they define."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

MIN_LOG_N, MAX_LOG_N = 10, 17
UNITS = ("ntt.cu", "elementwise.cu", "keyswitch.cu", "matrix.cu", "chacha.cu")

# Sizes of blocks and of what they treat, as the sources define them.
THREADS, VECTOR, CHACHA_THREADS = 256, 4, 128
TAIL, TAILS, COLUMNS = 256, 8, 16
CONVERT_WIDTH, CONVERT_SHARES = 64, 4
CONVERT_COLUMNS = 2 * CONVERT_WIDTH
TILE, PAIR, THIN, KEYS = 64, 2, 8, 4

_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_KERNEL = re.compile(r"^(?:KERNEL|PHASED)\((\w+), (\w+)\)\s*\(([^)]*)\)", re.MULTILINE)


def read(name: str) -> str:
    """Return the text of a source file."""
    return (resources.files(__package__) / "kernels" / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def text() -> str:
    """Return all kernels as one translation unit, each header where it is first included."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        def include(match: re.Match[str]) -> str:
            if match[1] in seen:
                return ""
            seen.add(match[1])
            return expand(match[1])

        return _INCLUDE.sub(include, read(name)).replace("#pragma once\n", "")

    return "\n".join(expand(unit) for unit in UNITS)


@lru_cache(maxsize=1)
def kernels() -> Mapping[str, str]:
    """Return name -> threads per block, a macro of the sources, of every kernel."""
    return {name: block for name, block, _ in _KERNEL.findall(text())}


def parameters(kernel: str) -> list[str]:
    """Return the declarations of the parameters of a kernel."""
    (found,) = (p for name, _, p in _KERNEL.findall(text()) if name == kernel)
    return [" ".join(p.split()) for p in found.split(",")]


@lru_cache(maxsize=1024)
def threads(kernel: str, log_n: int) -> int:
    """Return the threads per block of a kernel, as the sources' macros give them."""
    row_stages = log_n - 8
    second = row_stages - (row_stages + 1) // 2
    sizes = {
        "THREADS": THREADS,
        "ROW_THREADS": COLUMNS << second,
        "TAIL_THREADS": 16 * min(TAILS, 1 << row_stages),
        "CONVERT_THREADS": CONVERT_WIDTH * CONVERT_SHARES,
        "CHACHA_THREADS": CHACHA_THREADS,
    }
    return sizes[kernels()[kernel]]
