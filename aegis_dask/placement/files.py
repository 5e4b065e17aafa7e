"""Plans as JSON: written once, read by whoever runs them.

A file holds the tasks of a plan, the number of workers, and the *fingerprint* of the program that
it was made for. Whatever is read is checked: a plan that is accepted refers to nothing that there
is not, and its sources come first. Equal plans give equal files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from aegis_dask.ckks.files import write_atomically
from aegis_dask.ckks.strict_json import read_object
from aegis_dask.errors import ClusterError, SerializationError
from aegis_dask.placement.cut import Rows
from aegis_dask.placement.tasks import Argument, Kind, Part, Plan, Take, Task
from aegis_dask.program.graph import Program

FORMAT, VERSION = "aegis-plan", 2
MAX_FILE = 1 << 28
"""Bytes."""
DEPTH = 10
"""From the file to the rows of a take, of an argument, of a part of a task."""
MAX_CONTAINERS = 1 << 22
_KINDS = get_args(Kind)
_BY_LIMBS = ("round", "share", "limbs")


@dataclass(frozen=True)
class SavedPlan:
    """A plan and what it is for.

    Attributes
    ----------
    plan
        The tasks.
    fingerprint
        Of the program (`fingerprint`).
    about
        What else was said of it, for people and tools: JSON data. Nothing of it is needed to run
        the plan.
    """

    plan: Plan
    fingerprint: str
    about: dict[str, Any] = field(default_factory=dict)

    def check(self, program: Program, workers: int) -> None:
        """Refuse a program or a number of workers that the plan is not for.

        Raises
        ------
        ClusterError
            If it is for others.
        """
        if self.fingerprint != (other := fingerprint(program)):
            raise ClusterError(
                f"the plan is for another program: its fingerprint is {self.fingerprint[:12]}, "
                f"that of {program!r} is {other[:12]}. Make it again with the same graph, model, "
                "length and calibration (--calibration; without it ranges are assumed or measured)"
            )
        check_plan(self.plan, program, workers)


def fingerprint(program: Program) -> str:
    """Return the SHA-256 of all that a plan depends on: operations, shapes, levels, stages.

    Weights, masks and coefficients do not count: a plan may serve another text or another model of
    the same structure.
    """
    content = {
        "slots": program.slots,
        "nodes": [
            [n.op.name, list(n.inputs), list(n.shape), n.components, n.depth, n.stage]
            for n in program.nodes
        ],
        "stages": [[s.name, s.over] for s in program.stages],
        "inputs": program.inputs,
        "outputs": program.outputs,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -- writing ---------------------------------------------------------------------------------


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Return JSON-ready data that `plan_from_dict` reads. What a task leaves out is its default."""
    return {
        "workers": plan.workers,
        "outputs": {name: list(tasks) for name, tasks in plan.outputs.items()},
        "kept": list(plan.kept),
        "tasks": [
            {
                **_work(t),
                "owner": t.owner,
                "sources": list(t.sources),
                **({"round": t.round} if t.round != -1 else {}),
                **({"to": t.to} if t.to != -1 else {}),
                **({"limbs": list(t.limbs)} if t.limbs is not None else {}),
                **({"payload": t.payload} if t.payload is not None else {}),
                **({"parts": [_part(p) for p in t.parts]} if t.parts else {}),
            }
            for t in plan.tasks
        ],
    }


def _work(t: Task) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": t.kind, "stage": t.stage}
    if t.rows is not None:
        out["rows"] = list(t.rows)
    if t.arguments:
        out["arguments"] = [_argument(a) for a in t.arguments]
    return {**out, "results": list(t.results), "rank": t.rank, "seconds": t.seconds}


def _part(p: Part) -> dict[str, Any]:
    return {**_work(p.task), "takes": list(p.takes), "gives": list(p.gives)}


def _argument(a: Argument) -> dict[str, Any]:
    takes = [
        {
            "source": t.source,
            **({"slot": t.slot} if t.slot is not None else {}),
            **({"rows": list(t.rows)} if t.rows is not None else {}),
        }
        for t in a.takes
    ]
    return {"node": a.node, "takes": takes, **({"add": True} if a.add else {})}


def write_plan(
    path: Path, plan: Plan, program: Program, about: Mapping[str, Any] | None = None
) -> None:
    """Write a plan, all of it or nothing.

    Raises
    ------
    SerializationError
        If it cannot be written.
    """
    data = {
        "format": FORMAT,
        "version": VERSION,
        "program": fingerprint(program),
        **plan_to_dict(plan),
        "about": dict(about or {}),
    }
    text = json.dumps(data, indent=None, separators=(",", ":"), allow_nan=False)
    try:
        write_atomically(path, [text.encode() + b"\n"])
    except OSError as e:
        raise SerializationError(f"{path} cannot be written: {e.strerror or e}") from None


