"""Which worker runs which unit: strategies. Another one can be given to `Executor.run`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aegis_dask.placement.cut import Unit
from aegis_dask.program.graph import Program

BANDWIDTH = 0.4e9
"""Bytes per second between two workers, for estimates."""
HOP_SECONDS = 0.003
"""Latency of a dependency between two workers, for estimates."""


SHARD = re.compile(r"/shard-(\d+)/")
"""Stages of one shard of several."""


class Strategy(Protocol):
    """Chooses a worker for each unit."""

    def __call__(
        self,
        program: Program,
        units: Sequence[Unit],
        workers: int,
        node_bytes: Sequence[int],
    ) -> list[int]:
        """Return the worker, 0 to ``workers - 1``, of every unit.

        Parameters
        ----------
        program
            The program.
        units
            Its units, in order of evaluation.
        workers
            Number of workers.
        node_bytes
            Size of every node's value.
        """


@dataclass(frozen=True)
class Contiguous:
    """Gives block b of n to worker ``b * workers // n``, whole stages to who finishes them first.

    A whole stage is started where it can be ready earliest, by the estimates of work and of moving
    its arguments: independent ones are dealt over the workers, and a lone one goes where most of
    its arguments are.

    Attributes
    ----------
    bandwidth
        Bytes that move between two workers in a second of estimated work.
    hop_seconds
        Latency of a dependency between two workers, in seconds of estimated work.
    shards
        Number of shards of a program that is split by columns and rows
        (`circuits.encoder.EncoderLayer.shards`): those of a shard go to one worker.
    """

    bandwidth: float = BANDWIDTH
    hop_seconds: float = HOP_SECONDS
    shards: int = 1

    def __call__(
        self, program: Program, units: Sequence[Unit], workers: int, node_bytes: Sequence[int]
    ) -> list[int]:
        """Return the worker of every unit."""
        owners: list[int] = []
        free = [0.0] * workers
        ready: dict[int, float] = {}  # stage -> when all of it is there
        held: dict[int, list[float]] = {}  # stage -> share of its rows on each worker
        for unit in units:
            stage = program.stages[unit.stage]
            needed = program.needed_whole(stage)

            def start(w: int, unit: Unit = unit, needed: dict[int, bool] = needed) -> float:
                time = free[w]
                for j, whole in needed.items():
                    source = program.nodes[j].stage
                    if source not in ready:
                        continue  # an input: the caller sends it to any worker alike
                    missing = 1 - held[source][w] if whole or unit.rows is None else 0.0
                    moved = missing * node_bytes[j] / self.bandwidth + (
                        self.hop_seconds if missing > 1e-9 else 0.0
                    )
                    time = max(time, ready[source] + moved)
                return time

            shard = SHARD.search(stage.name)
            if unit.is_copy:
                w = unit.block
            elif shard and self.shards > 1:
                w = int(shard[1]) * workers // self.shards
            elif unit.blocks > 1:
                w = unit.block * workers // unit.blocks
            else:
                w = min(range(workers), key=lambda v: (start(v), free[v], v))
            owners.append(w)
            end = start(w) + unit.seconds
            free[w] = end
            ready[unit.stage] = max(ready.get(unit.stage, 0.0), end)
            share = held.setdefault(unit.stage, [0.0] * workers)
            rows = unit.rows
            share[w] += 1.0 if rows is None else (rows[1] - rows[0]) / (stage.over or 1)
        return owners


def stage_order(
    program: Program,
    units: Sequence[Unit],
    node_bytes: Sequence[int],
    bandwidth: float = BANDWIDTH,
    hop_seconds: float = HOP_SECONDS,
) -> list[int]:
    """Return the position of every stage in the order in which workers should take them up.

    Stages from which the longest way leads to the end come first (the upward rank of HEFT,
    Topcuoglu, Hariri, Wu, 2002), the time on links included: what others wait for is begun before
    what stays, and is on its way meanwhile.

    Parameters
    ----------
    program, units, node_bytes
        As for a strategy.
    bandwidth, hop_seconds
        As in `Contiguous`.
    """
    seconds = [0.0] * len(program.stages)
    shares = [1] * len(program.stages)
    for unit in units:
        shares[unit.stage] = 1 if unit.is_copy else max(shares[unit.stage], unit.blocks)
        if not unit.is_copy or unit.block == 0:
            seconds[unit.stage] += unit.seconds
    way = [0.0] * len(program.stages)  # from the start of a stage to the end
    after = [0.0] * len(program.stages)  # from the end of a stage
    for stage in reversed(program.stages):
        n = stage.index
        way[n] = seconds[n] / shares[n] + after[n]
        for j, whole in program.needed_whole(stage).items():
            source = program.nodes[j].stage
            moved = node_bytes[j] * (1 - 1 / shares[source]) / bandwidth if whole else 0.0
            after[source] = max(after[source], way[n] + hop_seconds + moved)
    # Ties, such as giant groups, in the order of the program.
    order = sorted(range(len(program.stages)), key=lambda n: (-round(way[n], 9), n))
    position = [0] * len(program.stages)
    for k, n in enumerate(order):
        position[n] = k
    return position


contiguous = Contiguous()
"""With the estimates for processes of one host."""
