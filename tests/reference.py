"""Slow twins of the kernels on Python integers, from the definitions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from aegis_dask.ring.primes import primitive_root_of_unity
from aegis_dask.ring.tables import bit_reversal, powers
from tests.arrays import host

# -- transforms ---------------------------------------------------------------------------------


def ntt_points(x, prime, points):
    """Values of the polynomial x at the evaluation points with the given (bit-reversed) indices."""
    n = len(x)
    psi = primitive_root_of_unity(prime, 2 * n)
    order = bit_reversal(n)
    out = []
    for i in points:
        w = powers(pow(psi, int(2 * order[i] + 1), prime), n, prime)
        out.append(int((x.astype(np.uint64) * w % np.uint64(prime)).sum() % np.uint64(prime)))
    return out


def ntt(x, prime):
    """All values, by a textbook transform on Python integers."""
    n = len(x)
    psi = primitive_root_of_unity(prime, 2 * n)
    a = [int(v) * pow(psi, i, prime) % prime for i, v in enumerate(x)]

    def dft(v, w):
        if len(v) == 1:
            return v
        even, odd = dft(v[::2], w * w % prime), dft(v[1::2], w * w % prime)
        t, half, out = 1, len(v) // 2, [0] * len(v)
        for i in range(half):
            out[i], out[i + half] = (even[i] + t * odd[i]) % prime, (even[i] - t * odd[i]) % prime
            t = t * w % prime
        return out

    natural = dft(a, psi * psi % prime)
    return np.array([natural[i] for i in bit_reversal(n)], np.uint32)


# -- integers and residues ----------------------------------------------------------------------


def crt(residues, primes):
    """Integers in [0, prod primes) from residues ``[limb, N]``, as an object array."""
    modulus = prod(primes)
    residues = host(residues)
    total = np.zeros(residues.shape[1], object)
    for r, p in zip(residues, primes, strict=True):
        total += r.astype(object) * (modulus // p * pow(modulus // p, -1, p))
    return total % modulus


def residues(x, primes):
    """Canonical residues ``[limb, N]`` of the integers x ``[N]``."""
    return np.array([[int(v) % p for v in x] for p in primes], np.uint32)


def centered(x, modulus):
    """Representatives in [-modulus/2, modulus/2)."""
    return np.where(x >= (modulus + 1) // 2, x - modulus, x)


def round_div(x, d):
    """Nearest integer of x / d."""
    return (2 * x + d) // (2 * d)


# -- polynomials modulo X^N + 1 -----------------------------------------------------------------


def automorphism(x, g):
    """Coefficients of x(X^g)."""
    n = len(x)
    out = np.zeros(n, object)
    for i, v in enumerate(x):
        k = i * g % (2 * n)
        out[k % n] = int(v) if k < n else -int(v)
    return out


def product(x, y):
    """Coefficients of x y, through one product of long integers (Kronecker substitution)."""
    n = len(x)
    bits = max(1, *(int(v).bit_length() for v in (*x, *y))) * 2 + n.bit_length()
    bits += -bits % 8
    packed = [
        int.from_bytes(b"".join(int(v).to_bytes(bits // 8, "little") for v in z), "little")
        for z in (x, y)
    ]
    long = (packed[0] * packed[1]).to_bytes(2 * n * bits // 8, "little")
    c = [int.from_bytes(long[i * bits // 8 : (i + 1) * bits // 8], "little") for i in range(2 * n)]
    return np.array([c[i] - c[i + n] for i in range(n)], object)


# -- sampling -----------------------------------------------------------------------------------


def chacha_blocks(key: bytes, counter: int, nonce: tuple[int, int, int], count: int) -> Any:
    """``[count, 16]`` words of the ChaCha20 key stream, by the `cryptography` package."""
    state = struct.pack("<4I", counter, *nonce)
    cipher = Cipher(ChaCha20(key, state), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(64 * count)), "<u4").reshape(count, 16)


def uniform(seed: bytes, domain: int, index: int, prime: int, degree: int) -> Any:
    """The residues of `Ring.uniform`, following the description in `numba_backend/chacha.py`."""
    nonce, limit = (domain, index, prime), 2**64 - 2**64 % prime
    blocks = chacha_blocks(seed, 0, nonce, degree // 8)
    out = np.empty(degree, np.uint32)
    for c in range(degree):
        block, k = 16 * (c // 128) + c % 16, c // 16 % 8
        words = blocks[block]
        while (u := int(words[2 * k]) | int(words[2 * k + 1]) << 32) >= limit:
            block += degree // 8
            words = chacha_blocks(seed, block, nonce, 1)[0]
        out[c] = u % prime
    return out


# -- residues to test with ----------------------------------------------------------------------


def random_residues(rng: np.random.Generator, primes: Sequence[int], *shape: int, degree: int):
    """Uniform residues ``[*shape, limb, N]``."""
    out = np.empty((*shape, len(primes), degree), np.uint32)
    for i, p in enumerate(primes):
        out[..., i, :] = rng.integers(0, p, (*shape, degree))
    return out


def largest_residues(primes: Sequence[int], *shape: int, degree: int):
    """Residues p - 1 everywhere."""
    top = np.array(primes, np.uint32)[:, None] - np.uint32(1)
    return np.broadcast_to(top, (*shape, len(primes), degree)).copy()


def extreme_residues(rng: np.random.Generator, primes: Sequence[int], *shape: int, degree: int):
    """Residues 0, 1, (p-1)/2, (p+1)/2, p - 1 in random places: where ranges break first."""
    top = largest_residues(primes, *shape, degree=degree)
    choice = rng.integers(0, 5, top.shape)
    return np.choose(choice, [np.zeros_like(top), np.ones_like(top), top // 2, top // 2 + 1, top])