# -- reading ---------------------------------------------------------------------------------


def read_plan(path: Path) -> SavedPlan:
    """Read a plan.

    Raises
    ------
    SerializationError
        If there is none, it is damaged, or of another version.
    """
    try:
        data = read_object(path, MAX_FILE, floats=True, depth=DEPTH, containers=MAX_CONTAINERS)
    except OSError as e:
        raise SerializationError(f"{path} cannot be read: {e.strerror or e}") from None
    try:
        found = _Reader("file", data)
        if found.get("format") != FORMAT:
            raise SerializationError("it is no plan; 'aegis plan --out FILE' writes one")
        if (version := found.get("version")) != VERSION:
            raise SerializationError(
                f"it is of version {version!r}, this library reads {VERSION}; make it again"
            )
        name, about = found.get("program"), found.get("about", {})
        if not isinstance(name, str) or not isinstance(about, dict):
            raise SerializationError("program must be a text, about an object")
        return SavedPlan(plan_from_dict(data), name, about)
    except SerializationError as e:
        raise SerializationError(f"{path} cannot be read as a plan: {e}") from None


def plan_from_dict(data: Any) -> Plan:
    """Return the plan that `plan_to_dict` describes.

    Raises
    ------
    SerializationError
        If fields are missing or of the wrong kind, or tasks refer to what there is not.
    """
    found = _Reader("the plan", data)
    workers = found.integer("workers", 1)
    entries = found.list("tasks")
    tasks: list[Task] = []
    for index, entry in enumerate(entries):
        tasks.append(_task(_Reader(f"task {index}", entry), index, workers))
        for source in tasks[-1].sources:
            if source >= index:
                raise SerializationError(f"task {index} takes something from task {source}")
    _check_slots(tasks)
    outputs = found.get("outputs")
    if not isinstance(outputs, dict):
        raise SerializationError("outputs must be an object")
    named = _Reader("outputs", outputs)
    given = {name: named.integers(name, 0, len(tasks)) for name in outputs}
    return Plan(tasks, given, workers, found.integers("kept", 0, len(tasks)))


class _Reader:
    """Takes fields of an object, each checked."""

    def __init__(self, where: str, data: Any) -> None:
        if not isinstance(data, dict):
            raise SerializationError(f"{where} must be an object")
        self.where, self.data = where, data

    def get(self, name: str, *default: Any) -> Any:
        if name not in self.data and not default:
            raise SerializationError(f"{self.where} has no {name!r}")
        return self.data.get(name, *default)

    def fail(self, name: str, expected: str) -> SerializationError:
        return SerializationError(f"{name!r} of {self.where} must be {expected}")

    def integer(self, name: str, least: int, below: int | None = None) -> int:
        return self._integer(name, self.get(name), least, below)

    def _integer(self, name: str, value: Any, least: int, below: int | None) -> int:
        if type(value) is not int or value < least or (below is not None and value >= below):
            bound = "" if below is None else f" and below {below}"
            raise self.fail(name, f"a whole number, at least {least}{bound}")
        return value

    def number(self, name: str, least: float | None = None) -> float:
        value = self.get(name)
        if type(value) not in (int, float) or not isfinite(value):
            raise self.fail(name, "a number")
        if least is not None and value < least:
            raise self.fail(name, f"at least {least}")
        return float(value)

    def list(self, name: str, *default: list[Any]) -> list[Any]:
        value = self.get(name, *default)
        if not isinstance(value, list):
            raise self.fail(name, "a list")
        return value

    def integers(self, name: str, least: int, below: int | None = None) -> tuple[int, ...]:
        return tuple(self._integer(name, v, least, below) for v in self.list(name))

    def rows(self) -> Rows | None:
        value = self.get("rows", None)
        if value is None:
            return None
        if (
            not isinstance(value, list)
            or [type(v) for v in value] != [int, int]
            or not 0 <= value[0] < value[1]
        ):
            raise self.fail("rows", "two whole numbers, the first below the second")
        return (value[0], value[1])


