"""Tells the scheduler's monitor of a run: before it begins, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import groupby

from distributed import Client

from aegis_dask.dashboard.brief import Brief
from aegis_dask.dashboard.log import RunLog
from aegis_dask.dashboard.monitor import NAME, RUNS, Monitor, begin_run, memory_of
from aegis_dask.dashboard.view import CANCELLED, CONTINUED, FAILED, FINISHED, LOST, RunView
from aegis_dask.errors import harmless_text
from aegis_dask.placement.traffic import CLIENT
from aegis_dask.runtime.measure import WorkerReport
from aegis_dask.runtime.session import MoreWorkersError, RunCancelledError, WorkerLostError


def install_monitor(client: Client) -> None:
    """Give the scheduler a monitor, unless it has one."""
    client.register_plugin(Monitor(), name=NAME)


@contextmanager
def watched(client: Client, brief: Brief) -> Iterator[None]:
    """Show a run on the dashboard while the block runs, and how it ended."""
    client.run_on_scheduler(begin_run, brief.to_dict())
    state, message = FINISHED, ""
    try:
        yield
    except BaseException as error:
        state = _state_of(error)
        message = "" if state == CONTINUED else harmless_text(error)
        raise
    finally:
        # An event: a scheduler that no longer answers is not waited for.
        with suppress(Exception):  # the scheduler may be gone, and must not hide what happened
            client.log_event(RUNS, {"run": brief.run, "state": state, "message": message})


def seen(
    client: Client,
    brief: Brief,
    begin: float,
    seconds: float,
    reports: Mapping[str, WorkerReport],
    pairs: Mapping[tuple[int, int], int],
) -> RunView:
    """Return what there was to see of a run that has finished, from what its workers report.

    The monitor may not have heard of its last tasks yet; but it has watched the memory.

    Parameters
    ----------
    client, brief
        Who ran it, and what it is.
    begin, seconds
        Unix time of its beginning, and how long it took.
    reports
        Address -> what the worker measured.
    pairs
        (source, destination) -> bytes of residues.
    """
    log = RunLog(brief, begin)
    for worker, address in enumerate(brief.addresses):
        for _, records in groupby(reports[address].records, key=lambda r: r.task):
            mine = list(records)
            steps = [(r.stage, r.start, r.stop) for r in mine]
            event = {"task": mine[0].task, "device": worker, "steps": steps, "received": ()}
            log.task(event)
    log.bytes = {pair: count for pair, count in pairs.items() if CLIENT not in pair}
    for worker, memory in enumerate(client.run_on_scheduler(memory_of, brief.run)):
        log.note_memory(worker, *memory)
    log.end(begin + seconds, FINISHED)
    return log.view(begin + seconds)


def _state_of(error: BaseException) -> str:
    if isinstance(error, WorkerLostError):
        return LOST
    if isinstance(error, MoreWorkersError):
        return CONTINUED
    by_request = (KeyboardInterrupt, CancelledError, RunCancelledError)
    return CANCELLED if isinstance(error, by_request) else FAILED
