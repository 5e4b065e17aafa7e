"""From placed units to tasks: who needs which rows of what, and the sums and cuts in between.

Beside one task per unit there are

``input``
    rows of an input, which the caller sends to a worker; nothing is computed,
``sum``
    values of one worker added before the result travels, or partial results put together,
``join``
    rows from several tasks put together once for all units of a worker that need them whole,
``pick``
    one of several results, or some rows of one, for another worker: it fetches no more than that.

Sums of residues are the same in any order, so neither the number of workers nor the way a stage is
cut changes a result.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from aegis_dask.placement.cut import Rows, Unit, is_plain_total
from aegis_dask.placement.tasks import Argument, Kind, Piece, Plan, Take, Task
from aegis_dask.program.graph import Program, Stage
from aegis_dask.program.operations import Input

FAN_IN = 8
"""Values that one sum adds: sums are chained, so that few of the values are held at a time."""


@dataclass
class _Value:
    """Where a node's value is: pieces with consecutive rows, or partial sums to be added.

    A replicated value has pieces on every worker; `pieces` are those of the first.
    """

    pieces: list[Piece] = field(default_factory=list)
    is_partial: bool = False
    copies: defaultdict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))

    def add(self, piece: Piece, copy_on: int | None) -> None:
        """Add a piece, which belongs to the copy on a worker if one is given."""
        if copy_on is None:
            self.pieces.append(piece)
        else:
            self.copies[copy_on].append(piece)
            self.pieces = next(iter(self.copies.values()))

    def on(self, worker: int) -> list[Piece]:
        """Return the pieces that a worker should take."""
        return self.copies.get(worker, self.pieces)


def lower(
    program: Program,
    units: Sequence[Unit],
    owners: Sequence[int],
    workers: int,
    everywhere: bool = False,
    order: Sequence[int] | None = None,
    shares_joins: bool = True,
    adds_in_parts: bool = True,
) -> Plan:
    """Return the tasks of placed units.

    Parameters
    ----------
    program
        The program.
    units
        From `cut.split`.
    owners
        Worker of each, from a strategy.
    workers
        Number of workers.
    everywhere
        Give every worker all of every result, but terms of sums, whether it needs it or not.
    order
        Position of every stage in the order in which tasks are taken up; that of the program by
        default.
    shares_joins
        Put a value that several tasks of a worker need whole together once, not in each of them.
    adds_in_parts
        Add on every worker what it has of a sum before it travels.
    """
    position = range(len(program.stages)) if order is None else order
    lowering = _Lowering(program, workers, everywhere, position)
    lowering.shares_joins, lowering.adds_in_parts = shares_joins, adds_in_parts
    return lowering.run(units, owners)


class _Builder:
    """A task being made: collects sources and arguments."""

    def __init__(self) -> None:
        self.sources: dict[int, int] = {}
        self.arguments: list[Argument] = []

    def add(
        self, node: int, takes: Sequence[tuple[Piece, Rows | None]], is_partial: bool = False
    ) -> None:
        out = []
        for piece, rows in takes:
            position = self.sources.setdefault(piece.task, len(self.sources))
            out.append(Take(position, piece.slot, rows))
        self.arguments.append(Argument(node, tuple(out), is_partial))


class _Lowering:
    def __init__(
        self, program: Program, workers: int, everywhere: bool, order: Sequence[int]
    ) -> None:
        self.program, self.workers, self.order = program, workers, order
        self.shares_joins = self.adds_in_parts = True
        self.everywhere = everywhere and workers > 1
        self.tasks: list[Task] = []
        self.values: defaultdict[int, _Value] = defaultdict(_Value)
        self.sent: dict[tuple[int, int], list[Piece]] = {}  # (node, worker): inputs there
        self.joined: dict[tuple[int, int], Piece] = {}
        self.users: Counter[tuple[int, int]] = Counter()  # units that need a node whole on a worker
        self.picked: dict[tuple[Piece, Rows | None], Piece] = {}

    def run(self, units: Sequence[Unit], owners: Sequence[int]) -> Plan:
        placed: defaultdict[int, list[tuple[Unit, int]]] = defaultdict(list)
        for unit, owner in zip(units, owners, strict=True):
            placed[unit.stage].append((unit, owner))
        for index, there in placed.items():
            whole = self.program.needed_whole(self.program.stages[index])
            for node, is_whole in whole.items():
                if is_whole:
                    self.users.update((node, owner) for _, owner in there)
        for index in sorted(placed):
            stage = self.program.stages[index]
            self.lower_stage(stage, placed[index])
            if self.everywhere:
                self.replicate(stage)
        outputs = {}
        for name, node in self.program.outputs.items():
            if not isinstance(self.program.nodes[node].op, Input):
                outputs[name] = self.output(node)
        if not self.everywhere:
            return _needed(Plan(self.tasks, outputs, self.workers))
        copies = tuple(t.index for t in self.tasks if t.kind != "input")
        return Plan(self.tasks, outputs, self.workers, copies)

    # -- tasks -------------------------------------------------------------------------------

    def emit(
        self,
        kind: Kind,
        stage: int,
        rows: Rows | None,
        builder: _Builder,
        results: Sequence[int],
        owner: int,
        rank: float | None = None,
        seconds: float = 0.0,
    ) -> int:
        sources = tuple(builder.sources)
        if rank is None:  # as soon as it can
            rank = max((self.tasks[i].rank for i in sources), default=0.0)
        index = len(self.tasks)
        self.tasks.append(
            Task(
                index,
                kind,
                stage,
                rows,
                sources,
                tuple(builder.arguments),
                tuple(results),
                owner,
                rank,
                seconds,
            )
        )
        return index

    def owner(self, piece: Piece) -> int:
        return self.tasks[piece.task].owner

    def leading(self, node: int) -> int:
        shape = self.program.nodes[node].shape
        return shape[0] if shape else 0

    # -- stages ------------------------------------------------------------------------------

    def lower_stage(self, stage: Stage, units: list[tuple[Unit, int]]) -> None:
        results = self.program.results(stage)
        whole = self.program.needed_whole(stage)
        plain_total = is_plain_total(self.program, stage)
        for j in whole:
            self.complete(j, None if plain_total else stage, units)
        if plain_total:
            for unit, owner in units:
                self.lower_total(stage, unit, owner)
            return
        hulls: dict[int, Rows] = {}  # worker -> rows that its units need of what is not whole
        for unit, w in units:
            if unit.rows is not None:
                old = hulls.get(w, unit.rows)
                hulls[w] = (min(old[0], unit.rows[0]), max(old[1], unit.rows[1]))
        for position, (unit, w) in enumerate(units):
            builder = _Builder()
            for j, is_whole in whole.items():
                value = self.values[j]
                if value.is_partial and len(value.pieces) > 1:
                    takes = [(self.near(p, None, w, stage)[0], None) for p in value.pieces]
                    builder.add(j, takes, is_partial=True)
                    continue
                rows = None if is_whole or unit.rows is None else unit.rows
                hull = None if rows is None else hulls[w]
                builder.add(j, self.fetch(j, rows, hull, w, stage))
            rank = float(self.order[stage.index]) + position / len(units)
            index = self.emit(
                "stage", stage.index, unit.rows, builder, results, w, rank, unit.seconds
            )
            for slot, j in enumerate(results):
                node, value = self.program.nodes[j], self.values[j]
                chosen = slot if len(results) > 1 else None
                partial = unit.rows is not None and not node.shape
                piece = Piece(index, chosen, None if partial else unit.rows)
                value.is_partial = value.is_partial or partial
                value.add(piece, w if unit.is_copy else None)

    def fetch(
        self, node: int, rows: Rows | None, hull: Rows | None, w: int, stage: Stage
    ) -> list[tuple[Piece, Rows | None]]:
        """Return the pieces that make rows of a value on worker w, and what to take of each.

        `hull` are the rows that the units of the stage on this worker need together.
        """
        count = self.leading(node)
        if isinstance(self.program.nodes[node].op, Input):
            piece = self.send(node, hull, w)
            return [(piece, _inside(rows, piece.rows, count))]
        if self.everywhere and (node, w) in self.joined:
            return [(self.joined[node, w], _inside(rows, None, count))]
        pieces = self.values[node].on(w)
        if rows is None and len(pieces) > 1 and self.users[node, w] > 1 and self.shares_joins:
            return [(self.join(node, w, stage), None)]
        out = []
        for piece in pieces:
            have = piece.rows or (0, count)
            want = rows or (0, count)
            both = (max(have[0], want[0]), min(have[1], want[1]))
            if both[0] >= both[1] and count:
                continue
            wide = None if hull is None else (max(have[0], hull[0]), min(have[1], hull[1]))
            near, near_rows = self.near(piece, wide, w, stage)
            out.append((near, _inside(both if count else None, near_rows, count)))
        return out

    def near(
        self, piece: Piece, rows: Rows | None, w: int, stage: Stage
    ) -> tuple[Piece, Rows | None]:
        """Return what worker w should take for a piece, and the rows that this gives.

        From another worker that is nothing but the `rows` of the one result that it needs.
        """
        cut = rows if rows is not None and rows != piece.rows else None
        if self.owner(piece) == w or (piece.slot is None and cut is None):
            return piece, piece.rows
        if cut is None:
            cut = piece.rows
        key = (piece, cut)
        if key not in self.picked:
            builder, source = _Builder(), self.tasks[piece.task]
            node = source.results[piece.slot or 0]
            builder.add(node, [(piece, _inside(cut, piece.rows, self.leading(node)))])
            index = self.emit("pick", source.stage, cut, builder, [node], source.owner)
            self.picked[key] = Piece(index, None, cut)
        return self.picked[key], cut

    def send(self, node: int, rows: Rows | None, w: int) -> Piece:
        """Return the piece of an input on worker w; it is sent there if it is not."""
        there = self.sent.setdefault((node, w), [])
        for piece in there:
            if piece.rows is None or piece.rows == rows:
                return piece
        stage = self.program.nodes[node].stage
        index = self.emit("input", stage, rows, _Builder(), [node], w)
        there.append(Piece(index, None, rows))
        return there[-1]

    def join(self, node: int, w: int, stage: Stage) -> Piece:
        if (node, w) not in self.joined:
            builder = _Builder()
            takes = [(self.near(p, None, w, stage)[0], None) for p in self.values[node].on(w)]
            builder.add(node, takes)
            index = self.emit("join", stage.index, None, builder, [node], w)
            self.joined[node, w] = Piece(index)
        return self.joined[node, w]

    def replicate(self, stage: Stage) -> None:
        """Put the results of a stage together on every worker."""
        for node in self.program.results(stage):
            value = self.values[node]
            users = [
                self.program.stages[self.program.nodes[c].stage]
                for c in self.program.consumers[node]
            ]
            if value.copies or (users and all(is_plain_total(self.program, s) for s in users)):
                continue
            self.complete(node, None)
            for w in range(self.workers):
                self.join(node, w, stage)

    # -- sums --------------------------------------------------------------------------------

    def complete(
        self, node: int, stage: Stage | None, units: Sequence[tuple[Unit, int]] = ()
    ) -> None:
        """Add the partial sums of a value, where it has several and more than one task needs it.

        Not for copies of a stage: each takes all of them, which saves waiting for the sum.
        """
        value = self.values[node]
        if not value.is_partial or len(value.pieces) < 2:
            return
        source = self.tasks[value.pieces[0].task].stage
        by_owner: defaultdict[int, list[Piece]] = defaultdict(list)
        for piece in value.pieces:
            by_owner[self.owner(piece)].append(piece)
        terms = [self.added(node, pieces, w, source) for w, pieces in by_owner.items()]
        consumers = {self.program.nodes[c].stage for c in self.program.consumers[node]}
        taken_apart = len(units) == 1 or all(unit.is_copy for unit, _ in units)
        if len(terms) > 1 and not (stage is not None and taken_apart and len(consumers) == 1):
            w = max(by_owner, key=lambda v: (len(by_owner[v]), -v))
            terms = [self.added(node, terms, w, source)]
        value.pieces, value.is_partial = terms, len(terms) > 1

    def added(self, node: int, pieces: list[Piece], w: int, stage: int) -> Piece:
        """Return the sum of pieces as a piece on worker w."""
        if len(pieces) == 1:
            return pieces[0]
        builder = _Builder()
        home = self.program.stages[stage]
        for p in pieces:
            builder.add(node, [(self.near(p, None, w, home)[0], None)])
        return Piece(self.emit("sum", stage, None, builder, [node], w))

    def lower_total(self, stage: Stage, unit: Unit, w: int) -> None:
        """Add on each worker what it has, then send one value per worker."""
        (total,) = stage.nodes
        inputs = self.program.nodes[total].inputs
        count = self.leading(total)
        want = unit.rows or (0, count)
        groups: defaultdict[int, list[int]] = defaultdict(list)
        scattered = []
        for j in inputs:
            holders = {
                self.owner(p)
                for p in self.values[j].pieces
                if not count or _overlap(p.rows or (0, count), want)
            }
            if len(holders) == 1 and self.adds_in_parts:
                groups[holders.pop()].append(j)
            else:
                scattered.append(j)
        builder = _Builder()
        for v, nodes in groups.items():
            rest = list(nodes)
            partial: Piece | None = None
            while len(rest) + (partial is not None) > (1 if v != w else FAN_IN):
                taken = rest[: FAN_IN - (partial is not None)]
                rest = rest[len(taken) :]
                chain = _Builder()
                if partial is not None:
                    chain.add(total, [(partial, None)])
                for j in taken:
                    chain.add(j, self.fetch(j, unit.rows, unit.rows, v, stage))
                index = self.emit("sum", stage.index, unit.rows, chain, [total], v)
                partial = Piece(index, None, unit.rows)
            if partial is not None:
                builder.add(total, [(partial, None)])
            for j in rest:
                builder.add(j, self.fetch(j, unit.rows, unit.rows, w, stage))
        for j in scattered:
            builder.add(j, self.fetch(j, unit.rows, unit.rows, w, stage))
        index = self.emit(
            "sum",
            stage.index,
            unit.rows,
            builder,
            [total],
            w,
            float(self.order[stage.index]),
            unit.seconds,
        )
        self.values[total].add(Piece(index, None, unit.rows), w if unit.is_copy else None)

    # -- outputs -----------------------------------------------------------------------------

    def output(self, node: int) -> tuple[int, ...]:
        self.complete(node, None)
        out = []
        for piece in self.values[node].pieces:
            # Seen from the caller every worker is another one: of several results pick this one.
            near, _ = self.near(piece, None, -1, self.program.stages[0])
            out.append(near.task)
        return tuple(out)


def _needed(plan: Plan) -> Plan:
    """Return the plan without tasks that no output needs: copies on workers that use none."""
    needed: set[int] = set()
    pending = [i for pieces in plan.outputs.values() for i in pieces]
    while pending:
        i = pending.pop()
        if i not in needed:
            needed.add(i)
            pending += plan.tasks[i].sources
    if len(needed) == len(plan.tasks):
        return plan
    index = {old: new for new, old in enumerate(sorted(needed))}
    tasks = [
        replace(
            plan.tasks[old], index=new, sources=tuple(index[i] for i in plan.tasks[old].sources)
        )
        for old, new in index.items()
    ]
    outputs = {name: tuple(index[i] for i in pieces) for name, pieces in plan.outputs.items()}
    return Plan(tasks, outputs, plan.workers)


def _overlap(a: Rows, b: Rows) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


def _inside(rows: Rows | None, have: Rows | None, count: int) -> Rows | None:
    """Return rows relative to the rows that there are; None where that is all of them."""
    if rows is None or not count:
        return None
    first, last = have or (0, count)
    return None if rows == (first, last) else (rows[0] - first, rows[1] - first)
