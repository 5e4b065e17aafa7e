"""Tasks that one worker does one after the other anyway become one.

From the end of a task to the start of one that waited for it Dask takes milliseconds, through the
scheduler, even on the same worker. Two kinds of tasks are done in the same call:

*chains*
    a task, and the one that alone takes its result, if that one can then start no later: whatever
    else it takes is there before,
*groups*
    neighbours in the order of a worker that are short, until together they last as long as a task
    should, if no other worker waits for a result of theirs.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from aegis_dask.placement.tasks import Part, Plan, Task

FUSED = ("stage", "sum", "join")

Members = list[int]
"""Tasks that become one, in the order in which they are done."""


def fuse(plan: Plan, layers: Sequence[str] = (), target_seconds: float = 0.0) -> Plan:
    """Return the plan with chains, and groups, of tasks put into one each.

    Parameters
    ----------
    plan
        The plan.
    layers
        Layer of every stage: nothing goes from one to another, where runs are submitted apart and
        can be taken up again.
    target_seconds
        How long a group may last; none are made by default.
    """
    if any(t.parts for t in plan.tasks):
        return plan  # it has been done
    fusing = _Fusing(plan, layers)
    together = fusing.groups(fusing.chains(), target_seconds)
    return plan if len(together) == len(plan.tasks) else _Joining(plan, together).run()


class _Fusing:
    """What tasks wait for, and who takes what they give."""

    def __init__(self, plan: Plan, layers: Sequence[str]) -> None:
        self.tasks, self.layers = plan.tasks, layers
        # One worker takes its tasks up in their order; several wait for each other.
        self.is_alone = plan.workers == 1
        self.final = {i for pieces in plan.outputs.values() for i in pieces} | set(plan.kept)
        self.users: list[list[int]] = [[] for _ in plan.tasks]
        self.before: list[int] = []  # bit sets of all tasks that have ended when a task starts
        for t in plan.tasks:
            ended = 0
            for i in set(t.sources):
                self.users[i].append(t.index)
                ended |= self.before[i] | 1 << i
            self.before.append(ended)

    def may_fuse(self, i: int) -> bool:
        """Whether a task is of a kind that is fused."""
        return self.tasks[i].kind in FUSED

    def are_near(self, i: int, j: int) -> bool:
        """Whether two tasks are of one worker and one layer."""
        a, b = self.tasks[i], self.tasks[j]
        alike = not self.layers or self.layers[a.stage] == self.layers[b.stage]
        return alike and a.owner == b.owner

    def chains(self) -> list[Members]:
        """Return chains; a task that is in none is one of its own."""
        follows: dict[int, int] = {}  # task -> the one before it in its chain
        for t in self.tasks:
            for i in t.sources:
                if (
                    self.may_fuse(t.index)
                    and self.may_fuse(i)
                    and self.are_near(i, t.index)
                    and len(self.users[i]) == 1
                    and i not in self.final
                    and all(j == i or self.is_there(j, i) for j in t.sources)
                ):
                    follows[t.index] = i
        swallowed = set(follows.values())
        out = []
        for t in self.tasks:
            if t.index not in swallowed:
                chain = [t.index]
                while chain[0] in follows:
                    chain.insert(0, follows[chain[0]])
                out.append(chain)
        return out

    def is_there(self, source: int, i: int) -> bool:
        """Whether the result of a task is there when task i starts."""
        return self.tasks[source].kind == "input" or bool(self.before[i] >> source & 1)

    def groups(self, chains: list[Members], target_seconds: float) -> list[Members]:
        """Return groups of chains; a chain that is in none is one of its own."""
        order: defaultdict[int, list[Members]] = defaultdict(list)
        for chain in sorted(chains, key=lambda c: (self.tasks[c[0]].rank, c[0])):
            order[self.tasks[chain[0]].owner].append(chain)
        out = []
        for own in order.values():
            done: set[int] = set()  # by this worker, before the group
            group: Members = []
            seconds, is_open = 0.0, False
            for chain in own:
                more = sum(self.tasks[i].seconds for i in chain)
                stays = self.stays(chain)
                if (
                    is_open
                    and stays
                    and seconds + more <= target_seconds
                    and self.are_near(group[0], chain[0])
                    and self.can_start(chain, group, done)
                ):
                    group += chain
                    seconds += more
                    continue
                done.update(group)
                group, seconds, is_open = list(chain), more, stays
                out.append(group)
        return out

    def stays(self, members: Members) -> bool:
        """Whether a chain may be in a group: no other worker takes what it gives."""
        owner = self.tasks[members[0]].owner
        users = {self.tasks[j].owner for i in members for j in self.users[i]}
        return (
            users <= {owner}
            and self.final.isdisjoint(members)
            and all(self.may_fuse(i) for i in members)
        )

    def can_start(self, chain: Members, group: Members, done: Collection[int]) -> bool:
        """Whether a chain and a group can start together, neither later than alone."""
        inside = {*chain, *group}

        def ready(members: Members, i: int) -> bool:
            sources = {j for k in members for j in self.tasks[k].sources} - inside
            return all(self.is_there(j, i) or (self.is_alone and j in done) for j in sources)

        return ready(chain, group[0]) and ready(group, chain[0])


class _Joining:
    """Makes tasks of sets of tasks, and tells their users where results are."""

    def __init__(self, plan: Plan, together: list[Members]) -> None:
        self.plan, self.together, self.tasks = plan, together, plan.tasks
        self.home = {i: n for n, members in enumerate(together) for i in members}
        self.index: dict[int, int] = {}  # set -> its task
        self.gives: dict[int, tuple[int, ...]] = {}
        self.slots: dict[tuple[int, int | None], int | None] = {}  # of a task -> of its set
        outside = {
            (t.sources[take.source], take.slot)
            for t in self.tasks
            for argument in t.arguments
            for take in argument.takes
            if self.home[t.sources[take.source]] != self.home[t.index]
        }
        for members in together:
            self._choose(members, outside)

    def _choose(self, members: Members, outside: Collection[tuple[int, int | None]]) -> None:
        """Choose what a set gives: what others take, and all that its last member gives."""
        given: list[tuple[int, int | None]] = []
        for i in members:
            count = len(self.tasks[i].results)
            slots = [None] if count == 1 else range(count)
            own = [s for s in slots if (i, s) in outside or i == members[-1]]
            self.gives[i] = tuple(s or 0 for s in own)
            given += [(i, s) for s in own]
        for slot, name in enumerate(given):
            self.slots[name] = slot if len(given) > 1 else None

    def run(self) -> Plan:
        """Return the plan."""
        out: list[Task] = []
        for n in self._order():
            self.index[n] = len(out)
            out.append(self._task(self.together[n], len(out)))
        plan = self.plan
        outputs = {
            name: tuple(self.index[self.home[i]] for i in pieces)
            for name, pieces in plan.outputs.items()
        }
        return Plan(out, outputs, plan.workers, tuple(self.index[self.home[i]] for i in plan.kept))

    def _order(self) -> list[int]:
        """Return the sets, those that others wait for first, else by their last members."""
        waiting: list[set[int]] = [set() for _ in self.together]
        users: defaultdict[int, set[int]] = defaultdict(set)
        for t in self.tasks:
            here = self.home[t.index]
            for n in {self.home[i] for i in t.sources} - {here}:
                waiting[here].add(n)
                users[n].add(here)
        ready = [(members[-1], n) for n, members in enumerate(self.together) if not waiting[n]]
        heapq.heapify(ready)
        order = []
        while ready:
            _, n = heapq.heappop(ready)
            order.append(n)
            for user in users[n]:
                waiting[user].discard(n)
                if not waiting[user]:
                    heapq.heappush(ready, (self.together[user][-1], user))
        return order

    def _task(self, members: Members, index: int) -> Task:
        if len(members) == 1:
            task, places = self._wired(members, 0, index)
            return replace(task, sources=tuple(places))
        sources: dict[int, int] = {}
        parts = []
        for k, i in enumerate(members):
            task, places = self._wired(members, k, index)
            takes = (w if w < 0 else sources.setdefault(w, len(sources)) for w in places)
            parts.append(Part(task, tuple(takes), self.gives[i]))
        return replace(
            parts[-1].task,
            sources=tuple(sources),
            results=tuple(p.task.results[s] for p in parts for s in p.gives),
            rank=parts[0].task.rank,
            seconds=sum(p.task.seconds for p in parts),
            parts=tuple(parts),
        )

    def _wired(self, members: Members, k: int, index: int) -> tuple[Task, list[int]]:
        """Return a member without sources, and what it takes: tasks, -1 for the member before."""
        t = self.tasks[members[k]]
        places: dict[int, int] = {}

        def place(i: int) -> int:
            if i in members:
                return members.index(i) - k
            return self.index[self.home[i]]

        position = [places.setdefault(place(i), len(places)) for i in t.sources]
        arguments = tuple(
            replace(
                a,
                takes=tuple(
                    replace(
                        take,
                        source=position[take.source],
                        slot=self._slot(t.sources[take.source], take.slot, members),
                    )
                    for take in a.takes
                ),
            )
            for a in t.arguments
        )
        return replace(t, index=index, sources=(), arguments=arguments), list(places)

    def _slot(self, i: int, slot: int | None, members: Members) -> int | None:
        """Return which result of its set, or of itself in the same set, a result of a task is."""
        return slot if i in members else self.slots[i, slot]
