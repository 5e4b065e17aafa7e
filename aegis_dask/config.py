"""Settings of a process, from Dask's configuration.

`dask.config.set({"aegis.backend": "cpu"})`, the environment variable ``DASK_AEGIS__BACKEND``, or an
entry ``aegis: {backend: cpu}`` in one of Dask's configuration files.
"""

from __future__ import annotations

import dask.config
from dask.utils import parse_bytes

from aegis_dask.errors import BackendError

BACKEND = "aegis.backend"
MACHINE = "aegis.machine"
TLS = "aegis.tls"
PREPARED_WEIGHTS = "aegis.prepared-weights"


def backend() -> str:
    """Return the backend that is asked for: ``"auto"`` by default, ``"cpu"`` or ``"cuda"``."""
    return str(dask.config.get(BACKEND, "auto")).lower()


def machine() -> str:
    """Return for what devices and links runs are planned: a name or file, or "" for no search."""
    return str(dask.config.get(MACHINE, "") or "")


def prepared_weights() -> int | None:
    """Return how many bytes of prepared weights a worker keeps ("2 GiB"); None for "auto".

    Raises
    ------
    BackendError
        If the setting is no size.
    """
    found = dask.config.get(PREPARED_WEIGHTS, "auto")
    if found is None or str(found).lower() == "auto":
        return None
    try:
        return int(parse_bytes(found))
    except (TypeError, ValueError, AttributeError):
        raise BackendError(
            f"{PREPARED_WEIGHTS} is set to {found!r} (DASK_AEGIS__PREPARED_WEIGHTS); give a size "
            "such as '2 GiB', or 'auto'"
        ) from None


def tls() -> str:
    """Return the directory of certificates with which to reach schedulers, or ""."""
    return str(dask.config.get(TLS, "") or "")