def _task(entry: _Reader, index: int, workers: int) -> Task:
    sources = entry.integers("sources", 0)
    if len(set(sources)) < len(sources):
        raise SerializationError(f"{entry.where} has a source twice")
    owner = entry.integer("owner", 0, workers)
    parts = []
    for k, data in enumerate(entry.list("parts", [])):
        part = _Reader(f"part {k} of {entry.where}", data)
        takes = part.integers("takes", -k, len(sources))
        work = _worked(part, index, owner, (), len(takes))
        parts.append(Part(work, takes, part.integers("gives", 0, len(work.results))))
    limbs = entry.integers("limbs", 0) if "limbs" in entry.data else None
    payload = entry.integer("payload", 0) if "payload" in entry.data else None
    # The arguments of several parts are those of the last.
    count = len(parts[-1].takes) if parts else len(sources)
    whole = _worked(entry, index, owner, sources, count)
    more = {"round": entry.integer("round", 0)} if "round" in entry.data else {}
    if "to" in entry.data:
        more["to"] = entry.integer("to", 0, workers)
    out = Task(**{**vars(whole), **more, "limbs": limbs, "payload": payload, "parts": tuple(parts)})
    if parts and (out.kind, out.stage, out.rows, out.arguments, out.results) != (
        (last := parts[-1].task).kind,
        last.stage,
        last.rows,
        last.arguments,
        tuple(node for node, _ in out.given),
    ):
        raise SerializationError(f"{entry.where} gives something else than its parts")
    return out


def _worked(entry: _Reader, index: int, owner: int, sources: tuple[int, ...], count: int) -> Task:
    """Return a task whose arguments are made of so many sources."""
    if (kind := entry.get("kind")) not in _KINDS:
        raise entry.fail("kind", f"one of {', '.join(_KINDS)}")
    arguments = []
    for data in entry.list("arguments", []):
        argument = _Reader(f"an argument of {entry.where}", data)
        takes = []
        for given in argument.list("takes"):
            take = _Reader(f"an argument of {entry.where}", given)
            slot = take.integer("slot", 0) if "slot" in take.data else None
            takes.append(Take(take.integer("source", 0, count), slot, take.rows()))
        add = argument.get("add", False)
        if not isinstance(add, bool) or not takes:
            raise SerializationError(
                f"{argument.where} takes nothing, or 'add' is no true or false"
            )
        arguments.append(Argument(argument.integer("node", 0), tuple(takes), add))
    return Task(
        index,
        kind,
        entry.integer("stage", 0),
        entry.rows(),
        sources,
        tuple(arguments),
        entry.integers("results", 0),
        owner,
        entry.number("rank"),
        entry.number("seconds", 0.0),
    )


def _check_slots(tasks: list[Task]) -> None:
    """Refuse tasks that take a result that a source does not give, or one of several unnamed."""
    for t in tasks:
        for position, part in enumerate(t.steps):
            for argument in part.task.arguments:
                for take in argument.takes:
                    k = part.takes[take.source]
                    source = tasks[t.sources[k]] if k >= 0 else t.steps[position + k].task
                    count = len(source.results)
                    if (take.slot is None) != (count == 1) or (take.slot or 0) >= count:
                        raise SerializationError(
                            f"task {t.index} takes result {take.slot} of one that gives {count}"
                        )


# -- for a program ---------------------------------------------------------------------------


def check_plan(plan: Plan, program: Program, workers: int) -> None:
    """Refuse a plan that is for another number of workers or cannot be that of a program.

    Raises
    ------
    ClusterError
        If it is.
    """
    if plan.workers != workers:
        raise ClusterError(
            f"the plan is for {plan.workers} workers, there are {workers}: give --workers "
            f"{plan.workers}, or make a plan for {workers}"
        )
    wanted = {n for n, i in program.outputs.items() if i not in program.inputs.values()}
    if set(plan.outputs) != wanted:
        raise ClusterError(
            f"the plan gives the outputs {sorted(plan.outputs)}, the program {sorted(wanted)}"
        )
    for t in plan.tasks:
        for p in t.steps:
            _check_task(p.task, program)


def _check_task(t: Task, program: Program) -> None:
    nodes, stages = program.nodes, program.stages
    where = f"task {t.index} of the plan"
    if t.kind in _BY_LIMBS:
        raise ClusterError(f"{where} divides ciphertexts by limbs: use Executor.run_by_limbs")
    named = (*t.results, *(a.node for a in t.arguments))
    if t.stage >= len(stages) or any(i >= len(nodes) for i in named):
        raise ClusterError(f"{where} is of a stage or a value that the program does not have")
    stage = stages[t.stage]
    if t.kind == "stage":
        if list(t.results) != program.results(stage):
            raise ClusterError(f"{where} does not give the results of stage {stage.name!r}")
        if {a.node for a in t.arguments} != set(program.arguments(stage)):
            raise ClusterError(f"{where} does not take the arguments of stage {stage.name!r}")
        over = stage.over
    else:
        shape = nodes[t.results[0]].shape if len(t.results) == 1 else ()
        over = shape[0] if shape else None
        if len(t.results) != 1:
            raise ClusterError(f"{where} gives {len(t.results)} results instead of one")
    if t.rows is not None and (over is None or t.rows[1] > over):
        raise ClusterError(f"{where} gives rows {t.rows} of {over or 'none'}")
