"""What a plan will send from worker to worker, and hold, before anything runs.

A worker fetches a result that it needs once, whatever number of its tasks need it; the sizes are
those of the symbolic interpreter. `runtime.transfers` measures the same quantities in a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aegis_dask.placement.cut import Rows
from aegis_dask.placement.tasks import Plan, Task
from aegis_dask.placement.traffic import CLIENT, Transfers
from aegis_dask.program.graph import Program


def result_bytes(program: Program, task: Task, node_bytes: Sequence[int]) -> int:
    """Return the bytes of residues of what a task gives."""
    if task.payload is not None:
        return task.payload
    return sum(_value_bytes(program, node, rows, node_bytes) for node, rows in task.given)


def _value_bytes(program: Program, node: int, rows: Rows | None, node_bytes: Sequence[int]) -> int:
    shape, size = program.nodes[node].shape, node_bytes[node]
    if rows is None or not shape:
        return size
    return size // shape[0] * (rows[1] - rows[0])


def working_bytes(program: Program, task: Task, node_bytes: Sequence[int]) -> int:
    """Return the most bytes of what a task's parts have given that it holds at a time.

    Temporaries of operations are not among them.
    """
    if not task.parts:
        return result_bytes(program, task, node_bytes)
    last_uses = task.last_uses
    held = peak = 0
    let_go: list[int] = []  # of each part, once no other needs it
    for k, part in enumerate(task.parts):
        size = result_bytes(program, part.task, node_bytes)
        given = (part.task.results[s] for s in part.gives)
        kept = sum(_value_bytes(program, node, part.task.rows, node_bytes) for node in given)
        let_go.append(size - kept)
        held += size
        peak = max(peak, held)
        held -= sum(let_go[j] for j in range(k + 1) if last_uses.get(j, j) == k)
    return peak


def peak_bytes(program: Program, plan: Plan, node_bytes: Sequence[int]) -> int:
    """Return the most bytes of results that a plan's only worker holds, in the order of ranks.

    Dask may take up a task before one that is only just on its way, so a run can differ a little.

    Parameters
    ----------
    program, plan
        The program, and its tasks, of one worker.
    node_bytes
        Size of every node's value.
    """
    sizes = [result_bytes(program, t, node_bytes) for t in plan.tasks]
    left = Counter(i for t in plan.tasks for i in set(t.sources))
    left.update(i for pieces in plan.outputs.values() for i in pieces)
    held = peak = 0
    for task in sorted(plan.tasks, key=lambda t: (t.rank, t.index)):
        peak = max(peak, held + working_bytes(program, task, node_bytes))
        held += sizes[task.index]
        for i in set(task.sources):
            left[i] -= 1
            held -= 0 if left[i] else sizes[i]
    return peak


def predict(program: Program, plan: Plan, node_bytes: Sequence[int]) -> Transfers:
    """Return what a plan will move.

    Parameters
    ----------
    program, plan
        The program, and its tasks.
    node_bytes
        Size of every node's value (`Analysis.node_bytes`).
    """
    payload: Counter[tuple[int, int, str]] = Counter()
    sizes = [result_bytes(program, t, node_bytes) for t in plan.tasks]
    fetched: set[tuple[int, int]] = set()

    def move(source: Task, destination: int, origin: int) -> None:
        payload[origin, destination, program.stages[source.stage].name] += sizes[source.index]

    for task in plan.tasks:
        if task.kind == "input":
            move(task, task.owner, CLIENT)
        for i in task.sources:
            source = plan.tasks[i]
            if source.owner != task.owner and (i, task.owner) not in fetched:
                fetched.add((i, task.owner))
                move(source, task.owner, source.owner)
    for pieces in plan.outputs.values():
        for i in pieces:
            move(plan.tasks[i], CLIENT, plan.tasks[i].owner)
    return Transfers(plan.workers, {k: v for k, v in payload.items() if v})
