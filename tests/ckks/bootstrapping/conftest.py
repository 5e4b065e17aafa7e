"""Keys for all the variants on the smallest ring, made once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import pytest
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.keys import KeyGenerator, SecretKey

NAME = "insecure-n10-d40-b4"
VARIANTS = {
    "full": {},
    "exhausted": {"order": "coefficients-first"},
    "64": {"slots": 64},
    "64 exhausted": {"slots": 64, "order": "coefficients-first"},
    "1": {"slots": 1},
    "1 exhausted": {"slots": 1, "order": "coefficients-first"},
    "few keys": {"baby_steps": 2},
}


@dataclass(frozen=True)
class Context:
    params: BootstrappingParameters
    secret_key: SecretKey
    keys: BootstrappingKeys

    @cached_property
    def encryptor(self) -> Encryptor:
        return Encryptor(self.params.params, self.secret_key)

    @cached_property
    def decryptor(self) -> Decryptor:
        return Decryptor(self.params.params, self.secret_key)

    def bootstrapper(self, variant: str = "full") -> Bootstrapper:
        return Bootstrapper(self.params, self.keys, **VARIANTS[variant])

    def message(
        self, rng: np.random.Generator, slots: int, batch: int = 1, magnitude: float = 1.0
    ) -> NDArray[np.complex128]:
        """Real and imaginary parts uniform up to `magnitude`, repeated over all slots."""
        parts = rng.uniform(-magnitude, magnitude, (2, batch, slots))
        return np.tile(parts[0] + 1j * parts[1], self.params.params.slots // slots)


@pytest.fixture(scope="session")
def context() -> Context:
    params = BootstrappingParameters.preset(NAME)
    secret_key = KeyGenerator(params.params).secret_key()
    wanted = [Bootstrapper(params, None, **v).required_keys for v in VARIANTS.values()]
    keys = bootstrapping_keys(params, secret_key, reduce(lambda a, b: a | b, wanted))
    return Context(params, secret_key, keys)
