"""Settings of a process, from Dask's configuration.

`dask.config.set({"aegis.backend": "cpu"})`, the environment variable ``DASK_AEGIS__BACKEND``, or an
entry ``aegis: {backend: cpu}`` in one of Dask's configuration files.
"""

from __future__ import annotations

import dask.config

BACKEND = "aegis.backend"
MACHINE = "aegis.machine"
TLS = "aegis.tls"


def backend() -> str:
    """Return the backend that is asked for: ``"auto"`` by default, ``"cpu"`` or ``"cuda"``."""
    return str(dask.config.get(BACKEND, "auto")).lower()


def machine() -> str:
    """Return for what devices and links runs are planned: a name or file, or "" for no search."""
    return str(dask.config.get(MACHINE, "") or "")


def tls() -> str:
    """Return the directory of certificates with which to reach schedulers, or ""."""
    return str(dask.config.get(TLS, "") or "")
