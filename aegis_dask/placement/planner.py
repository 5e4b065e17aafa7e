"""Plans of one program for any number of workers, from the beginning or from where it has got."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from aegis_dask.placement.cut import LEAST_SECONDS, TARGET_SECONDS
from aegis_dask.placement.devices import Machine
from aegis_dask.placement.plan import make_plan
from aegis_dask.placement.rest import rest_of
from aegis_dask.placement.search import search
from aegis_dask.placement.strategy import Strategy, contiguous
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.graph import Program


@dataclass(frozen=True)
class Planner:
    """What plans of a program are made from; see `placement.plan.make_plan`.

    Attributes
    ----------
    program
        The program.
    stage_work
        Estimated seconds of every stage on one worker.
    node_bytes
        Size of every node's value, if known.
    machine
        Devices and links for which to search (`placement.search`), if any; what follows is then
        not asked for. It takes `node_bytes`.
    place, target_seconds, least_seconds, replicated, everywhere
        How to cut and place.
    """

    program: Program
    stage_work: Sequence[float]
    node_bytes: Sequence[int] | None = None
    machine: Machine | None = None
    place: Strategy = contiguous
    target_seconds: float = TARGET_SECONDS
    least_seconds: float = LEAST_SECONDS
    replicated: Collection[int] = ()
    everywhere: bool = False

    def plan(self, workers: int, finished: Collection[int] = ()) -> Plan:
        """Return a plan of all stages, or of those that are not finished (see `placement.rest`).

        Raises
        ------
        ClusterError
            If a number is out of range.
        """
        rest = rest_of(self.program, finished)
        work, sizes = rest.of(self.stage_work, stages=True), self.node_bytes
        if sizes is not None:
            sizes = rest.of(sizes)
            if self.machine is not None:
                return rest.in_whole(search(rest.program, workers, work, sizes, self.machine).plan)
        number = {stage: i for i, stage in enumerate(rest.stages)}
        plan = make_plan(
            rest.program,
            workers,
            work,
            node_bytes=sizes,
            place=self.place,
            target_seconds=self.target_seconds,
            least_seconds=self.least_seconds,
            replicated=[number[i] for i in self.replicated if i in number],
            everywhere=self.everywhere,
        )
        return rest.in_whole(plan)
