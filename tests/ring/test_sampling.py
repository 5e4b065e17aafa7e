from __future__ import annotations

import secrets
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import BackendError
from aegis_dask.ring.backend import Ring
from aegis_dask.ring.numba_backend import chacha
from tests import reference

KEY = bytes(range(32))
CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
LANES = np.arange(16, dtype=np.uint32)


def state(key: bytes, counter: int, nonce: tuple[int, ...]) -> Any:
    """The 16 words of RFC 8439, section 2.3."""
    return np.array([*CONSTANTS, *struct.unpack("<8I", key), counter, *nonce], np.uint32)


def key_stream(key: bytes, counter: int, nonce: tuple[int, ...]) -> bytes:
    """16 blocks of the kernel's key stream."""
    out = np.empty(256, np.uint32)
    chacha.key_stream(out, state(key, counter, nonce))
    return out.astype("<u4").tobytes()


# -- the key stream -----------------------------------------------------------------------------


def test_key_stream_gives_the_block_of_rfc_8439_section_2_3_2() -> None:
    nonce = struct.unpack("<3I", bytes.fromhex("000000090000004a00000000"))
    expected = bytes.fromhex(
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    assert key_stream(KEY, 1, nonce)[:64] == expected


def test_key_stream_encrypts_the_sunscreen_text_of_rfc_8439_section_2_4_2() -> None:
    nonce = struct.unpack("<3I", bytes.fromhex("000000000000004a00000000"))
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    expected = bytes.fromhex(
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )
    stream = key_stream(KEY, 1, nonce)
    assert bytes(a ^ b for a, b in zip(text, stream, strict=False)) == expected


def test_key_stream_is_that_of_another_implementation() -> None:
    key, nonce = secrets.token_bytes(32), struct.unpack("<3I", secrets.token_bytes(12))
    for counter in (0, 7, 2**31, 2**32 - 16):
        expected = reference.chacha_blocks(key, counter, nonce, 16).tobytes()
        assert key_stream(key, counter, nonce) == expected


# -- uniform residues ---------------------------------------------------------------------------


@pytest.mark.parametrize("domain", [0, 1, 2, 3, 2**32 - 1])
def test_uniform_residues_follow_their_description(ring: Ring, domain: int) -> None:
    seed, indices, limbs = secrets.token_bytes(32), [0, 1, 7, 2**31], [0, 3, 4, 26, 30]
    everything = ring.chain.primes + ring.chain.special_primes
    out = ring.uniform(seed, domain, indices, limbs)
    assert out.shape == (4, 5, 1024)
    for i, index in enumerate(indices):
        for l, limb in enumerate(limbs):
            expected = reference.uniform(seed, domain, index, everything[limb], 1024)
            assert np.array_equal(out[i, l], expected)


def test_uniform_residues_of_a_long_ring_follow_their_description(
    thirty_limb_ring: Callable[[int], Ring],
) -> None:
    ring, seed = thirty_limb_ring(1 << 15), secrets.token_bytes(32)
    expected = reference.uniform(seed, 3, 2, ring.chain.primes[10], 1 << 15)
    assert np.array_equal(ring.uniform(seed, 3, [2], [10])[0, 0], expected)


def test_uniform_residues_depend_on_seed_domain_index_and_prime_only(ring: Ring) -> None:
    seed = secrets.token_bytes(32)
    x = ring.uniform(seed, 1, [0, 1, 2], range(31))
    assert np.array_equal(ring.uniform(seed, 1, [2, 0], [5, 30]), x[[2, 0]][:, [5, 30]])
    others = [
        ring.uniform(secrets.token_bytes(32), 1, [0], [5]),
        ring.uniform(seed, 2, [0], [5]),
        x[1:2, 5:6],
        x[:1, 6:7],
    ]
    for y in others:
        assert np.count_nonzero(x[0, 5] == y[0, 0]) < 20  # equal by chance once in 2^25


def test_uniform_residues_are_canonical_and_evenly_spread(
    thirty_limb_ring: Callable[[int], Ring],
) -> None:
    ring = thirty_limb_ring(1 << 17)
    limbs = [0, 4, 30]
    everything = ring.chain.primes + ring.chain.special_primes
    out = ring.uniform(secrets.token_bytes(32), 1, [0], limbs)[0]
    bins = 256
    for l, limb in enumerate(limbs):
        p = everything[limb]
        assert np.all(out[l] < p)
        expected = (1 << 17) / bins
        for buckets in (out[l].astype(np.int64) * bins // p, out[l] % bins):
            counts = np.bincount(buckets, minlength=bins)
            chi2 = float(((counts - expected) ** 2 / expected).sum())
            # 255 degrees of freedom: 8 standard deviations of sqrt(2 * 255)
            assert abs(chi2 - 255) < 8 * (2 * 255) ** 0.5


def test_a_seed_of_another_length_is_refused(ring: Ring) -> None:
    with pytest.raises(BackendError, match="32 bytes, 31 were given"):
        ring.uniform(bytes(31), 1, [0], [0])


# -- rejected words -----------------------------------------------------------------------------


def retry(words: Any, lane: int, k: int, q: int, counter: int = 32) -> tuple[int, Any]:
    """Call the kernel for one coefficient; also return the state that it leaves behind."""
    s = state(KEY, counter, (1, 0, q))
    return int(chacha._retry(s, LANES, words, lane, k, 1024, np.uint32(q))), s


def words_with(u: int, lane: int, k: int) -> Any:
    """Sixteen blocks of key stream in the kernel's layout, one word pair set to u."""
    words = np.zeros(256, np.uint32)
    words[32 * k + lane], words[32 * k + 16 + lane] = u & 0xFFFFFFFF, u >> 32
    return words


@pytest.mark.parametrize(("lane", "k"), [(0, 0), (5, 3), (15, 7)])
def test_words_at_the_limit_are_rejected_and_those_below_it_kept(
    ring: Ring, lane: int, k: int
) -> None:
    for q in (ring.chain.primes[0], ring.chain.primes[-1], ring.chain.special_primes[0]):
        limit = 2**64 - 2**64 % q
        # Block 32 + lane is followed, N/8 blocks further on, by the one that is tried next.
        block = reference.chacha_blocks(KEY, 32 + lane + 1024 // 8, (1, 0, q), 1)[0]
        following = (int(block[2 * k]) | int(block[2 * k + 1]) << 32) % q
        for u in (limit, limit + 1, 2**64 - 1):
            residue, after = retry(words_with(u, lane, k), lane, k, q)
            assert residue == following
            assert after[12] == 32  # the other coefficients go on from the same block
        for u in (0, q - 1, q, limit - 1):
            assert retry(words_with(u, lane, k), lane, k, q)[0] == u % q


def test_a_power_of_two_rejects_nothing() -> None:
    assert retry(words_with(2**64 - 1, 3, 2), 3, 2, 1 << 20)[0] == (1 << 20) - 1
