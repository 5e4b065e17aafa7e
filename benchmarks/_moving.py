"""Keys and ciphertexts of one backend as those of another, to compare what both compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, SeededKey
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.ring.registry import get_ring


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
