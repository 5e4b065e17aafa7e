"""Encryption and decryption, on the client."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks import sampling
from aegis_dask.ckks.encoder import Encoder
from aegis_dask.ckks.keys import PublicKey, SecretKey
from aegis_dask.ckks.levels import LevelPlanner
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.ckks.scale import Scale
from aegis_dask.ckks.sharing import Sharing
from aegis_dask.ring.backend import concatenate, contiguous


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
        encoder = self._encoder
        if isinstance(values, Plaintext):
            check_same(self, values, names=("the encryptor", "the plaintext"))
            level, exact = values.level, values.scale
            message = values.expanded()[None]
        else:
            level = encoder._level(level)
            exact = encoder._scale(scale, level)
            z = encoder._check(values)
            coefficients = encoder.coefficients(z.reshape(-1, z.shape[-1]), exact, level)
            message = encoder.residues(coefficients, level)
        if isinstance(self._key, SecretKey):
            data, seed = self._mask_with_secret(self._key, message, level)
            return Ciphertext(self.params, data, level, exact, seed)
        data = self._mask_with_public(self._key, message, level)
        return Ciphertext(self.params, data, level, exact)

    def _mask_with_secret(self, key: SecretKey, message: Any, level: int) -> tuple[Any, bytes]:
        """Return ``(m + e - a s, a)`` for message residues ``[b, limb, N]``, a from a seed each."""
        params, ring = self.params, self.params.ring
        limbs, window = params.limbs(level), params.window(level)
        error = sampling.error((len(message), params.ring_degree))
        body = ring.add(ring.ntt(ring.from_signed(error, limbs), limbs), message, limbs)
        data = ring.empty((len(message), 2, *message.shape[1:]))
        seeds = [sampling.new_seed() for _ in message]
        s = key._residues[window.start : window.stop]
        for i, seed in enumerate(seeds):
            data[i, 1] = ring.uniform(seed, sampling.DOMAIN_CIPHERTEXT, [0], limbs)[0]
            ring.sub(body[i], ring.multiply(data[i, 1], s, limbs), limbs, out=data[i, 0])
        return data, b"".join(seeds)

    def _mask_with_public(self, key: PublicKey, message: Any, level: int) -> Any:
        """Return ``(m, 0) + (u (b, a) + (e_0, e_1)) / P``.

        The division leaves an error of rounding size, about 4 bits below that of an encryption
        over Q (as in Lattigo's encryptor over QP).
        """
        params, ring, window = self.params, self.params.ring, self.params.window(level)
        limbs, first = params.extended_limbs(level), len(params.chain.primes)
        batch, n = len(message), params.ring_degree
        zero = ring.ntt(ring.from_signed(sampling.error((batch, 2, n)), limbs), limbs)
        u = ring.ntt(ring.from_signed(sampling.ternary((batch, 1, n)), limbs), limbs)
        for h, half in enumerate((key.b, key.a)):
            own = concatenate(ring, [half[window.start : window.stop], half[first:]])
            for i in range(batch):
                ring.multiply(u[i, 0], own, limbs, accumulate=zero[i, h])
        plan = LevelPlanner(params).mod_down(level, level)
        return ring.mod_down(zero, plan, addend=contiguous(ring, message)[:, None])


class Decryptor:
    """Decrypts with the secret key."""

    def __init__(self, params: Parameters, key: SecretKey) -> None:
        self.params = params
        self._key = key
        self._encoder = Encoder(params)
        check_same(self, key, names=("the decryptor", "the secret key"))

    def decrypt(
        self, ciphertext: Ciphertext, share: Sharing | None = None
    ) -> NDArray[np.complex128]:
        """Return the slots: ``[slots]``, or ``[batch, slots]`` for a batch of several.

        Parameters
        ----------
        ciphertext
            One or several.
        share
            Flood them with noise, for results that others get: as they are they tell about the
            secret key (see `ckks.sharing`).

        Raises
        ------
        ParameterError
            If flooding would leave less precision than `share` asks for.
        """
        check_same(self, ciphertext, names=("the decryptor", "the ciphertext"))
        data = self.decrypt_residues(ciphertext)
        values = self._encoder.decode_residues(data, ciphertext.level, ciphertext.scale)
        if share is not None:
            values = share.flood(values)
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
