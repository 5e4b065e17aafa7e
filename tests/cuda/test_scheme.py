"""Scheme operations, bootstrapping and a layer on the emulated GPU: the residues of the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encoder import Encoder
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator
from aegis_dask.ckks.linear import LinearTransform
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from tests.cuda.moving import assert_same, emulation, host, moved
from tests.emulation.device import needs_compiler

pytestmark = needs_compiler

PRESETS = ("insecure-n10-d40", "insecure-n10-d54")


def slots(rng: np.random.Generator, params: Parameters, *shape: int) -> Any:
    return rng.uniform(-1, 1, (*shape, params.slots)) + 1j * rng.uniform(
        -1, 1, (*shape, params.slots)
    )


def operations(
    params: Parameters, keys: EvaluationKeys, x: Ciphertext, y: Ciphertext, plain: Any
) -> dict[str, Any]:
    """Results of every operation of the evaluator at the level of x."""
    ev, encoder = Evaluator(params, keys), Encoder(params)
    out: dict[str, Any] = {
        "add": ev.add(x, y),
        "add shared": ev.add(x, y[0]),
        "sub": ev.sub(x, y),
        "add constant": ev.add(x, 0.25 - 1j),
        "add vector": ev.add(x, encoder.encode(plain, level=x.level, scale=x.scale)),
        "negate": ev.negate(x),
        "times i": ev.multiply_by_i(x),
        "product of three": ev.multiply(x, y, relinearise=False, rescale=False),
        "rotate": ev.rotate(x, 3),
        "conjugate": ev.conjugate(x),
        "inner sum": ev.inner_sum(x, 4),
    }
    out |= {f"rotate many {k}": v for k, v in ev.rotate_many(x, [1, 2, 4]).items()}
    if x.level == 0:
        return out
    period = np.tile(plain[:8], 1)
    periodic = encoder.encode(period, level=x.level, periodic=True)
    matrix = np.outer(plain[:4], plain[4:8])
    sparse = {0: plain, 3: plain[::-1].copy()}
    out |= {
        "multiply": ev.multiply(x, y),
        "square": ev.square(x),
        "multiply plain": ev.multiply(x, encoder.encode(plain, level=x.level)),
        "multiply periodic": ev.multiply(x, periodic),
        "multiply constant": ev.multiply(x, 0.7 + 0.1j),
        "contract": ev.contract(x, y),
        "to level": ev.to_level(x, x.level - 1),
        "add below": ev.add(x, ev.to_level(y, x.level - 1)),
        "matrix": ev.linear_transform(x, LinearTransform.from_matrix(params, matrix, x.level)),
        "diagonals": ev.linear_transform(
            x, LinearTransform.from_diagonals(params, sparse, x.level)
        ),
    }
    sums = ev.combinations([x, y], [[0.5, 1j], [1.0, -0.25]], [0.0, 0.5])
    out |= {f"combination {i}": c for i, c in enumerate(sums)}
    if x.level >= 4:
        out["chebyshev"] = ev.chebyshev(x, [0.1, 0.5, 0.25, 0.125, 0.3, 0.2, 0.1, 0.05])
    return out


@pytest.mark.parametrize("preset", PRESETS)
def test_operations_at_every_level(preset: str, rng: np.random.Generator) -> None:
    params = Parameters.preset(preset)
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(secret, rotations=range(1, 9), conjugation=True)
    encryptor = Encryptor(params, secret)
    with emulation():
        their_keys = moved(keys)
    for level in range(params.max_level + 1):
        x, y = (encryptor.encrypt(slots(rng, params, 2), level=level) for _ in range(2))
        plain = slots(rng, params)
        expected = {k: v.data for k, v in operations(params, keys, x, y, plain).items()}
        with emulation():
            found = operations(params, their_keys, moved(x), moved(y), plain)
            assert found.keys() == expected.keys()
            for name, value in found.items():
                assert_same(value, expected[name], f"{name} at level {level}")


def test_keys_and_messages_made_on_the_device(rng: np.random.Generator) -> None:
    """Everything there: keys, encryption with both kinds of keys, an operation, decryption."""
    with emulation():
        params = Parameters.preset(PRESETS[0])
        generator = KeyGenerator(params)
        secret = generator.secret_key()
        keys = generator.evaluation_keys(secret, rotations=[1])
        values = slots(rng, params, 2)
        for key in (secret, generator.public_key(secret)):
            x = Encryptor(params, key).encrypt(values)
            ev = Evaluator(params, keys)
            decryptor = Decryptor(params, secret)
            found = decryptor.decrypt(ev.rotate(ev.multiply(x, x), 1))
            assert np.abs(found - np.roll(values**2, -1, axis=-1)).max() < 1e-4
        smaller = keys.relinearisation.truncated(2)
        y = Encryptor(params, secret).encrypt(values, level=2)
        few = EvaluationKeys(params, smaller, {})
        square = Evaluator(params, few).square(y)
        assert np.abs(decryptor.decrypt(square) - values**2).max() < 1e-4


@pytest.mark.parametrize("real", [False, True])
def test_bootstrapping(rng: np.random.Generator, real: bool) -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")
    scheme = params.params
    generator = KeyGenerator(scheme)
    secret = generator.secret_key()
    planned = Bootstrapper(params)
    keys = bootstrapping_keys(params, secret, planned.required_keys)
    x = Encryptor(scheme, secret).encrypt(
        slots(rng, scheme).real if real else slots(rng, scheme), level=planned.input_level
    )
    expected = Bootstrapper(params, keys).refresh(x, real).data
    with emulation():
        assert_same(Bootstrapper(params, moved(keys)).refresh(moved(x), real), expected)
        assert host(moved(x)).shape == x.data.shape
