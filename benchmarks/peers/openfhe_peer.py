"""OpenFHE (BSD-2-Clause) through its Python wheel: `python -m benchmarks.peers.openfhe_peer`."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._measure import peak_rss_bytes
from benchmarks.peers import _harness as harness
from benchmarks.peers._harness import Case, Options, Reporter, UnsupportedError, Vector

_DIGITS = 3
#: Paterson-Stockmeyer at degree 31 with a Chebyshev basis.
_CHEBYSHEV_DEPTH = 6


class OpenFhePeer:
    """One context with its keys and harness.sample ciphertexts at the top level."""

    def __init__(self, library: Any, options: Options) -> None:
        """Make the context, one key pair and the relinearisation key."""
        self.fhe = library
        self.options = options
        self.context = self._make_context()
        self.keys = self.context.KeyGen()
        self.context.EvalMultKeyGen(self.keys.secretKey)
        self.rotations: set[int] = set()
        self.slots = 1 << (options.logn - 1)
        self.rng = np.random.default_rng(1)
        self.x = harness.sample(self.rng, self.slots)
        self.y = harness.sample(self.rng, self.slots)
        self.plain_y = self.encode(self.y)
        self.ct_x = self.encrypt(self.encode(self.x))
        self.ct_y = self.encrypt(self.plain_y)

    def _make_context(self) -> Any:
        fhe, options = self.fhe, self.options
        params = fhe.CCParamsCKKSRNS()
        params.SetSecurityLevel(fhe.HEStd_128_classic)
        params.SetSecretKeyDist(fhe.UNIFORM_TERNARY)
        params.SetRingDim(1 << options.logn)
        params.SetBatchSize(1 << (options.logn - 1))
        params.SetMultiplicativeDepth(options.levels)
        params.SetScalingModSize(options.scale_bits)
        params.SetFirstModSize(options.first_bits)
        params.SetScalingTechnique(fhe.FIXEDMANUAL)
        params.SetKeySwitchTechnique(fhe.HYBRID)
        params.SetNumLargeDigits(_DIGITS)
        context = fhe.GenCryptoContext(params)
        for feature in (fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE, fhe.ADVANCEDSHE):
            context.Enable(feature)
        return context

    def encode(self, values: Vector) -> Any:
        """Plaintext at the top level."""
        return self.context.MakeCKKSPackedPlaintext(values)

    def encrypt(self, plain: Any) -> Any:
        """Ciphertext under the public key."""
        return self.context.Encrypt(self.keys.publicKey, plain)

    def decrypt(self, ct: Any) -> Any:
        """Real slot values, decoded."""
        return self.context.Decrypt(self.keys.secretKey, ct).GetRealPackedValueArray()

    def need_rotations(self, steps: Iterable[int]) -> None:
        """Generate the rotation keys that are not there yet."""
        missing = sorted(set(steps) - self.rotations)
        if missing:
            self.context.EvalRotateKeyGen(self.keys.secretKey, missing)
            self.rotations.update(missing)

    def case(self, run: Callable[[], Any], expected: Vector, **extra: Any) -> Case:
        """An operation whose result is a ciphertext of `expected`."""
        limbs = self.options.levels + 1
        return Case(
            run,
            lambda ct: harness.max_error(self.decrypt(ct), expected),
            lambda ct: {"limbs": limbs, "levels_used": ct.GetLevel(), **extra},
        )

    def builders(self) -> dict[str, Callable[[], Case]]:
        """All operations by name."""
        return {
            "keygen_relin": self.keygen_relin,
            "keygen_rotation": self.keygen_rotation,
            "encode": lambda: Case(
                lambda: self.encode(self.x),
                lambda plain: harness.max_error(self.decrypt(self.encrypt(plain)), self.x),
            ),
            "encrypt": lambda: self.case(lambda: self.encrypt(self.plain_y), self.y),
            "decrypt": lambda: Case(
                lambda: self.decrypt(self.ct_x), lambda values: harness.max_error(values, self.x)
            ),
            "add": lambda: self.case(
                lambda: self.context.EvalAdd(self.ct_x, self.ct_y), self.x + self.y
            ),
            "multiply_plain": lambda: self.case(
                lambda: self.context.EvalMult(self.ct_x, self.plain_y), self.x * self.y
            ),
            "rescale": self.rescale,
            "multiply_relin_rescale": lambda: self.case(self.multiply, self.x * self.y),
            "rotate": self.rotate,
            "hoisted_rotations_8": self.hoisted_rotations,
            "chebyshev_31": self.chebyshev,
            "matvec_128": self.matvec,
        }

    def multiply(self) -> Any:
        """Product, relinearised and rescaled."""
        product = self.context.EvalMult(self.ct_x, self.ct_y)
        self.context.RescaleInPlace(product)
        return product

    def keygen_relin(self) -> Case:
        """Generate the relinearisation key; checked by a multiplication."""

        def run() -> None:
            # Without this the library finds the key in its global map and returns at once.
            self.fhe.ClearEvalMultKeys()
            self.context.EvalMultKeyGen(self.keys.secretKey)

        return Case(
            run, lambda _: harness.max_error(self.decrypt(self.multiply()), self.x * self.y)
        )

    def keygen_rotation(self) -> Case:
        """Generate one rotation key; checked by a rotation."""
        return Case(
            self.only_rotation_key_1,
            lambda _: harness.max_error(
                self.decrypt(self.context.EvalRotate(self.ct_x, 1)), np.roll(self.x, -1)
            ),
        )

    def only_rotation_key_1(self) -> None:
        """Drop all rotation keys and generate the one for step 1."""
        self.context.ClearEvalAutomorphismKeys()
        self.context.EvalRotateKeyGen(self.keys.secretKey, [1])
        self.rotations = {1}

    def rescale(self) -> Case:
        """Rescale a product with a plaintext."""
        product = self.context.EvalMult(self.ct_x, self.plain_y)
        return self.case(lambda: self.context.Rescale(product), self.x * self.y)

    def rotate(self) -> Case:
        """Rotate by one slot to the left."""
        self.need_rotations([1])
        return self.case(lambda: self.context.EvalRotate(self.ct_x, 1), np.roll(self.x, -1))

    def hoisted(self, ct: Any, steps: Iterable[int]) -> list[Any]:
        """Rotations of one ciphertext that share the digit decomposition."""
        order = 2 << self.options.logn
        digits = self.context.EvalFastRotationPrecompute(ct)
        return [self.context.EvalFastRotation(ct, step, order, digits) for step in steps]

    def hoisted_rotations(self) -> Case:
        """Eight rotations of one ciphertext, decomposition included."""
        self.need_rotations(harness.HOISTED_STEPS)
        return Case(
            lambda: self.hoisted(self.ct_x, harness.HOISTED_STEPS),
            lambda rotated: max(
                harness.max_error(self.decrypt(ct), np.roll(self.x, -step))
                for step, ct in zip(harness.HOISTED_STEPS, rotated, strict=True)
            ),
            lambda rotated: {"limbs": self.options.levels + 1, "rotations": len(rotated)},
        )

    def chebyshev(self) -> Case:
        """Degree-31 Chebyshev series of the harness.logistic function."""
        if self.options.levels < _CHEBYSHEV_DEPTH:
            raise UnsupportedError(f"needs {_CHEBYSHEV_DEPTH} levels, has {self.options.levels}")
        coefficients = self.fhe.EvalChebyshevCoefficients(harness.logistic, -1.0, 1.0, 31)
        return self.case(
            lambda: self.context.EvalChebyshevSeries(self.ct_x, coefficients, -1.0, 1.0),
            harness.logistic(self.x),
        )

    def matvec(self) -> Case:
        """128x128 matrix times vector: hoisted baby steps, one rescale at the very end."""
        matrix = harness.matvec_matrix(self.rng)
        vector = harness.sample(self.rng, harness.MATVEC_SIZE)
        plain = {
            steps: self.encode(harness.tile(diagonal, self.slots))
            for steps, diagonal in harness.bsgs_diagonals(matrix).items()
        }
        giants = range(0, harness.MATVEC_SIZE, harness.MATVEC_BABY_STEPS)
        self.need_rotations([*range(1, harness.MATVEC_BABY_STEPS), *giants[1:]])
        ct = self.encrypt(self.encode(harness.tile(vector, self.slots)))
        context = self.context

        def run() -> Any:
            babies = [ct, *self.hoisted(ct, range(1, harness.MATVEC_BABY_STEPS))]
            total = None
            for giant in giants:
                inner = context.EvalMult(babies[0], plain[giant, 0])
                for baby in range(1, harness.MATVEC_BABY_STEPS):
                    context.EvalAddInPlace(
                        inner, context.EvalMult(babies[baby], plain[giant, baby])
                    )
                if total is None:
                    total = inner
                else:
                    context.EvalAddInPlace(total, context.EvalRotate(inner, giant))
            context.RescaleInPlace(total)
            return total

        expected = harness.tile(matrix @ vector, self.slots)
        return self.case(
            run, expected, baby_steps=harness.MATVEC_BABY_STEPS, giant_steps=len(giants)
        )

    def params(self) -> dict[str, Any]:
        """Ring size and modulus, read from the library's own description of the context."""
        text = json.loads(self.fhe.Serialize(self.context, self.fhe.JSON))
        scheme = _find(text, "dnum")
        bits = [math.log2(_find(prime, "cm")["cm"]["v"]) for prime in _find(text, "p")["p"]]
        digits, special_bits = scheme["dnum"], scheme["ab"]
        # The special primes are not in the description: the library makes as many as cover the
        # largest digit. `main` compares with the size of a key.
        width = math.ceil(len(bits) / digits)
        largest = max(sum(bits[i : i + width]) for i in range(0, len(bits), width))
        special = math.ceil(round(largest, 3) / special_bits)
        return {
            "version": self.fhe.__version__,
            "ring_dim": self.context.GetRingDimension(),
            "limb_bits": [round(b) for b in bits],
            "special_limbs": special,
            "log_q": round(sum(bits), 1),
            "log_qp": round(sum(bits) + special * special_bits, 1),
            "dnum": digits,
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        }

    def sizes(self) -> dict[str, int]:
        """Bytes of one ciphertext and of the key map with one rotation key in it."""
        with tempfile.TemporaryDirectory() as folder:
            ct_file, key_file = Path(folder, "ct"), Path(folder, "key")
            self.fhe.SerializeToFile(str(ct_file), self.ct_x, self.fhe.BINARY)
            self.only_rotation_key_1()
            self.context.SerializeEvalAutomorphismKey(str(key_file), self.fhe.BINARY)
            return {
                "ciphertext": ct_file.stat().st_size,
                "rotation_key": key_file.stat().st_size,
            }


