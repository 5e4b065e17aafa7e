"""Largest key modulus per ring degree for 128-bit security.

Security guidelines for implementing homomorphic encryption (Bossuat et al., ePrint 2024/463),
Table 5.2: classical attacks, uniform ternary secret, error standard deviation 3.19.
"""

from __future__ import annotations

from aegis_dask.errors import InsecureParametersError

SECURITY_BITS = 128
MAX_LOG2_MODULUS = {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747, 17: 3523}
"""log2 N -> largest log2 of the modulus of any published key."""


def max_log2_modulus(log_n: int) -> int:
    """Return the largest secure log2 QP for ring degree ``2**log_n`` (0 if not in the table)."""
    return MAX_LOG2_MODULUS.get(log_n, 0)


def check_key_modulus(log_n: int, log2_modulus: float, what: str) -> None:
    """Raise `InsecureParametersError` if a key over this modulus is below 128-bit security."""
    limit = max_log2_modulus(log_n)
    if log2_modulus > limit:
        raise InsecureParametersError(
            f"{what} has a modulus of {log2_modulus:.1f} bits; at ring degree 2^{log_n} at most "
            f"{limit} bits give {SECURITY_BITS}-bit security (ePrint 2024/463, Table 5.2). Use "
            "fewer or smaller levels, fewer special primes, or a larger ring; pass insecure=True "
            "only for tests."
        )


MAX_LOG2_SPARSE_MODULUS = {(16, 32): 121, (15, 64): 80}
"""(log2 N, weight) -> largest log2 of a key modulus under a ternary secret with so few nonzero
coefficients. The guidelines do not cover sparse secrets.

2^16: the value that Lattigo uses for the ephemeral secret of bootstrapping
(`parameters_literal.go`, after Bossuat, Troncoso-Pastoriza, Hubaux, ePrint 2022/024). 2^15: derived
from it. At half the ring degree 60 bits keep the ratio of modulus and dimension, hence the cost of
lattice reduction after any guess; twice the weight doubles the exponent of guessing zeros, which
leaves a margin for 80 bits (`docs/bootstrapping.md`)."""


def max_log2_sparse_modulus(log_n: int, weight: int) -> int:
    """Return the largest log2 of a key modulus under a sparse secret (0 where none is known)."""
    return MAX_LOG2_SPARSE_MODULUS.get((log_n, weight), 0)


def check_sparse_key_modulus(log_n: int, weight: int, log2_modulus: float, what: str) -> None:
    """Raise `InsecureParametersError` if a key under a sparse secret is below 128-bit security."""
    limit = max_log2_sparse_modulus(log_n, weight)
    if log2_modulus > limit:
        raise InsecureParametersError(
            f"{what} has a modulus of {log2_modulus:.1f} bits and a secret with {weight} nonzero "
            f"coefficients; at ring degree 2^{log_n} at most {limit} bits are known to give "
            f"{SECURITY_BITS}-bit security. Use a smaller base, fewer special primes for that key, "
            "or a denser secret; pass insecure=True only for tests."
        )
