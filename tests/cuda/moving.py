"""Keys and ciphertexts of one backend as those of another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dask.config
import numpy as np

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, SeededKey
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.ring.cuda_backend.ring import CudaRing
from aegis_dask.ring.registry import BACKENDS, get_ring
from tests.emulation.device import EmulatedDevice

EMULATION = "emulation"


@contextmanager
def emulation() -> Iterator[None]:
    """Let every ring be that of the emulated GPU."""
    BACKENDS[EMULATION] = lambda chain: CudaRing(chain, EmulatedDevice())
    with dask.config.set({"aegis.backend": EMULATION}):
        yield


def moved(x: Any) -> Any:
    """Return what belongs to the CPU for the backend that is configured."""
    if isinstance(x, Ciphertext):
        return replace(x, data=x.params.ring.from_host(x.data))
    if isinstance(x, CipherArray):
        return CipherArray(moved(x.batch), x.shape)
    if isinstance(x, EvaluationKey):
        return EvaluationKey(x.params, x.params.ring.from_host(x.b), x.seed, x.level)
    if isinstance(x, EvaluationKeys):
        galois = {g: moved(key) for g, key in x.galois.items()}
        return EvaluationKeys(x.params, moved(x.relinearisation), galois)
    if isinstance(x, SeededKey):
        ring = get_ring(x.ring.chain)
        return SeededKey(ring, x.limbs, ring.from_host(x.b), x.seed)
    if isinstance(x, BootstrappingKeys):
        raised = {k: moved(key) for k, key in x.raised.items()}
        return BootstrappingKeys(x.params, moved(x.evaluation), moved(x.to_sparse), raised)
    assert x is None
    return None


def host(x: Any) -> Any:
    """Return the residues of a ciphertext or array of them, on the host."""
    batch = x.batch if isinstance(x, CipherArray) else x
    return batch.params.ring.to_host(batch.data)


def assert_same(found: Any, expected: Any, what: str = "") -> None:
    """Compare a ciphertext of the configured backend with residues of the CPU's."""
    assert np.array_equal(host(found), expected), what
