"""Encryption and decryption, on the client."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks import sampling
from aegis_dask.ckks.encoder import Encoder
from aegis_dask.ckks.keys import PublicKey, SecretKey
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.ckks.scale import Scale


class Encryptor:
    """Encrypts under a public key, or under a secret key (smaller noise, half the size).

    Parameters
    ----------
    params
        The parameters.
    key
        A `PublicKey` or a `SecretKey` of these parameters.
    """

    def __init__(self, params: Parameters, key: PublicKey | SecretKey) -> None:
        self.params = params
        self._key = key
        self._encoder = Encoder(params)
        check_same(self, key, names=("the encryptor", "the key"))

    def encrypt(
        self,
        values: ArrayLike | Plaintext,
        level: int | None = None,
        scale: Scale | int | None = None,
    ) -> Ciphertext:
        """Encrypt vectors.

        Parameters
        ----------
        values
            Real or complex ``[n]`` or a batch ``[b, n]``, n at most `params.slots` (zero-padded),
            or a plaintext.
        level, scale
            As for `Encoder.encode`; a plaintext brings its own.
        """
        params, ring, encoder = self.params, self.params.ring, self._encoder
        if isinstance(values, Plaintext):
            check_same(self, values, names=("the encryptor", "the plaintext"))
            data = values.data
            if values.is_periodic:
                data = np.repeat(data, params.ring_degree // data.shape[1], axis=1)
            zero = self._encrypt_zero(values.level, 1)
            limbs = params.limbs(values.level)
            c0 = ring.add(zero.data[:, :1], data, limbs)
            return self._assemble(zero, c0, values.level, values.scale)
        level = encoder._level(level)
        exact = encoder._scale(scale, level)
        z = encoder._check(values)
        z = z.reshape(-1, z.shape[-1])
        message = encoder.coefficients(z, exact, level)
        return self._encrypt_coefficients(message, level, exact)

    def _encrypt_coefficients(
        self, message: NDArray[np.float64], level: int, scale: Scale
    ) -> Ciphertext:
        """Encrypt integer-valued coefficients ``[b, N]``; the error is added before the NTT."""
        error = sampling.error(message.shape)
        if float(np.max(np.abs(message), initial=0.0)) < 2.0**52:
            body = self._encoder.residues(message + error, level)
        else:
            limbs, ring = self.params.limbs(level), self.params.ring
            noise = ring.ntt(ring.from_signed(error, limbs), limbs)
            body = ring.add(self._encoder.residues(message, level), noise, limbs)
        return self._finish(body, level, scale)

    def _encrypt_zero(self, level: int, batch: int) -> Ciphertext:
        error = sampling.error((batch, self.params.ring_degree)).astype(np.float64)
        return self._finish(self._encoder.residues(error, level), level, self.params.scales[level])

    def _finish(self, body: Any, level: int, scale: Scale) -> Ciphertext:
        """Add the mask to ``message + error`` residues ``[b, limb, N]``."""
        params, ring = self.params, self.params.ring
        limbs, window = params.limbs(level), params.window(level)
        batch = body.shape[0]
        data = ring.empty((batch, 2, *body.shape[1:]))
        seed = None
        if isinstance(self._key, SecretKey):
            seeds = [sampling.new_seed() for _ in range(batch)]
            s = self._key._residues[window.start : window.stop]
            for b in range(batch):
                a = ring.uniform(seeds[b], sampling.DOMAIN_CIPHERTEXT, [0], limbs)[0]
                data[b, 1] = a
                ring.sub(body[b], ring.multiply(a, s, limbs), limbs, out=data[b, 0])
            seed = b"".join(seeds)
        else:
            key = self._key
            shape = (batch, params.ring_degree)
            u = ring.ntt(ring.from_signed(sampling.ternary(shape), limbs), limbs)
            e = ring.ntt(ring.from_signed(sampling.error(shape), limbs), limbs)
            own = slice(window.start, window.stop)
            data[:, 0] = ring.multiply(u, key.b[own], limbs, accumulate=body)
            data[:, 1] = ring.multiply(u, key.a[own], limbs, accumulate=e)
        return Ciphertext(params, data, level, scale, seed)

    def _assemble(self, zero: Ciphertext, c0: Any, level: int, scale: Scale) -> Ciphertext:
        data = np.concatenate([c0, zero.data[:, 1:]], axis=1)
        return Ciphertext(self.params, data, level, scale, zero.seed)


class Decryptor:
    """Decrypts with the secret key."""

    def __init__(self, params: Parameters, key: SecretKey) -> None:
        self.params = params
        self._key = key
        self._encoder = Encoder(params)
        check_same(self, key, names=("the decryptor", "the secret key"))

    def decrypt(self, ciphertext: Ciphertext) -> NDArray[np.complex128]:
        """Return the slots: ``[slots]``, or ``[batch, slots]`` for a batch of several."""
        check_same(self, ciphertext, names=("the decryptor", "the ciphertext"))
        data = self.decrypt_residues(ciphertext)
        values = self._encoder.decode_residues(data, ciphertext.level, ciphertext.scale)
        return values[0] if ciphertext.batch == 1 else values

    def decrypt_residues(self, ciphertext: Ciphertext) -> Any:
        """Return ``[batch, limb, N]`` residues of the message with its noise."""
        ring, limbs = self.params.ring, self.params.limbs(ciphertext.level)
        window = self.params.window(ciphertext.level)
        s = self._key._residues[window.start : window.stop]
        data = ciphertext.data
        # Horner: c0 + s (c1 + s c2)
        total = data[:, -1]
        for k in range(ciphertext.components - 2, -1, -1):
            total = ring.add(ring.multiply(total, s, limbs), data[:, k], limbs)
        return total
