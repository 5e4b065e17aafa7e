"""Cutting a program into units of work: stages, or ranges of the rows of a stage.

A unit is what a strategy places on a worker (`place`) and what becomes a task (`lowering`). Tasks
must be coarse: Dask takes about a millisecond for one and six for a dependency, so a unit should
last half a second, and no less than 50 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil

from aegis_dask.errors import ClusterError
from aegis_dask.program.graph import Program, Stage
from aegis_dask.program.operations import Input, Total

TARGET_SECONDS = 0.5
"""How long a unit should last."""
LEAST_SECONDS = 0.05
"""A stage is not cut into units shorter than this."""

Rows = tuple[int, int]


@dataclass(frozen=True)
class Unit:
    """A stage, or a range of its rows.

    Attributes
    ----------
    stage
        Index of the stage.
    rows
        Range of its leading axis, or None for the whole stage.
    seconds
        Estimated work.
    block, blocks
        A split stage has one block of consecutive rows per worker that takes part; this unit lies
        in the block of this index. All stages of one length have the same blocks, so that rows stay
        where they are from stage to stage.
    is_copy
        The stage is replicated: every worker computes all of it, block b is that of worker b.
    """

    stage: int
    rows: Rows | None
    seconds: float
    block: int = 0
    blocks: int = 1
    is_copy: bool = False


def is_input(program: Program, stage: Stage) -> bool:
    """Whether a stage only declares an input: its value comes from the caller."""
    return all(isinstance(program.nodes[i].op, Input) for i in stage.nodes)


def can_be_replicated(program: Program, stage: Stage) -> bool:
    """Whether every worker may compute a stage for itself: it has no sum over its leading axis."""
    return not any(program.nodes[i].op.reduces for i in stage.nodes)


def is_plain_total(program: Program, stage: Stage) -> bool:
    """Whether a stage only adds values that have one level, so that the order is free."""
    if len(stage.nodes) != 1:
        return False
    node = program.nodes[stage.nodes[0]]
    values = [program.nodes[i] for i in node.inputs]
    alike = len({(v.depth, v.components) for v in values}) == 1
    inputs = any(isinstance(v.op, Input) for v in values)
    return isinstance(node.op, Total) and alike and not inputs


def block_of(row: int, blocks: int, count: int) -> int:
    """Return which block holds a row, where block b begins at row ``b * count // blocks``."""
    return ((row + 1) * blocks - 1) // count


def split(
    program: Program,
    workers: int,
    stage_work: Sequence[float],
    target_seconds: float = TARGET_SECONDS,
    least_seconds: float = LEAST_SECONDS,
    replicated: Collection[int] = (),
    slices: int = 1,
) -> list[Unit]:
    """Return the units of a program, in order of evaluation.

    Parameters
    ----------
    program
        The program.
    workers
        Number of workers.
    stage_work
        Estimated seconds of every stage on one worker (`Analysis.stage_work`).
    target_seconds, least_seconds
        How long a unit should last, and how short it may get. A stage whose arguments are already
        spread over workers is split regardless: moving them costs more.
    replicated
        Stages that every worker computes for itself, instead of fetching from others what they
        give. Those with sums over the leading axis cannot be.
    slices
        Cut the rows that a worker has of a sum of values into so many parts, if it has as many: one
        travels while the next is added.

    Raises
    ------
    ClusterError
        If a number is out of range or `stage_work` does not fit the program.
    """
    if workers < 1 or target_seconds <= 0 or least_seconds < 0:
        raise ClusterError(
            f"cannot cut a program for {workers} workers into tasks of {target_seconds} s, at "
            f"least {least_seconds} s: give one worker or more, and positive times"
        )
    if len(stage_work) != len(program.stages):
        raise ClusterError(
            f"stage_work has {len(stage_work)} entries, the program has {len(program.stages)} "
            "stages; give one estimate per stage"
        )
    units: list[Unit] = []
    blocks_of: dict[int, int] = {}
    for stage, work in zip(program.stages, stage_work, strict=True):
        if is_input(program, stage) or not program.results(stage):
            continue
        if stage.index in replicated and workers > 1:
            if not can_be_replicated(program, stage):
                raise ClusterError(
                    f"stage {stage.name!r} cannot be computed by every worker: it has a sum over "
                    "its leading axis"
                )
            for w in range(workers):
                parts = _cut_stage(stage, work, 1, target_seconds)
                units += [replace(u, block=w, blocks=workers, is_copy=True) for u in parts]
            continue
        blocks = 1
        if stage.over is not None and stage.over > 1:
            spread = any(
                blocks_of.get(program.nodes[j].stage, 1) > 1
                for j, whole in program.needed_whole(stage).items()
                if not whole
            )
            worth = workers if spread else int(work / max(least_seconds, 1e-9))
            blocks = max(1, min(workers, stage.over, worth))
        blocks_of[stage.index] = blocks
        least = slices if is_plain_total(program, stage) else 1
        units += _cut_stage(stage, work, blocks, target_seconds, least)
    return units


def _cut_stage(stage: Stage, work: float, blocks: int, target: float, least: int = 1) -> list[Unit]:
    over = stage.over
    if over is None or over == 1:
        return [Unit(stage.index, None, work)]
    units = []
    for b in range(blocks):
        first, last = b * over // blocks, (b + 1) * over // blocks
        rows = last - first
        parts = min(rows, max(least, ceil(work * rows / over / target)))
        for k in range(parts):
            start, stop = first + k * rows // parts, first + (k + 1) * rows // parts
            units.append(Unit(stage.index, (start, stop), work * (stop - start) / over, b, blocks))
    if len(units) == 1:
        return [Unit(stage.index, None, work)]
    return units
