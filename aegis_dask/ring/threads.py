"""How many threads the CPU kernels use."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from aegis_dask.errors import BackendError


def _numba() -> Any:
    # Our own module first: it sets what has to be set before Numba is imported anywhere.
    import_module("aegis_dask.ring.numba_backend.jit")
    return import_module("numba")


_before: Callable[[], None] | None = None


def before_kernels(function: Callable[[], None] | None) -> None:
    """Call a function before every CPU kernel of this process; None for none.

    It may call `set_threads`.
    """
    global _before
    _before = function


def kernel_begins() -> None:
    """Call what `before_kernels` was given."""
    if _before is not None:
        _before()


def max_threads() -> int:
    """Return the most threads that kernels can use: all cores, or ``NUMBA_NUM_THREADS``."""
    return int(_numba().config.NUMBA_NUM_THREADS)


def get_threads() -> int:
    """Return the number of threads of the kernels that this Python thread calls."""
    return int(_numba().get_num_threads())


def set_threads(count: int) -> None:
    """Set the number of threads of the kernels that this Python thread calls.

    The setting belongs to the calling thread only; kernels called from others use all cores until
    those threads set a number themselves.

    Raises
    ------
    BackendError
        If `count` is not between 1 and `max_threads()`.
    """
    if not 1 <= count <= max_threads():
        raise BackendError(
            f"{count} threads were asked for, 1 to {max_threads()} are available; the upper bound "
            "is the number of cores, or NUMBA_NUM_THREADS where that is set"
        )
    _numba().set_num_threads(count)
