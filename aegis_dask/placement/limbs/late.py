"""Sums of rotated ciphertexts that are divided by P once, after they have been added.

A sum of r rotations is r key switches, each with a ModDown. Added before (*double hoisting*,
Bossuat, Mouchet, Troncoso-Pastoriza, Hubaux, ePrint 2020/1203) it takes one. Divided by limbs,
devices then add addends once for the whole sum: that is what output aggregation is for. It rounds
once instead of r times, so residues differ from those of `Encrypted`, on any number of devices
alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aegis_dask.ckks.galois import rotation_element
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.ring.backend import contiguous


class LateDivision(Encrypted):
    """The encrypted interpreter, but for sums of rotations."""

    def rotate_sum(self, x: CipherArray, steps: Sequence[int]) -> CipherArray:
        """Rotate each ciphertext of the last axis by its own step, and add them up."""
        ring, evaluator = self.params.ring, self.evaluator
        levels, keys, level = evaluator.levels, evaluator.keys, x.batch.level
        plan, down = levels.digit_raise(level), levels.mod_down(level, level)
        data = x.batch.data.reshape(-1, len(steps), *x.batch.data.shape[1:])
        inner: Any = None
        first: Any = None  # the sum of the first components
        rest: Ciphertext | None = None
        for i, s in enumerate(steps):
            term = x.batch.with_data(contiguous(ring, data[:, i]))
            if keys.path(s, level) != (s,):  # not at all, or composed of several
                turned = evaluator.rotate(term, s)
                rest = turned if rest is None else evaluator.add(rest, turned)
                continue
            g = rotation_element(s, self.params.ring_degree)
            key = keys.for_element(g, level)
            c0, c1 = (contiguous(ring, term.data[:, k]) for k in (0, 1))
            digits = ring.raise_digits(c1, plan)
            rows = levels.key_rows(key.level, level)
            product = ring.inner_product(c1, digits, plan, key.b, key.a, True, rows)
            product = ring.automorphism(product, g)
            c0 = ring.automorphism(c0[:, None], g)
            inner = product if inner is None else ring.add(inner, product, plan.limbs)
            first = c0 if first is None else ring.add(first, c0, plan.sources)
        if inner is None:
            assert rest is not None
            return CipherArray(rest, x.shape[:-1])
        out = x.batch.with_data(ring.mod_down(inner, down, addend=first))
        return CipherArray(out if rest is None else evaluator.add(out, rest), x.shape[:-1])
