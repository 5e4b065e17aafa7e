"""Where to refresh: placing bootstraps in a program whose depth exceeds the levels there are.

A refresh takes ciphertexts of any level and returns them at level U, the *usable* levels of a
parameter set. Placed well, few are needed: on values of few ciphertexts, late, two real
ciphertexts in one. Three placements are here:

- `minimum_cut`: repeatedly, the cheapest set of values that separates what is in reach from the
  first operations that run out of levels; a value is priced by bootstraps per level used.
- `eager`: refresh an operand when an operation runs out of levels; what one does without planning.
- `exact`: an integer linear program, for small programs and to judge the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import networkx as nx
import numpy as np

from aegis_dask.errors import LevelError, ProgramError
from aegis_dask.program import operations as ops
from aegis_dask.program.graph import Node, Program, Stage
from aegis_dask.program.operations import Arithmetic, Operation, Shape, Store

Parity = Literal["real", "imaginary", "complex"]


@dataclass(frozen=True)
class Refresh(Operation):
    """Bring ciphertexts back to the usable levels.

    Attributes
    ----------
    merged
        The values are real, and the two of the last axis share one bootstrap.
    """

    merged: bool = False

    def _shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if self.merged and (not x or x[-1] != 2):
            raise self._fail(f"{x} ciphertexts cannot be merged in pairs")
        return x

    def _run(self, e: Arithmetic, store: Store, *inputs: Any) -> Any:
        return e.refresh(inputs[0], self.merged)


def parities(program: Program) -> list[Parity]:
    """Return for every node whether its slots are real, imaginary or complex.

    Inputs and plaintext vectors are taken as real; a matrix product is complex.
    """
    out: list[Parity] = []
    for node in program.nodes:
        out.append(_parity(program, node, [out[i] for i in node.inputs]))
    return out


def _parity(program: Program, node: Node, inputs: list[Parity]) -> Parity:
    op = node.op
    if isinstance(op, ops.Input):
        return "real"
    if isinstance(op, ops.MatrixProduct):
        return "complex"
    if isinstance(op, ops.Pair):
        single = program.nodes[node.inputs[0]].shape[-1] == 1
        return inputs[0] if single else "complex"
    if isinstance(op, (ops.Add, ops.Subtract)) and _is_conjugate_pair(program, node):
        return "real" if isinstance(op, ops.Add) else "imaginary"
    if isinstance(op, ops.TimesI) and op.power % 2:
        return {"real": "imaginary", "imaginary": "real", "complex": "complex"}[inputs[0]]  # type: ignore[return-value]
    if isinstance(op, (ops.AddConstant, ops.MultiplyConstant)) and complex(op.value).imag:
        return "complex"
    if isinstance(op, (ops.Multiply, ops.Contract, ops.SumOfSquares)):
        kinds = inputs if len(inputs) == 2 else inputs * 2
        if "complex" in kinds:
            return "complex"
        return "real" if kinds[0] == kinds[1] else "imaginary"
    if isinstance(op, (ops.AddPlain, ops.AddConstant, ops.Chebyshev)):
        return "real" if inputs[0] == "real" else "complex"
    return inputs[0] if len(set(inputs)) == 1 else "complex"


def _is_conjugate_pair(program: Program, node: Node) -> bool:
    """Whether the operands are a value and its conjugate."""
    for a, b in (node.inputs, node.inputs[::-1]):
        other = program.nodes[b]
        if isinstance(other.op, ops.Conjugate) and other.inputs == (a,):
            return True
    return False


@dataclass(frozen=True)
class Site:
    """A value that is refreshed.

    Attributes
    ----------
    node
        The node whose value it is.
    bootstraps
        How many it takes.
    merged
        Whether two real ciphertexts share one.
    level
        Level at which the value arrives.
    """

    node: int
    bootstraps: int
    merged: bool
    level: int


@dataclass(frozen=True)
class Placement:
    """Refreshes of a program.

    Attributes
    ----------
    program
        The program without them.
    usable, top_level
        Levels after a refresh, and of the inputs.
    sites
        What is refreshed, in order of evaluation.
    method
        Which placement it is.
    """

    program: Program
    usable: int
    top_level: int
    sites: tuple[Site, ...]
    method: str

    @property
    def bootstraps(self) -> int:
        """Number of bootstraps."""
        return sum(s.bootstraps for s in self.sites)

    def explain(self) -> str:
        """Return where and why, one line per site."""
        lines = [
            f"{self.bootstraps} bootstraps at {len(self.sites)} sites ({self.method}), "
            f"{self.usable} levels after each"
        ]
        consumers = self.program.consumers
        for s in self.sites:
            node = self.program.nodes[s.node]
            users = sorted({self.program.nodes[c].op.name for c in consumers[s.node]})
            kind = "two real ciphertexts in one bootstrap" if s.merged else "one by one"
            stage = self.program.stages[node.stage].name
            lines.append(
                f"  {stage}: {node.op.name} {node.shape or '(1)'} at level {s.level}, "
                f"{s.bootstraps} bootstraps ({kind}), for {', '.join(users)}"
            )
        return "\n".join(lines)


class _Graph:
    """The program as the placements see it."""

    def __init__(self, program: Program, usable: int, top_level: int) -> None:
        if usable < 1 or top_level < 0:
            raise LevelError(f"{usable} usable levels and inputs at level {top_level} do nothing")
        self.program, self.usable, self.top = program, usable, top_level
        self.parity = parities(program)
        self.final = set(program.outputs.values())
        for node in program.nodes:
            if node.op.depth > usable:
                raise LevelError(
                    f"{node.op.name} in stage {program.stages[node.stage].name!r} takes "
                    f"{node.op.depth} levels, a refresh gives {usable}"
                )

    def cost(self, i: int) -> tuple[int, bool] | None:
        """Return (bootstraps, merged) of refreshing a value, None where it cannot be."""
        node = self.program.nodes[i]
        if node.components != 2:
            return None
        count = prod(node.shape)
        if self.parity[i] == "real" and node.shape and node.shape[-1] == 2:
            return count // 2, True
        return count, False

    def levels(self, refreshed: Iterable[int]) -> list[int]:
        """Return the level of every node's value before its refresh; negative: out of levels."""
        chosen = set(refreshed)
        levels: list[int] = []
        after: list[int] = []
        for node in self.program.nodes:
            low = min((after[j] for j in node.inputs), default=self.top)
            level = low - node.op.depth
            levels.append(level)
            after.append(self.usable if node.id in chosen else level)
        return levels

    def placement(self, refreshed: Iterable[int], method: str) -> Placement:
        chosen = sorted(set(refreshed))
        levels = self.levels(chosen)
        if min(levels, default=0) < 0:
            raise ProgramError("a placement left an operation without levels")
        sites = []
        for i in chosen:
            found = self.cost(i)
            assert found is not None
            sites.append(Site(i, found[0], found[1], levels[i]))
        return Placement(self.program, self.usable, self.top, tuple(sites), method)


