"""Keys that do not fit on the device: fetched when they are used, the same residues."""

from __future__ import annotations

import gc
from pathlib import Path

import dask.config
import numpy as np
import pytest

from aegis_dask import config
from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.mapped import open_expanded, save_expanded
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import BackendError
from aegis_dask.ring.cuda_backend.residency import KeptArray, Residency
from aegis_dask.ring.cuda_backend.ring import CudaRing
from aegis_dask.ring.registry import using
from tests.cuda.moving import assert_same, emulation, moved
from tests.emulation.device import EmulatedDevice, needs_compiler

STEPS = [1, 2, 3, 5]


@pytest.fixture
def arrays(rng: np.random.Generator) -> list[KeptArray]:
    return [KeptArray(rng.integers(0, 99, (2, 3, 4)).astype(np.uint32)) for _ in range(5)]


def test_what_fits_is_brought_once(arrays: list[KeptArray]) -> None:
    held = Residency(np.copy, 5 * arrays[0].nbytes)
    for _ in range(3):
        for x in arrays:
            assert np.array_equal(held.on_device(x), x.host)
    assert (held.uploads, held.nbytes) == (5, 5 * arrays[0].nbytes)


@pytest.mark.parametrize("room", [0, 1, 3])
def test_what_does_not_fit_makes_room(arrays: list[KeptArray], room: int) -> None:
    size = arrays[0].nbytes
    held = Residency(np.copy, room * size)
    for _ in range(20):
        for x in arrays:
            assert np.array_equal(held.on_device(x), x.host)
            assert held.nbytes <= max(room, 1) * size
    # In turns, some are still there when it is their turn again.
    assert held.uploads == 100 if room <= 1 else held.uploads < 90


def test_what_nobody_has_any_more_goes(arrays: list[KeptArray]) -> None:
    held = Residency(np.copy, 1 << 20)
    for x in arrays:
        held.on_device(x)
    size = arrays[0].nbytes
    del arrays[1:], x
    gc.collect()
    assert held.nbytes == size


def test_a_kept_array_is_no_array_of_the_host(arrays: list[KeptArray]) -> None:
    with pytest.raises(TypeError, match="to_host"):
        np.asarray(arrays[0])
    assert len(arrays[0]) == 2
    assert np.array_equal(arrays[0][1:].host, arrays[0].host[1:])


@needs_compiler
def test_rotations_with_more_keys_than_room(rng: np.random.Generator, tmp_path: Path) -> None:
    params = Parameters.preset("insecure-n10-d40")
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(secret, rotations=STEPS)
    x = Encryptor(params, secret).encrypt(rng.uniform(-1, 1, params.slots))
    save_expanded(keys, tmp_path / "keys")
    ours = Evaluator(params, keys)
    expected = {k: ours.rotate(x, k).data for k in STEPS}
    hoisted = ours.rotate_many(x, STEPS)
    size = keys.galois[next(iter(keys.galois))].b.nbytes
    device = EmulatedDevice(keys=3 * size)
    with emulation(), using(CudaRing(params.chain, device)):
        ev = Evaluator(params, open_expanded(tmp_path / "keys", params))
        for _ in range(2):
            for k in STEPS:
                assert_same(ev.rotate(moved(x), k), expected[k])
        for k, found in ev.rotate_many(moved(x), STEPS).items():
            assert_same(found, hoisted[k].data)
        assert device.keys.uploads > 2 * len(STEPS)
        assert device.keys.nbytes <= 3 * size


def test_the_bound_is_a_size() -> None:
    assert config.device_keys() is None
    with dask.config.set({"aegis.device-keys": "3 GiB"}):
        assert config.device_keys() == 3 << 30
    message = r"aegis\.device-keys .*DASK_AEGIS__DEVICE_KEYS.* size"
    with (
        dask.config.set({"aegis.device-keys": "some"}),
        pytest.raises(BackendError, match=message),
    ):
        config.device_keys()
