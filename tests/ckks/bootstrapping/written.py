"""Bootstrapping keys to write and read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import (
    BootstrappingKeys,
    SeededKey,
    bootstrapping_keys,
)
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, KeyGenerator, SecretKey
from aegis_dask.ckks.objects import Ciphertext
from tests.arrays import host, same

NAMES = ("insecure-n10-d40-b4", "insecure-n12-d40-b7")
FEW = 2  # baby steps


@dataclass(frozen=True)
class Refreshing:
    """Keys that refresh a ciphertext, and what they make of it."""

    params: BootstrappingParameters
    secret_key: SecretKey
    keys: BootstrappingKeys

    @cached_property
    def ciphertext(self) -> Ciphertext:
        values = np.linspace(-1, 1, self.params.params.slots)
        encryptor = Encryptor(self.params.params, self.secret_key)
        return encryptor.encrypt(values, level=self.params.input_level)

    @cached_property
    def refreshed(self) -> Ciphertext:
        return self.refresh(self.keys)

    def refresh(self, keys: BootstrappingKeys) -> Ciphertext:
        return Bootstrapper(self.params, keys, baby_steps=FEW).refresh(self.ciphertext, real=True)


@cache
def refreshing(name: str) -> Refreshing:
    params = BootstrappingParameters.preset(name)
    secret_key = KeyGenerator(params.params).secret_key()
    required = Bootstrapper(params, baby_steps=FEW).required_keys
    return Refreshing(params, secret_key, bootstrapping_keys(params, secret_key, required))


def few_keys() -> BootstrappingKeys:
    """Some of the keys, none of them expanded: evaluation keys of three levels, two others."""
    keys = refreshing(NAMES[0]).keys
    assert keys.evaluation.relinearisation is not None
    relinearisation = replace(keys.evaluation.relinearisation.truncated(0))
    levels = zip(sorted(keys.evaluation.galois)[:2], (2, 1), strict=True)
    galois = {g: replace(keys.evaluation.galois[g].truncated(level)) for g, level in levels}
    evaluation = EvaluationKeys(keys.evaluation.params, relinearisation, galois)
    raised = {step: replace(keys.raised[step]) for step in sorted(keys.raised)[:2]}
    return BootstrappingKeys(keys.params, evaluation, replace(keys.to_sparse), raised)


def each(keys: BootstrappingKeys) -> Iterator[EvaluationKey | SeededKey]:
    """All keys in a fixed order."""
    if keys.evaluation.relinearisation is not None:
        yield keys.evaluation.relinearisation
    yield from (key for _, key in sorted(keys.evaluation.galois.items()))
    yield keys.to_sparse
    yield from (key for _, key in sorted(keys.raised.items()))


def assert_same(got: BootstrappingKeys, want: BootstrappingKeys) -> None:
    """Compare everything, both halves included; what `want` has not expanded stays so."""
    assert got.params.params == want.params.params
    assert got.evaluation.params == want.evaluation.params
    assert got.evaluation.galois.keys() == want.evaluation.galois.keys()
    assert got.raised.keys() == want.raised.keys()
    for x, y in zip(each(got), each(want), strict=True):
        assert type(x) is type(y)
        assert x.seed == y.seed
        assert x.b.dtype == y.b.dtype == np.uint32
        assert same(x.b, y.b)
        assert same(x.a, replace(y).a)
        if isinstance(x, SeededKey):
            assert isinstance(y, SeededKey)
            assert (x.ring.chain, x.limbs) == (y.ring.chain, y.limbs)
        else:
            assert isinstance(y, EvaluationKey)
            assert x.level == y.level


def assert_valid(keys: BootstrappingKeys) -> None:
    """Check shapes and residues against the chains of the parameters."""
    scheme, sparse = keys.params.params, keys.params.sparse_chain
    assert keys.to_sparse.ring.chain == sparse
    assert keys.to_sparse.b.shape == (len(sparse.primes), len(sparse.all_primes), 1024)
    for step, key in keys.raised.items():
        assert 0 <= step < scheme.slots
        assert key.ring.chain == scheme.chain
        assert key.b.shape == (1, len(scheme.extended_limbs(scheme.max_level)), 1024)
    for key in each(keys):
        if isinstance(key, SeededKey):
            primes = [key.ring.chain.all_primes[i] for i in key.limbs]
        else:
            primes = [scheme.chain.all_primes[i] for i in scheme.key_limbs(key.level)]
        assert len(key.seed) == 32
        assert (host(key.b) < np.array(primes, np.uint32)[:, None]).all()