def minimum_cut(program: Program, usable: int, top_level: int | None = None) -> Placement:
    """Place refreshes by minimum cuts, then drop those that are not needed.

    Parameters
    ----------
    program
        Any.
    usable
        Levels after a refresh.
    top_level
        Level of the inputs, `usable` by default.

    Raises
    ------
    LevelError
        If one operation takes more levels than there are.
    """
    graph = _Graph(program, usable, usable if top_level is None else top_level)
    refreshed: set[int] = set()
    while True:
        levels = graph.levels(refreshed)
        stuck = [i for i, level in enumerate(levels) if level < 0]
        if not stuck:
            break
        refreshed |= _cut(graph, refreshed, levels, stuck)
    return graph.placement(_without_idle(graph, refreshed), "minimum cut")


def _cut(graph: _Graph, refreshed: set[int], levels: list[int], stuck: list[int]) -> set[int]:
    """Return the cheapest values to refresh so that no path reaches the first stuck operations."""
    nodes, usable = graph.program.nodes, graph.usable
    out = set(stuck)
    first = {i for i in stuck if not any(j in out for j in nodes[i].inputs)}
    # Only what precedes them since the last refresh takes part.
    region: set[int] = set()
    pending = [j for i in first for j in nodes[i].inputs]
    while pending:
        i = pending.pop()
        if i in region or i in refreshed:
            continue
        region.add(i)
        pending += nodes[i].inputs
    network = nx.DiGraph()
    for i in sorted(region):
        price = graph.cost(i)
        used = usable - levels[i]
        if price is not None and used > 0:
            # Ciphertexts per level that was used: a late refresh is worth more than an early one.
            network.add_edge((i, 0), (i, 1), capacity=price[0] / min(used, usable))
        else:
            network.add_edge((i, 0), (i, 1))  # without capacity: infinite
        sources = [j for j in nodes[i].inputs if j in region]
        for j in sources:
            network.add_edge((j, 1), (i, 0))
        if not sources:
            network.add_edge("source", (i, 0))
    for i in sorted(first):
        for j in nodes[i].inputs:
            if j in region and _matters(graph, levels, i, j):
                network.add_edge((j, 1), "sink")
    _, (_, late) = _latest_minimum_cut(network)
    return {i for i in region if (i, 0) not in late and (i, 1) in late}


