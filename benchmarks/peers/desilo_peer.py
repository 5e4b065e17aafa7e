"""DESILO FHE, closed and licensed for non-commercial use: `python -m benchmarks.peers.desilo_peer`.

Optional, never a dependency; its licence asks that published results carry `ATTRIBUTION`.
It picks its parameters from the number of levels alone, so `--levels` has no effect: 40-bit
scale, rings from 2^13. Fresh ciphertexts carry extra words, which the first product drops, and
every product is rescaled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks._measure import peak_rss_bytes
from benchmarks.peers import ATTRIBUTIONS
from benchmarks.peers import _harness as harness
from benchmarks.peers._harness import Case, Options, Reporter, UnsupportedError, Vector

#: Levels that make the library pick the wanted ring size.
_LEVELS = {16: 24, 15: 12, 13: 2}
_CHEBYSHEV_DEPTH = 6
_DEGREE = 31


class DesiloPeer:
    """One engine with its keys and sample ciphertexts at the top level."""

    def __init__(self, library: Any, options: Options) -> None:
        """Make the engine, the keys and the samples."""
        self.level = _LEVELS[options.logn]
        threads: dict[str, Any] = {"mode": "cpu"}
        if options.threads > 1:
            threads = {"mode": "parallel", "thread_count": options.threads}
        self.engine = library.Engine(max_level=self.level, **threads)
        self.slots = int(self.engine.slot_count)
        if self.slots != 1 << (options.logn - 1):
            raise ValueError(
                f"max_level={self.level} gives {self.slots} slots at logn {options.logn}"
            )
        self.secret_key = self.engine.create_secret_key()
        self.public_key = self.engine.create_public_key(self.secret_key)
        self.relin_key = self.make_relin_key()
        self.rotation_keys: dict[int, Any] = {}
        self.rng = np.random.default_rng(1)
        self.x = harness.sample(self.rng, self.slots)
        self.y = harness.sample(self.rng, self.slots)
        self.plain_y = self.engine.encode(self.y)
        self.ct_x = self.encrypt(self.engine.encode(self.x))
        self.ct_y = self.encrypt(self.plain_y)

    def make_relin_key(self) -> Any:
        """Relinearisation key."""
        return self.engine.create_relinearization_key(self.secret_key)

    def make_rotation_key(self, step: int) -> Any:
        """Key of a rotation by `step` slots to the left."""
        return self.engine.create_fixed_rotation_key(self.secret_key, step)

    def rotation_keys_for(self, steps: Iterable[int]) -> list[Any]:
        """Keys of left rotations, each generated once."""
        wanted = list(steps)
        for step in wanted:
            if step not in self.rotation_keys:
                self.rotation_keys[step] = self.make_rotation_key(step)
        return [self.rotation_keys[step] for step in wanted]

    def encrypt(self, plain: Any) -> Any:
        """Ciphertext under the public key."""
        return self.engine.encrypt(plain, self.public_key)

    def decrypt(self, ct: Any) -> Any:
        """Slot values, decoded."""
        return self.engine.decrypt(ct, self.secret_key)

    def multiply(self, relin_key: Any) -> Any:
        """Product, relinearised and rescaled."""
        return self.engine.multiply(self.ct_x, self.ct_y, relin_key)

    def case(self, run: Callable[[], Any], expected: Vector, **extra: Any) -> Case:
        """An operation whose result is a ciphertext of `expected`."""
        return Case(
            run,
            lambda ct: harness.max_error(self.decrypt(ct), expected),
            lambda ct: {"level": self.level, "levels_used": self.level - ct.level, **extra},
        )

    def builders(self) -> dict[str, Callable[[], Case]]:
        """All operations by name."""
        engine, product, rotated = self.engine, self.x * self.y, np.roll(self.x, -1)
        return {
            "keygen_relin": lambda: Case(
                self.make_relin_key,
                lambda key: harness.max_error(self.decrypt(self.multiply(key)), product),
            ),
            "keygen_rotation": lambda: Case(
                lambda: self.make_rotation_key(1),
                lambda key: harness.max_error(self.decrypt(engine.rotate(self.ct_x, key)), rotated),
            ),
            "encode": lambda: Case(
                lambda: engine.encode(self.x),
                lambda plain: harness.max_error(self.decrypt(self.encrypt(plain)), self.x),
            ),
            "encrypt": lambda: self.case(lambda: self.encrypt(self.plain_y), self.y),
            "decrypt": lambda: Case(
                lambda: self.decrypt(self.ct_x), lambda values: harness.max_error(values, self.x)
            ),
            "add": lambda: self.case(lambda: engine.add(self.ct_x, self.ct_y), self.x + self.y),
            "multiply_plain": lambda: self.case(
                lambda: engine.multiply(self.ct_x, self.plain_y), product, includes_rescale=True
            ),
            "rescale": self.rescale,
            "multiply_relin_rescale": lambda: self.case(
                lambda: self.multiply(self.relin_key), product
            ),
            "rotate": self.rotate,
            "hoisted_rotations_8": self.hoisted_rotations,
            "chebyshev_31": self.chebyshev,
            "matvec_128": self.matvec,
        }

    def rescale(self) -> Case:
        """Not an operation of its own here."""
        raise UnsupportedError("every product is rescaled already")

    def rotate(self) -> Case:
        """Rotate by one slot to the left."""
        (key,) = self.rotation_keys_for([1])
        return self.case(lambda: self.engine.rotate(self.ct_x, key), np.roll(self.x, -1))

    def hoisted_rotations(self) -> Case:
        """Eight rotations of one ciphertext in one call."""
        steps = harness.HOISTED_STEPS
        keys = self.rotation_keys_for(steps)
        return Case(
            lambda: self.engine.rotate_many(self.ct_x, keys),
            lambda rotated: max(
                harness.max_error(self.decrypt(ct), np.roll(self.x, -step))
                for step, ct in zip(steps, rotated, strict=True)
            ),
            lambda rotated: {"level": self.level, "rotations": len(rotated)},
        )

    def chebyshev(self) -> Case:
        """Degree-31 Chebyshev series of the logistic function."""
        if self.level < _CHEBYSHEV_DEPTH:
            raise UnsupportedError(f"needs {_CHEBYSHEV_DEPTH} levels, has {self.level}")
        series = np.polynomial.chebyshev.chebinterpolate(harness.logistic, _DEGREE).tolist()
        return self.case(
            lambda: self.engine.evaluate_chebyshev_polynomial(self.ct_x, series, self.relin_key),
            harness.logistic(self.x),
        )

    def matvec(self) -> Case:
        """128x128 matrix times vector: hoisted baby steps, each product rescaled."""
        engine, size = self.engine, harness.MATVEC_SIZE
        matrix, vector = harness.matvec_matrix(self.rng), harness.sample(self.rng, size)
        plain = {
            steps: engine.encode(harness.tile(diagonal, self.slots))
            for steps, diagonal in harness.bsgs_diagonals(matrix).items()
        }
        babies = range(1, harness.MATVEC_BABY_STEPS)
        giants = range(0, size, harness.MATVEC_BABY_STEPS)
        baby_keys = self.rotation_keys_for(babies)
        giant_keys = dict(zip(giants[1:], self.rotation_keys_for(giants[1:]), strict=True))
        ct = self.encrypt(engine.encode(harness.tile(vector, self.slots)))

        def run() -> Any:
            rotated = [ct, *engine.rotate_many(ct, baby_keys)]
            total = None
            for giant in giants:
                inner = engine.multiply(rotated[0], plain[giant, 0])
                for baby in babies:
                    inner = engine.add(inner, engine.multiply(rotated[baby], plain[giant, baby]))
                if total is None:
                    total = inner
                else:
                    total = engine.add(total, engine.rotate(inner, giant_keys[giant]))
            return total

        return self.case(
            run,
            harness.tile(matrix @ vector, self.slots),
            baby_steps=harness.MATVEC_BABY_STEPS,
            giant_steps=len(giants),
        )


def main() -> int:
    """Run the peer and return its exit status."""
    options = harness.parse_options()
    try:
        import desilofhe
    except ImportError as reason:
        return harness.report_missing("desilo", reason)
    print(ATTRIBUTIONS["desilo"], file=sys.stderr)
    reporter = Reporter("desilo", options)
    peer = DesiloPeer(desilofhe, options)
    harness.report_params(
        reporter,
        options,
        ring_dim=2 * peer.slots,
        levels=peer.level,
        attribution=ATTRIBUTIONS["desilo"],
    )
    harness.run_cases(reporter, options, peer.builders())
    reporter.emit("size", what="peak_rss", bytes=peak_rss_bytes())
    (key,) = peer.rotation_keys_for([1])
    for what, size in (
        ("ciphertext", peer.ct_x.serialized_nbytes),
        ("rotation_key", len(peer.engine.serialize_fixed_rotation_key(key))),
    ):
        reporter.emit("size", what=what, bytes=size, note="serialised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
