"""The encrypted interpreter: operations on batches of ciphertexts. It never sees a secret key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper, working_bytes
from aegis_dask.ckks.encoder import Encoder
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import MissingKeyError, ProgramError
from aegis_dask.program.hoisting import two_stages
from aegis_dask.program.operations import PlainMatrix, Refresh, Shape, Store
from aegis_dask.program.weights import PreparedWeights
from aegis_dask.ring.backend import concatenate, contiguous

REFRESH_PARTS = 8
"""Parts (`Ring.part_bytes`) that refreshing several ciphertexts at a time may work in."""
WEIGHT_BYTES = 1 << 26
"""Encoded weights held at a time by `matrix_product`."""
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
        self._weights = PreparedWeights(evaluator.params.ring)

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

    def _at_a_time(self, *batches: Ciphertext, share: int = 1) -> int:
        """Return how many ciphertexts to work on at a time."""
        largest = min(b.nbytes // b.batch for b in batches)
        return max(1, self.params.ring.part_bytes // (share * largest))

    def _by_parts(
        self, operation: Callable[..., Ciphertext], *batches: Ciphertext, share: int = 1
    ) -> Ciphertext:
        """Apply an operation to a few ciphertexts at a time, `share` times fewer than usual.

        Its temporaries are several times what it works on. Batches of one go with every part.
        """
        count = max(b.batch for b in batches)
        step = self._at_a_time(*batches, share=share)
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
        limbs, rows = self.params.limbs(batch.level), self._rows(vectors, x)
        if self._is_periodic(vectors):
            encoded = self._encode_periodic(vectors, rows, batch)
            return self._like(self.evaluator.add_runs(batch, encoded), x)
        data = batch.data.copy()
        for i, plain in self._encode_full(vectors, rows, batch):
            first = contiguous(ring, data[i : i + 1, 0])
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

    def _is_periodic(self, vectors: NDArray[np.complex128]) -> bool:
        return self.encoder.is_periodic(vectors.shape[-1])

    def _encode_periodic(
        self, vectors: NDArray[np.complex128], rows: Sequence[int], like: Ciphertext
    ) -> NDArray[np.uint32]:
        """Return the residues ``[limb, row, run]`` of vectors that repeat."""
        used, where = np.unique(rows, return_inverse=True)
        chosen = vectors.reshape(-1, vectors.shape[-1])[used]
        return self.encoder.encode_rows(chosen, like.level, like.scale)[:, where]

    def _encode_full(
        self, vectors: NDArray[np.complex128], rows: Sequence[int], like: Ciphertext
    ) -> Iterator[tuple[int, Any]]:
        """Yield every row with its plaintext; equal ones follow each other and are made once."""
        last, plain = -1, None
        for i, r in enumerate(rows):
            if r != last:
                v = vectors.reshape(-1, vectors.shape[-1])[r]
                periodic = len(v) < self.params.slots
                plain = self.encoder.encode(v, like.level, like.scale, periodic)
                last = r
            yield i, plain

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
        scale, limbs = self.params.scales[batch.level], self.params.limbs(batch.level)
        rows, like = self._rows(vectors, x), batch.with_data(batch.data, scale=scale)
        if self._is_periodic(vectors):
            data = ring.multiply_runs(batch.data, self._encode_periodic(vectors, rows, like), limbs)
        else:
            data = ring.empty(batch.data.shape)
            for i, plain in self._encode_full(vectors, rows, like):
                data[i : i + 1] = ring.multiply(batch.data[i : i + 1], plain.data, limbs)
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
        # Their decompositions are several times as large, and every rotation is kept for a while.
        at_a_time = self._at_a_time(batch, share=4 + max(len(outer), len(inner)))
        for j in range(0, batch.batch, at_a_time):
            some = batch[j : j + at_a_time]
            turned = self.evaluator.rotate_many(some, [s for s in outer if s])
            for k, first in enumerate(outer):
                base = turned.pop(first) if first else some
                here = inner[: len(steps) - k * len(inner)]
                rotated = self.evaluator.rotate_many(base, [s for s in here if s])
                for i, s in enumerate(here):
                    value = rotated[s] if s else base
                    data[j : j + at_a_time, k * len(inner) + i] = value.data
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
        # A batch needs as many times the memory as one.
        room = REFRESH_PARTS * self.params.ring.part_bytes
        step = max(1, room // working_bytes(bootstrapper.params)) * (1 + how.merged)
        data: Any = None
        for i in range(0, batch.batch, step):
            some = batch[i : i + step]
            if how.merged:
                parts: Sequence[Ciphertext] = bootstrapper.refresh_pair(some[::2], some[1::2])
            elif how.iterations > 1:
                fine = bootstrapper.refresh_precise(some, iterations=how.iterations, real=how.real)
                parts = [fine]
            else:
                parts = [bootstrapper.refresh(some, how.real)]
            if data is None:
                done = parts[0]
                data = self.params.ring.empty((batch.batch, *done.data.shape[1:]))
            for k, part in enumerate(parts):
                data[i + k : i + step : len(parts)] = part.data
        refreshed = self._like(done.with_data(data), x)
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
        prepared = self._weights.of(matrix, store, scale)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            weights = ring.encode_weights(prepared(first, last), limbs)
            rows = slice((first - start) * each, (last - start) * each)
            out[rows] = ring.gemm(batch.data, weights, limbs)
        product = batch.with_data(out, scale=batch.scale * scale)
        rescaled = self._by_parts(self.evaluator.rescale, product)
        return CipherArray(rescaled, (stop - start, *matrix.outputs[1:]))
