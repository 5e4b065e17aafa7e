"""Ciphertexts of a GPU between workers: on the device, and through the host to a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from distributed.protocol import deserialize, serialize
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize

from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime import serialization
from tests.cuda.moving import emulation, host, moved
from tests.emulation.device import DeviceArray, needs_compiler

pytestmark = needs_compiler

DEVICE = ("cuda", "dask", "pickle")


@pytest.fixture
def value(rng: np.random.Generator) -> CipherArray:
    params = Parameters.preset("insecure-n10-d40")
    secret = KeyGenerator(params).secret_key()
    batch = Encryptor(params, secret).encrypt(rng.uniform(-1, 1, (6, params.slots)))
    return CipherArray(batch, (2, 3))


@pytest.fixture(autouse=True)
def device_frames() -> None:
    """What CuPy has for its arrays."""

    def dump(x: DeviceArray) -> Any:
        return {"shape": x.shape}, [x.reshape(-1)]

    def load(header: Any, frames: Any) -> DeviceArray:
        return frames[0].reshape(header["shape"])

    cuda_serialize.register(DeviceArray)(dump)
    cuda_deserialize.register(DeviceArray)(load)


def test_device_to_device(value: CipherArray) -> None:
    with emulation():
        sent = moved(value)
        for x in (sent, sent.batch):
            header, frames = serialize(x, serializers=DEVICE)
            assert header["serializer"] == "cuda"
            assert [type(f) for f in frames] == [DeviceArray]
            found = deserialize(header, frames)
            assert np.array_equal(host(found), value.batch.data)
        assert found.scale == value.batch.scale


def test_from_a_gpu_to_a_cpu_and_back(value: CipherArray) -> None:
    with emulation():
        header, frames = serialize(moved(value), serializers=("dask",))
    on_cpu = deserialize(header, frames)
    assert isinstance(on_cpu.batch.data, np.ndarray)
    assert np.array_equal(on_cpu.batch.data, value.batch.data)
    # A host array over a transport that prefers devices.
    header, frames = serialize(on_cpu, serializers=DEVICE)
    assert header["serializer"] == "dask"
    with emulation():
        back = deserialize(header, frames)
        assert isinstance(back.batch.data, DeviceArray)
        assert np.array_equal(host(back), value.batch.data)
        assert not serialization._is_on_device(value)
        results = serialization.Results([value, back])
        assert not serialization._is_on_device(results)
        back.batch.data.__cuda_array_interface__ = {}
        assert serialization._is_on_device(results)
