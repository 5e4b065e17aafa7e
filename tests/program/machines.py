"""Plaintexts and both interpreters for small programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Program
from aegis_dask.program.interpreter import run, run_stage
from aegis_dask.program.operations import Input, Store
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


def run_in_parts(
    program: Program,
    e: Any,
    inputs: Mapping[str, Any],
    store: Store,
    bounds: Callable[[int], Sequence[int]],
) -> dict[int, Any]:
    """Run every split stage range by range, as separate tasks would; return all results by node.

    A part gets nothing but what `needed_whole` says. `bounds` gives 0, the cuts, and the length.
    """
    values = {program.inputs[name]: x for name, x in inputs.items()}
    for stage in program.stages:
        if any(isinstance(program.nodes[i].op, Input) for i in stage.nodes):
            continue
        whole = program.needed_whole(stage)
        if stage.over is None:
            values.update(run_stage(program, stage, e, store, {j: values[j] for j in whole}))
            continue
        parts: list[dict[int, Any]] = []
        cuts = bounds(stage.over)
        for rows in pairwise(cuts):
            given = {j: values[j] if w else e.part(values[j], *rows) for j, w in whole.items()}
            parts.append(run_stage(program, stage, e, store, given, rows))
        for i in program.results(stage):
            pieces = [p[i] for p in parts]
            if program.nodes[i].op.reduces:
                values[i] = pieces[0]
                for x in pieces[1:]:
                    values[i] = e.add(values[i], x)
            else:
                values[i] = e.join(pieces)
    return values
