"""Plaintexts and both interpreters for small programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Program
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Store
from tests.schemes import Scheme

SLOTS = 512
Slots = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Plaintext vectors ``[rows, ..., period]``, or ``[1, period]`` shared by all."""

    values: Slots
    shared: bool = False

    @property
    def count(self) -> int | None:
        return None if self.shared else len(self.values)

    def build(self, store: Store, start: int, stop: int) -> Slots:
        return self.values if self.shared else self.values[start:stop]


@dataclass(frozen=True, eq=False)
class Matrix:
    """Diagonals ``[*outputs, *inputs, period]`` in the store."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    period: int

    def build(self, store: Store, start: int, stop: int) -> Slots:
        return np.asarray(store[self.name])[start:stop]


def random_slots(rng: np.random.Generator, *shape: int) -> Slots:
    """Complex numbers in the unit disc."""
    radius, angle = rng.uniform(0, 1, shape), rng.uniform(0, 2 * np.pi, shape)
    return radius * np.exp(1j * angle)


def encrypt(s: Scheme, x: Slots, level: int | None = None) -> CipherArray:
    batch = s.secret_encryptor.encrypt(x.reshape(-1, x.shape[-1]), level=level)
    return CipherArray(batch, x.shape[:-1])


def decrypt(s: Scheme, y: CipherArray) -> Slots:
    return np.asarray(s.decryptor.decrypt(y.batch)).reshape(*y.shape, -1)


def run_encrypted(
    s: Scheme,
    program: Program,
    inputs: Mapping[str, Slots],
    store: Mapping[str, Any] | None = None,
    levels: Mapping[str, int] | None = None,
    keys: EvaluationKeys | None = None,
) -> dict[str, CipherArray]:
    """Encrypt the inputs, each at its level (the top one by default), and run."""
    levels = levels or {}
    encrypted = {k: encrypt(s, x, levels.get(k)) for k, x in inputs.items()}
    e = Encrypted(Evaluator(s.params, keys or s.keys))
    return run(program, e, encrypted, store or {})


def worst_bits(found: Slots, expected: Slots) -> float:
    """-log2 of the largest error."""
    assert found.shape == expected.shape
    return float(-np.log2(max(np.max(np.abs(found - expected)), 2.0**-60)))