def _matters(graph: _Graph, levels: list[int], i: int, j: int) -> bool:
    """Whether operand j of i is one that lacks levels."""
    return levels[j] - graph.program.nodes[i].op.depth < 0


def _latest_minimum_cut(network: nx.DiGraph) -> tuple[float, tuple[set[Any], set[Any]]]:
    """Return a minimum cut, of several the one nearest to the sink."""
    residual = nx.algorithms.flow.preflow_push(network, "source", "sink")
    # What can still send flow to the sink is on its side; all else is not.
    reverse: dict[Any, list[Any]] = {}
    for u, v, data in residual.edges(data=True):
        if data["capacity"] - data["flow"] > 1e-9:
            reverse.setdefault(v, []).append(u)
    side, pending = {"sink"}, ["sink"]
    while pending:
        for u in reverse.get(pending.pop(), []):
            if u not in side:
                side.add(u)
                pending.append(u)
    return residual.graph["flow_value"], (set(network) - side, side)


def _without_idle(graph: _Graph, refreshed: set[int]) -> set[int]:
    """Drop refreshes, the dearest first, as long as no operation runs out of levels."""

    def price(i: int) -> int:
        found = graph.cost(i)
        return 0 if found is None else found[0]

    kept = set(refreshed)
    for i in sorted(refreshed, key=lambda i: (-price(i), i)):
        if min(graph.levels(kept - {i})) >= 0:
            kept.remove(i)
    return kept


def eager(program: Program, usable: int, top_level: int | None = None) -> Placement:
    """Refresh the operands of an operation when it runs out of levels."""
    graph = _Graph(program, usable, usable if top_level is None else top_level)
    refreshed: set[int] = set()
    for node in program.nodes:
        while True:
            levels = graph.levels(refreshed)
            if levels[node.id] >= 0:
                break
            new = _refreshable_operands(graph, node, levels, refreshed)
            if not new:
                raise LevelError(f"{node.op.name} cannot be given levels")
            refreshed |= new
    return graph.placement(refreshed, "eager")


def _refreshable_operands(
    graph: _Graph, node: Node, levels: list[int], refreshed: set[int]
) -> set[int]:
    """Return the values nearest before `node` that lack levels and can be refreshed."""
    new: set[int] = set()
    pending = list(node.inputs)
    while pending:
        j = pending.pop()
        if j in refreshed or j in new:
            continue
        if levels[j] - node.op.depth >= 0:
            continue
        if graph.cost(j) is not None:
            new.add(j)
        else:
            pending += graph.program.nodes[j].inputs
    return new


