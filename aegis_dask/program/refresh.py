"""Where to refresh: placing bootstraps in a program whose depth exceeds the levels there are.

A refresh takes ciphertexts of some level at least and returns them at another (`Budget`). Placed
well, few are needed: on values of few ciphertexts, late, two real ciphertexts in one. Three
placements are here:

- `minimum_cut`: repeatedly, the cheapest set of values that separates what is in reach from the
  first operations that run out of levels; a value is priced by bootstraps per level used. Where
  nothing more can be cut the last cut is taken back and made elsewhere.
- `eager`: refresh an operand when an operation runs out of levels; what one does without planning.
- `exact`: an integer linear program, for small programs and to judge the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, log2, prod

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from aegis_dask.errors import LevelError, ProgramError
from aegis_dask.program.graph import Node, Program, Stage
from aegis_dask.program.operations import Operation, Refresh, Shape
from aegis_dask.program.values import Bound, magnitudes, parities

MAX_SHRINK = 10
"""A value divided by ``2**k`` to be refreshed loses k bits; more than these are too many."""
ERROR_SLACK = 16.0
"""Where no refresh is as precise as the program asks, the most precise one will do up to this."""
SHRINK_PRICE = 0.05
"""What a bit lost is worth: among placements of like cost the more precise one is better."""
FREE = 1 << 30
"""Capacity of what cannot be cut. SciPy's flows are of 32-bit integers; all prices take half."""
WINDOWS = (1.0, 0.5, 2.0)
"""Exponents of the levels used in the price of a value: each is tried, the best placement kept."""
MAX_TAKEN_BACK = 50
"""How often refreshes are taken back because those after them would begin too low."""


@dataclass(frozen=True)
class Budget:
    """What a refresh asks and gives.

    Attributes
    ----------
    output_level
        Level of a refreshed ciphertext.
    input_level
        Lowest level that one is refreshed from.
    max_magnitude
        Largest real or imaginary part of its slots.
    errors
        Largest error of slots of size one at most, after one iteration, two, and so on.
    """

    output_level: int
    input_level: int = 0
    max_magnitude: float = inf
    errors: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.input_level < self.output_level or self.max_magnitude <= 0:
            raise LevelError(
                f"a refresh from level {self.input_level} to {self.output_level} of values up to "
                f"{self.max_magnitude} gives nothing"
            )


@dataclass(frozen=True)
class Kind:
    """How a value can be refreshed.

    Attributes
    ----------
    bootstraps
        How many it takes.
    operation
        The operation.
    """

    bootstraps: int
    operation: Refresh

    @property
    def price(self) -> float:
        """Time, in bootstraps of one complex ciphertext, and a little for precision lost."""
        refreshes = self.bootstraps / self.operation.iterations
        return refreshes * (self.operation.price + SHRINK_PRICE * self.operation.shrink)


@dataclass(frozen=True)
class Site:
    """A value that is refreshed.

    Attributes
    ----------
    node
        The node whose value it is.
    kind
        How.
    level
        Level at which the value arrives.
    """

    node: int
    kind: Kind
    level: int

    @property
    def bootstraps(self) -> int:
        """How many it takes."""
        return self.kind.bootstraps

    @property
    def merged(self) -> bool:
        """Whether two real ciphertexts share one."""
        return self.kind.operation.merged


