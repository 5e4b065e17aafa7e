"""Powers of the root of unity as `kernels/ntt.cuh` reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_dask.ring.primes import primitive_root_of_unity
from aegis_dask.ring.tables import LANES, TAIL, U32, bit_reversal, powers, shoup


def tables(ring_degree: int, primes: Sequence[int], inverse: bool) -> tuple[U32, U32, U32]:
    """Return ``scalar``, ``lanes`` and ``twist`` of primes that are ``1 mod 2 * ring_degree``.

    Every factor stands beside its Shoup companion: the last axis has both.

    - ``scalar [prime, N/16, 2]``: ``psi^brv(i)``, the twiddles of all but the last four stages;
    - ``twist [prime, N/256, 16, 2]``: ``psi_T^lane``, ``psi_T = psi^(2 brv(T) + 1)``, by which the
      words of tail T are multiplied;
    - ``lanes [prime, 8, 16, 2, 2]``: the twiddles of the last four stages of a tail of twisted
      words, entry ``2^s + m`` of 16 for group m of stage s, in pairs; entry 0 is entry 1.

    Inverse ones are the inverses of these.
    """
    n = ring_degree
    order, tails = bit_reversal(n), bit_reversal(n // TAIL)
    lane = np.arange(LANES)
    twisted = (2 * tails[:, None] + 1) * lane % (2 * n)
    entries = np.array([[(lane << s) + m] for s in range(4) for m in range(1 << s)])[:, 0]
    last = order[np.concatenate([entries[:1], entries])]
    pairs = last.reshape(8, 2, LANES).transpose(0, 2, 1)
    scalar = np.empty((len(primes), n // LANES, 2), np.uint32)
    twist = np.empty((len(primes), *twisted.shape, 2), np.uint32)
    lanes = np.empty((len(primes), *pairs.shape, 2), np.uint32)
    for i, p in enumerate(primes):
        psi = primitive_root_of_unity(p, 2 * n)
        w = powers(pow(psi, -1, p) if inverse else psi, 2 * n, p)
        for k, table in enumerate((w.astype(np.uint32), shoup(w, p))):
            scalar[i, :, k] = table[order[: n // LANES]]
            twist[i, ..., k] = table[twisted]
            lanes[i, ..., k] = table[pairs]
    return scalar, lanes, twist
