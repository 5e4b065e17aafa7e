"""Standing clusters: a scheduler and workers that outlive the command that has started them."""

from aegis_dask.runtime.standing.commands import PRELOAD, Plan, down, scale, up
from aegis_dask.runtime.standing.record import STATE, Process, Standing, find, names
from aegis_dask.runtime.standing.status import status

__all__ = [
    "PRELOAD",
    "STATE",
    "Plan",
    "Process",
    "Standing",
    "down",
    "find",
    "names",
    "scale",
    "status",
    "up",
]
