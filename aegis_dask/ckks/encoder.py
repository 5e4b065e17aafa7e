"""Encoding: complex slots <-> integer polynomials, through the canonical embedding.

Slot j of m is ``m(zeta^(5^j))``, zeta a primitive 2N-th root of unity (Cheon, Kim, Kim, Song,
ePrint 2016/421). With ``f_i = m_i + i m_{i+N/2}`` the values at ``zeta^(4k+1)`` are an FFT of size
N/2 of ``f_i zeta^i``. Arithmetic is float64, which bounds the precision of large scales to about
48 bits relative to the largest slot.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks.objects import Plaintext
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError, LevelError
from aegis_dask.ring.backend import contiguous
from aegis_dask.ring.operands import MIN_RUN
from aegis_dask.ring.primes import primitive_root_of_unity
from aegis_dask.ring.tables import bit_reversal, powers

C128 = NDArray[np.complex128]

_SPLIT_BITS = 40
_INT64_LIMIT = 2.0**62
_FLOAT_LIMIT = 2.0**100
_SLOT_LIMIT = 2.0**500  # far beyond any modulus, and the transform still does not overflow
DECODE_HEADROOM_BITS = 48
"""Values up to 2^47 are decoded from any level; a message is smaller at the lowest levels."""


@lru_cache(maxsize=32)
def _embedding(n: int) -> tuple[NDArray[np.int64], C128]:
    """Return (FFT index of slot j, ``zeta^i`` for i < n/2) for ring degree n."""
    exponents = powers(5, max(n // 2, 1), 2 * n).astype(np.int64)
    return (exponents - 1) // 4, np.exp(1j * np.pi * np.arange(n // 2) / n)


def embed(values: C128, n: int) -> NDArray[np.float64]:
    """Return the real coefficients ``[..., n]`` of slots ``[..., n/2]``."""
    index, twist = _embedding(n)
    points = np.empty_like(values)
    points[..., index] = values
    f = np.fft.fft(points, axis=-1) / (n // 2) * twist.conj()
    return np.concatenate([f.real, f.imag], axis=-1)


def project(coefficients: NDArray[np.float64], n: int) -> C128:
    """Return the slots ``[..., n/2]`` of real coefficients ``[..., n]``."""
    index, twist = _embedding(n)
    f = coefficients[..., : n // 2] + 1j * coefficients[..., n // 2 :]
    points = np.fft.ifft(f * twist, axis=-1) * (n // 2)
    slots: C128 = points[..., index]
    return slots


class Encoder:
    """Encodes vectors of complex or real numbers for one parameter set."""

    def __init__(self, params: Parameters) -> None:
        self.params = params

    # -- encoding ---------------------------------------------------------------------------

    def encode(
        self,
        values: ArrayLike,
        level: int | None = None,
        scale: Scale | int | None = None,
        periodic: bool = False,
    ) -> Plaintext:
        """Encode one vector.

        Parameters
        ----------
        values
            Real or complex numbers ``[n]``, n at most `params.slots`; the rest is zero.
        level
            Level of the plaintext, the top one by default.
        scale
            Exact scale, the canonical one of the level by default.
        periodic
            Repeat the vector over all slots. Its length n must be a power of two; up to N/32 the
            plaintext is kept in its subring: 2n residues per limb instead of N.

        Raises
        ------
        EncodingError
            For NaN or infinity, too many values, or values too large for the level.
        """
        level = self._level(level)
        exact = self._scale(scale, level)
        z = self._check(values)
        if z.ndim != 1:
            raise EncodingError(f"a plaintext encodes one vector; shape {z.shape} was given")
        if periodic:
            if z.size & (z.size - 1):
                raise EncodingError(f"a periodic vector has a power-of-two length, not {z.size}")
            if self.is_periodic(z.size):
                data = self.encode_rows(z[None], level, exact)[:, 0]
                return Plaintext(self.params, np.ascontiguousarray(data), level, exact, z.size)
            z = np.tile(z, self.params.slots // z.size)
        residues = self.residues(self.coefficients(z, exact, level), level)
        return Plaintext(self.params, residues, level, exact, self.params.slots)

    def is_periodic(self, length: int) -> bool:
        """Tell whether a vector of this length can be kept in its subring when it repeats."""
        return length & (length - 1) == 0 and 2 * length * MIN_RUN <= self.params.ring_degree

    def encode_rows(self, values: C128, level: int, scale: Scale) -> NDArray[np.uint32]:
        """Return the residues ``[limb, row, 2 n]`` of vectors ``[row, n]`` that repeat.

        As `encode` with `periodic` gives them, which `is_periodic` must allow, one after the other.
        """
        runs = 2 * values.shape[-1]
        coefficients = self._bounded(embed(self._check(values), runs) * float(scale), level)
        limbs, primes = self.params.limbs(level), self.params.chain.primes
        data = np.empty((len(limbs), len(values), runs), np.uint32)
        for row, i in enumerate(limbs):
            data[row] = subring_ntt(coefficients, self.params.ring_degree, primes[i])
        return data

    def coefficients(self, values: C128, scale: Scale, level: int) -> NDArray[np.float64]:
        """Return the scaled, rounded coefficients ``[..., N]`` of slots ``[..., n]``."""
        n = self.params.slots
        if values.shape[-1] < n:
            pad = [(0, 0)] * (values.ndim - 1) + [(0, n - values.shape[-1])]
            values = np.pad(values, pad)
        return self._bounded(embed(values, 2 * n) * float(scale), level)

    def _bounded(self, c: NDArray[np.float64], level: int) -> NDArray[np.float64]:
        largest = float(np.max(np.abs(c), initial=0.0))
        bits = self.params.log2_moduli[level] - 1
        if largest >= _FLOAT_LIMIT or (largest > 0 and np.log2(largest) >= bits):
            raise EncodingError(
                f"the scaled values reach 2^{np.log2(largest):.1f}, level {level} holds less than "
                f"2^{min(bits, 100):.1f}; use smaller values, a smaller scale or a higher level"
            )
        return np.rint(c)

    def residues(self, coefficients: NDArray[np.float64], level: int) -> Any:
        """Return integer-valued coefficients ``[..., N]`` as transformed residues."""
        limbs, ring = self.params.limbs(level), self.params.ring
        if float(np.max(np.abs(coefficients), initial=0.0)) < _INT64_LIMIT:
            return ring.ntt(ring.from_signed(coefficients.astype(np.int64), limbs), limbs)
        high = np.rint(coefficients / 2.0**_SPLIT_BITS)
        low = coefficients - high * 2.0**_SPLIT_BITS  # exact: a float64 has 53 bits
        primes = self.params.chain.primes
        shift = np.array([[(1 << _SPLIT_BITS) % primes[i]] for i in limbs], np.uint32)
        x = ring.multiply_runs(ring.from_signed(high.astype(np.int64), limbs), shift, limbs)
        x = ring.add(x, ring.from_signed(low.astype(np.int64), limbs), limbs)
        return ring.ntt(x, limbs)

    def constant(self, value: complex, level: int, scale: Scale) -> NDArray[np.uint32]:
        """Return ``[limb, 1]`` or, with an imaginary part, ``[limb, 2]`` residues of a constant."""
        real, imag = self.rounded_constant(value, level, scale)
        limbs, primes = self.params.limbs(level), self.params.chain.primes
        if imag == 0:
            return np.array([[real % primes[i]] for i in limbs], np.uint32)
        rows = []
        for i in limbs:
            p = primes[i]
            root = imaginary_unit(self.params.ring_degree, p) * imag
            rows.append([(real + root) % p, (real - root) % p])
        return np.array(rows, np.uint32)

    def rounded_constant(self, value: complex, level: int, scale: Scale) -> tuple[int, int]:
        """Return the integers nearest to the scaled real and imaginary parts."""
        if not (np.isfinite(value.real) and np.isfinite(value.imag)):
            raise EncodingError(f"a constant must be finite, {value} was given")
        exact = scale.to_fraction()
        parts = round(Fraction(value.real) * exact), round(Fraction(value.imag) * exact)
        if 2 * max(abs(v) for v in parts) >= self.params.chain.modulus(level):
            raise EncodingError(
                f"the constant {value} at scale 2^{scale.log2:.1f} does not fit level {level}, "
                f"which holds less than 2^{self.params.log2_moduli[level] - 1:.1f}; use a higher "
                "level"
            )
        return parts

    # -- decoding ---------------------------------------------------------------------------

    def decode(self, plaintext: Plaintext) -> C128:
        """Return the slots ``[slots]`` of a plaintext."""
        check_same(self, plaintext, names=("the encoder", "the plaintext"))
        data = plaintext.expanded()[None]
        slots = self.decode_residues(data, plaintext.level, plaintext.scale)
        return slots.reshape(-1)

    def decode_residues(self, data: Any, level: int, scale: Scale) -> C128:
        """Return the slots ``[batch, slots]`` of residues ``[batch, limb, N]``."""
        ring, limbs = self.params.ring, self.params.limbs(level)
        primes = self.params.chain.primes
        keep, bits = 0, 0.0
        while keep < len(limbs) and bits < scale.log2 + DECODE_HEADROOM_BITS:
            bits += np.log2(primes[limbs[keep]])
            keep += 1
        x = ring.to_host(ring.intt(contiguous(ring, data[:, :keep]), limbs[:keep]))
        values = _balanced_float(x, [primes[i] for i in limbs[:keep]])
        return project(values / float(scale), self.params.ring_degree)

    # -- checks -----------------------------------------------------------------------------

    def _check(self, values: ArrayLike) -> C128:
        try:
            z = np.asarray(values, np.complex128)
        except (TypeError, ValueError) as e:
            raise EncodingError(f"values must be numbers: {e}") from None
        if z.ndim == 0:
            z = z[None]
        if not 1 <= z.shape[-1] <= self.params.slots:
            raise EncodingError(
                f"a vector of {z.shape[-1]} values was given; {self.params.name} has "
                f"{self.params.slots} slots"
            )
        bad = ~np.isfinite(z)
        if bad.any():
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            raise EncodingError(f"value {z[where]} at index {where}: only finite numbers encode")
        parts = (float(np.max(np.abs(part), initial=0.0)) for part in (z.real, z.imag))
        if (largest := max(parts)) >= _SLOT_LIMIT:
            raise EncodingError(
                f"the values reach {largest:.1e}, the highest level holds less than "
                f"2^{self.params.log2_moduli[-1] - 1:.1f} with the scale; use smaller values"
            )
        return z

    def _level(self, level: int | None) -> int:
        level = self.params.max_level if level is None else level
        if not 0 <= level <= self.params.max_level:
            raise LevelError(
                f"level {level} was given; {self.params.name} has levels 0 to "
                f"{self.params.max_level}"
            )
        return level

    def _scale(self, scale: Scale | int | None, level: int) -> Scale:
        if scale is None:
            return self.params.scales[level]
        return scale if isinstance(scale, Scale) else Scale.from_int(scale)


@lru_cache(maxsize=4096)
def imaginary_unit(ring_degree: int, prime: int) -> int:
    """Return the residue of ``X^(N/2)`` on the first half of the points (minus it on the other).

    Those are the points ``psi^(4k+1)``; the slots live there, so this is multiplication by i.
    """
    return pow(primitive_root_of_unity(prime, 2 * ring_degree), ring_degree // 2, prime)


@lru_cache(maxsize=4096)
def _subring_twiddles(ring_degree: int, m: int, prime: int) -> NDArray[np.uint64]:
    psi = pow(primitive_root_of_unity(prime, 2 * ring_degree), ring_degree // m, prime)
    return powers(psi, m, prime)[bit_reversal(m)]


def subring_ntt(
    coefficients: NDArray[np.float64], ring_degree: int, prime: int
) -> NDArray[np.uint32]:
    """Return the residues of polynomials in ``X^(N/m)`` from integer coefficients ``[..., m]``.

    The same transform as that of the ring, on the m distinct points; magnitudes below 2^100.
    """
    m = coefficients.shape[-1]
    p, w = np.uint64(prime), _subring_twiddles(ring_degree, m, prime)
    if float(np.max(np.abs(coefficients), initial=0.0)) < _INT64_LIMIT:
        x = (coefficients.astype(np.int64) % prime).astype(np.uint64)
    else:
        x = np.array([int(c) % prime for c in coefficients.reshape(-1)], np.uint64)
    x = x.reshape(-1, m)
    blocks = 1
    while blocks < m:
        y = x.reshape(len(x), blocks, 2, -1)
        t = y[:, :, 1] * w[blocks : 2 * blocks, None] % p
        x = np.stack([(y[:, :, 0] + t) % p, (y[:, :, 0] + p - t) % p], axis=2).reshape(-1, m)
        blocks *= 2
    return x.astype(np.uint32).reshape(coefficients.shape)


def _balanced_float(residues: NDArray[np.uint32], primes: list[int]) -> NDArray[np.float64]:
    """Return the centred integers of residues ``[batch, limb, N]`` as floats.

    Balanced mixed-radix digits: small values have zero leading digits, so nothing cancels.
    """
    digits: list[NDArray[np.int64]] = []
    total = np.zeros((residues.shape[0], residues.shape[2]))
    weight = 1.0
    for i, p in enumerate(primes):
        t = residues[:, i].astype(np.int64)
        for j in range(i):
            t = (t - digits[j]) % p * pow(primes[j], -1, p) % p
        t = np.where(t > p // 2, t - p, t)
        digits.append(t)
        total += t * weight
        weight *= p
    return total
