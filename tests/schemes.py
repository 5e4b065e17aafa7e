"""Parameter sets with their keys, and what a measured error must be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks.encoder import Encoder
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator, PublicKey, SecretKey
from aegis_dask.ckks.noise import NoiseModel
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import PRESETS, Parameters, ParametersLiteral

# Rational levels of 45 bits on a base of two main primes (the layout of n16-d45).
LITERALS = {
    "insecure-n10-d45": ParametersLiteral(10, 60, (45,) * 6, 6, 3, 45, insecure=True),
    **PRESETS,
}
SMALL = tuple(name for name, p in LITERALS.items() if p.log_n < 15)
LARGE = tuple(name for name, p in LITERALS.items() if p.log_n >= 15)

ROTATIONS = (1, 2, 3, 4, 8)
"""Rotations with a key of their own."""


def presets(small: Iterable[str] = SMALL, large: Iterable[str] = LARGE) -> list[object]:
    """Names of parameter sets for `parametrize`; the large ones are slow."""
    slow = [pytest.param(name, marks=pytest.mark.slow, id=name) for name in large]
    return [*(pytest.param(name, id=name) for name in small), *slow]


def every_level(lowest: int = 0) -> list[object]:
    """(name, level) for `parametrize`: all levels from `lowest` of all sets."""
    return [
        pytest.param(
            name,
            level,
            marks=[pytest.mark.slow] if name in LARGE else [],
            id=f"{name}-level{level}",
        )
        for name in (*SMALL, *LARGE)
        for level in range(lowest, len(LITERALS[name].level_bits) + 1)
    ]


@dataclass(frozen=True)
class Scheme:
    """A parameter set with one set of keys."""

    params: Parameters
    secret_key: SecretKey
    public_key: PublicKey
    keys: EvaluationKeys

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.params)

    @cached_property
    def encryptor(self) -> Encryptor:
        """Under the public key."""
        return Encryptor(self.params, self.public_key)

    @cached_property
    def secret_encryptor(self) -> Encryptor:
        """Under the secret key: little noise, so that the noise of operations shows."""
        return Encryptor(self.params, self.secret_key)

    @cached_property
    def decryptor(self) -> Decryptor:
        return Decryptor(self.params, self.secret_key)

    @cached_property
    def evaluator(self) -> Evaluator:
        return Evaluator(self.params, self.keys)

    @cached_property
    def noise(self) -> NoiseModel:
        return NoiseModel(self.params)

    def slots(self, rng: np.random.Generator, *batch: int) -> NDArray[np.complex128]:
        """Complex values in the square [-1, 1] + [-1, 1] i."""
        shape = (*batch, self.params.slots)
        return rng.uniform(-1, 1, shape) + 1j * rng.uniform(-1, 1, shape)

    def errors(self, expected: ArrayLike, ciphertext: Ciphertext) -> NDArray[np.float64]:
        """Absolute errors of the slots after decryption."""
        return np.abs(self.decryptor.decrypt(ciphertext) - np.asarray(expected))

    def assert_close(
        self,
        expected: ArrayLike,
        ciphertext: Ciphertext,
        deviation: float,
        worst_bits: int = 4,
    ) -> None:
        """Compare slots with `expected`, `deviation` being the standard deviation by the model.

        The root mean square may exceed it by 1.5 bits: the model treats the key as random, and a
        given key is a single draw. The worst slot may exceed it by 4 bits: the product of two
        Gaussian slot values, an error and s, exceeds 2^3.7 deviations with a probability below
        2^-35. Where three components were rounded an error meets s^2, and it takes two bits more.
        """
        error = self.errors(expected, ciphertext)
        assert np.sqrt(np.mean(error**2)) < 2**1.5 * deviation
        assert np.max(error) < 2**worst_bits * deviation


def make_scheme(params: Parameters) -> Scheme:
    """Make every key that the tests use."""
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(secret, rotations=ROTATIONS, conjugation=True)
    return Scheme(params, secret, generator.public_key(secret), keys)


class SchemeCache:
    """Schemes by name. The keys of N >= 2^15 fill gigabytes: only one such set is kept."""

    def __init__(self) -> None:
        self._kept: dict[str, Scheme] = {}

    def __call__(self, name: str) -> Scheme:
        if name not in self._kept:
            if LITERALS[name].log_n >= 15:
                large = [k for k in self._kept if LITERALS[k].log_n >= 15]
                for k in large:
                    del self._kept[k]
            self._kept[name] = make_scheme(Parameters.from_literal(LITERALS[name]))
        return self._kept[name]
