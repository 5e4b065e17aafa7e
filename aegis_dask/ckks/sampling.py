"""Secret and error sampling on the client, from operating-system entropy.

Every call draws a fresh 32-byte key from the OS and expands it with ChaCha20 (RFC 8439, from
`cryptography`). Errors follow a centred binomial distribution, sampled in constant time.
"""

from __future__ import annotations

import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

SEED_BYTES = 32
ERROR_BITS = 21
ERROR_STD = (ERROR_BITS / 2) ** 0.5
"""Standard deviation 3.24 of an error coefficient (at least the 3.19 of ePrint 2024/463)."""

# First nonce word of a seeded uniform polynomial: streams of different uses never meet.
DOMAIN_EVALUATION_KEY = 1
DOMAIN_PUBLIC_KEY = 2
DOMAIN_CIPHERTEXT = 3


def new_seed() -> bytes:
    """Return 32 bytes from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def _stream(count: int) -> NDArray[np.uint8]:
    cipher = Cipher(ChaCha20(new_seed(), bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(count)), np.uint8)


def ternary(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return uniform coefficients in {-1, 0, 1}."""
    count = int(np.prod(shape))
    values = np.empty(0, np.uint8)
    while len(values) < count:
        stream = _stream(count + count // 64 + 64)
        # 255 = 3 * 85: with the value 255 rejected the residue is exactly uniform.
        values = np.concatenate([values, stream[stream < 255]])
    out: NDArray[np.int64] = (values[:count] % 3).astype(np.int64).reshape(shape) - 1
    return out


def sparse_ternary(count: int, weight: int) -> NDArray[np.int64]:
    """Return `count` coefficients of which `weight`, anywhere, are -1 or 1, the others 0."""
    if not 0 < weight <= count:
        raise ValueError(f"{weight} of {count} coefficients cannot be nonzero")
    out = np.zeros(count, np.int64)
    places = secrets.SystemRandom().sample(range(count), weight)
    out[places] = np.array([1 - 2 * secrets.randbits(1) for _ in places], np.int64)
    return out


def error(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return centred binomial coefficients, the difference of two sums of 21 bits."""
    words = _stream(8 * int(np.prod(shape))).view(np.uint64)
    mask = np.uint64((1 << ERROR_BITS) - 1)
    plus = np.bitwise_count(words & mask).astype(np.int64)
    minus = np.bitwise_count((words >> np.uint64(ERROR_BITS)) & mask).astype(np.int64)
    out: NDArray[np.int64] = (plus - minus).reshape(shape)
    return out
