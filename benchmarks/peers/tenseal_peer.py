"""Microsoft SEAL through TenSEAL's low-level bindings: `python -m benchmarks.peers.tenseal_peer`.

SEAL has one thread, no hoisting and no polynomial evaluation; its key switch uses one special
prime, so one digit per limb. Above N = 2^15 it knows no security level and checks none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._measure import peak_rss_bytes
from benchmarks.peers import _harness as harness
from benchmarks.peers._harness import Case, Options, Reporter, Vector

_SPECIAL_BITS = 60
#: Galois element of a rotation by one slot to the left: SEAL generates the slot group with 3.
_ROTATE_1 = 3


class SealPeer:
    """One context with its keys and sample ciphertexts at the top level."""

    def __init__(self, library: Any, options: Options) -> None:
        """Make the context, the keys and the samples."""
        self.seal = library
        self.options = options
        self.scale = 2.0**options.scale_bits
        self.context = self._make_context()
        self.generator = library.KeyGenerator(self.context)
        public_key = library.PublicKey()
        self.generator.create_public_key(public_key)
        self.relin_keys: Any = None
        self.galois_keys: Any = None
        self.make_relin_keys()
        self.make_galois_keys()
        self.encoder = library.CKKSEncoder(self.context)
        self.encryptor = library.Encryptor(self.context, public_key)
        self.decryptor = library.Decryptor(self.context, self.generator.secret_key())
        self.evaluator = library.Evaluator(self.context)
        rng = np.random.default_rng(1)
        slots = 1 << (options.logn - 1)
        self.x, self.y = harness.sample(rng, slots), harness.sample(rng, slots)
        self.plain_y = self.encode(self.y)
        self.ct_x, self.ct_y = self.encrypt(self.encode(self.x)), self.encrypt(self.plain_y)

    def _make_context(self) -> Any:
        seal, options = self.seal, self.options
        degree = 1 << options.logn
        bits = [options.first_bits, *[options.scale_bits] * options.levels, _SPECIAL_BITS]
        params = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        params.set_poly_modulus_degree(degree)
        params.set_coeff_modulus(seal.CoeffModulus.Create(degree, bits))
        levels = seal.SEC_LEVEL_TYPE
        known = seal.CoeffModulus.MaxBitCount(degree, levels.TC128) > 0
        self.security = "tc128" if known else "unchecked"
        context = seal.SEALContext(params, True, levels.TC128 if known else levels.NONE)
        if not context.parameters_set():
            raise ValueError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
        return context

    def make_relin_keys(self) -> Any:
        """Relinearisation key, replacing the one before so that memory never holds two."""
        self.relin_keys = None
        keys = self.seal.RelinKeys()
        self.generator.create_relin_keys(keys)
        self.relin_keys = keys
        return keys

    def make_galois_keys(self) -> Any:
        """Key of one rotation, replacing the one before."""
        self.galois_keys = None
        keys = self.seal.GaloisKeys()
        self.generator.create_galois_keys([_ROTATE_1], keys)
        self.galois_keys = keys
        return keys

    def encode(self, values: Vector) -> Any:
        """Plaintext at the top level; the bindings take no arrays, only lists."""
        plain = self.seal.Plaintext()
        self.encoder.encode(values.tolist(), self.scale, plain)
        return plain

    def encrypt(self, plain: Any) -> Any:
        """Ciphertext under the public key."""
        ct = self.seal.Ciphertext()
        self.encryptor.encrypt(plain, ct)
        return ct

    def decrypt(self, ct: Any) -> Any:
        """Real slot values, decoded."""
        plain = self.seal.Plaintext()
        self.decryptor.decrypt(ct, plain)
        return self.encoder.decode_double(plain)

    def evaluate(self, method: str, *operands: Any) -> Any:
        """Result of an evaluator's method, which SEAL writes to its last argument."""
        result = self.seal.Ciphertext()
        getattr(self.evaluator, method)(*operands, result)
        return result

    def multiply(self, relin_keys: Any) -> Any:
        """Product, relinearised and rescaled."""
        product = self.evaluate("multiply", self.ct_x, self.ct_y)
        self.evaluator.relinearize_inplace(product, relin_keys)
        self.evaluator.rescale_to_next_inplace(product)
        return product

    def rotate(self, galois_keys: Any) -> Any:
        """Rotation by one slot to the left."""
        return self.evaluate("rotate_vector", self.ct_x, 1, galois_keys)

    def case(self, run: Callable[[], Any], expected: Vector) -> Case:
        """An operation whose result is a ciphertext of `expected`."""
        limbs = self.options.levels + 1
        return Case(
            run,
            lambda ct: harness.max_error(self.decrypt(ct), expected),
            lambda ct: {"limbs": limbs, "levels_used": limbs - ct.coeff_modulus_size()},
        )

    def builders(self) -> dict[str, Callable[[], Case]]:
        """All operations by name."""
        product, rotated = self.x * self.y, np.roll(self.x, -1)
        return {
            "keygen_relin": lambda: Case(
                self.make_relin_keys,
                lambda keys: harness.max_error(self.decrypt(self.multiply(keys)), product),
            ),
            "keygen_rotation": lambda: Case(
                self.make_galois_keys,
                lambda keys: harness.max_error(self.decrypt(self.rotate(keys)), rotated),
            ),
            "encode": lambda: Case(
                lambda: self.encode(self.x),
                lambda plain: harness.max_error(self.decrypt(self.encrypt(plain)), self.x),
            ),
            "encrypt": lambda: self.case(lambda: self.encrypt(self.plain_y), self.y),
            "decrypt": lambda: Case(
                lambda: self.decrypt(self.ct_x), lambda values: harness.max_error(values, self.x)
            ),
            "add": lambda: self.case(
                lambda: self.evaluate("add", self.ct_x, self.ct_y), self.x + self.y
            ),
            "multiply_plain": lambda: self.case(
                lambda: self.evaluate("multiply_plain", self.ct_x, self.plain_y), product
            ),
            "rescale": self.rescale,
            "multiply_relin_rescale": lambda: self.case(
                lambda: self.multiply(self.relin_keys), product
            ),
            "rotate": lambda: self.case(lambda: self.rotate(self.galois_keys), rotated),
        }

    def rescale(self) -> Case:
        """Rescale a product with a plaintext."""
        product = self.evaluate("multiply_plain", self.ct_x, self.plain_y)
        return self.case(lambda: self.evaluate("rescale_to_next", product), self.x * self.y)

    def params(self) -> dict[str, Any]:
        """Ring size and modulus, read from the context."""
        first = self.context.first_context_data()
        moduli = first.parms().coeff_modulus()
        return {
            "ring_dim": first.parms().poly_modulus_degree(),
            "limb_bits": [modulus.bit_count() for modulus in moduli],
            "special_limbs": 1,
            "log_q": first.total_coeff_modulus_bit_count(),
            "log_qp": self.context.key_context_data().total_coeff_modulus_bit_count(),
            "dnum": len(moduli),
            "security": self.security,
        }

    def sizes(self) -> dict[str, int]:
        """Bytes in memory of one ciphertext and of one rotation key."""
        digits = self.galois_keys.key(_ROTATE_1)
        return {
            "ciphertext": 8 * self.ct_x.dyn_array().size(),
            "rotation_key": 8 * len(digits) * digits[0].data().dyn_array().size(),
        }


def main() -> int:
    """Run the peer and return its exit status."""
    options = harness.parse_options()
    try:
        import tenseal
        from tenseal import sealapi
    except ImportError as reason:
        return harness.report_missing("tenseal", reason)
    reporter = Reporter("tenseal", options)
    if options.threads != 1:
        reporter.emit("skip", op=None, reason="SEAL has one thread; run it with --threads 1")
        return 0
    peer = SealPeer(sealapi, options)
    harness.report_params(reporter, options, version=tenseal.__version__, **peer.params())
    harness.run_cases(reporter, options, peer.builders())
    # Before the sizes, which copy a key.
    reporter.emit("size", what="peak_rss", bytes=peak_rss_bytes())
    for what, size in peer.sizes().items():
        reporter.emit("size", what=what, bytes=size, note="in memory; files are compressed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
