"""Who sends how much to whom: predicted by a plan, or measured in a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

CLIENT = -1
"""The client as a source or destination; workers are 0, 1, ..."""


@dataclass(frozen=True)
class Transfers:
    """Bytes that move in a run.

    Attributes
    ----------
    workers
        Number of workers.
    payload
        (source, destination, stage) -> bytes of residues; source and destination are indices of
        workers or `CLIENT`. The stage is the one that made the values.
    wire
        (source, destination) -> bytes written to the connection, all headers included, as the
        workers counted them; nothing for workers that share a process.
    """

    workers: int
    payload: Mapping[tuple[int, int, str], int] = field(default_factory=dict)
    wire: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def pairs(self) -> dict[tuple[int, int], int]:
        """(source, destination) -> bytes of residues."""
        out: Counter[tuple[int, int]] = Counter()
        for (a, b, _), count in self.payload.items():
            out[a, b] += count
        return dict(out)

    @property
    def stages(self) -> dict[str, int]:
        """Stage -> bytes of residues that workers sent each other."""
        out: Counter[str] = Counter()
        for (a, b, stage), count in self.payload.items():
            if CLIENT not in (a, b):
                out[stage] += count
        return dict(out)

    @property
    def between_workers(self) -> int:
        """Bytes of residues that workers sent each other."""
        return sum(count for (a, b), count in self.pairs.items() if CLIENT not in (a, b))

    @property
    def matrix(self) -> list[list[int]]:
        """``[source][destination]``, the client last."""
        pairs, everyone = self.pairs, [*range(self.workers), CLIENT]
        return [[pairs.get((a, b), 0) for b in everyone] for a in everyone]

    def table(self) -> str:
        """Return the matrix as text."""
        names = [*(f"worker {i}" for i in range(self.workers)), "client"]
        width = max(12, *(len(n) for n in names)) + 2
        lines = ["from \\ to".ljust(width) + "".join(n.rjust(width) for n in names)]
        for name, row in zip(names, self.matrix, strict=True):
            lines.append(name.ljust(width) + "".join(format_bytes(x).rjust(width) for x in row))
        return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Return a size for people to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError
