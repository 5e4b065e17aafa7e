"""Tasks that follow each other on one worker, and nothing else, become one.

From the end of a task to the start of one that waited for it Dask takes milliseconds, through the
scheduler, even on the same worker. A task whose result only the next one takes is done in the same
call, if that one can then start no later: whatever else it takes is there before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aegis_dask.placement.tasks import Part, Plan, Task

FUSED = ("stage", "sum", "join")


def fuse(plan: Plan, layers: Sequence[str] = ()) -> Plan:
    """Return the plan with chains of tasks put into one each.

    Parameters
    ----------
    plan
        The plan.
    layers
        Layer of every stage: no chain goes from one to another, where runs are submitted apart and
        can be taken up again.
    """
    tasks = plan.tasks
    final = {i for pieces in plan.outputs.values() for i in pieces} | set(plan.kept)
    users: list[list[int]] = [[] for _ in tasks]
    before: list[int] = []  # bit sets of all tasks that have ended when a task starts
    for t in tasks:
        ended = 0
        for i in set(t.sources):
            users[i].append(t.index)
            ended |= before[i] | 1 << i
        before.append(ended)
    follows: dict[int, int] = {}  # task -> the one before it in its chain
    for t in tasks:
        for i in t.sources:
            a = tasks[i]
            if (
                t.kind in FUSED
                and a.kind in FUSED
                and a.owner == t.owner
                and not (a.parts or t.parts)  # a chain is made once
                and (not layers or layers[a.stage] == layers[t.stage])
                and len(users[i]) == 1
                and i not in final
                and all(j == i or tasks[j].kind == "input" or before[i] >> j & 1 for j in t.sources)
            ):
                follows[t.index] = i
    if not follows:
        return plan
    return _renumbered(plan, follows)


def _renumbered(plan: Plan, follows: dict[int, int]) -> Plan:
    swallowed = set(follows.values())
    index: dict[int, int] = {}
    out: list[Task] = []
    for t in plan.tasks:
        if t.index in swallowed:
            continue
        chain = [t]
        while chain[0].index in follows:
            chain.insert(0, plan.tasks[follows[chain[0].index]])
        index[t.index] = len(out)
        out.append(_fused(chain, index))
    outputs = {name: tuple(index[i] for i in pieces) for name, pieces in plan.outputs.items()}
    return Plan(out, outputs, plan.workers, tuple(index[i] for i in plan.kept))


def _fused(chain: list[Task], index: dict[int, int]) -> Task:
    last = chain[-1]
    number = index[last.index]
    if len(chain) == 1:
        return replace(last, index=number, sources=tuple(index[i] for i in last.sources))
    sources: dict[int, int] = {}
    parts = []
    previous = -1
    for t in chain:
        takes = tuple(
            -1 if i == previous else sources.setdefault(index[i], len(sources)) for i in t.sources
        )
        parts.append(Part(replace(t, index=number, sources=()), takes))
        previous = t.index
    return replace(
        last,
        index=number,
        sources=tuple(sources),
        rank=chain[0].rank,
        seconds=sum(t.seconds for t in chain),
        parts=tuple(parts),
    )
