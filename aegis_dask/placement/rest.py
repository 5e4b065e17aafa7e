"""The rest of a program: what is left when some of its stages are finished.

A run can go on with other workers than it began with: what the rest takes is known by then, so the
rest is a program of its own, with these values for inputs, and is planned like one. Its plan is
told in the numbers of the whole program, so that workers and accounts know one program only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from aegis_dask.placement.cut import Rows, is_input
from aegis_dask.placement.tasks import Argument, Piece, Plan, Task
from aegis_dask.program.graph import Node, Program, Stage
from aegis_dask.program.operations import Input

Value = TypeVar("Value")


@dataclass(frozen=True)
class Rest:
    """A program without the stages that are finished.

    Attributes
    ----------
    program
        The rest. What it takes of finished stages are inputs of it.
    nodes, stages
        Node, or stage, of the rest -> that of the whole program. For an input the stage that has
        made it.
    """

    program: Program
    nodes: tuple[int, ...]
    stages: tuple[int, ...]

    def of(self, values: Sequence[Value], stages: bool = False) -> list[Value]:
        """Return what is known of the nodes, or stages, of the whole program for those of this."""
        return [values[i] for i in (self.stages if stages else self.nodes)]

    def in_whole(self, plan: Plan) -> Plan:
        """Return a plan of this program as one of the whole, whose ``input`` tasks give nodes."""
        return replace(plan, tasks=[self._task(t) for t in plan.tasks])

    def _task(self, t: Task) -> Task:
        return replace(
            t,
            stage=self.stages[t.stage],
            arguments=tuple(Argument(self.nodes[a.node], a.takes, a.add) for a in t.arguments),
            results=tuple(self.nodes[i] for i in t.results),
            parts=tuple(replace(p, task=self._task(p.task)) for p in t.parts),
        )


def rest_of(program: Program, finished: Collection[int]) -> Rest:
    """Return what is left of a program when some stages, and all before them, are finished.

    Parameters
    ----------
    program
        The program.
    finished
        Its stages that need not run again. Those of inputs do not count.
    """
    out = Program(program.slots)
    nodes: list[int] = []
    stages: list[int] = []
    place: dict[int, int] = {}

    def add(node: Node, op: Input | None, stage: Stage) -> None:
        inputs = () if op is not None else tuple(place[i] for i in node.inputs)
        place[node.id] = len(nodes)
        # The depth stays: values of different levels are not to look alike.
        out.nodes.append(
            replace(node, id=len(nodes), op=op or node.op, inputs=inputs, stage=stage.index)
        )
        stage.nodes.append(len(nodes))
        nodes.append(node.id)

    def open_stage(stage: Stage, name: str, over: int | None) -> Stage:
        out.stages.append(Stage(len(stages), name, over))
        stages.append(stage.index)
        return out.stages[-1]

    names = {node: name for name, node in program.inputs.items()}
    for i in live_nodes(program, finished):
        node = program.nodes[i]
        name = names.get(i, f"node{i}")
        while name in out.inputs:
            name += "'"
        home = open_stage(program.stages[node.stage], f"input-{name}", None)
        add(node, Input(name, node.shape), home)
        out.inputs[name] = place[i]
    for stage in program.stages:
        if stage.index in finished or is_input(program, stage):
            continue
        here = open_stage(stage, stage.name, stage.over)
        for i in stage.nodes:
            add(program.nodes[i], None, here)
    out.outputs = {name: place[i] for name, i in program.outputs.items()}
    return Rest(out, tuple(nodes), tuple(stages))


def live_nodes(program: Program, finished: Collection[int]) -> list[int]:
    """Return the inputs, and the nodes of finished stages that the rest or the caller needs."""
    final = set(program.outputs.values())
    out = []
    for node in program.nodes:
        if isinstance(node.op, Input):
            out.append(node.id)
        elif node.stage in finished:
            used = any(program.nodes[c].stage not in finished for c in program.consumers[node.id])
            if used or node.id in final:
                out.append(node.id)
    return out


def finished_stages(program: Program, plan: Plan, first: int) -> set[int] | None:
    """Return the stages that need not run once all tasks of a plan before `first` have.

    None if some stage is finished in part only, or a value is there as terms of a sum only.
    """
    before: set[int] = set()
    after: set[int] = set()
    for task in plan.tasks:
        for step in task.steps:
            if step.task.kind in ("stage", "sum"):
                (before if task.index < first else after).add(step.task.stage)
            terms = [t for a in step.task.arguments if a.add and len(a.takes) > 1 for t in a.takes]
            taken = [step.takes[t.source] for t in terms]
            if task.index >= first and any(k >= 0 and task.sources[k] < first for k in taken):
                return None
    if before & after:
        return None
    # Stages that the plan leaves out are finished too: by an earlier one, or nobody needs them.
    return {s.index for s in program.stages if not is_input(program, s)} - after


def pieces_of(
    program: Program, plan: Plan, first: int, nodes: Collection[int]
) -> dict[int, list[Piece]] | None:
    """Return where some nodes' values are when all tasks before `first` have run.

    Pieces have consecutive rows. None if rows of a value are not kept for later tasks.
    """
    found: defaultdict[int, dict[Rows | None, Piece]] = defaultdict(dict)
    for name, indices in plan.outputs.items():
        for i in indices:
            if i < first:
                ((_, rows),) = plan.tasks[i].given
                found[program.outputs[name]][rows] = Piece(i, None, rows)
    for task in plan.tasks[first:]:
        for step in task.steps:
            for argument in step.task.arguments:
                for take in argument.takes:
                    k = step.takes[take.source]
                    if k < 0 or (i := task.sources[k]) >= first or plan.tasks[i].kind == "input":
                        continue
                    _, rows = plan.tasks[i].given[take.slot or 0]
                    found[argument.node].setdefault(rows, Piece(i, take.slot, rows))
    out = {}
    for node in nodes:
        chosen = _cover(program, node, found[node])
        if chosen is None:
            return None
        out[node] = chosen
    return out


def _cover(program: Program, node: int, found: dict[Rows | None, Piece]) -> list[Piece] | None:
    """Choose pieces that give all rows of a value, each once."""
    if None in found:
        return [found[None]]
    shape = program.nodes[node].shape
    if not shape:  # from a stage that is split, but not in this plan
        return [next(iter(found.values()))] if found else None
    chosen: list[Piece] = []
    reached = 0
    while reached < shape[0]:
        ends = {rows[1]: piece for rows, piece in found.items() if rows and rows[0] == reached}
        if not ends:
            return None
        reached = max(ends)
        chosen.append(ends[reached])
    return chosen
