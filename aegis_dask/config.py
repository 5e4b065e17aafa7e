"""Settings of a process, from Dask's configuration.

`dask.config.set({"aegis.backend": "cpu"})`, the environment variable ``DASK_AEGIS__BACKEND``, or an
entry ``aegis: {backend: cpu}`` in one of Dask's configuration files.
"""

from __future__ import annotations

import dask.config
from dask.utils import parse_bytes

from aegis_dask.errors import BackendError

CPU, CUDA = "cpu", "cuda"
"""Backends."""
BACKEND = "aegis.backend"
MACHINE = "aegis.machine"
TLS = "aegis.tls"
PREPARED_WEIGHTS = "aegis.prepared-weights"
DEVICE_KEYS = "aegis.device-keys"
DEVICE_WORKERS = "aegis.device-workers"


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
    return _size(PREPARED_WEIGHTS)


def device_keys() -> int | None:
    """Return how many bytes of evaluation keys may be on a GPU at a time; None for "auto".

    Raises
    ------
    BackendError
        If the setting is no size.
    """
    return _size(DEVICE_KEYS)


def device_workers() -> int:
    """Return how many processes share a GPU, each with its part of the memory: 1 by default.

    Raises
    ------
    BackendError
        If the setting is no positive integer.
    """
    found = dask.config.get(DEVICE_WORKERS, 1)
    if type(found) is not int or found < 1:
        raise BackendError(
            f"{DEVICE_WORKERS} is set to {found!r} (DASK_AEGIS__DEVICE_WORKERS); give the number "
            "of workers that share a GPU"
        )
    return found


def _size(name: str) -> int | None:
    found = dask.config.get(name, "auto")
    if found is None or str(found).lower() == "auto":
        return None
    try:
        return int(parse_bytes(found))
    except (TypeError, ValueError, AttributeError):
        variable = "DASK_" + name.upper().replace(".", "__").replace("-", "_")
        raise BackendError(
            f"{name} is set to {found!r} ({variable}); give a size such as '2 GiB', or 'auto'"
        ) from None


def tls() -> str:
    """Return the directory of certificates with which to reach schedulers, or ""."""
    return str(dask.config.get(TLS, "") or "")
