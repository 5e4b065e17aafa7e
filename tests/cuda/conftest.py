"""Rings of the CPU and of the emulated GPU, in pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from aegis_dask.ring.backend import Ring
from aegis_dask.ring.cuda_backend.ring import CudaRing
from tests.emulation.device import EmulatedDevice


@pytest.fixture(scope="session")
def pair(thirty_limb_ring: Callable[[int], Ring]) -> Callable[[int], tuple[Ring, CudaRing]]:
    """Degree -> the CPU's ring and the emulated GPU's, of the same 31 primes."""

    @cache
    def rings(degree: int) -> tuple[Ring, CudaRing]:
        cpu = thirty_limb_ring(degree)
        return cpu, CudaRing(cpu.chain, EmulatedDevice())

    return rings
