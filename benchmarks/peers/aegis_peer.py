"""This engine, measured like its peers: `python -m benchmarks.peers.aegis_peer`.

After the operations it reports what the machine can do with the same threads (kind `probe`).
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._measure import peak_rss_bytes
from benchmarks.peers import OURS
from benchmarks.peers import _harness as harness
from benchmarks.peers._harness import Case, Options, Reporter, UnsupportedError, Vector

#: The preset closest in log QP to what the peers use at that ring size.
PRESETS = {16: "n16-d40", 15: "n15-d40", 13: "n13-d30"}
_DEGREE = 31


class AegisPeer:
    """Parameters, keys and sample ciphertexts at the top level."""

    def __init__(self, options: Options) -> None:
        """Make the parameters, the keys and the samples."""
        import aegis_dask as aegis

        self.aegis = aegis
        self.params_ = aegis.Parameters.preset(PRESETS[options.logn])
        self.generator = aegis.KeyGenerator(self.params_)
        self.secret = self.generator.secret_key()
        public = self.generator.public_key(self.secret)
        self.encoder = aegis.Encoder(self.params_)
        self.encryptor = aegis.Encryptor(self.params_, public)
        self.decryptor = aegis.Decryptor(self.params_, self.secret)
        self.keys = self.make_keys(relinearisation=True)
        self.rng = np.random.default_rng(1)
        self.x = harness.sample(self.rng, self.params_.slots)
        self.y = harness.sample(self.rng, self.params_.slots)
        self.plain_y = self.encoder.encode(self.y)
        self.ct_x = self.encryptor.encrypt(self.encoder.encode(self.x))
        self.ct_y = self.encryptor.encrypt(self.plain_y)

    @property
    def evaluator(self) -> Any:
        """An evaluator with the keys made so far."""
        return self.aegis.Evaluator(self.params_, self.keys)

    def make_keys(self, relinearisation: bool = False, rotations: Any = ()) -> Any:
        """Evaluation keys of exactly these operations."""
        return self.generator.evaluation_keys(self.secret, relinearisation, rotations)

    def need_rotations(self, steps: Any) -> None:
        """Generate the rotation keys that are not there yet."""
        missing = sorted(set(steps) - self.keys.steps)
        galois = {**self.keys.galois, **self.make_keys(rotations=missing).galois}
        self.keys = self.aegis.EvaluationKeys(self.params_, self.keys.relinearisation, galois)

    def decrypt(self, ct: Any) -> Any:
        """Real slot values, decoded."""
        return self.decryptor.decrypt(ct).real

    def case(self, run: Callable[[], Any], expected: Vector, **extra: Any) -> Case:
        """An operation whose result is a ciphertext of `expected`."""
        limbs, top = len(self.params_.window(self.params_.max_level)), self.params_.max_level
        return Case(
            run,
            lambda ct: harness.max_error(self.decrypt(ct), expected),
            lambda ct: {"limbs": limbs, "levels_used": top - ct.level, **extra},
        )

    def builders(self) -> dict[str, Callable[[], Case]]:
        """All operations by name."""
        ev, x, y = self.evaluator, self.x, self.y
        ct_x, ct_y, plain_y = self.ct_x, self.ct_y, self.plain_y
        return {
            "keygen_relin": lambda: Case(
                lambda: self.make_keys(relinearisation=True),
                lambda keys: harness.max_error(
                    self.decrypt(self.aegis.Evaluator(self.params_, keys).multiply(ct_x, ct_y)),
                    x * y,
                ),
            ),
            "keygen_rotation": lambda: Case(
                lambda: self.make_keys(rotations=[1]),
                lambda keys: harness.max_error(
                    self.decrypt(self.aegis.Evaluator(self.params_, keys).rotate(ct_x, 1)),
                    np.roll(x, -1),
                ),
            ),
            "encode": lambda: Case(
                lambda: self.encoder.encode(x),
                lambda plain: harness.max_error(self.decrypt(self.encryptor.encrypt(plain)), x),
            ),
            "encrypt": lambda: self.case(lambda: self.encryptor.encrypt(plain_y), y),
            "decrypt": lambda: Case(
                lambda: self.decrypt(ct_x), lambda values: harness.max_error(values, x)
            ),
            "add": lambda: self.case(lambda: ev.add(ct_x, ct_y), x + y),
            "multiply_plain": lambda: self.case(
                lambda: ev.multiply(ct_x, plain_y, rescale=False), x * y
            ),
            "rescale": self.rescale,
            "multiply_relin_rescale": lambda: self.case(lambda: ev.multiply(ct_x, ct_y), x * y),
            "rotate": self.rotate,
            "chebyshev_31": self.chebyshev,
            "hoisted_rotations_8": self.hoisted_rotations,
            "matvec_128": self.matvec,
        }

    def rescale(self) -> Case:
        """Rescale a product with a plaintext."""
        ev = self.evaluator
        product = ev.multiply(self.ct_x, self.plain_y, rescale=False)
        return self.case(lambda: ev.rescale(product), self.x * self.y)

    def rotate(self) -> Case:
        """Rotate by one slot to the left."""
        self.need_rotations([1])
        ev = self.evaluator
        return self.case(lambda: ev.rotate(self.ct_x, 1), np.roll(self.x, -1))

    def hoisted_rotations(self) -> Case:
        """Eight rotations of one ciphertext, decomposition included."""
        self.need_rotations(harness.HOISTED_STEPS)
        ev = self.evaluator
        return Case(
            lambda: ev.rotate_many(self.ct_x, harness.HOISTED_STEPS),
            lambda rotated: max(
                harness.max_error(self.decrypt(ct), np.roll(self.x, -step))
                for step, ct in rotated.items()
            ),
            lambda rotated: {"rotations": len(rotated)},
        )

    def chebyshev(self) -> Case:
        """Degree-31 Chebyshev series of the harness.logistic function."""
        needed = _DEGREE.bit_length()
        if self.params_.max_level < needed:
            raise UnsupportedError(f"needs {needed} levels, has {self.params_.max_level}")
        coefficients = self.aegis.chebyshev_coefficients(harness.logistic, _DEGREE)
        ev = self.evaluator
        return self.case(
            lambda: ev.chebyshev(self.ct_x, coefficients),
            harness.logistic(self.x),
        )

    def matvec(self) -> Case:
        """128x128 matrix times vector, the matrix encoded beforehand."""
        matrix = harness.matvec_matrix(self.rng)
        vector = harness.sample(self.rng, harness.MATVEC_SIZE)
        transform = self.aegis.LinearTransform.from_matrix(
            self.params_, matrix, baby_steps=harness.MATVEC_BABY_STEPS
        )
        self.need_rotations(transform.rotations)
        slots, ev = self.params_.slots, self.evaluator
        ct = self.encryptor.encrypt(harness.tile(vector, slots))
        return self.case(
            lambda: ev.linear_transform(ct, transform),
            harness.tile(matrix @ vector, slots),
            baby_steps=len(transform.babies),
            giant_steps=len(transform.giants),
        )

    def params(self) -> dict[str, Any]:
        """Ring size and modulus, and the limb counts that `benchmarks.floor` needs."""
        import numba

        p, chain = self.params_, self.params_.chain
        top, below = p.window(p.max_level), p.window(p.max_level - 1)
        digits = [bisect_right(p.digit_bounds, i) - 1 for i in top.limbs()]
        return {
            "version": self.aegis.__version__,
            "preset": p.name,
            "ring_dim": p.ring_degree,
            "levels": p.max_level,
            "scale_bits": p.literal.scale_bits,
            "limb_bits": [round(float(np.log2(chain.primes[i]))) for i in top.limbs()],
            "special_limbs": len(chain.special_primes),
            "log_q": round(p.log2_moduli[-1], 1),
            "log_qp": round(p.log2_key_modulus, 1),
            "dnum": p.digits,
            "numba": numba.__version__,
            "numpy": np.__version__,
            "threading_layer": numba.threading_layer(),
            "shape": {
                "degree": p.ring_degree,
                "digits": [digits.count(d) for d in sorted(set(digits))],
                "special": len(chain.special_primes),
                "dropped": sum(i not in below for i in top.limbs()),
                "below": len(below),
            },
        }

    def sizes(self) -> dict[str, tuple[int, str]]:
        """Bytes of one written ciphertext and one written rotation key, with a note."""
        keys = self.make_keys(rotations=[1])
        try:
            from aegis_dask.ckks.serialization import dumps
        except ImportError:
            (key,) = keys.galois.values()
            note = "estimated: serialization is missing"
            return {
                "ciphertext": (self.ct_x.nbytes, note),
                "rotation_key": (key.b.nbytes + len(key.seed), note),
            }
        return {
            what: (len(dumps(value)), "serialised")
            for what, value in {"ciphertext": self.ct_x, "rotation_key": keys}.items()
        }


def _report_probes(reporter: Reporter, peer: AegisPeer, threads: int) -> None:
    from benchmarks import _probes
    from benchmarks.floor import Shape, work

    reporter.emit("probe", what="clock", value=_probes.clock_ghz(threads), unit="GHz")
    reporter.emit("probe", what="read", value=_probes.read_gb_s(), unit="GB/s")
    counts = work(Shape(**peer.params()["shape"]))
    for op in ("add", "multiply_plain"):
        # A copy of half as many bytes reads and writes as many as the operation moves.
        moved = counts[op].buffer_bytes
        reporter.emit(
            "probe", what=f"copy:{op}", value=_probes.copy_ms(moved // 2), unit="ms", bytes=moved
        )


def main() -> int:
    """Run the peer and return its exit status."""
    options = harness.parse_options()
    reporter = Reporter(OURS, options)
    peer = AegisPeer(options)
    harness.report_params(reporter, options, **peer.params())
    harness.run_cases(reporter, options, peer.builders())
    # Before serialising and the probes, whose buffers are no part of computing.
    reporter.emit("size", what="peak_rss", bytes=peak_rss_bytes())
    for what, (size, note) in peer.sizes().items():
        reporter.emit("size", what=what, bytes=size, note=note)
    memory = peer.params_.evaluation_key_bytes
    reporter.emit("size", what="rotation_key_memory", bytes=memory, note="both halves")
    _report_probes(reporter, peer, options.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
