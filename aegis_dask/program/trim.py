"""Bringing values down to the levels at which they are used, as early as that is possible.

Operands of a product or sum meet at the lower of their levels. One that comes from higher up is
then brought down by every operation that uses it; until then it is rotated, kept and sent with
limbs that nothing needs. Brought down where it was made, it is brought down once.
"""

from __future__ import annotations

from dataclasses import replace

from aegis_dask.program import operations as ops
from aegis_dask.program.graph import Node, Program, Stage

_FIXED = (ops.Input, ops.Refresh)
"""Their results stay at their level: callers choose that of inputs; refreshes give theirs."""


def levels_of(program: Program, top_level: int, output_level: int | None = None) -> list[int]:
    """Return the level of every node, which may be negative.

    Parameters
    ----------
    program
        The program.
    top_level
        Level of the inputs.
    output_level
        Level of refreshed values, for programs that refresh.
    """
    out: list[int] = []
    for node in program.nodes:
        if isinstance(node.op, ops.Refresh):
            assert output_level is not None
            out.append(output_level - (node.op.iterations > 1))
        else:
            out.append(min((out[i] for i in node.inputs), default=top_level) - node.op.depth)
    return out


def needed_levels(program: Program, levels: list[int]) -> list[int]:
    """Return the highest level at which each node's value is used, its own for outputs.

    What a refresh takes, or what callers get, keeps its level.
    """
    need = [-1] * len(program.nodes)
    for i in program.outputs.values():
        need[i] = levels[i]
    for node in reversed(program.nodes):
        own = levels[node.id] if need[node.id] < 0 else need[node.id]
        need[node.id] = levels[node.id] if isinstance(node.op, _FIXED) else own
        for j in node.inputs:
            used = levels[j]
            if not isinstance(node.op, ops.Refresh):
                used = min(used, need[node.id] + node.op.depth)
            need[j] = max(need[j], used)
    return need


def _can_be_lowered(program: Program, node: Node) -> bool:
    """Whether another level can be given to a value: it has two components and is complete."""
    partial = node.op.reduces and program.stages[node.stage].over is not None
    return node.components == 2 and not partial and not isinstance(node.op, _FIXED)


def trim(
    program: Program, top_level: int | None = None, output_level: int | None = None
) -> Program:
    """Return the program with `operations.Lower` wherever a value has levels that nothing uses.

    Parameters
    ----------
    program, top_level, output_level
        As for `levels_of`; the inputs are at ``program.depth`` by default.
    """
    top = program.depth if top_level is None else top_level
    levels = levels_of(program, top, output_level)
    need = needed_levels(program, levels)
    new = Program(program.slots)
    new.stages = [replace(s, nodes=[]) for s in program.stages]
    place: dict[int, int] = {}
    at: list[int] = []  # level of every new node

    def add(op: ops.Operation, inputs: tuple[int, ...], like: Node, level: int) -> int:
        depth = max((new.nodes[i].depth for i in inputs), default=0) + op.depth
        stage: Stage = new.stages[like.stage]
        node = Node(len(new.nodes), op, inputs, like.shape, like.components, depth, stage.index)
        new.nodes.append(node)
        at.append(level)
        stage.nodes.append(node.id)
        return node.id

    for node in program.nodes:
        inputs = tuple(place[i] for i in node.inputs)
        level = levels[node.id]
        if not isinstance(node.op, _FIXED):
            level = min(at[i] for i in inputs) - node.op.depth
        made = add(node.op, inputs, node, level)
        excess = level - need[node.id]
        if excess > 0 and _can_be_lowered(program, node):
            made = add(ops.Lower(excess), (made,), node, level - excess)
        place[node.id] = made
    new.inputs = {name: place[i] for name, i in program.inputs.items()}
    new.outputs = {name: place[i] for name, i in program.outputs.items()}
    return new
