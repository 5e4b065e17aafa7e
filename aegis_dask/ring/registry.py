"""Which device runs the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING

from aegis_dask.errors import BackendError
from aegis_dask.ring.chain import ModulusChain

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Ring

# Numba takes half a second to import, CuPy as much; only programs that compute pay for them.


def _make_cpu(chain: ModulusChain) -> Ring:
    from aegis_dask.ring.numba_backend.ring import NumbaRing

    return NumbaRing(chain)


def _make_cuda(chain: ModulusChain) -> Ring:
    from aegis_dask.ring.cuda_backend.device import this_device
    from aegis_dask.ring.cuda_backend.ring import CudaRing

    return CudaRing(chain, this_device())


BACKENDS: dict[str, Callable[[ModulusChain], Ring]] = {"cpu": _make_cpu, "cuda": _make_cuda}
"""Name -> what makes the kernels of a chain."""


def backend_name() -> str:
    """Return the backend of this process: as configured, or a GPU where one can be used.

    Raises
    ------
    BackendError
        If the setting names none.
    """
    from aegis_dask import config

    name = config.backend()
    if name == "auto":
        return "cuda" if _has_gpu() else "cpu"
    if name not in BACKENDS:
        raise BackendError(
            f"the backend is set to {name!r} ({config.BACKEND}, DASK_AEGIS__BACKEND); it is "
            f"'auto', {', '.join(map(repr, BACKENDS))}"
        )
    return name


def device_name() -> str:
    """Return the name of the GPU that computes, or of the backend that is none.

    Raises
    ------
    BackendError
        If the backend that is asked for cannot be used here.
    """
    name = backend_name()
    if name != "cuda":
        return name
    from aegis_dask.ring.cuda_backend.device import this_device

    return this_device().name()


def device_memory() -> int:
    """Return the bytes that CuPy has taken from the GPU; 0 where none computes, or RMM has them."""
    if backend_name() != "cuda":
        return 0
    from aegis_dask.ring.cuda_backend.device import this_device

    return this_device().taken()


def release_device() -> None:
    """Give memory of the GPU that is not in use back to it."""
    if backend_name() == "cuda":
        from aegis_dask.ring.cuda_backend.device import this_device

        this_device().release()


@lru_cache(maxsize=1)
def _has_gpu() -> bool:
    from importlib.util import find_spec

    if find_spec("cupy") is None:
        return False
    from aegis_dask.ring.cuda_backend.device import is_available

    return is_available()


_chosen: ContextVar[Ring | None] = ContextVar("aegis_ring", default=None)


@contextmanager
def using(ring: Ring) -> Iterator[None]:
    """Take the kernels of a chain from `ring` in this context: to record what would be computed."""
    token = _chosen.set(ring)
    try:
        yield
    finally:
        _chosen.reset(token)


def get_ring(chain: ModulusChain) -> Ring:
    """Return the kernels and constants for `chain`, made once per process and backend.

    Raises
    ------
    BackendError
        If the backend that is asked for cannot be used here.
    """
    chosen = _chosen.get()
    if chosen is not None and (chosen.chain is chain or chosen.chain == chain):
        return chosen
    return _get_ring(chain, backend_name())


@lru_cache(maxsize=16)
def _get_ring(chain: ModulusChain, backend: str) -> Ring:
    return BACKENDS[backend](chain)