def _find(node: Any, key: str) -> dict[str, Any]:
    """First object, depth first, that has `key`."""
    if isinstance(node, dict) and key in node:
        return node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        found = _find(child, key)
        if found:
            return found
    return {}


def main() -> int:
    """Run the peer and return its exit status."""
    options = harness.parse_options()
    try:
        import openfhe
    except ImportError as reason:
        return harness.report_missing("openfhe", reason)
    reporter = Reporter("openfhe", options)
    peer = OpenFhePeer(openfhe, options)
    params = peer.params()
    harness.report_params(reporter, options, **params)
    harness.run_cases(reporter, options, peer.builders())
    # Before serialising, whose buffers are no part of computing.
    reporter.emit("size", what="peak_rss", bytes=peak_rss_bytes())
    sizes = peer.sizes()
    reporter.emit("size", what="ciphertext", bytes=sizes["ciphertext"], note="serialised")
    bytes_per_limb = 2 * params["dnum"] * 8 << options.logn
    key_limbs = sizes["rotation_key"] // bytes_per_limb
    reporter.emit(
        "size",
        what="rotation_key",
        bytes=sizes["rotation_key"],
        note="serialised key map holding one key",
        key_limbs=key_limbs,
    )
    if key_limbs != len(params["limb_bits"]) + params["special_limbs"]:
        reporter.emit("error", op=None, error=f"log_qp is wrong: a key has {key_limbs} limbs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
