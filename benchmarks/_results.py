"""One run of `benchmarks.engine`: its records, and the questions that tables and claims ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from benchmarks._measure import DISTURBED
from benchmarks.floor import Floor, Machine, Shape, floor, work
from benchmarks.peers import OURS

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """Records of one ring size; a library measured several times counts with its minimum."""

    logn: int
    command: str
    machine: Mapping[str, Any]
    records: Sequence[Record]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Run:
        """Inverse of `to_dict`."""
        return cls(**content)

    # -- what was measured ------------------------------------------------------------------

    def _select(self, kind: str, lib: str, threads: int | None = None) -> list[Record]:
        return [
            r
            for r in self.records
            if r["kind"] == kind and r["lib"] == lib and threads in (None, r["threads"])
        ]

    @cached_property
    def libs(self) -> list[str]:
        """Libraries with figures, ours first."""
        timed = {r["lib"]: None for r in self.records if r["kind"] == "time"}
        return sorted(timed, key=lambda lib: lib != OURS)

    @cached_property
    def threads(self) -> list[int]:
        """Thread counts with figures."""
        return sorted({r["threads"] for r in self.records if r["kind"] == "time"})

    def time(self, lib: str, threads: int, op: str) -> Record | None:
        """The fastest measurement of an operation, among undisturbed ones if there are any."""
        found = [r for r in self._select("time", lib, threads) if r["op"] == op]
        found = [r for r in found if not _is_disturbed(r)] or found
        return min(found, key=lambda r: float(r["min_ms"]), default=None)

    def milliseconds(self, lib: str, threads: int, op: str) -> float | None:
        """Minimum time of an operation."""
        record = self.time(lib, threads, op)
        return None if record is None else float(record["min_ms"])

    def disturbed(self, lib: str, threads: int, op: str) -> bool:
        """Whether every measurement shared the machine with other processes."""
        record = self.time(lib, threads, op)
        return record is not None and _is_disturbed(record)

    def speedup(self, peer: str, threads: int, op: str) -> float | None:
        """Time of the peer over ours; None if the peer was disturbed, which makes it too large."""
        if self.disturbed(peer, threads, op):
            return None
        theirs, ours = (self.milliseconds(lib, threads, op) for lib in (peer, OURS))
        return theirs / ours if theirs and ours else None

    def params(self, lib: str) -> Record:
        """Parameters and versions of a library (those of its last process)."""
        return next(iter(self._select("params", lib)[::-1]), {})

    def size(self, lib: str, what: str, threads: int | None = None) -> int | None:
        """Largest of the reported sizes in bytes."""
        found = [int(r["bytes"]) for r in self._select("size", lib, threads) if r["what"] == what]
        return max(found, default=None)

    def size_note(self, lib: str, what: str) -> str:
        """What kind of size that is."""
        found = [r.get("note", "") for r in self._select("size", lib) if r["what"] == what]
        return found[-1] if found else ""

    def peak_rss(self, lib: str, threads: int, op: str) -> int | None:
        """Peak memory of the process when `op` had been timed."""
        found = [r for r in self._select("time", lib, threads) if r["op"] == op]
        return max((int(r["extra"]["peak_rss_bytes"]) for r in found), default=None)

    def problems(self) -> list[str]:
        """One line per wrong result, crash or operation that was left out."""
        lines = []
        for r in self.records:
            if r["kind"] in ("error", "skip"):
                where = f"{r['lib']}, threads={r['threads']}, {r.get('op') or 'whole run'}"
                lines.append(f"{where}: {r.get('error') or r.get('reason')}")
        return list(dict.fromkeys(lines))

    # -- bounds -----------------------------------------------------------------------------

    def _probe(self, what: str, threads: int, best: Any = max) -> float | None:
        found = [r for r in self._select("probe", OURS, threads) if r["what"] == what]
        values = [float(r["value"]) for r in found]
        return float(best(values)) if values else None

    def copy_ms(self, op: str, threads: int) -> float | None:
        """Time to copy as many bytes as an element-wise operation moves."""
        return self._probe(f"copy:{op}", threads, min)

    def copy_ratio(self, op: str, threads: int) -> float | None:
        """Time of an element-wise operation over that of copying as many bytes."""
        copy, ours = self.copy_ms(op, threads), self.milliseconds(OURS, threads, op)
        return ours / copy if copy and ours else None

    def machine_model(self, threads: int) -> Machine | None:
        """Clock and bandwidths measured beside our operations."""
        clock, read = self._probe("clock", threads), self._probe("read", threads)
        copy = self.copy_ms("add", threads)
        sizes = [r["bytes"] for r in self._select("probe", OURS) if r["what"] == "copy:add"]
        if not (clock and read and copy):
            return None
        return Machine(threads, clock, read, sizes[0] / copy / 1e6)

    def floor(self, op: str, threads: int) -> Floor | None:
        """Least time of one of our operations under the model of `benchmarks.floor`."""
        model, shape = self.machine_model(threads), self.params(OURS).get("shape")
        if model is None or shape is None:
            return None
        counts = work(Shape(**shape)).get(op)
        return None if counts is None else floor(counts, model)


def _is_disturbed(record: Record) -> bool:
    return (record["foreign_load"] or 0) > DISTURBED
