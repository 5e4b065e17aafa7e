"""Every kernel of the GPU backend gives the residues of the CPU's, in the emulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import HoistedKey, Ring
from aegis_dask.ring.chain import Window
from aegis_dask.ring.conversion import base_conversion, digit_raise, mod_down
from aegis_dask.ring.cuda_backend import sources
from aegis_dask.ring.cuda_backend.ring import CudaRing
from tests import reference
from tests.emulation.device import DeviceArray, needs_compiler

pytestmark = needs_compiler

N = 1 << 10
LIMBS = (0, 3, 4, 15, 26, 30)
"""First and last terminal, first, middle and last main prime, last special prime."""

Rings = tuple[Ring, CudaRing]


@pytest.fixture
def rings(pair: Callable[[int], Rings]) -> Rings:
    return pair(N)


def primes_of(ring: Ring, limbs: Any = LIMBS) -> list[int]:
    return [ring.chain.all_primes[i] for i in limbs]


def agree(rings: Rings, method: str, *arguments: Any, **options: Any) -> Any:
    """Call a method of both rings; arrays of residues are given to each as its own.

    Returns what the CPU returns, which is that of the GPU or of arguments that it has changed.
    """
    cpu, gpu = rings

    def to_gpu(x: Any) -> Any:
        return gpu.from_host(x) if isinstance(x, np.ndarray) and x.dtype == np.uint32 else x

    sent = [to_gpu(a) for a in arguments], {k: to_gpu(v) for k, v in options.items()}
    found = getattr(gpu, method)(*sent[0], **sent[1])
    expected = getattr(cpu, method)(*arguments, **options)
    if expected is not None:
        assert found.shape == expected.shape
        assert np.array_equal(gpu.to_host(found), expected), method
    for ours, theirs in zip(sent[0], arguments, strict=True):
        if isinstance(ours, DeviceArray) and method != "inner_product":
            assert np.array_equal(gpu.to_host(ours), theirs), f"{method}: an argument"
    return expected


def inputs(rng: np.random.Generator, primes: list[int], *shape: int, degree: int = N) -> list[Any]:
    """Random, extreme and largest residues ``[*shape, limb, N]``."""
    return [
        reference.random_residues(rng, primes, *shape, degree=degree),
        reference.extreme_residues(rng, primes, *shape, degree=degree),
        reference.largest_residues(primes, *shape, degree=degree),
    ]


@pytest.mark.parametrize("log_n", range(sources.MIN_LOG_N, sources.MAX_LOG_N + 1))
def test_transforms_of_every_degree(
    pair: Callable[[int], Rings], rng: np.random.Generator, log_n: int
) -> None:
    rings = pair(1 << log_n)
    limbs = LIMBS if log_n < 13 else (3, 30)
    for x in inputs(rng, primes_of(rings[0], limbs), degree=1 << log_n):
        forward = agree(rings, "ntt", x, limbs)
        assert np.array_equal(agree(rings, "intt", forward, limbs), x)


def test_transforms_of_batches(rings: Rings, rng: np.random.Generator) -> None:
    for x in inputs(rng, primes_of(rings[0]), 2, 3):
        agree(rings, "intt", agree(rings, "ntt", x, LIMBS), LIMBS)


@pytest.mark.parametrize("method", ["add", "sub", "multiply"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 1), (3,), ()])
def test_operands_are_broadcast(
    rings: Rings, rng: np.random.Generator, method: str, shape: tuple[int, ...]
) -> None:
    primes = primes_of(rings[0])
    for x, y in zip(inputs(rng, primes, 2, 3), inputs(rng, primes, *shape), strict=True):
        agree(rings, method, x, y, LIMBS)
        last = {"accumulate" if method == "multiply" else "out": x.copy()}
        agree(rings, method, x, y, LIMBS, **last)


def test_negation_and_montgomery_form(rings: Rings, rng: np.random.Generator) -> None:
    for x in inputs(rng, primes_of(rings[0]), 2):
        x[0, :, :5] = 0
        agree(rings, "negate", x, LIMBS)
        agree(rings, "to_montgomery", x, LIMBS)


@pytest.mark.parametrize("runs", [1, 2, 8, N // 16])
def test_constants_over_runs(rings: Rings, rng: np.random.Generator, runs: int) -> None:
    primes = primes_of(rings[0])
    for x, w in zip(inputs(rng, primes, 2), inputs(rng, primes, degree=runs), strict=True):
        cpu, gpu = rings
        for method in ("multiply_runs", "add_runs"):
            expected = getattr(cpu, method)(x, w, LIMBS)
            found = getattr(gpu, method)(gpu.from_host(x), w, LIMBS)
            assert np.array_equal(gpu.to_host(found), expected)
        out, sums = gpu.from_host(x), x.copy()
        gpu.multiply_runs(gpu.from_host(x), w, LIMBS, accumulate=out)
        cpu.multiply_runs(x, w, LIMBS, accumulate=sums)
        assert np.array_equal(gpu.to_host(out), sums)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_rows_of_constants(rings: Rings, rng: np.random.Generator, rows: int) -> None:
    cpu, gpu = rings
    x = inputs(rng, primes_of(cpu), 2, 3)[0]
    w = inputs(rng, primes_of(cpu), rows, degree=8)[0].swapaxes(0, 1)
    for method in ("multiply_runs", "add_runs"):
        found = getattr(gpu, method)(gpu.from_host(x), w, LIMBS)
        assert np.array_equal(gpu.to_host(found), getattr(cpu, method)(x, w, LIMBS))


@pytest.mark.parametrize("batch", [1, 3])
def test_tensor_products(rings: Rings, rng: np.random.Generator, batch: int) -> None:
    primes = primes_of(rings[0])
    for x, y in zip(inputs(rng, primes, 3, 2), inputs(rng, primes, batch, 2), strict=True):
        agree(rings, "tensor", x, y, LIMBS)


def test_signed_integers(rings: Rings, rng: np.random.Generator) -> None:
    x = rng.integers(-(2**63), 2**63, (2, N), np.int64)
    x[0, :6] = [-(2**63), 2**63 - 1, -1, 0, 1, 2**32]
    agree(rings, "from_signed", x, LIMBS)


@pytest.mark.parametrize("g", [1, 5, -1 % (2 * N), 3**7 % (2 * N)])
def test_automorphisms(rings: Rings, rng: np.random.Generator, g: int) -> None:
    primes = primes_of(rings[0])
    for x, y in zip(inputs(rng, primes, 2), inputs(rng, primes), strict=True):
        agree(rings, "automorphism", x, g)
        agree(rings, "automorphism_multiply_add", x.copy(), x, y, LIMBS, g)


@pytest.mark.parametrize("log_n", [10, 12])
def test_uniform_residues(pair: Callable[[int], Rings], log_n: int) -> None:
    seed = bytes(range(32))
    agree(pair(1 << log_n), "uniform", seed, 7, [0, 3, 70000], LIMBS)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 25, 30])
def test_base_conversions(rings: Rings, rng: np.random.Generator, count: int, exact: bool) -> None:
    order = rng.permutation(31)
    sources_, targets = order[:count], order[count:]
    c = base_conversion(rings[0].chain.all_primes, sources_, targets, exact=exact)
    for x in inputs(rng, primes_of(rings[0], sources_), 2):
        agree(rings, "convert", x, c)


def some_key(rng: np.random.Generator, ring: Ring, digits: int) -> Any:
    primes = ring.chain.all_primes
    return [reference.random_residues(rng, primes, digits, degree=N) for _ in range(2)]


WINDOWS = [Window(0, 27), Window(2, 20), Window(4, 7)]
BOUNDS = [0, 7, 13, 20]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_key_switching(rings: Rings, rng: np.random.Generator, window: Window, batch: int) -> None:
    cpu, gpu = rings
    chain = cpu.chain
    raising = digit_raise(chain, window, BOUNDS)
    down = mod_down(chain, window, window, has_special=True)
    key_b, key_a = some_key(rng, cpu, len(BOUNDS))
    for x in inputs(rng, primes_of(cpu, window.limbs()), batch):
        digits = cpu.raise_digits(x, raising)
        raised = gpu.raise_digits(gpu.from_host(x), raising)
        others = raising.digit_of != np.arange(digits.shape[1])[:, None]
        # The CPU leaves raised digits below 3q, the GPU canonical: rows are compared modulo q.
        q = np.array(primes_of(cpu, raising.limbs), np.uint32)[:, None]
        assert np.array_equal((gpu.to_host(raised) % q)[:, others], (digits % q)[:, others])
        agree(rings, "inner_product", x, digits % q, raising, key_b, key_a, True)
        addend = reference.random_residues(rng, primes_of(cpu, window.limbs()), batch, 2, degree=N)
        for options in (
            {},
            {"addend": addend},
            {"addend": addend[:, :1].copy(), "galois_element": 5},
            {"galois_element": 2 * N - 1},
        ):
            agree(rings, "switch_key", x, raising, key_b, key_a, down, **options)


def test_digits_that_have_been_transformed(rings: Rings, rng: np.random.Generator) -> None:
    """Hoisting: one transform, several keys, and keys that hold a part of their rows."""
    cpu, gpu = rings
    window = WINDOWS[1]
    raising = digit_raise(cpu.chain, window, BOUNDS)
    x = inputs(rng, primes_of(cpu, window.limbs()), 2)[0]
    ours, theirs = gpu.raise_digits(gpu.from_host(x), raising), cpu.raise_digits(x, raising)
    for transform in (True, False):
        key_b, key_a = some_key(rng, cpu, len(BOUNDS))
        expected = cpu.inner_product(x, theirs, raising, key_b, key_a, transform)
        sent = [gpu.from_host(k) for k in (x, key_b, key_a)]
        found = gpu.inner_product(sent[0], ours, raising, *sent[1:], transform)
        assert np.array_equal(gpu.to_host(found), expected)
    first = raising.first_digit + np.arange(ours.shape[1])
    rows = first[:, None] * len(cpu.chain.all_primes) + raising.limbs
    held = np.unique(rows)
    parts = [k.reshape(-1, N)[held][None] for k in (key_b, key_a)]
    found = gpu.inner_product(
        sent[0], ours, raising, *map(gpu.from_host, parts), False, np.searchsorted(held, rows)
    )
    assert np.array_equal(gpu.to_host(found), expected)


@pytest.mark.parametrize(("old", "new"), [((4, 20), (2, 18)), ((2, 18), (4, 17)), ((0, 5), (3, 4))])
@pytest.mark.parametrize("has_special", [False, True])
def test_divisions_between_windows(
    rings: Rings,
    rng: np.random.Generator,
    old: tuple[int, int],
    new: tuple[int, int],
    has_special: bool,
) -> None:
    chain = rings[0].chain
    c = mod_down(chain, Window(*old), Window(*new), has_special, factor=3)
    limbs = [*range(*old), *(range(27, 31) if has_special else [])]
    for x in inputs(rng, primes_of(rings[0], limbs), 2, 3):
        agree(rings, "mod_down", x, c)
        addend = np.ascontiguousarray(x[:, :2, : old[1] - old[0]])
        agree(rings, "mod_down", x, c, addend=addend, galois_element=5)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_several_keys(rings: Rings, rng: np.random.Generator, count: int) -> None:
    """More of them than a launch takes, with different automorphisms."""
    cpu, gpu = rings
    window = WINDOWS[1]
    raising = digit_raise(cpu.chain, window, BOUNDS)
    down = mod_down(cpu.chain, window, window, has_special=True)
    lower = mod_down(cpu.chain, window, Window(2, 19), has_special=True)  # a limb leaves too
    elements = [2 * N - 1, 1, 5, 3, 25, 7][:count]
    keys = [HoistedKey(*some_key(rng, cpu, len(BOUNDS)), g) for g in elements]
    sent = [k._replace(b=gpu.from_host(k.b), a=gpu.from_host(k.a)) for k in keys]
    for x in inputs(rng, primes_of(cpu, window.limbs()), 2):
        for limbs in (list(window.limbs()), raising.limbs):
            added = reference.random_residues(rng, primes_of(cpu, limbs), 2, degree=N)
            expected = cpu.turned_products(
                x, cpu.raise_digits(x, raising), raising, keys, True, added
            )
            digits, out = gpu.raise_digits(gpu.from_host(x), raising), gpu.empty(expected.shape)
            for transform in (True, False):
                gpu.turned_products(
                    gpu.from_host(x), digits, raising, sent, transform, gpu.from_host(added), out
                )
                assert np.array_equal(gpu.to_host(out), expected)
        added = reference.random_residues(rng, primes_of(cpu, window.limbs()), 2, 1, degree=N)
        for c in (down, lower):
            expected = cpu.switch_hoisted(x, cpu.raise_digits(x, raising), raising, keys, c, added)
            found = gpu.switch_hoisted(
                gpu.from_host(x),
                gpu.raise_digits(gpu.from_host(x), raising),
                raising,
                sent,
                c,
                gpu.from_host(added),
            )
            for ours, theirs in zip(found, expected, strict=True):
                assert np.array_equal(gpu.to_host(ours), theirs)


@pytest.mark.parametrize(
    ("runs", "outs", "inner", "shape"),
    [
        (1, 1, 1, ()),
        (4, 65, 33, (2,)),
        (N // 16, 3, 16, (1, 2)),
        (N // 16, 18, 40, (1, 2)),
        (2, 4, 100, (3,)),
        (2, 5, 24, ()),
        (4, 16, 9, ()),
        (1, 17, 17, ()),
    ],
)
def test_matrix_products(
    rings: Rings,
    rng: np.random.Generator,
    runs: int,
    outs: int,
    inner: int,
    shape: tuple[int, ...],
) -> None:
    limbs = (0, 30)
    primes = primes_of(rings[0], limbs)
    q = np.array(primes, np.uint32)[:, None, None, None]
    for x in inputs(rng, primes, inner, *shape):
        w = rng.integers(0, q, (len(limbs), runs, outs, inner)).astype(np.uint32)
        w[:, :, 0] = q[..., 0] - 1
        before = rings[1].launches["gemm_thin"]
        sums = agree(rings, "gemm", x, w, limbs)
        assert rings[1].launches["gemm_thin"] == before + (outs <= 16)
        agree(rings, "gemm", x, w, limbs, accumulate=sums.copy())


def test_matrix_products_of_views(rings: Rings, rng: np.random.Generator) -> None:
    cpu, gpu = rings
    limbs = (3, 27)
    x = inputs(rng, primes_of(cpu, limbs), 9)[0]
    w = rng.integers(0, 2**24, (2, 4, 7, 9)).astype(np.uint32)
    found = gpu.gemm(gpu.from_host(x)[2:8], gpu.from_host(w)[:, :, :, 2:8], limbs)
    assert np.array_equal(gpu.to_host(found), cpu.gemm(x[2:8], w[..., 2:8], limbs))


@pytest.mark.parametrize(("rows", "outs", "terms"), [(1, 1, 1), (3, 2, 5), (2, 3, 13), (1, 4, 40)])
def test_contractions(
    rings: Rings, rng: np.random.Generator, rows: int, outs: int, terms: int
) -> None:
    limbs = (0, 30)
    primes = primes_of(rings[0], limbs)
    for x, y in zip(
        inputs(rng, primes, rows, terms, 2), inputs(rng, primes, outs, terms, 2), strict=True
    ):
        agree(rings, "contract", x, y, limbs)
        agree(rings, "contract", x[0].copy(), y, limbs)
    cpu, gpu = rings
    found = gpu.contract(gpu.from_host(x), gpu.from_host(y.swapaxes(0, 1).copy()).transpose(
        (1, 0, 2, 3, 4)), limbs)  # fmt: skip
    assert np.array_equal(gpu.to_host(found), cpu.contract(x, y, limbs))


@pytest.mark.parametrize("shape", [(1,), (1, 5), (2, 300), (16, 3, 4), (N // 16,)])
def test_weights(rings: Rings, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x = rng.integers(-(2**63), 2**63, shape, np.int64)
    agree(rings, "encode_weights", x, LIMBS)


def test_what_does_not_fit_is_refused(rings: Rings, rng: np.random.Generator) -> None:
    gpu = rings[1]
    x = gpu.from_host(inputs(rng, primes_of(gpu), 2)[0])
    with pytest.raises(BackendError, match="was given for 2 limbs of 1024 points"):
        gpu.ntt(x, (0, 1))
    with pytest.raises(BackendError, match="is to be written but is not contiguous"):
        gpu.add(x, x, LIMBS, out=gpu.empty((2, 6, 2 * N))[..., ::2])
    with pytest.raises(BackendError, match="even"):
        gpu.automorphism(x, 4)
    with pytest.raises(BackendError, match="a seed has 32 bytes"):
        gpu.uniform(b"short", 0, [0], LIMBS)
    with pytest.raises(TypeError, match="copy it with to_host"):
        np.asarray(x)
