"""Homomorphic operations: everything here runs without a secret key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aegis_dask.ckks.encoder import Encoder, imaginary_unit
from aegis_dask.ckks.galois import (
    conjugation_element,
    rotation_element,
)
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.levels import LevelPlanner
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import LevelError, ScaleError
from aegis_dask.ring.backend import HoistedKey, contiguous

if TYPE_CHECKING:
    from aegis_dask.ckks.linear import LinearTransform

COMBINED_PARTS = 4
"""Parts (`Ring.part_bytes`) of terms that `Evaluator.combinations` puts side by side at a time."""

Operand = Ciphertext | Plaintext | complex | ArrayLike


class Evaluator:
    """Evaluates on ciphertexts.

    Levels and scales are aligned automatically. A product is relinearised and rescaled unless told
    otherwise, so a ciphertext normally has the canonical scale of its level.

    Parameters
    ----------
    params
        The parameters.
    keys
        Evaluation keys; operations that need none work without.
    """

    def __init__(self, params: Parameters, keys: EvaluationKeys | None = None) -> None:
        self.params = params
        self.keys = keys or EvaluationKeys(params)
        self.encoder = Encoder(params)
        self.levels = LevelPlanner(params)
        check_same(self, self.keys, names=("the evaluator", "the evaluation keys"))

    # -- addition ---------------------------------------------------------------------------

    def add(self, x: Ciphertext, y: Operand) -> Ciphertext:
        """Return x + y; y is a ciphertext, a plaintext, a number or a vector."""
        return self._add(x, y, self.params.ring.add, 1)

    def sub(self, x: Ciphertext, y: Operand) -> Ciphertext:
        """Return x - y."""
        return self._add(x, y, self.params.ring.sub, -1)

    def _add(self, x: Ciphertext, y: Operand, op: Any, sign: int) -> Ciphertext:
        ring = self.params.ring
        if isinstance(y, Ciphertext):
            self._check(x, y)
            x, y = self._align(x, y)
            x, y = self._same_components(x, y)
            limbs = self.params.limbs(x.level)
            if x.batch >= y.batch:
                return x.with_data(op(x.data, y.data, limbs))
            # Kernels repeat their second operand only.
            swapped = y.with_data(op(y.data, x.data, limbs))
            return swapped if sign > 0 else self.negate(swapped)
        if not isinstance(y, Plaintext):
            if np.ndim(y) == 0:
                constant = self.encoder.constant(sign * complex(y), x.level, x.scale)  # type: ignore[arg-type]
                return self.add_runs(x, constant[:, None])
            y = self.encoder.encode(y, level=x.level, scale=x.scale)
        check_same(x, y, names=("the ciphertext", "the plaintext"))
        if y.level != x.level or y.scale != x.scale:
            raise ScaleError(
                f"{x!r} and {y!r} cannot be added; encode the plaintext with "
                "level=ct.level, scale=ct.scale"
            )
        limbs = self.params.limbs(x.level)
        if y.is_periodic:
            data = y.data if sign > 0 else _negate_runs(y.data, self.params, limbs)
            return self.add_runs(x, data[:, None])
        out = ring.empty(x.data.shape)
        out[:, 1:] = x.data[:, 1:]
        out[:, 0] = op(contiguous(ring, x.data[:, 0]), y.data, limbs)
        return x.with_data(out)

    def add_runs(self, x: Ciphertext, constants: NDArray[np.uint32]) -> Ciphertext:
        """Add residues ``[limb, batch, run]`` of periodic plaintexts; or of one, for all."""
        # To component 0. The others get 0: every word is copied anyway.
        limbs, _, runs = constants.shape
        rows = np.zeros((limbs, x.batch, x.components, runs), np.uint32)
        rows[:, :, 0] = constants
        flat = rows.reshape(limbs, -1, runs)
        return x.with_data(self.params.ring.add_runs(x.data, flat, self.params.limbs(x.level)))

    def negate(self, x: Ciphertext) -> Ciphertext:
        """Return -x."""
        self._check(x)
        return x.with_data(self.params.ring.negate(x.data, self.params.limbs(x.level)))

    def sum(self, terms: Sequence[Ciphertext]) -> Ciphertext:
        """Return the sum of one or more ciphertexts."""
        if not terms:
            raise ValueError("a sum needs at least one ciphertext")
        total = terms[0]
        for term in terms[1:]:
            total = self.add(total, term)
        return total

    # -- multiplication ---------------------------------------------------------------------

    def multiply(
        self, x: Ciphertext, y: Operand, relinearise: bool = True, rescale: bool = True
    ) -> Ciphertext:
        """Return x y, by slots.

        Parameters
        ----------
        x
            A ciphertext of 2 components.
        y
            A ciphertext, a plaintext, a number or a vector. Numbers and vectors are encoded at the
            level and canonical scale of x.
        relinearise
            Bring a product of ciphertexts back to 2 components. Without it, products can be added
            first and relinearised once.
        rescale
            Divide by the level's primes and go down one level. Without it the scale is the product
            of the scales, and products can be added first.

        Raises
        ------
        LevelError
            If a rescale is asked for at level 0.
        MissingKeyError
            If the relinearisation key is missing.
        """
        if not isinstance(y, Ciphertext):
            return self._multiply_plain(x, y, rescale)
        self._check(x, y)
        x, y = self.align_levels(x, y)
        if rescale:
            self._require_level(x)
        if x.components != 2 or y.components != 2:
            raise ScaleError("products take ciphertexts of 2 components; relinearise them first")
        limbs = self.params.limbs(x.level)
        if x.batch < y.batch:
            x, y = y, x
        product = x.with_data(
            self.params.ring.tensor(x.data, y.data, limbs), scale=x.scale * y.scale
        )
        if relinearise:
            return self.relinearise(product, rescale=rescale)
        return self.rescale(product) if rescale else product

    def contract(
        self,
        x: Ciphertext,
        y: Ciphertext,
        relinearise: bool = True,
        rescale: bool = True,
        rows: int = 1,
    ) -> Ciphertext:
        """Return sums of products by slots, ``out[o] = sum_k x[k] y[o, k]``.

        The products of a sum are relinearised and rescaled once.

        Parameters
        ----------
        x
            A batch of k ciphertexts of 2 components.
        y
            A batch of ``o k`` ciphertexts of 2 components, those of the first output first.
        relinearise, rescale
            As for `multiply`.
        rows
            Number of left operands: x is a batch of ``rows k``, the result one of ``rows o``, row
            by row. Rows together are faster than one by one.

        Raises
        ------
        LevelError
            If a rescale is asked for at level 0.
        MissingKeyError
            If the relinearisation key is missing.
        """
        for operand in (x, y):
            self._check(operand)
        terms = x.batch // max(rows, 1)
        if terms < 1 or terms * rows != x.batch or y.batch < terms or y.batch % terms:
            raise ValueError(
                f"batches of {x.batch} and {y.batch} ciphertexts are no {rows} rows and any number "
                "of columns of equal length"
            )
        if x.components != 2 or y.components != 2:
            raise ScaleError("products take ciphertexts of 2 components; relinearise them first")
        x, y = self.align_levels(x, y)
        if rescale:
            self._require_level(x)
        left, right = (v.data.reshape(-1, terms, *v.data.shape[1:]) for v in (x, y))
        data = self.params.ring.contract(left, right, self.params.limbs(x.level))
        product = x.with_data(data.reshape(-1, *data.shape[2:]), scale=x.scale * y.scale)
        if relinearise:
            return self.relinearise(product, rescale=rescale)
        return self.rescale(product) if rescale else product

    def square(self, x: Ciphertext) -> Ciphertext:
        """Return x x."""
        return self.multiply(x, x)

    def _multiply_plain(self, x: Ciphertext, y: Any, rescale: bool) -> Ciphertext:
        self._check(x)
        if rescale:
            self._require_level(x)
        params, ring = self.params, self.params.ring
        limbs = params.limbs(x.level)
        if not isinstance(y, Plaintext):
            scale = params.scales[x.level]
            if np.ndim(y) == 0:
                constant = self.encoder.constant(complex(y), x.level, scale)
                out = x.with_data(
                    ring.multiply_runs(x.data, constant, limbs), scale=x.scale * scale
                )
                return self.rescale(out) if rescale else out
            y = self.encoder.encode(y, level=x.level, scale=scale)
        check_same(x, y, names=("the ciphertext", "the plaintext"))
        if y.level != x.level:
            if y.level > x.level:
                raise LevelError(f"{y!r} cannot multiply {x!r}; encode it with level={x.level}")
            x = self.to_level(x, y.level)
            limbs = params.limbs(x.level)
        if y.is_periodic:
            data = ring.multiply_runs(x.data, y.data, limbs)
        else:
            data = ring.multiply(x.data, y.data, limbs)
        out = x.with_data(data, scale=x.scale * y.scale)
        return self.rescale(out) if rescale else out

    def multiply_by_i(self, x: Ciphertext, power: int = 1) -> Ciphertext:
        """Return ``i**power`` x: exact and free of levels (a multiplication by a monomial)."""
        self._check(x)
        power %= 4
        if power == 0:
            return x
        if power == 2:
            return self.negate(x)
        primes, limbs = self.params.chain.primes, self.params.limbs(x.level)
        rows = []
        for j in limbs:
            root = imaginary_unit(self.params.ring_degree, primes[j])
            pair = [root, primes[j] - root]
            rows.append(pair if power == 1 else pair[::-1])
        data = self.params.ring.multiply_runs(x.data, np.array(rows, np.uint32), limbs)
        return x.with_data(data)

    def combinations(
        self,
        terms: Sequence[Ciphertext],
        weights: ArrayLike,
        constants: Sequence[complex],
        scale: Scale | None = None,
    ) -> list[Ciphertext]:
        """Return several sums of terms times constants, plus constants: one level.

        Parameters
        ----------
        terms
            Ciphertexts of one level and scale, ``[k]``.
        weights
            Real or complex ``[o, k]``.
        constants
            ``[o]``.
        scale
            Scale of the weights, the canonical one of the level by default.

        Returns
        -------
        list
            ``sum_k weights[o, k] terms[k] + constants[o]``, computed in one pass over the terms.
        """
        first = terms[0]
        self._check(*terms)
        self._require_level(first)
        if len({(t.level, t.scale, t.components, t.batch) for t in terms}) != 1:
            raise ScaleError("a combination takes terms of one level, scale, shape and batch")
        w = np.asarray(weights, np.complex128)
        params, ring, level = self.params, self.params.ring, first.level
        limbs = params.limbs(level)
        scale = params.scales[level] if scale is None else scale
        runs = 2 if np.any(w.imag) else 1
        encoded = np.empty((len(limbs), runs, *w.shape), np.uint32)
        for o, k in np.ndindex(*w.shape):
            residues = self.encoder.constant(complex(w[o, k]), level, scale)
            encoded[:, :, o, k] = residues
        primes = np.array([params.chain.primes[i] for i in limbs], np.uint64)[:, None, None, None]
        encoded = ((encoded.astype(np.uint64) << np.uint64(32)) % primes).astype(np.uint32)
        held = ring.from_host(encoded)
        step = COMBINED_PARTS * ring.part_bytes // (len(terms) * first[:1].nbytes)
        step = min(max(1, step), first.batch)
        data = None if step == first.batch else ring.empty((len(w), *first.data.shape))
        for start in range(0, first.batch, step):
            part = slice(start, min(start + step, first.batch))
            stacked = ring.empty((len(terms), part.stop - start, *first.data.shape[1:]))
            for k, t in enumerate(terms):
                stacked[k] = t.data[part]
            combined = ring.gemm(stacked, held, limbs)
            if data is None:
                data = combined
            else:
                data[:, part] = combined
        assert data is not None
        out = []
        for row, constant in zip(data, constants, strict=True):
            total = first.with_data(row, scale=first.scale * scale)
            out.append(self.rescale(self.add(total, constant) if constant else total))
        return out

    # -- levels and scales ------------------------------------------------------------------

    def rescale(self, x: Ciphertext) -> Ciphertext:
        """Divide by the primes of the level and go down one level.

        Raises
        ------
        LevelError
            At level 0.
        ScaleError
            If the result would have a scale below 2^10: x has not been multiplied since the last
            rescale.
        """
        self._check(x)
        self._require_level(x)
        plan, scale = self.levels.rescale(x.level, x.scale)
        return x.with_data(self.params.ring.mod_down(x.data, plan), x.level - 1, scale)

    def to_level(self, x: Ciphertext, level: int, scale: Scale | None = None) -> Ciphertext:
        """Return x at a lower level with the canonical scale there (or with `scale`).

        This multiplies by an integer constant and divides by primes in one step; the constant has
        at least 20 bits, so the relative change of the message is below 2^-21, and normally near
        2^-scale_bits.

        Raises
        ------
        LevelError
            If `level` is above that of x, or equal to it with another scale.
        """
        self._check(x)
        if not 0 <= level <= x.level:
            raise LevelError(f"{x!r} cannot be brought to level {level}; levels only go down")
        target = self.params.scales[level] if scale is None else scale
        if level == x.level:
            if x.scale == target:
                return x
            raise LevelError(
                f"{x!r} cannot be brought to scale {target!r} at its own level; a change of scale "
                "takes a level"
            )
        window, plan = self.levels.adjust(x.level, x.scale, level, target)
        own = self.params.window(x.level)
        kept = x.data[:, :, window.start - own.start : window.stop - own.start]
        data = self.params.ring.mod_down(contiguous(self.params.ring, kept), plan)
        return x.with_data(data, level, target)

    def align_levels(self, x: Ciphertext, y: Ciphertext) -> tuple[Ciphertext, Ciphertext]:
        """Return both at the lower of their levels, as products need them."""
        if x.level > y.level:
            x = self.to_level(x, y.level)
        elif y.level > x.level:
            y = self.to_level(y, x.level)
        return x, y

    def _align(self, x: Ciphertext, y: Ciphertext) -> tuple[Ciphertext, Ciphertext]:
        """Bring two operands of a sum to one level and one scale."""
        if x.level > y.level:
            return self.to_level(x, y.level, y.scale), y
        if y.level > x.level:
            return x, self.to_level(y, x.level, x.scale)
        if x.scale == y.scale:
            return x, y
        small, large = (x, y) if x.scale.log2 < y.scale.log2 else (y, x)
        ratio = large.scale / small.scale
        if ratio.log2 < 20:
            raise ScaleError(
                f"{x!r} and {y!r} have scales that no integer constant aligns; rescale products "
                "before adding them, or bring one operand to a lower level with to_level"
            )
        factor = round(ratio.to_fraction())
        limbs, primes = self.params.limbs(x.level), self.params.chain.primes
        constant = np.array([[factor % primes[j]] for j in limbs], np.uint32)
        data = self.params.ring.multiply_runs(small.data, constant, limbs)
        raised = small.with_data(data, scale=large.scale)
        return (raised, large) if small is x else (large, raised)

    def _same_components(self, x: Ciphertext, y: Ciphertext) -> tuple[Ciphertext, Ciphertext]:
        if x.components == y.components:
            return x, y
        few, many = (x, y) if x.components < y.components else (y, x)
        data = self.params.ring.zeros((few.batch, *many.data.shape[1:]))
        data[:, : few.components] = few.data
        padded = few.with_data(data)
        return (padded, many) if few is x else (many, padded)

    def _require_level(self, x: Ciphertext) -> None:
        if x.level == 0:
            raise LevelError(
                f"{x!r} has no level left for a product; choose parameters with more levels than "
                f"the {self.params.max_level} of {self.params.name}, or refresh the ciphertext"
            )

    # -- key switching ----------------------------------------------------------------------

    def relinearise(self, x: Ciphertext, rescale: bool = False) -> Ciphertext:
        """Return a ciphertext of 2 components; optionally rescale in the same division."""
        self._check(x)
        if x.components == 2:
            return self.rescale(x) if rescale else x
        key = self.keys.for_multiplication(x.level)
        level, scale = x.level, x.scale
        if rescale:
            self._require_level(x)
            _, scale = self.levels.rescale(x.level, x.scale)
            level -= 1
        data = self.params.ring.switch_key(
            x.data[:, 2],
            self.levels.digit_raise(x.level),
            key.b,
            key.a,
            self.levels.mod_down(x.level, level),
            addend=x.data[:, :2],
            key_rows=self.levels.key_rows(key.level, x.level),
        )
        return x.with_data(data, level, scale)

    def rotate(self, x: Ciphertext, steps: int) -> Ciphertext:
        """Rotate the slots to the left: slot j takes the value of slot j + steps.

        Without a key for `steps` the rotation is composed of at most log2(slots) there are.

        Raises
        ------
        MissingKeyError
            If the keys cannot reach this rotation.
        """
        self._check(x)
        for step in self.keys.path(steps, x.level):
            x = self._apply(x, [rotation_element(step, self.params.ring_degree)])[0]
        return x

    def rotate_many(self, x: Ciphertext, steps: Iterable[int]) -> dict[int, Ciphertext]:
        """Return several rotations of one ciphertext, sharing its decomposition (hoisting).

        Rotations without a key of their own are composed, one by one.
        """
        self._check(x)
        wanted, n = list(steps), self.params.ring_degree
        own = self.keys.steps_at(x.level)
        direct = [k for k in wanted if k % self.params.slots in own]
        results = self._apply(x, [rotation_element(k, n) for k in direct])
        out = dict(zip(direct, results, strict=True))
        return {k: out[k] if k in out else self.rotate(x, k) for k in wanted}

    def conjugate(self, x: Ciphertext) -> Ciphertext:
        """Return the complex conjugate of every slot."""
        self._check(x)
        return self._apply(x, [conjugation_element(self.params.ring_degree)])[0]

    def _apply(self, x: Ciphertext, elements: Sequence[int]) -> list[Ciphertext]:
        """Apply automorphisms, with one decomposition for all of them."""
        if not elements:
            return []
        if x.components != 2:
            raise ScaleError("rotations take ciphertexts of 2 components; relinearise first")
        keys = [self.keys.for_element(g, x.level) for g in elements]
        rows = [self.levels.key_rows(key.level, x.level) for key in keys]
        ring, plan = self.params.ring, self.levels.digit_raise(x.level)
        down = self.levels.mod_down(x.level, x.level)
        c0, c1 = x.data[:, :1], x.data[:, 1]
        if len(elements) == 1:
            key, g = keys[0], elements[0]
            data = ring.switch_key(c1, plan, key.b, key.a, down, c0, g, rows[0])
            return [x.with_data(data)]
        digits = ring.raise_digits(c1, plan)
        hoisted = [
            HoistedKey(key.b, key.a, g, r) for key, g, r in zip(keys, elements, rows, strict=True)
        ]
        found = ring.switch_hoisted(c1, digits, plan, hoisted, down, c0)
        return [x.with_data(data) for data in found]

    def inner_sum(self, x: Ciphertext, count: int, stride: int = 1) -> Ciphertext:
        """Return the sum of the rotations by ``0, stride, .., (count - 1) stride``.

        About 2 log2(count) rotations, log2(count) for a power of two (`inner_sum_steps`).
        """
        if count < 1:
            raise ValueError(f"an inner sum has at least one term, count is {count}")
        total: Ciphertext | None = None
        offset, span = 0, 1
        while span <= count:
            if count & span:
                term = self.rotate(x, offset * stride)
                total = term if total is None else self.add(total, term)
                offset += span
            if 2 * span <= count:
                x = self.add(x, self.rotate(x, span * stride))
            span *= 2
        assert total is not None
        return total

    # -- circuits ---------------------------------------------------------------------------

    def linear_transform(self, x: Ciphertext, transform: LinearTransform) -> Ciphertext:
        """Multiply the slot vector by a matrix (see `LinearTransform`); one level."""
        from aegis_dask.ckks.linear import apply_linear_transform

        return apply_linear_transform(self, x, transform)

    def chebyshev(
        self,
        x: Ciphertext,
        coefficients: ArrayLike,
        interval: tuple[float, float] = (-1.0, 1.0),
    ) -> Ciphertext:
        """Evaluate ``sum_k c_k T_k`` on `interval` (see `polynomial.evaluate_chebyshev`)."""
        from aegis_dask.ckks.polynomial import evaluate_chebyshev

        return evaluate_chebyshev(self, x, coefficients, interval)

    # -- checks -----------------------------------------------------------------------------

    def _check(self, *operands: Ciphertext) -> None:
        for x in operands:
            check_same(self, x, names=("the evaluator", "a ciphertext"))
        batches = {x.batch for x in operands} - {1}
        if len(batches) > 1:
            raise ValueError(f"batches of {sorted(batches)} ciphertexts do not match")


def _negate_runs(data: Any, params: Parameters, limbs: Sequence[int]) -> Any:
    primes = np.array([[params.chain.primes[j]] for j in limbs], np.uint32)
    return np.where(data == 0, data, primes - data).astype(np.uint32)
