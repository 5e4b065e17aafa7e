"""Slow twins of the kernels on Python integers, from the definitions."""

from __future__ import annotations

from math import prod

import numpy as np

from aegis_dask.ring.primes import primitive_root_of_unity
from aegis_dask.ring.tables import bit_reversal, powers


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


def crt(residues, primes):
    """Integers in [0, prod primes) from residues ``[limb, N]``, as an object array."""
    modulus = prod(primes)
    total = np.zeros(residues.shape[1], object)
    for r, p in zip(residues, primes, strict=True):
        total += r.astype(object) * (modulus // p * pow(modulus // p, -1, p))
    return total % modulus


def centered(x, modulus):
    """Representatives in [-modulus/2, modulus/2)."""
    return np.where(x >= (modulus + 1) // 2, x - modulus, x)


def round_div(x, d):
    """Nearest integer of x / d."""
    return (2 * x + d) // (2 * d)
