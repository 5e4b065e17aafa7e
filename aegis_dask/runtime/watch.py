"""Tells the scheduler's monitor of a run: before it begins, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from distributed import Client

from aegis_dask.dashboard.brief import Brief
from aegis_dask.dashboard.monitor import NAME, RUNS, Monitor, begin_run
from aegis_dask.dashboard.view import CANCELLED, FAILED, FINISHED, LOST
from aegis_dask.errors import harmless_text
from aegis_dask.runtime.session import WorkerLostError


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
        state, message = _state_of(error), harmless_text(error)
        raise
    finally:
        # An event: a scheduler that no longer answers is not waited for.
        client.log_event(RUNS, {"run": brief.run, "state": state, "message": message})


def _state_of(error: BaseException) -> str:
    if isinstance(error, WorkerLostError):
        return LOST
    return CANCELLED if isinstance(error, (KeyboardInterrupt, CancelledError)) else FAILED
