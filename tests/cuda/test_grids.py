"""Launches of large operands: a GPU takes 65,535 blocks along the second and third axis."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ring.cuda_backend.ring import CudaRing
from benchmarks._recording import Log, RecordingDevice
from tests.emulation.device import MAX_GRID

PARAMS = Parameters.preset("n16-d40")
LIMBS = PARAMS.extended_limbs(PARAMS.max_level)


def ring_of(log: Log) -> CudaRing:
    return CudaRing(PARAMS.chain, RecordingDevice(log))


@pytest.mark.parametrize("outs", [4, 16, 17, 64, 1000])
@pytest.mark.parametrize("runs", [1, 2048, 4096])
def test_matrices_of_many_runs(outs: int, runs: int) -> None:
    """A dense matrix of 1,024 rows has 2,048 runs (`LinearTransform.from_matrix`)."""
    log = Log()
    ring = ring_of(log)
    x = ring.empty((32, 2, len(LIMBS), ring.degree))
    ring.gemm(x, ring.empty((len(LIMBS), runs, outs, 32)), LIMBS)
    (launch,) = log.launches
    assert np.all(np.array(launch.grid) <= MAX_GRID), launch


def test_contractions_of_many_rows() -> None:
    log = Log()
    ring = ring_of(log)
    x, y = (ring.empty((*n, 4, 2, len(LIMBS), ring.degree)) for n in ((600,), (600,)))
    ring.contract(x, y, LIMBS)
    (launch,) = log.launches
    assert launch.grid[0] == 300 * 300
    assert np.all(np.array(launch.grid) <= MAX_GRID), launch