@dataclass(frozen=True)
class Placement:
    """Refreshes of a program.

    Attributes
    ----------
    program
        The program without them.
    budget, top_level
        What a refresh asks and gives, and the level of the inputs.
    sites
        What is refreshed, in order of evaluation.
    method
        Which placement it is.
    """

    program: Program
    budget: Budget
    top_level: int
    sites: tuple[Site, ...]
    method: str

    @property
    def bootstraps(self) -> int:
        """Number of bootstraps."""
        return sum(s.bootstraps for s in self.sites)

    @property
    def price(self) -> float:
        """Time, in bootstraps of one complex ciphertext."""
        return sum(s.kind.price for s in self.sites)

    @property
    def unmerged(self) -> int:
        """Ciphertexts that are refreshed: bootstraps, were none merged."""
        return sum(prod(self.program.nodes[s.node].shape) for s in self.sites)

    def explain(self) -> str:
        """Return where and why, one line per site."""
        lines = [
            f"{self.bootstraps} bootstraps at {len(self.sites)} sites ({self.method}), from level "
            f"{self.budget.input_level} or above to level {self.budget.output_level}"
        ]
        lines += [f"  {self.why(s)}" for s in self.sites]
        return "\n".join(lines)

    def why(self, site: Site) -> str:
        """Return where a site is, at what level, how it is refreshed and for whom."""
        node, op = self.program.nodes[site.node], site.kind.operation
        users = sorted({self.program.nodes[c].op.name for c in self.program.consumers[site.node]})
        kind = "two real ciphertexts in one" if op.merged else op.kind
        kind += ", twice for precision" if op.iterations > 1 else ""
        shrunk = f", divided by {1 << op.shrink} meanwhile" if op.shrink else ""
        count = "1 bootstrap" if site.bootstraps == 1 else f"{site.bootstraps} bootstraps"
        return (
            f"{self.program.stages[node.stage].name}: {node.op.name} {node.shape or '(1)'} at "
            f"level {site.level}, {count} ({kind}{shrunk}), for {', '.join(users)}"
        )


