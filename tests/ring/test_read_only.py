"""Read-only inputs: memory maps, and buffers that another process sent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import HoistedKey, Ring
from aegis_dask.ring.chain import Window
from aegis_dask.ring.conversion import digit_raise, mod_down
from tests import reference

N = 1024
LIMBS = list(range(31))

Wrap = Callable[[Any], Any]


def frozen(x: Any) -> Any:
    y = x.copy()
    y.flags.writeable = False
    return y


def from_bytes(x: Any) -> Any:
    return np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)


def at_odd_address(x: Any) -> Any:
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:]
    return raw.view(x.dtype).reshape(x.shape)


@pytest.fixture(params=["frozen", "bytes", "odd address", "memory map"])
def wrap(request: pytest.FixtureRequest, tmp_path: Path) -> Wrap:
    def mapped(x: Any) -> Any:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, x)
        return np.load(path, mmap_mode="r")

    kinds = {"frozen": frozen, "bytes": from_bytes, "odd address": at_odd_address}
    return kinds.get(request.param, mapped)


def results(ring: Ring, wrap: Wrap, values: dict[str, Any]) -> list[Any]:
    """Results of every kernel that takes arrays."""
    v = {name: wrap(value) for name, value in values.items()}
    x, y, key = v["x"], v["y"], v["key"]
    window = Window(2, 20)
    plan = digit_raise(ring.chain, window, (0, 10, 27))
    down = mod_down(ring.chain, window, window, True)
    own = x[:, 2:20]
    digits = ring.raise_digits(own, plan)
    inner = ring.inner_product(own, digits, plan, key, key, transform=True)
    acc = ring.zeros((2, 31, N))
    ring.automorphism_multiply_add(acc, x, y[0], LIMBS, 5)
    return [
        ring.add(x, y, LIMBS),
        ring.sub(x, y, LIMBS),
        ring.negate(x, LIMBS),
        ring.multiply(x, y, LIMBS),
        ring.multiply_runs(x, v["constants"], LIMBS),
        ring.add_runs(x, v["constants"], LIMBS),
        ring.ntt(x, LIMBS),
        ring.intt(x, LIMBS),
        ring.tensor(x[None], y[None], LIMBS),
        ring.contract(x[None], y[None, None], LIMBS),
        ring.automorphism(x, 5),
        ring.from_signed(v["integers"], LIMBS),
        ring.to_montgomery(x, LIMBS),
        acc,
        ring.convert(x[:, 2:10], plan.conversions[0]),
        inner,
        ring.mod_down(inner, down, addend=own[:, None], galois_element=5),
        ring.switch_key(own, plan, key, key, down, own[:, None], 5),
        ring.turned_products(own, digits, plan, [HoistedKey(key, key, 5)], False, own),
        *ring.switch_hoisted(
            own, ring.raise_digits(own, plan), plan, [HoistedKey(key, key, 5)], down, own[:, None]
        ),
        ring.gemm(x[:, None], v["weights"], LIMBS),
        ring.encode_weights(v["integers"], LIMBS),
    ]


def compiled() -> dict[str, int]:
    """Number of compiled versions of every kernel that has run."""
    package = "aegis_dask.ring.numba_backend."
    return {
        f"{module}.{name}": len(value.signatures)
        for module in list(sys.modules)
        if module.startswith(package)
        for name, value in vars(sys.modules[module]).items()
        if hasattr(value, "signatures") and hasattr(value, "py_func")
    }


def test_read_only_inputs_compile_nothing_and_give_the_same(
    ring: Ring, rng: np.random.Generator, wrap: Wrap
) -> None:
    primes = ring.chain.all_primes
    values = {
        "x": reference.random_residues(rng, primes, 2, degree=N),
        "y": reference.random_residues(rng, primes, 2, degree=N),
        "key": reference.random_residues(rng, primes, 2, degree=N),
        "constants": reference.random_residues(rng, primes, degree=2),
        "weights": rng.integers(0, 2**24, (31, 4, 3, 2), dtype=np.uint32),
        "integers": rng.integers(-(2**62), 2**62, (2, N)),
    }
    expected = results(ring, lambda x: x, values)
    before = compiled()
    assert sum(before.values()) > 15
    for got, want in zip(results(ring, wrap, values), expected, strict=True):
        assert np.array_equal(got, want)
    assert compiled() == before


def test_read_only_inputs_are_not_copied(wrap: Wrap) -> None:
    from aegis_dask.ring.numba_backend.ring import _plain

    x = wrap(np.arange(2048, dtype=np.uint32))
    alias = _plain(x)
    assert alias.flags.writeable
    assert type(alias) is np.ndarray
    if x.flags.aligned:
        assert alias.ctypes.data == x.ctypes.data
    del x
    assert np.array_equal(alias, np.arange(2048))  # keeps the memory alive


def test_what_is_written_must_be_writable(ring: Ring) -> None:
    x = np.zeros((1, 31, N), np.uint32)
    for out in (frozen(x), at_odd_address(x)):
        with pytest.raises(BackendError, match="read-only or not aligned"):
            ring.add(x, x, LIMBS, out=out)
        with pytest.raises(BackendError, match="read-only or not aligned"):
            ring.multiply(x, x, LIMBS, accumulate=out)
