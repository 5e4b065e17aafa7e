"""Ciphertexts between processes: the same residues, without a copy, and of the right size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed.protocol import deserialize, serialize

from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import IntegrityError
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.serialization import OVERHEAD, Results, check_intact

PARAMS = Parameters.preset("insecure-n10-d40")


def ciphertext(batch: int = 4, level: int = 3, scale: Scale | None = None) -> Ciphertext:
    shape = (batch, 2, len(PARAMS.limbs(level)), PARAMS.ring_degree)
    data = np.random.default_rng(3).integers(0, 1 << 29, shape, np.uint32)
    return Ciphertext(PARAMS, data, level, scale or PARAMS.scales[level])


@pytest.mark.parametrize(
    "scale",
    [None, Scale.from_int((1 << 127) - 1), Scale({2: 40, 3: Fraction(-5, 1 << 20)})],
    ids=["canonical", "wide", "dyadic"],
)
def test_a_ciphertext_comes_back_equal(scale: Scale | None) -> None:
    x = ciphertext(scale=scale)
    header, frames = serialize(x, serializers=["dask"])
    y = deserialize(header, frames)
    assert np.array_equal(x.data, y.data)
    assert (y.params, y.level, y.scale, y.seed) == (x.params, x.level, x.scale, None)


def test_an_array_keeps_its_shape() -> None:
    x = CipherArray(ciphertext(6), (3, 2))
    y = deserialize(*serialize(x, serializers=["dask"]))
    assert y.shape == (3, 2)
    assert np.array_equal(x.batch.data, y.batch.data)


def test_residues_are_not_copied_in_either_direction() -> None:
    x = ciphertext()
    header, frames = serialize(x, serializers=["dask"])
    assert len(frames) == 1
    assert np.shares_memory(np.frombuffer(frames[0], np.uint8), x.data)
    received = [bytearray(frames[0])]
    y = deserialize(header, received)
    assert np.shares_memory(np.frombuffer(received[0], np.uint8), y.data)
    assert y.data.flags.writeable


def test_memory_that_kernels_cannot_use_is_copied() -> None:
    x = ciphertext()
    header, frames = serialize(x, serializers=["dask"])
    odd = bytearray(1 + frames[0].nbytes)
    odd[1:] = bytes(frames[0])
    for frame in (bytes(frames[0]), memoryview(odd)[1:]):
        y = deserialize(header, [frame])
        assert y.data.flags.writeable
        assert y.data.ctypes.data % 4 == 0
        assert np.array_equal(x.data, y.data)


def test_damage_on_the_way_is_noticed() -> None:
    header, frames = serialize(ciphertext(), serializers=["dask"])
    for position in (0, frames[0].nbytes // 2, frames[0].nbytes - 1):
        damaged = bytearray(frames[0])
        damaged[position] ^= 4
        found = deserialize(header, [damaged])
        for value in (found, Results((found, 1))):
            with pytest.raises(IntegrityError, match="were damaged on their way"):
                check_intact(value)
    check_intact(deserialize(header, frames))


def test_a_part_of_a_batch_is_sent_alone() -> None:
    x = ciphertext(4)
    _, frames = serialize(x[1:3], serializers=["dask"])
    assert frames[0].nbytes == x.nbytes // 2


def test_sizeof_sees_the_residues() -> None:
    x = ciphertext()
    assert sizeof(x) == x.data.nbytes + OVERHEAD
    assert sizeof(CipherArray(x, (4,))) == x.data.nbytes + OVERHEAD
    assert sizeof(Results((x, x))) == 2 * sizeof(x) + OVERHEAD
