"""One run of `benchmarks.bootstrapping`: its records, the questions asked of them, its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log2
from statistics import median
from typing import Any, NamedTuple

from benchmarks._measure import DISTURBED
from benchmarks._tables import factor, number, table
from benchmarks.peers import OURS

Record = Mapping[str, Any]
_NONE = "-"


class Subject(NamedTuple):
    """What has figures of its own: a configuration with one kind of slots."""

    config: str
    slots: str


@dataclass(frozen=True)
class Quoted:
    """Figures that are not of this run.

    Attributes
    ----------
    name
        Library and parameters.
    ring_dim, threads, seconds, levels_left, max_error, peak_rss_bytes
        What was measured.
    source
        Where and how.
    """

    name: str
    ring_dim: int
    threads: int
    seconds: float
    levels_left: int
    max_error: float
    peak_rss_bytes: int
    source: str

    @property
    def seconds_per_level(self) -> float:
        """Seconds for each level that can be used."""
        return self.seconds / self.levels_left


LATTIGO = Quoted(
    "Lattigo 6.2, h = 192, Q 55 + 10 x 40 bits",
    ring_dim=1 << 16,
    threads=1,
    seconds=24.5,
    levels_left=10,
    max_error=3e-8,
    peak_rss_bytes=19_900_000_000,
    source=(
        "measured on 2026-11-20 on an Intel Xeon with AVX-512, about 3.8 GHz, with the library in "
        "the wheel of orion-fhe 1.0.2, one goroutine; not in this run. Its main secret is sparse"
    ),
)


@dataclass(frozen=True)
class Run:
    """Records of `benchmarks._sessions`."""

    command: str
    machine: Mapping[str, Any]
    records: Sequence[Record]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return asdict(self)

    # -- what was measured ------------------------------------------------------------------

    def subjects(self, threads: int | None = None) -> list[Subject]:
        """What has times, ours first."""
        found = {
            Subject(r["config"], r["slots"]): r["lib"] != OURS
            for r in self.records
            if r["kind"] == "time" and threads in (None, r["threads"])
        }
        return sorted(found, key=lambda s: found[s])

    @property
    def ours(self) -> Subject:
        """What the peers are compared with: our first configuration, on complex slots.

        Conservative: the peers' slots are real, which takes us half of EvalMod.
        """
        configs = [r["config"] for r in self.records if r["lib"] == OURS]
        return Subject(configs[0] if configs else OURS, "complex")

    @property
    def peers(self) -> list[Subject]:
        """Everything that is not ours."""
        libs = {r["config"]: r["lib"] for r in self.records}
        return [s for s in self.subjects() if libs[s.config] != OURS]

    @property
    def threads(self) -> list[int]:
        """Thread counts with figures."""
        return sorted({r["threads"] for r in self.records if r["kind"] == "time"})

    def _turns(self, subject: Subject, threads: int | None) -> list[Record]:
        return [
            r
            for r in self.records
            if r["kind"] == "time"
            and (r["config"], r["slots"]) == subject
            and threads in (None, r["threads"])
        ]

    def _times(self, subject: Subject, threads: int, beside: str = "") -> list[float]:
        """Seconds of the undisturbed turns, of all if there are none."""
        turns = self._turns(subject, threads)
        if beside:
            turns = [r for r in turns if r.get("beside") == beside] or turns
        quiet = [r for r in turns if not _is_disturbed(r)]
        return [float(r["seconds"]) for r in quiet or turns]

    def seconds(
        self, subject: Subject, threads: int, of: Callable[[list[float]], float] = min
    ) -> float | None:
        """Time of a refresh: the minimum, or another statistic `of` the turns."""
        found = self._times(subject, threads)
        return of(found) if found else None

    def disturbed(self, subject: Subject, threads: int) -> bool:
        """Whether every turn shared the machine with other processes."""
        turns = self._turns(subject, threads)
        return bool(turns) and all(map(_is_disturbed, turns))

    def repeats(self, subject: Subject, threads: int) -> int:
        """Number of turns that count."""
        return len(self._times(subject, threads))

    def levels_left(self, subject: Subject) -> int | None:
        """Levels that can be used before the next refresh."""
        return min((int(r["levels_left"]) for r in self._turns(subject, None)), default=None)

    def seconds_per_level(self, subject: Subject, threads: int) -> float | None:
        """Seconds for each level that can be used."""
        seconds, levels = self.seconds(subject, threads), self.levels_left(subject)
        return seconds / levels if seconds and levels else None

    def max_error(self, subject: Subject) -> float | None:
        """Largest error of a slot, over all turns."""
        return max((float(r["max_error"]) for r in self._turns(subject, None)), default=None)

    def mean_error(self, subject: Subject) -> float | None:
        """Mean error of a slot, that of the worst turn."""
        return max((float(r["mean_error"]) for r in self._turns(subject, None)), default=None)

    def params(self, config: str) -> Mapping[str, Any]:
        """Parameters of a configuration."""
        found = [r["params"] for r in self.records if (r["kind"], r["config"]) == ("ready", config)]
        return found[-1] if found else {}

    def key_bytes(self, config: str) -> int | None:
        """Evaluation keys in memory; None for libraries that do not tell."""
        return self.params(config).get("key_bytes")

    def peak_rss(self, subject: Subject) -> int | None:
        """Peak memory of the process."""
        return max((int(r["peak_rss_bytes"]) for r in self._turns(subject, None)), default=None)

    def problems(self) -> list[str]:
        """One line per wrong result or crash."""
        lines = [
            f"{r['config']}, threads={r['threads']}, {r.get('slots', 'start')}: {r['error']}"
            for r in self.records
            if r["kind"] == "error"
        ]
        return list(dict.fromkeys(lines))

    # -- against ours -----------------------------------------------------------------------

    def speedup(self, peer: Subject, threads: int, ours: Subject | None = None) -> float | None:
        """Time of the peer over ours; None if the peer was disturbed, which makes it too large.

        Ours is the minimum over the turns beside that peer: of as many as the peer had, since a
        minimum over more is lower.
        """
        theirs, own = self._times(peer, threads), self.beside(peer, threads, ours)
        if not theirs or own is None or self.disturbed(peer, threads):
            return None
        return min(theirs) / own

    def beside(self, peer: Subject, threads: int, ours: Subject | None = None) -> float | None:
        """Our time in the turns beside a peer; in all turns, where there are none."""
        found = self._times(ours or self.ours, threads, peer.config)
        return min(found) if found else None

    def speedup_per_level(self, peer: Subject | Quoted, threads: int) -> float | None:
        """Time per usable level of the peer over ours."""
        levels = self.levels_left(self.ours)
        if isinstance(peer, Quoted):
            own = self.seconds_per_level(self.ours, threads)
            return peer.seconds_per_level / own if own and peer.threads == threads else None
        ratio, theirs = self.speedup(peer, threads), self.levels_left(peer)
        return ratio * levels / theirs if ratio and levels and theirs else None

    # -- tables -----------------------------------------------------------------------------

    def times_table(self, threads: int) -> str:
        """Times and levels, with one number of threads."""
        header = [f"{threads} thread{'s' * (threads > 1)}", "slots", "s, min", "s, median", "runs"]
        header += ["ratio", "levels left", "s per level", "ratio per level"]
        rows = []
        for s in self.subjects(threads):
            mark = "*" * self.disturbed(s, threads)
            rows.append(
                [
                    s.config,
                    s.slots,
                    number(self.seconds(s, threads)) + mark,
                    number(self.seconds(s, threads, median)),
                    str(self.repeats(s, threads)),
                    factor(self.speedup(s, threads)),
                    _text(self.levels_left(s)),
                    number(self.seconds_per_level(s, threads)),
                    factor(self.speedup_per_level(s, threads)),
                ]
            )
        own = self.seconds(self.ours, threads)
        if self._is_quoted and threads == LATTIGO.threads:
            ratio = factor(LATTIGO.seconds / own) if own else _NONE
            row = [f"{LATTIGO.name} (quoted)", "complex", number(LATTIGO.seconds), _NONE, _NONE]
            row += [ratio, str(LATTIGO.levels_left), number(LATTIGO.seconds_per_level)]
            rows.append([*row, factor(self.speedup_per_level(LATTIGO, threads))])
        return table(header, rows)

    def errors_table(self) -> str:
        """Errors of parts uniform in [-1, 1], keys, memory."""
        header = ["", "slots", "ring", "bits, worst", "bits, mean", "largest error"]
        header += ["keys, GB", "peak memory, GB"]
        rows = []
        for s in self.subjects():
            worst, mean = self.max_error(s), self.mean_error(s)
            row = [s.config, s.slots, _ring(self.params(s.config)["ring_dim"])]
            row += [_bits(worst), _bits(mean), f"{worst:.1e}" if worst else _NONE]
            rows.append([*row, _gigabytes(self.key_bytes(s.config)), _gigabytes(self.peak_rss(s))])
        if self._is_quoted:
            row = [f"{LATTIGO.name} (quoted)", "complex", _ring(LATTIGO.ring_dim)]
            row += [_bits(LATTIGO.max_error), _NONE, f"{LATTIGO.max_error:.1e}", _NONE]
            rows.append([*row, _gigabytes(LATTIGO.peak_rss_bytes)])
        return table(header, rows)

    @property
    def _is_quoted(self) -> bool:
        """Whether Lattigo's figures are of the same ring."""
        return bool(self.params(self.ours.config).get("ring_dim") == LATTIGO.ring_dim)

    def report(self) -> str:
        """All tables, with what has to be known to read them."""
        m = self.machine
        parts = [
            f"{m['cpu']}, {m['cores']} cores, {m['date']}, commit {m['commit']}. In turns; "
            "s: seconds of one refresh; ratio: time over that of our first row."
        ]
        parts += [self.times_table(count) for count in self.threads]
        parts.append(f"* another process used more than {DISTURBED} cores each time")
        parts.append(self.errors_table())
        if self._is_quoted:
            parts.append(f"Quoted: {LATTIGO.name}: {LATTIGO.source}.")
        return "\n\n".join([*parts, *self.problems()])


def _is_disturbed(record: Record) -> bool:
    return (record["foreign_load"] or 0) > DISTURBED


def _bits(error: float | None) -> str:
    return f"{-log2(error):.1f}" if error else _NONE


def _ring(degree: int) -> str:
    return f"2^{degree.bit_length() - 1}"


def _gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.2f}" if size else _NONE


def _text(value: object) -> str:
    return _NONE if value is None else str(value)
