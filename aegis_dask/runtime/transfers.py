"""Who sent how much to whom in a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aegis_dask.placement.tasks import Task
from aegis_dask.placement.traffic import CLIENT, Transfers
from aegis_dask.program.graph import Program
from aegis_dask.runtime.measure import WorkerReport


def count_transfers(
    program: Program,
    tasks: Sequence[Task],
    index_of: Mapping[Any, int],
    addresses: Sequence[str],
    reports: Mapping[str, WorkerReport],
    sent: Mapping[int, int],
    fetched: Mapping[int, int],
) -> Transfers:
    """Return the transfers of a run.

    Parameters
    ----------
    program, tasks
        What ran.
    index_of
        Key -> task.
    addresses
        Of worker 0, 1, ...
    reports
        Address -> what it measured.
    sent, fetched
        Task -> bytes of the inputs that the client sent, and of the outputs that it fetched.
    """
    number = {address: i for i, address in enumerate(addresses)}
    size = {r.task: r.payload for report in reports.values() for r in report.records} | dict(sent)
    payload: Counter[tuple[int, int, str]] = Counter()
    wire: Counter[tuple[int, int]] = Counter()

    def stage(i: int) -> str:
        return program.stages[tasks[i].stage].name

    for address, report in reports.items():
        here = number[address]
        for received in report.received:
            for key in received.keys:
                i = index_of[key]
                payload[number[received.source], here, stage(i)] += size.get(i, 0)
        for other, count in report.wire_bytes.items():
            wire[here, number.get(other, CLIENT)] += count
    for i, count in sent.items():
        payload[CLIENT, tasks[i].owner, stage(i)] += count
    for i, count in fetched.items():
        payload[tasks[i].owner, CLIENT, stage(i)] += count
    return Transfers(len(addresses), {k: v for k, v in payload.items() if v}, dict(wire))