class _Graph:
    """The program as the placements see it."""

    def __init__(self, program: Program, budget: Budget | int, top_level: int | None) -> None:
        budget = Budget(budget) if isinstance(budget, int) else budget
        self.program, self.budget = program, budget
        self.top = budget.output_level if top_level is None else top_level
        if self.top < 0:
            raise LevelError(f"inputs at level {self.top} do nothing")
        parity, bound = parities(program), magnitudes(program)
        self.kinds = [self._kind(n, parity[n.id], bound[n.id]) for n in program.nodes]
        # Asked for every node in every trial, and slow to compute: kept.
        self.inputs = [n.inputs for n in program.nodes]
        self.depths = [n.op.depth for n in program.nodes]
        self.after = [self._level_after(kind) for kind in self.kinds]
        for node, depth in zip(program.nodes, self.depths, strict=True):
            if depth > budget.output_level:
                raise LevelError(
                    f"{node.op.name} in stage {program.stages[node.stage].name!r} takes "
                    f"{depth} levels, a refresh gives {budget.output_level}"
                )

    def _kind(self, node: Node, parity: str, bound: Bound) -> Kind | None:
        """Return how a value can be refreshed, None where it cannot be."""
        limit, shrink = self.budget.max_magnitude, 0
        if node.components != 2 or (bound.value == inf and limit < inf):
            return None
        if bound.value > limit:
            shrink = ceil(log2(bound.value / limit))
        count, is_real = prod(node.shape), parity == "real"
        size = 1.0 if bound.value == inf else max(1.0, bound.value)
        errors = [size * error for error in self.budget.errors]
        if shrink > MAX_SHRINK or min(errors) > ERROR_SLACK * bound.error:
            return None
        precise = [k for k, error in enumerate(errors, start=1) if error <= bound.error]
        iterations = precise[0] if precise else len(errors)
        if iterations == 1 and is_real and node.shape and node.shape[-1] == 2:
            return Kind(count // 2, Refresh(merged=True, shrink=shrink))
        refresh = Refresh(real=is_real, shrink=shrink, iterations=iterations)
        return Kind(count * iterations, refresh)

    def floor(self, i: int) -> int:
        """Return the lowest level that a value can be refreshed from."""
        kind = self.kinds[i]
        assert kind is not None
        # Dividing by a power of two renames the scale; getting back to one that fits takes a level.
        return self.budget.input_level + (kind.operation.shrink > 0)

    def _level_after(self, kind: Kind | None) -> int:
        """Return the level of a value refreshed that way."""
        return self.budget.output_level - (kind is not None and kind.operation.iterations > 1)

    def can_refresh(self, i: int, level: int) -> bool:
        """Whether a value at that level can be refreshed."""
        return self.kinds[i] is not None and level >= self.floor(i)

    def levels(self, refreshed: Iterable[int]) -> list[int]:
        """Return the level of every node's value before its refresh; negative: out of levels."""
        chosen = set(refreshed)
        levels: list[int] = []
        after: list[int] = []
        for i, (inputs, depth) in enumerate(zip(self.inputs, self.depths, strict=True)):
            level = min([after[j] for j in inputs], default=self.top) - depth
            levels.append(level)
            after.append(self.after[i] if i in chosen else level)
        return levels

    def is_valid(self, refreshed: set[int]) -> bool:
        """Whether no operation runs out of levels, and no refresh begins too low."""
        levels = self.levels(refreshed)
        return min(levels, default=0) >= 0 and all(
            self.can_refresh(i, levels[i]) for i in refreshed
        )

    def placement(self, refreshed: Iterable[int], method: str) -> Placement:
        chosen = set(refreshed)
        if not self.is_valid(chosen):
            raise ProgramError("a placement left an operation without levels")
        levels, sites = self.levels(chosen), []
        for i in sorted(chosen):
            kind = self.kinds[i]
            assert kind is not None
            sites.append(Site(i, kind, levels[i]))
        return Placement(self.program, self.budget, self.top, tuple(sites), method)


def minimum_cut(program: Program, budget: Budget | int, top_level: int | None = None) -> Placement:
    """Place refreshes by minimum cuts, then drop those that are not needed.

    Parameters
    ----------
    program
        Any.
    budget
        What a refresh asks and gives; a number is the level that it gives, nothing being asked.
    top_level
        Level of the inputs, that of refreshed values by default.

    Raises
    ------
    LevelError
        If one operation takes more levels than there are, or no value before one that runs out of
        levels can be refreshed.
    """
    graph = _Graph(program, budget, top_level)
    found: list[Placement] = []
    error: LevelError | None = None
    for window in WINDOWS:
        try:
            refreshed = _cuts(graph, window)
        except LevelError as e:  # another window makes other choices
            error = e
        else:
            found.append(graph.placement(_without_idle(graph, refreshed), "minimum cut"))
    if not found:
        assert error is not None
        raise error
    return min(found, key=lambda p: p.price)


def _cuts(graph: _Graph, window: float) -> set[int]:
    """Cut before the first operations without levels until there are none."""
    refreshed: set[int] = set()
    barred: set[int] = set()
    errors: list[LevelError] = []
    while True:
        levels = graph.levels(refreshed)
        stuck = [i for i, level in enumerate(levels) if level < 0]
        if not stuck:
            return refreshed
        try:
            cut = _cut(graph, refreshed, barred, levels, stuck, window)
            if not cut:
                raise _stuck(graph, stuck[0])
        except LevelError as e:
            # What could be refreshed comes too low after the last refreshes: begin elsewhere.
            errors.append(e)
            last = _last_refreshed(graph, refreshed, stuck)
            if not last or len(errors) > MAX_TAKEN_BACK:
                raise errors[0] from None  # later ones are of what was barred
            refreshed -= last
            barred |= last
        else:
            refreshed |= cut


def _last_refreshed(graph: _Graph, refreshed: set[int], stuck: list[int]) -> set[int]:
    """Return the refreshed values nearest before the first stuck operations."""
    found: set[int] = set()
    pending = [j for i in _first(graph, stuck) for j in graph.inputs[i]]
    seen = set(pending)
    while pending:
        j = pending.pop()
        if j in refreshed:
            found.add(j)
            continue
        new = set(graph.inputs[j]) - seen
        seen |= new
        pending += new
    return found


def _first(graph: _Graph, stuck: list[int]) -> set[int]:
    """Return the stuck operations with no stuck operand."""
    out = set(stuck)
    return {i for i in stuck if not any(j in out for j in graph.inputs[i])}


def _cut(
    graph: _Graph,
    refreshed: set[int],
    barred: set[int],
    levels: list[int],
    stuck: list[int],
    window: float,
) -> set[int]:
    """Return the cheapest values to refresh so that no path reaches the first stuck operations."""
    top, first = graph.budget.output_level, _first(graph, stuck)
    need = _lacking(graph, refreshed, levels, first)
    region = need.keys() - first

    def lacking(i: int) -> list[int]:
        """Return the operands of i that lack levels for it and what follows."""
        wanted = need[i] + graph.depths[i]
        return [j for j in graph.inputs[i] if j in region and levels[j] < wanted]

    # Every value is an edge from 2k to 2k + 1, k being its place in the region.
    place = {i: k for k, i in enumerate(sorted(region))}
    source, sink = 2 * len(place), 2 * len(place) + 1
    edges: list[tuple[int, int, float]] = []
    for i, k in place.items():
        kind, used = graph.kinds[i], top - levels[i]
        price = inf
        if kind and used > 0 and i not in barred and graph.can_refresh(i, levels[i]):
            # Per level that was used: a late refresh is worth more than an early one.
            price = kind.price / min(used, top) ** window
        edges.append((2 * k, 2 * k + 1, price))
        sources = lacking(i)
        edges += [(2 * place[j] + 1, 2 * k, inf) for j in set(sources)]
        if not sources:
            edges.append((source, 2 * k, inf))
    last = {j for i in first for j in lacking(i)}
    edges += [(2 * place[j] + 1, sink, inf) for j in last]
    late = _sink_side(edges, source, sink)
    if late is None:
        raise _stuck(graph, min(first))
    return {i for i, k in place.items() if not late[2 * k] and late[2 * k + 1]}


def _stuck(graph: _Graph, i: int) -> LevelError:
    node = graph.program.nodes[i]
    return LevelError(
        f"{node.op.name} in stage {graph.program.stages[node.stage].name!r} runs out of levels and "
        "no value before it can be refreshed: state how large values are with "
        "EncryptedTensor.within, or take parameters with more levels"
    )


def _lacking(
    graph: _Graph, refreshed: set[int], levels: list[int], first: set[int]
) -> dict[int, int]:
    """Return the values that have too few levels for the first stuck ones, and how many they need.

    The stuck ones themselves with 0. What was refreshed takes no part, nor does what has enough
    levels, and nothing before either on its account.
    """
    need: dict[int, int] = {}
    out: dict[int, int] = dict.fromkeys(first, 0)
    for i in range(max(first), -1, -1):
        if i not in first:
            if i not in need or i in refreshed or levels[i] >= need[i]:
                continue
            out[i] = need[i]
        for j in graph.inputs[i]:
            need[j] = max(need.get(j, 0), out[i] + graph.depths[i])
    return out


def _sink_side(
    edges: Sequence[tuple[int, int, float]], source: int, sink: int
) -> NDArray[np.bool_] | None:
    """Return which nodes are on the sink's side of the minimum cut nearest to the sink.

    None if no cut is finite.

    Parameters
    ----------
    edges
        (from, to, price), each pair of nodes once.
    source, sink
        The ends; the sink is the last node.
    """
    tails, heads, prices = (np.array(x) for x in zip(*edges, strict=True))
    finite = np.isfinite(prices)
    shape = (sink + 1, sink + 1)
    free = csr_array((np.ones(np.sum(~finite)), (tails[~finite], heads[~finite])), shape)
    if sink in breadth_first_order(free, source, return_predecessors=False):
        return None
    scale = FREE / 2 / prices[finite].sum()
    capacities = np.where(finite, np.rint(np.where(finite, prices, 0) * scale), FREE)
    network = csr_array((capacities.astype(np.int32), (tails, heads)), shape)
    residual = network - maximum_flow(network, source, sink).flow
    residual.eliminate_zeros()
    # What can still send flow to the sink is on its side; all else is not.
    side = np.zeros(sink + 1, bool)
    side[breadth_first_order(residual.T.tocsr(), sink, return_predecessors=False)] = True
    return side


def _without_idle(graph: _Graph, refreshed: set[int]) -> set[int]:
    """Drop refreshes, the dearest first, as long as no operation runs out of levels."""

    def price(i: int) -> float:
        kind = graph.kinds[i]
        return 0.0 if kind is None else kind.price

    kept = set(refreshed)
    for i in sorted(refreshed, key=lambda i: (-price(i), i)):
        if graph.is_valid(kept - {i}):
            kept.remove(i)
    return kept


def eager(program: Program, budget: Budget | int, top_level: int | None = None) -> Placement:
    """Refresh the operands of an operation when it runs out of levels.

    Parameters and errors are those of `minimum_cut`.
    """
    graph = _Graph(program, budget, top_level)
    refreshed: set[int] = set()
    levels = graph.levels(refreshed)
    for node in program.nodes:
        while levels[node.id] < 0:
            new = _refreshable_operands(graph, node, levels, refreshed)
            if not new:
                raise LevelError(f"{node.op.name} cannot be given levels")
            refreshed |= new
            levels = graph.levels(refreshed)
    return graph.placement(refreshed, "eager")


def _refreshable_operands(
    graph: _Graph, node: Node, levels: list[int], refreshed: set[int]
) -> set[int]:
    """Return the values nearest before `node` that lack levels and can be refreshed."""
    new: set[int] = set()
    seen: dict[int, int] = {}  # value -> levels that it was found to lack: there are many paths
    pending = [(j, node.op.depth) for j in node.inputs]
    while pending:
        j, need = pending.pop()
        if j in refreshed or levels[j] >= need or seen.get(j, -1) >= need:
            continue
        seen[j] = need
        if graph.can_refresh(j, levels[j]):
            new.add(j)
        else:
            before = graph.program.nodes[j]
            pending += [(k, need + before.op.depth) for k in before.inputs]
    return new


def exact(
    program: Program, budget: Budget | int, top_level: int | None = None, seconds: float = 60.0
) -> Placement:
    """Place the fewest bootstraps possible, by integer linear programming (SciPy's HiGHS).

    Raises
    ------
    LevelError
        If it cannot be solved in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    graph = _Graph(program, budget, top_level)
    nodes, n, top = program.nodes, len(program.nodes), graph.budget.output_level
    # Variables: level of each value, then whether it is refreshed.
    edges = [(j, node.id) for node in nodes for j in dict.fromkeys(node.inputs)]
    sites = [i for i in range(n) if graph.kinds[i] is not None]
    # What a precise refresh gives is lower than the bounds below say.
    lower = [(j, i) for j, i in edges if graph.after[j] < top]
    matrix = lil_matrix((len(edges) + len(sites) + len(lower), 2 * n))
    upper = np.zeros(matrix.shape[0])
    for row, (j, i) in enumerate(edges):
        # level_i + depth_i <= level_j + top * refreshed_j, and <= top by the bounds below
        matrix[row, i], matrix[row, j], matrix[row, n + j] = 1, -1, -top
        upper[row] = -nodes[i].op.depth
    for row, i in enumerate(sites, start=len(edges)):
        matrix[row, n + i], matrix[row, i] = graph.floor(i), -1  # refreshed at its floor or above
    for row, (j, i) in enumerate(lower, start=len(edges) + len(sites)):
        missing = top - graph.after[j]
        matrix[row, i], matrix[row, n + j] = 1, missing
        upper[row] = max(top, graph.top) - nodes[i].op.depth
    cost = np.zeros(2 * n)
    high = np.ones(2 * n)
    for i, node in enumerate(nodes):
        limit = graph.top if not node.inputs else top - node.op.depth
        high[i] = max(limit, graph.top - node.depth)
        kind = graph.kinds[i]
        high[n + i] = 0 if kind is None else 1
        cost[n + i] = 0 if kind is None else kind.price
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
                    op = sites[i].kind.operation
                    over = node.shape[0] if op.splits(node.shape) else None
                    after = open_stage(f"{stage.name}{suffix}-refresh", over)
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
