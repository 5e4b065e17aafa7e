"""Plaintext matrices as the kernels take them: integer coefficients, kept between runs.

Gathering and embedding the weights of a layer takes a host about as long as a GPU takes for the
layer. So a worker keeps what it has prepared, up to a bound, and drops what was used longest ago.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from dask.tokenize import tokenize
from numpy.typing import NDArray

from aegis_dask import config
from aegis_dask.ckks.encoder import embed
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import EncodingError
from aegis_dask.program.operations import PlainMatrix, Store
from aegis_dask.ring.backend import Ring


def coefficients(values: NDArray[np.complex128], scale: Scale) -> NDArray[np.int64]:
    """Return the coefficients ``[2 period, ...]`` of plaintexts of slots ``[..., period]``.

    Raises
    ------
    EncodingError
        If there is a value that is not finite, or too large for the scale.
    """
    c = embed(values, 2 * values.shape[-1])
    c *= float(scale)
    np.rint(c, out=c)
    largest = max(float(np.max(c, initial=0.0)), -float(np.min(c, initial=0.0)))
    if not largest < 2.0**62:  # NaN neither
        raise EncodingError(
            "weights must be finite and, times the scale of their level "
            f"(2^{scale.log2:.0f}), below 2^62"
        )
    return np.moveaxis(c, -1, 0).astype(np.int64, order="C")


class PreparedWeights:
    """Coefficients of parts of matrices, on the device of a ring.

    Parameters
    ----------
    ring
        Where they are kept.
    limit
        Bytes that are kept; what the ring finds right (`Ring.weight_bytes`) where it is not
        configured.
    """

    def __init__(self, ring: Ring, limit: int | None = None) -> None:
        configured = config.prepared_weights() if limit is None else limit
        self.limit = ring.weight_bytes if configured is None else configured
        self.ring, self.nbytes = ring, 0
        self._kept: OrderedDict[tuple[Any, ...], tuple[Store, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, matrix: PlainMatrix, store: Store, scale: Scale) -> Callable[[int, int], Any]:
        """Return what gives the coefficients ``[2 period, row, input]`` of rows of a matrix."""
        inner = int(np.prod(matrix.inputs))

        def make(first: int, last: int) -> Any:
            values = matrix.build(store, first, last).reshape(-1, inner, matrix.period)
            return coefficients(values, scale)

        if self.limit <= 0:
            return make
        # A store is known by its identity, and held so that no other can take its place.
        name = (tokenize(matrix), id(store), scale)

        def kept(first: int, last: int) -> Any:
            key = (*name, first, last)
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key][1]
            found = self.ring.from_host(make(first, last))
            with self._lock:
                if key not in self._kept and found.nbytes <= self.limit:
                    self._kept[key] = store, found
                    self.nbytes += found.nbytes
                    while self.nbytes > self.limit:
                        _, (_, dropped) = self._kept.popitem(last=False)
                        self.nbytes -= dropped.nbytes
            return found

        return kept
