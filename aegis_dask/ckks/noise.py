"""A model of the noise: standard deviations of slot errors, from parameters alone.

An error polynomial has independent coefficients of mean 0 and variance V, so its value in a slot is
a sum of N terms of modulus one: nearly complex Gaussian (central limit theorem) with standard
deviation ``sqrt(N V)``, independent of the other slots. Products multiply slot by slot, so
variances of slot values multiply too (Costache, Curtis, Hales, Murphy, Ogilvie, Player, ePrint
2022/162). With a uniform ternary secret s of expected weight ``h = 2N/3`` the slots of
s have variance h, those of s^2 second moment ``2 h^2``.

What the model leaves out: a given key is one draw of its distribution (a fraction of a bit), the
errors of two operands may be correlated (half a bit in a square, more in sums of equal terms).
"""

from __future__ import annotations

from math import hypot, log, log2, sqrt

from aegis_dask.ckks.levels import MIN_ADJUST_BITS, LevelPlanner
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.sampling import ERROR_STD
from aegis_dask.ckks.scale import Scale

FLOAT_ERROR = 2.0**-52
"""Error of the float64 transforms of encoder and decoder, relative to the magnitude of the slots,
per stage of the transform."""

_ROUNDING = 1 / 12  # variance of a uniform error in [-1/2, 1/2)


class NoiseModel:
    """Predicts slot errors for one parameter set.

    Results are standard deviations, ``sqrt(E |error|^2)`` of a complex slot, in units of the
    message. Arguments named `noise` are such deviations, `magnitude` is the root mean square of
    |slot|. Independent errors add by `math.hypot`. The scale is the canonical one of the level
    unless given.
    """

    def __init__(self, params: Parameters) -> None:
        self.params = params
        self._levels = LevelPlanner(params)
        self._weight = 2 * params.ring_degree / 3

    # -- reading a deviation ----------------------------------------------------------------

    @staticmethod
    def bits(noise: float) -> float:
        """Return the bits after the binary point that this deviation leaves correct."""
        return -log2(noise)

    def largest(self, noise: float) -> float:
        """Return the typical largest error among all slots (of Gaussian errors)."""
        return noise * sqrt(log(self.params.slots))

    # -- fresh ciphertexts ------------------------------------------------------------------

    def encoding(self, level: int, magnitude: float = 1.0, scale: Scale | None = None) -> float:
        """Return the error of encoding and decoding: rounded coefficients, float64 transforms."""
        stages = log2(self.params.slots)
        return hypot(self._slots(_ROUNDING, level, scale), FLOAT_ERROR * sqrt(stages) * magnitude)

    def fresh_secret(self, level: int, magnitude: float = 1.0, scale: Scale | None = None) -> float:
        """Return the error of a fresh ciphertext under the secret key: e."""
        return hypot(
            self._slots(ERROR_STD**2, level, scale), self.encoding(level, magnitude, scale)
        )

    def fresh_public(self, level: int, magnitude: float = 1.0, scale: Scale | None = None) -> float:
        """Return the error under the public key, ``(e_0 + e_1 s + u e) / P`` rounded.

        u is uniform ternary.
        """
        variance = ERROR_STD**2 * (1 + 2 * self._weight)
        return hypot(
            self._slots(variance, level, scale) / self.params.chain.special_modulus,
            self.rounding(level, 2, scale),
            self.encoding(level, magnitude, scale),
        )

    # -- roundings and key switches ---------------------------------------------------------

    def rounding(self, level: int, components: int = 2, scale: Scale | None = None) -> float:
        """Return the error of a division (rescale, division by P) that ends at `level`.

        Each component is rounded: ``r_0 + r_1 s (+ r_2 s^2)``.
        """
        moments = (1.0, self._weight, 2 * self._weight**2)
        return self._slots(_ROUNDING * sum(moments[:components]), level, scale)

    def key_switch(self, level: int, scale: Scale | None = None) -> float:
        """Return what a rotation, conjugation or relinearisation without rescale adds."""
        return hypot(self._digits(level, scale), self.rounding(level, 2, scale))

    def to_level(self, level: int, noise: float, magnitude: float = 1.0) -> float:
        """Return the error after `Evaluator.to_level`, which multiplies by a rounded constant."""
        constant = 2.0 ** -max(self.params.literal.scale_bits - 5, MIN_ADJUST_BITS)
        return hypot(noise, self.rounding(level), constant * sqrt(_ROUNDING) * magnitude)

    # -- products ---------------------------------------------------------------------------

    def multiply(
        self,
        level: int,
        noise: float,
        other_noise: float,
        magnitude: float = 1.0,
        other_magnitude: float = 1.0,
    ) -> float:
        """Return the error of a product of ciphertexts, relinearised and rescaled."""
        scale = self.params.scales[level]
        return hypot(
            magnitude * other_noise,
            other_magnitude * noise,
            noise * other_noise,
            self._digits(level, scale * scale),
            self.rounding(level - 1),
        )

    def multiply_plain(
        self, level: int, noise: float, magnitude: float = 1.0, other_magnitude: float = 1.0
    ) -> float:
        """Return the error of a rescaled product with a plaintext of `other_magnitude`."""
        encoding = self.encoding(level, other_magnitude)
        return hypot(
            other_magnitude * noise,
            magnitude * encoding,
            noise * encoding,
            self.rounding(level - 1),
        )

    # -- internals --------------------------------------------------------------------------

    def _slots(self, variance: float, level: int, scale: Scale | None) -> float:
        """Return the slot deviation of an error polynomial with this coefficient variance."""
        scale = self.params.scales[level] if scale is None else scale
        return sqrt(self.params.ring_degree * variance) / float(scale)

    def _digits(self, level: int, scale: Scale | None) -> float:
        """Return the error of a key inner product, divided by P: ``sum_d x_d e_d / P``.

        A raised digit is uniform in [-D/2, D/2), D being the product of its primes at this level.
        """
        primes = self.params.chain.primes
        log2_special = log2(self.params.chain.special_modulus)
        variance = 0.0
        for conversion in self._levels.digit_raise(level).conversions:
            log2_digit = sum(log2(primes[i]) for i in conversion.sources)
            variance += _ROUNDING * 4.0 ** (log2_digit - log2_special)
        return self._slots(self.params.ring_degree * ERROR_STD**2 * variance, level, scale)
