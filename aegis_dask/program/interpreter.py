"""Running a program, whole or stage by stage, on any arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import Program, Stage
from aegis_dask.program.operations import Input, Operation, Shape, Store


class Interpreter(Protocol):
    """An arithmetic on arrays of ciphertexts: encrypted, simulated or symbolic.

    Beside these it has one method per operation (see `operations`).
    """

    def shape_of(self, x: Any) -> Shape:
        """Return the shape of an array of ciphertexts."""

    def part(self, x: Any, start: int, stop: int) -> Any:
        """Return rows of the leading axis."""

    def join(self, parts: list[Any]) -> Any:
        """Put parts together along the leading axis."""

    def __getattr__(self, name: str) -> Any: ...


def run_stage(
    program: Program,
    stage: Stage,
    e: Interpreter,
    store: Store,
    arguments: Mapping[int, Any],
    rows: tuple[int, int] | None = None,
) -> dict[int, Any]:
    """Run a stage, or the part of it that gives `rows` of the leading axis.

    Parameters
    ----------
    program, stage
        What to run.
    e
        Interpreter.
    store
        Weights by name.
    arguments
        Values by node: whole where `Program.needed_whole` says so, else the rows.
    rows
        Range of a split stage; all of it by default.

    Returns
    -------
    dict
        Results by node (`Program.results`): rows of those with a leading axis; partial sums of
        those that reduce it, to be added.

    Raises
    ------
    ProgramError
        If `rows` is not a range of the stage. Errors of operations carry a note that names the
        operation and the stage.
    """
    if rows is not None and not 0 <= rows[0] < rows[1] <= (stage.over or 0):
        raise ProgramError(
            f"stage {stage.name!r} has {stage.over or 'no'} rows to split, {rows} were asked for"
        )
    if rows == (0, stage.over):
        rows = None
    whole = program.needed_whole(stage)
    local: dict[int, Any] = {}
    for i in stage.nodes:
        node = program.nodes[i]
        op: Operation = node.op
        if isinstance(op, Input):
            local[i] = arguments[i]
            continue
        values = []
        for k, j in enumerate(node.inputs):
            value = local[j] if j in local else arguments[j]
            if rows is not None and whole.get(j) and k not in op.whole and program.nodes[j].shape:
                value = e.part(value, *rows)  # another operation of the stage needs it whole
            values.append(value)
        if rows is not None and not op.reduces:
            op = op.part(*rows)
        try:
            local[i] = op.run(e, store, *values)
        except Exception as error:
            error.add_note(f"in {op.name} of stage {stage.name!r}")
            raise
    return {i: local[i] for i in program.results(stage)}


def run(
    program: Program, e: Interpreter, inputs: Mapping[str, Any], store: Store
) -> dict[str, Any]:
    """Run a whole program in this process and return its outputs by name.

    Values are dropped after their last use.

    Parameters
    ----------
    program, e, store
        What to run, the interpreter, and weights by name.
    inputs
        Values of that interpreter by name.

    Raises
    ------
    ProgramError
        If inputs are missing, unknown or of another shape.
    """
    if set(inputs) != set(program.inputs):
        raise ProgramError(
            f"the program takes the inputs {sorted(program.inputs)}, given were {sorted(inputs)}"
        )
    values: dict[int, Any] = {program.inputs[name]: x for name, x in inputs.items()}
    for name, i in program.inputs.items():
        given, expected = e.shape_of(values[i]), program.nodes[i].shape
        if given != expected:
            raise ProgramError(
                f"input {name!r} is an array of {expected} ciphertexts, given was one of {given}"
            )
    last = {i: max(program.consumers[i], default=i) for i in range(len(program.nodes))}
    final = set(program.outputs.values())
    for stage in program.stages:
        values.update(run_stage(program, stage, e, store, values))
        done = stage.nodes[-1] if stage.nodes else -1
        for i in [i for i in values if last[i] <= done and i not in final]:
            del values[i]
    return {name: values[i] for name, i in program.outputs.items()}
