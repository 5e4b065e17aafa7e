"""Search for a secret key in the memory of other processes."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.keys import SecretKey

WINDOW = 64
"""Coefficients of a pattern: 64 ternary ones are unique."""
CHUNK = 1 << 24
HASH = np.uint64(0x9E3779B97F4A7C15)
HASH_BITS = 16


def patterns_of(key: SecretKey) -> dict[str, bytes]:
    """Every form in which the secret may be in memory -> bytes, at several places of it."""
    ring, params = key.params.ring, key.params
    coefficients = key._coefficients
    limbs = [0, len(params.chain.primes) - 1, len(params.chain.all_primes) - 1]
    signed = np.asarray(ring.from_signed(coefficients, limbs))
    forms: dict[str, NDArray] = {
        kind: coefficients.astype(kind) for kind in ("int8", "int32", "int64", "float64")
    }
    for row, limb in enumerate(limbs):
        forms[f"residues of limb {limb}"] = signed[row]
        forms[f"transformed residues of limb {limb}"] = np.asarray(key._residues)[limb]
    n = params.ring_degree
    return {
        f"{form} at {start}": np.ascontiguousarray(values[start : start + WINDOW]).tobytes()
        for form, values in forms.items()
        for start in (0, n // 4, n // 2, n - WINDOW)
    }


class Search:
    """Patterns, indexed by words of 8 bytes.

    Of each pattern eight words at consecutive bytes are looked up, so that one of them is aligned
    in memory wherever the pattern is; what they find is compared in full.
    """

    def __init__(self, patterns: dict[str, bytes]) -> None:
        self.patterns = patterns
        self.longest = max(len(p) for p in patterns.values())
        self.anchors: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        for name, pattern in patterns.items():
            # Where the fewest bytes are 0, which is what most memory holds.
            starts = range(0, len(pattern) - 16, 8 if len(pattern) > WINDOW else 1)
            best = min(starts, key=lambda i: pattern[i : i + 15].count(0))
            for phase in range(8):
                word = pattern[best + phase : best + phase + 8]
                assert any(word)
                self.anchors[int.from_bytes(word, "little")].append((name, best + phase))
        self.words = np.array(sorted(self.anchors), np.uint64)
        self.table = np.zeros(1 << HASH_BITS, bool)
        self.table[self._hash(self.words)] = True

    def _hash(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return (words * HASH) >> np.uint64(64 - HASH_BITS)

    def find(self, data: bytes) -> set[str]:
        """Names of the patterns in a buffer that began at a multiple of 8."""
        words = np.frombuffer(data, np.uint64, len(data) // 8)
        hits = np.flatnonzero(self.table[self._hash(words)])
        hits = hits[np.isin(words[hits], self.words)]
        found: set[str] = set()
        everything = np.frombuffer(data, np.uint8)
        for word in np.unique(words[hits]).tolist():
            places = hits[words[hits] == word] * 8
            for name, offset in self.anchors[word]:
                pattern = np.frombuffer(self.patterns[name], np.uint8)
                starts = places - offset
                starts = starts[(starts >= 0) & (starts + len(pattern) <= len(data))]
                for i in range(len(pattern)):
                    if not len(starts):
                        break
                    starts = starts[everything[starts + i] == pattern[i]]
                if len(starts):
                    found.add(name)
        return found

    def process(self, pid: int) -> tuple[set[str], int]:
        """Names of the patterns in the memory of a process, and how many bytes were read."""
        found, total = set[str](), 0
        overlap = -(-self.longest // 8) * 8
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for start, stop in regions(pid):
                for begin in range(start, stop, CHUNK):
                    try:
                        memory.seek(begin)
                        data = memory.read(min(stop, begin + CHUNK + overlap) - begin)
                    except (OSError, ValueError, OverflowError):
                        continue  # unmapped meanwhile, or a device
                    total += len(data)
                    found |= self.find(data)
        return found, total


def regions(pid: int) -> Iterator[tuple[int, int]]:
    """Readable regions of the memory of a process that hold anything but code."""
    region: tuple[int, int] | None = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        header = re.match(r"([0-9a-f]+)-([0-9a-f]+) (....) \S+ \S+ \S+\s*(.*)", line)
        if header:
            mode, name = header[3], header[4]
            is_code = re.search(r"\.so[.0-9]*$", name) and "w" not in mode
            readable = mode[0] == "r" and not name.startswith("[v") and not is_code
            region = (int(header[1], 16), int(header[2], 16)) if readable else None
        elif region and re.match(r"(Rss|Swap):\s+[1-9]", line):
            yield region
            region = None


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    out, queue = [], [pid]
    while queue:
        current = queue.pop()
        out.append(current)
        try:
            for task in os.listdir(f"/proc/{current}/task"):
                children = Path(f"/proc/{current}/task/{task}/children").read_text()
                queue += [int(child) for child in children.split()]
        except OSError:
            continue  # it has ended
    return out
