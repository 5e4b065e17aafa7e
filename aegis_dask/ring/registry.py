"""Which device runs the kernels."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from aegis_dask.ring.chain import ModulusChain

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Ring


@lru_cache(maxsize=16)
def get_ring(chain: ModulusChain) -> Ring:
    """Return the kernels and constants for `chain`, made once per process."""
    # Numba takes half a second to import; only programs that compute pay for it.
    from aegis_dask.ring.numba_backend.ring import NumbaRing

    return NumbaRing(chain)
