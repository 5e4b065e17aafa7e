"""Dask graphs of tasks: keys, pins, and groups that are submitted one after the other.

A graph of a million tasks blocks Dask's scheduler for half a minute. So the tasks of a run go to it
in groups, a layer of the model each, and a few thousand tasks at a time.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task as DaskTask
from dask.task_spec import TaskRef

from aegis_dask.placement.tasks import Plan, Task
from aegis_dask.program.graph import Program
from aegis_dask.runtime.worker import run_task

Key = tuple[str, int]
GROUP_TASKS = 4000
"""Most tasks of a group; those of two and a half are with the scheduler at a time."""
IN_FLIGHT = 10_000


@dataclass(frozen=True)
class Group:
    """Tasks that are submitted together.

    Attributes
    ----------
    index
        Position among the groups.
    name
        Scope of its first stage, for example ``layer0``.
    tasks
        Indices of the tasks, ``[start, stop)``.
    wanted
        Those whose results later groups or the caller need.
    last_use
        Last group that uses a result of this one.
    """

    index: int
    name: str
    tasks: tuple[int, int]
    wanted: tuple[int, ...]
    last_use: int


class Lookup:
    """An annotation of a layer: its value for each key, by the key's part.

    Dask evaluates it on the scheduler, once for each task.
    """

    def __init__(self, values: dict[int, Any]) -> None:
        self.values = values

    def __call__(self, key: Key) -> Any:
        """Return the value for a key."""
        return self.values[key[1]]


def words_of(name: str) -> str:
    """Return the name of a stage in words that Dask keeps as the prefix of a key.

    ``layer0/attention/giant3`` gives ``layer0-attention-giant``: Dask cuts a key at the first word
    after the first with anything but letters.
    """
    first, *others = name.split("/")
    words = [re.sub(r"[^A-Za-z0-9]", "", first) or "stage"]
    if not words[0][0].isalpha():
        words[0] = "x" + words[0]
    for other in others:
        words += [w for w in re.split(r"[^A-Za-z]+", other) if w]
    return "-".join(words)


def make_keys(program: Program, tasks: Sequence[Task], token: str) -> list[Key]:
    """Return the key of each task: ``("layer0-attention-giant-12-3f9a0c11", part)``.

    The number is that of the stage, `token` that of the run: the scheduler keeps the old task of a
    key that it knows.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    keys: list[Key] = []
    for task in tasks:
        words = words_of(program.stages[task.stage].name)
        kind = "" if task.kind == "stage" else f"-{task.kind}"
        name = f"{words}{kind}-{task.stage}-{token}"
        keys.append((name, counts[name]))
        counts[name] += 1
    return keys


def make_groups(program: Program, plan: Plan, most: int = GROUP_TASKS) -> list[Group]:
    """Return the groups of a plan, by the scope of its stages (``layer0``) and by size."""
    tasks = plan.tasks
    starts: list[int] = []
    names: list[str] = []
    scope = ""  # of the current group; stages without one stay in it
    for task in tasks:
        path = program.stages[task.stage].name.split("/")
        # An input may be what a layer gave that is finished; it belongs where it is taken.
        own = path[0] if len(path) > 1 and task.kind != "input" else scope
        if not starts or (scope and own != scope) or task.index - starts[-1] >= most:
            starts.append(task.index)
            names.append("")
        scope = names[-1] = own
    bounds = [*starts, len(tasks)]
    group_of: list[int] = []
    for g, (a, b) in enumerate(pairwise(bounds)):
        group_of += [g] * (b - a)
    last_use = list(range(len(starts)))
    wanted: list[set[int]] = [set() for _ in starts]
    for task in tasks:
        for i in task.sources:
            if tasks[i].kind != "input" and group_of[i] != group_of[task.index]:
                wanted[group_of[i]].add(i)
                last_use[group_of[i]] = max(last_use[group_of[i]], group_of[task.index])
    for pieces in plan.outputs.values():
        for i in pieces:
            wanted[group_of[i]].add(i)
            last_use[group_of[i]] = len(starts)
    for i in plan.kept:
        wanted[group_of[i]].add(i)
    return [
        Group(g, names[g], (a, b), tuple(sorted(wanted[g])), last_use[g])
        for g, (a, b) in enumerate(pairwise(bounds))
    ]


def make_graph(
    program: Program,
    plan: Plan,
    group: Group,
    keys: Sequence[Key],
    ranks: Sequence[int],
    addresses: Sequence[str],
    run: str,
    title: str = "",
) -> HighLevelGraph:
    """Return the graph of a group: a layer for each stage, every task pinned to its worker.

    Parameters
    ----------
    program, plan, group
        What to run.
    keys, ranks
        Of all tasks.
    addresses
        Of the workers, which must have joined: Dask takes a pin to a name that it does not know for
        the whole host.
    run, title
        Name under which the workers hold the run, and what Dask's pages call it (as a span).
    """
    layers: defaultdict[str, dict[Key, DaskTask]] = defaultdict(dict)
    members: defaultdict[str, list[Task]] = defaultdict(list)
    depends: defaultdict[str, set[str]] = defaultdict(set)
    own = {keys[i][0] for i in range(*group.tasks) if plan.tasks[i].kind != "input"}
    for i in range(*group.tasks):
        task, key = plan.tasks[i], keys[i]
        if task.kind == "input":
            continue  # sent by the caller
        references = [TaskRef(keys[j]) for j in task.sources]
        layers[key[0]][key] = DaskTask(key, run_task, run, i, *references)
        members[key[0]].append(task)
        depends[key[0]] |= {keys[j][0] for j in task.sources} & own - {key[0]}
    out = {}
    for name, graph in layers.items():
        stage = program.stages[members[name][0].stage].name
        parts = {keys[t.index][1]: t for t in members[name]}
        pins = {part: [addresses[t.owner]] for part, t in parts.items()}
        about = {
            part: {"layer": stage.split("/")[0], "operator": stage, "task": t.index}
            for part, t in parts.items()
        }
        annotations = {
            "workers": Lookup(pins),
            "priority": Lookup({part: -ranks[t.index] for part, t in parts.items()}),
            "aegis": Lookup(about),
            "span": {"name": (title or "run",), "ids": (run,)},
        }
        out[name] = MaterializedLayer(graph, annotations=annotations)
    return HighLevelGraph(out, {name: depends[name] for name in out})


def make_ranks(tasks: Sequence[Task]) -> list[int]:
    """Return the position of each task in the order in which tasks are best run."""
    order = sorted(range(len(tasks)), key=lambda i: (tasks[i].rank, i))
    ranks = [0] * len(tasks)
    for position, i in enumerate(order):
        ranks[i] = position
    return ranks