def exact(
    program: Program, usable: int, top_level: int | None = None, seconds: float = 60.0
) -> Placement:
    """Place the fewest bootstraps possible, by integer linear programming (SciPy's HiGHS).

    Raises
    ------
    LevelError
        If it cannot be solved in time.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import lil_matrix
    except ImportError as e:
        raise ProgramError("exact placement needs SciPy: pip install scipy") from e

    graph = _Graph(program, usable, usable if top_level is None else top_level)
    nodes, n = program.nodes, len(program.nodes)
    # Variables: level of each value, then whether it is refreshed.
    edges = [(j, node.id) for node in nodes for j in dict.fromkeys(node.inputs)]
    matrix = lil_matrix((len(edges), 2 * n))
    upper = np.empty(len(edges))
    for row, (j, i) in enumerate(edges):
        # level_i + depth_i <= level_j + usable * refreshed_j, and <= usable by the bounds below
        matrix[row, i], matrix[row, j], matrix[row, n + j] = 1, -1, -usable
        upper[row] = -nodes[i].op.depth
    cost = np.zeros(2 * n)
    high = np.ones(2 * n)
    for i, node in enumerate(nodes):
        limit = graph.top if not node.inputs else usable - node.op.depth
        high[i] = max(limit, graph.top - node.depth)
        price = graph.cost(i)
        high[n + i] = 0 if price is None else 1
        cost[n + i] = 0 if price is None else price[0]
    solution = milp(
        cost,
        constraints=LinearConstraint(matrix.tocsr(), -np.inf, upper),
        bounds=Bounds(np.zeros(2 * n), high),
        integrality=np.concatenate([np.zeros(n), np.ones(n)]),
        options={"time_limit": seconds},
    )
    if solution.x is None:
        raise LevelError(f"no placement was found in {seconds:.0f} s: {solution.message}")
    refreshed = {i for i in range(n) if solution.x[n + i] > 0.5}
    return graph.placement(refreshed, "exact")


def insert(placement: Placement) -> Program:
    """Return the program with its refreshes, each in a stage of its own."""
    old = placement.program
    sites = {s.node: s for s in placement.sites}
    new = Program(old.slots)
    place: dict[int, int] = {}  # node -> node of the new program whose value replaces it

    def add(op: Operation, inputs: tuple[int, ...], shape: Shape, parts: int, stage: Stage) -> int:
        depth = max((new.nodes[i].depth for i in inputs), default=0) + op.depth
        node = Node(len(new.nodes), op, inputs, shape, parts, depth, stage.index)
        new.nodes.append(node)
        stage.nodes.append(node.id)
        return node.id

    def open_stage(name: str, over: int | None) -> Stage:
        stage = Stage(len(new.stages), name, over)
        new.stages.append(stage)
        return stage

    for stage in old.stages:
        for number, members in enumerate(_segments(old, stage, set(sites))):
            suffix = f"-{number + 1}" if number else ""
            here = open_stage(stage.name + suffix, stage.over)
            for i in members:
                node = old.nodes[i]
                inputs = tuple(place[j] for j in node.inputs)
                place[i] = add(node.op, inputs, node.shape, node.components, here)
            for i in members:
                if i in sites:
                    node = old.nodes[i]
                    over = node.shape[0] if node.shape else None
                    after = open_stage(f"{stage.name}{suffix}-refresh", over)
                    op = Refresh(sites[i].merged)
                    place[i] = add(op, (place[i],), node.shape, node.components, after)
    new.inputs = {name: place[i] for name, i in old.inputs.items()}
    new.outputs = {name: place[i] for name, i in old.outputs.items()}
    return new


def _segments(program: Program, stage: Stage, sites: set[int]) -> list[list[int]]:
    """Cut a stage where values within it are refreshed."""
    rank: dict[int, int] = {}
    out: list[list[int]] = []
    for i in stage.nodes:
        inside = [j for j in program.nodes[i].inputs if j in rank]
        rank[i] = max((rank[j] + (j in sites) for j in inside), default=0)
        while len(out) <= rank[i]:
            out.append([])
        out[rank[i]].append(i)
    return out


METHODS: dict[str, Callable[..., Placement]] = {
    "minimum-cut": minimum_cut,
    "eager": eager,
    "exact": exact,
}
