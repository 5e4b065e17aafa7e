"""Tasks: what one worker does without a break, and a plan of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aegis_dask.placement.cut import Rows

Kind = Literal["stage", "input", "sum", "join", "pick", "round", "share", "limbs"]


@dataclass(frozen=True)
class Take:
    """Part of what a source gives.

    Attributes
    ----------
    source
        Position among the sources of the task.
    slot
        Which of several results, or None for the only one.
    rows
        Range within the rows that the source gives, or None for all.
    """

    source: int
    slot: int | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Argument:
    """The value of a node, from parts that are joined, or added if they are partial sums."""

    node: int
    takes: tuple[Take, ...]
    add: bool = False


@dataclass(frozen=True)
class Task:
    """What one worker does without a break.

    Attributes
    ----------
    index
        Position in the list of tasks, in which sources come first.
    kind
        What it does (see the module).
    stage
        Stage for which it is done.
    rows
        Rows of the leading axis that it gives, or None for all.
    sources
        Tasks whose results it takes.
    arguments
        How its arguments are made of them.
    results
        Nodes whose values, or rows of them, it gives.
    owner
        Worker that runs it.
    rank
        Tasks of a lower rank are to run first.
    seconds
        Estimated work.
    round
        Which round of a schedule by limbs it is, or follows.
    limbs
        Positions of the limbs of an input that it takes, or None for all.
    to
        Worker for which what it gives is, or -1 if several may take it.
    payload
        Bytes that it gives, or None where they are those of its results.
    parts
        What it does, one after the other, if it is several tasks (see `placement.fuse`): kind,
        stage, rows and arguments are those of the last, results what it gives of all.
    """

    index: int
    kind: Kind
    stage: int
    rows: Rows | None
    sources: tuple[int, ...]
    arguments: tuple[Argument, ...]
    results: tuple[int, ...]
    owner: int
    rank: float
    seconds: float = 0.0
    round: int = -1
    limbs: tuple[int, ...] | None = None
    to: int = -1
    payload: int | None = None
    parts: tuple[Part, ...] = ()

    @property
    def steps(self) -> tuple[Part, ...]:
        """What it does, one after the other."""
        if self.parts:
            return self.parts
        return (Part(self, tuple(range(len(self.sources))), tuple(range(len(self.results)))),)

    @property
    def last_uses(self) -> dict[int, int]:
        """Part -> the last one that takes what it gives, if any does."""
        return {k + i: k for k, part in enumerate(self.parts) for i in part.takes if i < 0}

    @property
    def given(self) -> list[tuple[int, Rows | None]]:
        """Node and rows of each result."""
        return [(p.task.results[s], p.task.rows) for p in self.steps for s in p.gives]


@dataclass(frozen=True)
class Part:
    """One of several things that a task does.

    Attributes
    ----------
    task
        As if it were alone, but for its sources.
    takes
        Where each of its sources is among those of the whole task; -1 for the part before it, -2
        for the one before that.
    gives
        Which of its results the whole task gives, after those of the parts before.
    """

    task: Task
    takes: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Rows of a value, or a partial sum of it, that a task gives."""

    task: int
    slot: int | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Plan:
    """Tasks, and where the outputs of the program are.

    Attributes
    ----------
    tasks
        All tasks, sources first.
    outputs
        Name -> tasks that give its rows, in order, one result each.
    workers
        Number of workers.
    kept
        Tasks that are to run although no output needs them.
    """

    tasks: list[Task]
    outputs: dict[str, tuple[int, ...]]
    workers: int
    kept: tuple[int, ...] = ()
