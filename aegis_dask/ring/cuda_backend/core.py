"""What all kernels of a GPU's ring share: memory, constants of the primes, transforms."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import BackendError
from aegis_dask.ring import operands
from aegis_dask.ring.backend import Array, Limbs
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.cuda_backend import twiddles
from aegis_dask.ring.cuda_backend.launcher import Device, Launcher
from aegis_dask.ring.cuda_backend.residency import KeptArray
from aegis_dask.ring.cuda_backend.sources import COLUMNS, MAX_LOG_N, MIN_LOG_N, TAIL, TAILS
from aegis_dask.ring.tables import shoup_pair

SMALLEST_PART, PARTS = 1 << 26, 64
"""Operations work on a 64th of the device's memory at a time: their temporaries take several times
that, and smaller launches do not fill the device."""
WEIGHT_PARTS = 16
"""Likewise, of prepared weights, unless it is configured."""
NO_ADDEND = (0, 0, 0, 1, 0)
Structure = tuple[int, ...]
"""A structure of the sources that is passed by value: its fields, addresses among them."""


def with_companions(pair: tuple[NDArray[np.uint32], NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """Return constants and their Shoup companions next to each other, as the kernels read them."""
    return np.ascontiguousarray(np.stack(pair, axis=-1))


class Rows(NamedTuple):
    """Rows of an array that a launch treats.

    Attributes
    ----------
    value
        Structure `Rows` of the sources.
    limbs
        How many there are of each polynomial.
    """

    value: Structure
    limbs: int


class Core:
    """Memory, constants and transforms for the primes of one chain.

    Parameters
    ----------
    chain
        The primes.
    device
        Where to run.
    """

    def __init__(self, chain: ModulusChain, device: Device) -> None:
        n = chain.ring_degree
        log_n = n.bit_length() - 1
        if not MIN_LOG_N <= log_n <= MAX_LOG_N:
            raise BackendError(
                f"ring degree {n} is not supported by the GPU backend; use a power of two from "
                f"2^{MIN_LOG_N} to 2^{MAX_LOG_N}"
            )
        self.chain, self.degree, self.device = chain, n, device
        self.part_bytes = max(SMALLEST_PART, device.memory() // PARTS)
        self.weight_bytes = device.memory() // WEIGHT_PARTS
        self._launcher = Launcher(device, log_n)
        self._launch, self._integers = self._launcher.launch, self._launcher.integers
        self.launches = self._launcher.launches
        """How often each kernel has been launched."""
        primes = chain.all_primes
        columns = [
            primes,
            [pow(p, -1, 1 << 32) for p in primes],
            [pow(2, 64, p) for p in primes],
            [(1 << 32) // p for p in primes],
            *shoup_pair([1 << 32] * len(primes), primes),
            [2 * p for p in primes],
            [0] * len(primes),
        ]
        self._host_table = np.ascontiguousarray(np.array(columns, np.uint32).T)
        self._table = device.upload(self._host_table)
        self._by_degree = with_companions(shoup_pair([pow(n, -1, p) for p in primes], primes))
        self._keep: list[Any] = []

    @cached_property
    def _forward(self) -> Structure:
        return self._upload_twiddles(False)

    @cached_property
    def _inverse(self) -> Structure:
        return self._upload_twiddles(True)

    def _upload_twiddles(self, inverse: bool) -> Structure:
        tables = twiddles.tables(self.degree, self.chain.all_primes, inverse)
        arrays = [self.device.upload(t) for t in tables]
        self._keep += arrays
        return tuple(map(self.device.address, arrays))

    # -- memory -----------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...]) -> Array:
        """Return an uninitialised array."""
        return self.device.empty(shape)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an array of zeros."""
        out = self.empty(shape)
        out[...] = 0
        return out

    def from_host(self, x: NDArray[Any]) -> Array:
        """Copy a host array to the device."""
        out: Array = self.device.upload(x)
        return out

    def keep(self, x: NDArray[np.uint32]) -> Array:
        """See `Ring.keep`."""
        return cast("Array", KeptArray(x))

    def to_host(self, x: Array) -> NDArray[np.uint32]:
        """Copy a device array to the host."""
        given: Any = x
        host: NDArray[np.uint32] = (
            given.host if isinstance(given, KeptArray) else self.device.download(x)
        )
        return host

    def synchronize(self) -> None:
        """See `Ring.synchronize`."""
        self.device.synchronize()

    # -- helpers ----------------------------------------------------------------------------

    def _limbs(self, x: Array, limbs: Limbs) -> tuple[Any, Any]:
        """Return the primes of the limbs of x, on the device, and the table of primes."""
        operands.check_limbs(x, len(limbs), self.degree)
        return self._integers(limbs), self._table

    @staticmethod
    def _flat_out(out: Array) -> Array:
        operands.check_contiguous(out)
        return out

    def _which(self, x: Array, y: Array) -> Any:
        """Polynomial of y that goes with each polynomial of x; None where it is the same one."""
        operands.check_same_limbs(x, y)
        if y.shape == x.shape:
            return None
        own = np.arange(prod(y.shape[:-2])).reshape(y.shape[:-2])
        return self._integers(np.broadcast_to(own, x.shape[:-2]))

    def _rows(self, primes: Any, count: int, places: Any = None, stride: int | None = None) -> Rows:
        """Return rows of these primes: all of them, or those at `places` of every `stride`."""
        address = self.device.address
        where = 0 if places is None else address(places)
        return Rows((where, address(primes), count if stride is None else stride), count)

    def _batched(self, x: Array) -> tuple[Array, int]:
        """Return x with contiguous elements, and rows from one to the next: a part of an array."""
        row, step = 4 * self.degree, x.strides[0]
        if not x[0].flags.c_contiguous or step % row or step < 0:
            x = self.device.contiguous(x)
        return x, x.strides[0] // row

    def _addend(self, addend: Array | None) -> tuple[Array | None, Structure]:
        """Return what keeps the memory of an addend, and its structure."""
        if addend is None:
            return None, NO_ADDEND
        addend, step = self._batched(addend)
        batch, used, limbs, _ = addend.shape
        return addend, (self.device.address(addend), used, limbs, batch, step)

    def _row_grid(self, polys: int, limbs: int) -> tuple[int, ...]:
        return polys, TAIL // COLUMNS, limbs

    def _tail_grid(self, polys: int, limbs: int) -> tuple[int, ...]:
        return polys, max(1, self.degree // TAIL // TAILS), limbs

    # -- transforms -------------------------------------------------------------------------

    def ntt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.ntt`."""
        primes, _ = self._limbs(x, limbs)
        x, out = self.device.contiguous(x), self.empty(x.shape)
        self._ntt(out, x, prod(x.shape[:-2]), self._rows(primes, len(limbs)))
        return out

    def _ntt(self, out: Array, x: Array, polys: int, rows: Rows) -> None:
        common = (rows.value, self._forward, self._table)
        self._launch("ntt_rows", self._row_grid(polys, rows.limbs), out, x, *common)
        self._launch("ntt_tails", self._tail_grid(polys, rows.limbs), out, *common)

    def intt(self, x: Array, limbs: Limbs) -> Array:
        """See `Ring.intt`."""
        primes, _ = self._limbs(x, limbs)
        factors = self._launcher.content(self._by_degree[np.asarray(limbs, np.int64)])
        x, out = self.device.contiguous(x), self.empty(x.shape)
        rows = self._rows(primes, len(limbs))
        self._intt(out, x, prod(x.shape[:-2]), rows, rows, factors)
        return out

    def _intt(
        self,
        out: Array,
        x: Array,
        polys: int,
        source_rows: Rows,
        rows: Rows,
        factors: Any,
        addend: Structure = NO_ADDEND,
        components: int = 1,
        addend_factors: Any = None,
    ) -> None:
        common = (self._inverse, self._table)
        extra = (addend, components, addend_factors)
        grid = self._tail_grid(polys, source_rows.limbs)
        self._launch("intt_tails", grid, out, x, *extra, source_rows.value, *common)
        self._launch(
            "intt_rows", self._row_grid(polys, rows.limbs), out, rows.value, factors, *common
        )

    def _galois(self, galois_element: int) -> int:
        if galois_element % 2 == 0:
            raise BackendError(f"Galois element {galois_element} is even; X -> X^g needs an odd g")
        return galois_element % (2 * self.degree)
