"""Client and server on the emulated GPU: keys, files, encryption, evaluation, decryption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import aegis_dask as aegis
from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, bootstrapping_keys
from aegis_dask.ckks.bootstrapping.mapped import (
    open_expanded_bootstrapping,
    save_expanded_bootstrapping,
)
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.keys import EvaluationKeys, PublicKey
from aegis_dask.ckks.objects import Plaintext
from aegis_dask.ckks.serialization import load, save
from tests.cuda.moving import emulation
from tests.emulation.device import DeviceArray, needs_compiler

pytestmark = needs_compiler


def test_a_client_and_a_server(rng: np.random.Generator, tmp_path: Path) -> None:
    params = aegis.Parameters.preset("insecure-n10-d40")
    values = rng.uniform(-1, 1, (2, params.slots))
    matrix = rng.uniform(-1, 1, (16, 16)) / 16
    with emulation():
        generator = aegis.KeyGenerator(params)
        secret = generator.secret_key()
        transform = aegis.LinearTransform.from_matrix(params, matrix, level=params.max_level - 1)
        objects: dict[str, Any] = {
            "public": generator.public_key(secret),
            "keys": generator.evaluation_keys(secret, rotations=[1, *transform.rotations]),
            "fresh": aegis.Encryptor(params, secret).encrypt(values),  # from a seed
        }
        objects["public-key"] = aegis.Encryptor(params, objects["public"]).encrypt(values)
        kinds = {"public": PublicKey, "keys": EvaluationKeys}
        found = {}
        for name, value in objects.items():
            save(value, tmp_path / name)
            kind = kinds.get(name, aegis.Ciphertext)
            found[name] = load(tmp_path / name, params, expect=kind)
        evaluator = aegis.Evaluator(params, found["keys"])
        decryptor = aegis.Decryptor(params, secret)
        tiled = np.tile(values[:, :16], params.slots // 16)
        x = aegis.Encryptor(params, found["public"]).encrypt(tiled)
        y = evaluator.linear_transform(evaluator.multiply(evaluator.add(x, 1), 0.5), transform)
        y = evaluator.rotate(evaluator.multiply(y, y), 1)
        assert isinstance(y.data, DeviceArray)
        decrypted = decryptor.decrypt(y)
        for name in ("fresh", "public-key"):
            assert np.allclose(decryptor.decrypt(found[name]), values, atol=1e-6)
        for vector, periodic in ((values[0], False), (values[0, :16], True)):
            plain = aegis.Encoder(params).encode(vector, periodic=periodic)
            save(plain, tmp_path / f"plaintext-{periodic}")
            again = load(tmp_path / f"plaintext-{periodic}", params, expect=Plaintext)
            slots = aegis.Encoder(params).decode(again)
            assert np.allclose(slots, np.resize(vector, params.slots), atol=1e-6)
            summed = evaluator.add(found["fresh"], again)
            expected = values + np.resize(vector, params.slots)
            assert np.allclose(decryptor.decrypt(summed), expected, atol=1e-6)
            product = evaluator.multiply(found["fresh"], again)
            expected = values * np.resize(vector, params.slots)
            assert np.allclose(decryptor.decrypt(product), expected, atol=1e-5)
    z = np.tile(((tiled[:, :16] + 1) / 2) @ matrix.T, params.slots // 16) ** 2
    assert np.allclose(decrypted, np.roll(z, -1, axis=1), atol=1e-5)


def test_bootstrapping_keys_of_files(rng: np.random.Generator, tmp_path: Path) -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")
    scheme = params.params
    values = rng.uniform(-1, 1, scheme.slots)
    with emulation():
        secret = aegis.KeyGenerator(scheme).secret_key()
        keys = bootstrapping_keys(params, secret, Bootstrapper(params).required_keys)
        save(keys, tmp_path / "keys")
        loaded = load(tmp_path / "keys", params, expect=BootstrappingKeys)
        save_expanded_bootstrapping(loaded, tmp_path / "expanded")
        opened = open_expanded_bootstrapping(tmp_path / "expanded", params)
        low = Bootstrapper(params).input_level
        x = aegis.Encryptor(scheme, secret).encrypt(values, level=low)
        for held in (loaded, opened):
            y = Bootstrapper(params, held).refresh(x)
            assert np.allclose(aegis.Decryptor(scheme, secret).decrypt(y), values, atol=1e-4)
