"""The encrypted interpreter: operations on batches of ciphertexts. It never sees a secret key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.encoder import Encoder, embed
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError, MissingKeyError, ProgramError
from aegis_dask.program.hoisting import two_stages
from aegis_dask.program.operations import PlainMatrix, Refresh, Shape, Store
from aegis_dask.ring.backend import concatenate, contiguous

WEIGHT_BYTES = 1 << 26
"""Encoded weights held at a time by `matrix_product`."""
PART_BYTES = 1 << 26
"""Ciphertexts on which an operation with large temporaries works at a time: as many as fit."""
MIN_RUN = 32
"""Points over which residues of a matrix must repeat: what the modular GEMM is made for."""


@dataclass(frozen=True, eq=False)
class CipherArray:
    """Ciphertexts in an array of `shape`, stored as one batch in C order.

    Raises
    ------
    ProgramError
        If the batch has another number of ciphertexts than the shape.
    """

    batch: Ciphertext
    shape: Shape

    def __post_init__(self) -> None:
        if self.batch.batch != prod(self.shape):
            raise ProgramError(
                f"a batch of {self.batch.batch} ciphertexts is no array of {self.shape}"
            )

    @property
    def nbytes(self) -> int:
        """Size of the residues in bytes."""
        return self.batch.nbytes

    def __sizeof__(self) -> int:
        return self.batch.__sizeof__() + 128

    def __repr__(self) -> str:
        return f"CipherArray({self.shape}, {self.batch!r})"


class Encrypted:
    """Arithmetic on `CipherArray`.

    Parameters
    ----------
    evaluator
        With the evaluation keys of the program.
    bootstrapper
        For programs that refresh.
    """

    def __init__(self, evaluator: Evaluator, bootstrapper: Bootstrapper | None = None) -> None:
        self.evaluator, self.bootstrapper = evaluator, bootstrapper
        self.params = evaluator.params
        self.encoder = Encoder(evaluator.params)

    # -- structure ---------------------------------------------------------------------------

    def shape_of(self, x: CipherArray) -> Shape:
        """Return the shape of an array of ciphertexts."""
        return x.shape

    def part(self, x: CipherArray, start: int, stop: int) -> CipherArray:
        """Return rows of the leading axis."""
        inner = prod(x.shape[1:])
        return CipherArray(x.batch[start * inner : stop * inner], (stop - start, *x.shape[1:]))

    def join(self, parts: list[CipherArray]) -> CipherArray:
        """Put parts together along the leading axis."""
        first = parts[0]
        if len(parts) == 1:
            return first
        data = concatenate(self.params.ring, [p.batch.data for p in parts])
        shape = (sum(p.shape[0] for p in parts), *first.shape[1:])
        return CipherArray(first.batch.with_data(data), shape)

    def _like(self, batch: Ciphertext, x: CipherArray) -> CipherArray:
        return CipherArray(batch, x.shape)

    def stack(self, tensors: Sequence[CipherArray]) -> CipherArray:
        """Put arrays side by side in a new last axis, at the lowest of their levels."""
        batches = self._at_one_level(tensors)
        first = batches[0].data
        data = self.params.ring.empty((len(first), len(batches), *first.shape[1:]))
        for i, b in enumerate(batches):
            data[:, i] = b.data
        data = data.reshape(-1, *first.shape[1:])
        return CipherArray(batches[0].with_data(data), (*tensors[0].shape, len(tensors)))

    def concatenate(self, tensors: Sequence[CipherArray]) -> CipherArray:
        """Put arrays one after the other, at the lowest of their levels."""
        batches = self._at_one_level(tensors)
        data = concatenate(self.params.ring, [b.data for b in batches])
        shape = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        return CipherArray(batches[0].with_data(data), shape)

    def _at_one_level(self, tensors: Sequence[CipherArray]) -> list[Ciphertext]:
        low = min((t.batch for t in tensors), key=lambda b: b.level)
        return [
            t.batch
            if t.batch.level == low.level
            else self.evaluator.to_level(t.batch, low.level, low.scale)
            for t in tensors
        ]

    def flatten(self, x: CipherArray) -> CipherArray:
        """Return the array with one axis, in C order."""
        return CipherArray(x.batch, (prod(x.shape),))

    def pair(self, x: CipherArray, sign: int) -> CipherArray:
        """Return ``x[..., 0] + i sign x[..., 1]``; a last axis of length 1 is dropped."""
        shape = x.shape[:-1]
        if x.shape[-1] == 1:
            return CipherArray(x.batch, shape)
        data = x.batch.data.reshape(-1, 2, *x.batch.data.shape[1:])
        real, imag = (x.batch.with_data(contiguous(self.params.ring, data[:, k])) for k in (0, 1))
        rotated = self.evaluator.multiply_by_i(imag, sign % 4)
        return CipherArray(self.evaluator.add(real, rotated), shape)

    def _by_parts(
        self, operation: Callable[..., Ciphertext], *batches: Ciphertext, share: int = 1
    ) -> Ciphertext:
        """Apply an operation to a few ciphertexts at a time, `share` times fewer than usual.

        Its temporaries, several times what it works on, then stay within the memory that is kept
        for reuse. Batches of one go with every part.
        """
        count = max(b.batch for b in batches)
        step = max(1, PART_BYTES // (share * min(b.nbytes // b.batch for b in batches)))
        if count <= step:
            return operation(*batches)
        first = operation(*(b if b.batch == 1 else b[:step] for b in batches))
        data = self.params.ring.empty((count, *first.data.shape[1:]))
        data[:step] = first.data
        for i in range(step, count, step):
            part = operation(*(b if b.batch == 1 else b[i : i + step] for b in batches))
            data[i : i + step] = part.data
        return first.with_data(data)

    # -- sums --------------------------------------------------------------------------------

    def _outer(self, x: CipherArray, y: CipherArray) -> CipherArray:
        return y if x.shape == () else x

    def add(self, x: CipherArray, y: CipherArray) -> CipherArray:
        """Return x + y; one of them may be a single ciphertext."""
        return self._like(self.evaluator.add(x.batch, y.batch), self._outer(x, y))

    def subtract(self, x: CipherArray, y: CipherArray) -> CipherArray:
        """Return x - y; one of them may be a single ciphertext."""
        return self._like(self.evaluator.sub(x.batch, y.batch), self._outer(x, y))

    def times_i(self, x: CipherArray, power: int) -> CipherArray:
        """Return ``i**power`` x."""
        return self._like(self.evaluator.multiply_by_i(x.batch, power), x)

    def add_constant(self, x: CipherArray, c: complex) -> CipherArray:
        """Return x + c."""
        return self._like(self.evaluator.add(x.batch, c), x)

    def sum(self, x: CipherArray) -> CipherArray:
        """Return the sum of all ciphertexts."""
        data, limbs = x.batch.data, self.params.limbs(x.batch.level)
        total = data[:1]
        for i in range(1, len(data)):
            total = self.params.ring.add(total, data[i : i + 1], limbs)
        return CipherArray(x.batch.with_data(total), ())

    def add_plain(self, x: CipherArray, vectors: NDArray[np.complex128]) -> CipherArray:
        """Return x plus vectors (see `PlainVectors`)."""
        batch, ring = x.batch, self.params.ring
        limbs, data = self.params.limbs(batch.level), batch.data.copy()
        rows = self._rows(vectors, x)
        encoded: dict[int, Any] = {}
        for i, r in enumerate(rows):
            if r not in encoded:
                encoded = {r: self._encode(vectors, r, batch)}
            plain, first = encoded[r], contiguous(ring, data[i : i + 1, 0])
            if plain.is_periodic:
                data[i : i + 1, 0] = ring.add_runs(first, plain.data, limbs)
            else:
                data[i : i + 1, 0] = ring.add(first, plain.data[None], limbs)
        return self._like(batch.with_data(data), x)

    def _rows(self, vectors: NDArray[np.complex128], x: CipherArray) -> list[int]:
        """Return which of the flattened vectors goes with each ciphertext of the batch.

        One vector is shared by all; otherwise the axes of the vectors are the leading axes of the
        array.
        """
        lead = vectors.shape[:-1]
        if lead not in ((1,), x.shape[: len(lead)]):
            raise ProgramError(f"{lead} plaintext vectors do not fit {x.shape} ciphertexts")
        have, want = prod(lead), x.batch.batch
        return [i * have // want for i in range(want)]

    def _encode(self, vectors: NDArray[np.complex128], row: int, like: Ciphertext) -> Any:
        v = vectors.reshape(-1, vectors.shape[-1])[row]
        periodic = len(v) < self.params.slots
        return self.encoder.encode(v, level=like.level, scale=like.scale, periodic=periodic)

    # -- products ----------------------------------------------------------------------------

    def multiply_integer(self, x: CipherArray, c: int) -> CipherArray:
        """Return c x, exactly and without a level."""
        limbs, primes = self.params.limbs(x.batch.level), self.params.chain.primes
        constant = np.array([[c % primes[j]] for j in limbs], np.uint32)
        data = self.params.ring.multiply_runs(x.batch.data, constant, limbs)
        return self._like(x.batch.with_data(data), x)

    def multiply_constant(self, x: CipherArray, c: complex) -> CipherArray:
        """Return c x: one level."""
        product = self._by_parts(lambda b: self.evaluator.multiply(b, complex(c)), x.batch)
        return self._like(product, x)

    def multiply_plain(self, x: CipherArray, vectors: NDArray[np.complex128]) -> CipherArray:
        """Return x times vectors (see `PlainVectors`): one level."""
        batch, ring = x.batch, self.params.ring
        scale = self.params.scales[batch.level]
        limbs, data = self.params.limbs(batch.level), ring.empty(batch.data.shape)
        like = batch.with_data(batch.data, scale=scale)
        encoded: dict[int, Any] = {}
        for i, r in enumerate(self._rows(vectors, x)):
            if r not in encoded:
                encoded = {r: self._encode(vectors, r, like)}
            plain, row = encoded[r], batch.data[i : i + 1]
            if plain.is_periodic:
                data[i : i + 1] = ring.multiply_runs(row, plain.data, limbs)
            else:
                data[i : i + 1] = ring.multiply(row, plain.data, limbs)
        out = batch.with_data(data, scale=batch.scale * scale)
        return self._like(self._by_parts(self.evaluator.rescale, out), x)

    def multiply(self, x: CipherArray, y: CipherArray) -> CipherArray:
        """Return x y, relinearised: one level."""
        product = self._by_parts(self.evaluator.multiply, x.batch, y.batch)
        return self._like(product, self._outer(x, y))

    def contract(self, x: CipherArray, y: CipherArray, transposed: bool) -> CipherArray:
        """Return ``sum_k x[k] y[o, k]`` (``y[k, o]`` if transposed), not yet relinearised."""
        a, b = self.evaluator.align_levels(x.batch, y.batch)
        data = b.data.reshape(*y.shape, *b.data.shape[1:])
        if transposed:
            data = data.swapaxes(0, 1)
        out = self.params.ring.contract(a.data, data, self.params.limbs(a.level))
        return CipherArray(a.with_data(out, scale=a.scale * b.scale), (len(out),))

    def sum_of_squares(self, x: CipherArray) -> CipherArray:
        """Return the sum of the squares of all ciphertexts, not yet relinearised."""
        out = self.evaluator.contract(x.batch, x.batch, relinearise=False, rescale=False)
        return CipherArray(out, ())

    def relinearise(self, x: CipherArray) -> CipherArray:
        """Return to 2 components: one level."""
        out = self._by_parts(lambda b: self.evaluator.relinearise(b, rescale=True), x.batch)
        return self._like(out, x)

    def chebyshev(self, x: CipherArray, coefficients: NDArray[np.float64]) -> CipherArray:
        """Return ``sum_k c_k T_k(x)`` for slots in [-1, 1]."""
        # It keeps a dozen powers.
        value = self._by_parts(
            lambda b: self.evaluator.chebyshev(b, coefficients), x.batch, share=4
        )
        return self._like(value, x)

    # -- key switching -----------------------------------------------------------------------

    def rotate(self, x: CipherArray, step: int) -> CipherArray:
        """Rotate the slots to the left."""
        return self._like(self._by_parts(lambda b: self.evaluator.rotate(b, step), x.batch), x)

    def rotations(self, x: CipherArray, steps: Sequence[int]) -> CipherArray:
        """Return ``[*s, len(steps)]``: rotations that share decompositions (see `hoisting`)."""
        outer, inner = two_stages(tuple(steps), self.params.slots)
        batch = x.batch
        data = self.params.ring.empty((batch.batch, len(steps), *batch.data.shape[1:]))
        for j in range(batch.batch):
            one = batch[j : j + 1]
            turned = self.evaluator.rotate_many(one, [s for s in outer if s])
            for k, first in enumerate(outer):
                base = turned.pop(first) if first else one
                here = inner[: len(steps) - k * len(inner)]
                rotated = self.evaluator.rotate_many(base, [s for s in here if s])
                for i, s in enumerate(here):
                    data[j, k * len(inner) + i] = rotated[s].data[0] if s else base.data[0]
        flat = data.reshape(-1, *data.shape[2:])
        return CipherArray(batch.with_data(flat), (*x.shape, len(steps)))

    def rotate_sum(self, x: CipherArray, steps: Sequence[int]) -> CipherArray:
        """Rotate each ciphertext of the last axis by its own step, and add them up."""
        data = x.batch.data.reshape(-1, len(steps), *x.batch.data.shape[1:])
        total: Ciphertext | None = None
        for i, s in enumerate(steps):
            term = x.batch.with_data(contiguous(self.params.ring, data[:, i]))
            if s:
                term = self._by_parts(lambda b, s=s: self.evaluator.rotate(b, s), term)
            total = term if total is None else self.evaluator.add(total, term)
        assert total is not None
        return CipherArray(total, x.shape[:-1])

    def conjugate(self, x: CipherArray) -> CipherArray:
        """Return the complex conjugate of every slot."""
        return self._like(self._by_parts(self.evaluator.conjugate, x.batch), x)

    # -- refreshing --------------------------------------------------------------------------

    def within(self, x: CipherArray, bound: float) -> CipherArray:
        """Return x: nothing here can see how large its values are."""
        return x

    def lower(self, x: CipherArray, by: int) -> CipherArray:
        """Bring every ciphertext down by some levels."""
        level = x.batch.level - by
        return self._like(self._by_parts(lambda b: self.evaluator.to_level(b, level), x.batch), x)

    def refresh(self, x: CipherArray, how: Refresh) -> CipherArray:
        """Bootstrap every ciphertext, or every pair of the last axis.

        Raises
        ------
        MissingKeyError
            Without the keys of bootstrapping.
        LevelError
            If the level is too low to be refreshed from.
        """
        bootstrapper = self.bootstrapper
        if bootstrapper is None:
            raise MissingKeyError(
                "the program refreshes ciphertexts and there are no keys for bootstrapping; make "
                "keys with bootstrapping_keys and give them to Executor.prepare"
            )
        batch = x.batch
        if how.shrink:
            batch = batch.with_data(batch.data, scale=batch.scale * Scale({2: how.shrink}))
        done: list[Ciphertext] = []
        # One at a time: a batch would need as many times the memory.
        for i in range(0, batch.batch, 1 + how.merged):
            one = batch[i : i + 1]
            if how.merged:
                done += bootstrapper.refresh_pair(one, batch[i + 1 : i + 2])
            elif how.iterations > 1:
                fine = bootstrapper.refresh_precise(one, iterations=how.iterations, real=how.real)
                done.append(fine)
            else:
                done.append(bootstrapper.refresh(one, how.real))
        data = concatenate(self.params.ring, [y.data for y in done])
        refreshed = self._like(done[0].with_data(data), x)
        return self.multiply_integer(refreshed, 1 << how.shrink) if how.shrink else refreshed

    # -- plaintext matrices ------------------------------------------------------------------

    def matrix_product(
        self, x: CipherArray, matrix: PlainMatrix, store: Store, start: int, stop: int
    ) -> CipherArray:
        """Multiply the whole array by rows ``start:stop`` of a matrix: one level."""
        params, ring, batch = self.params, self.params.ring, x.batch
        limbs, scale = params.limbs(batch.level), params.scales[batch.level]
        runs, inner = 2 * matrix.period, prod(matrix.inputs)
        if runs * MIN_RUN > params.ring_degree:
            raise ProgramError(
                f"plaintexts of period {matrix.period} need a ring of degree at least "
                f"{runs * MIN_RUN}; {params.name} has {params.ring_degree}. Pack at least "
                f"{MIN_RUN} tokens"
            )
        each = prod(matrix.outputs[1:])
        step = max(1, WEIGHT_BYTES // (4 * len(limbs) * runs * inner * each))
        out = ring.empty(((stop - start) * each, *batch.data.shape[1:]))
        for first in range(start, stop, step):
            last = min(first + step, stop)
            values = matrix.build(store, first, last).reshape(-1, inner, matrix.period)
            c = np.rint(embed(values, runs) * float(scale))
            if not float(np.max(np.abs(c), initial=0.0)) < 2.0**62:  # NaN neither
                raise EncodingError(
                    "weights must be finite and, times the scale of their level "
                    f"(2^{scale.log2:.0f}), below 2^62"
                )
            signed = np.ascontiguousarray(np.moveaxis(c, -1, 0)).astype(np.int64)
            weights = ring.encode_weights(signed, limbs)
            rows = slice((first - start) * each, (last - start) * each)
            out[rows] = ring.gemm(batch.data, weights, limbs)
        product = batch.with_data(out, scale=batch.scale * scale)
        rescaled = self._by_parts(self.evaluator.rescale, product)
        return CipherArray(rescaled, (stop - start, *matrix.outputs[1:]))
