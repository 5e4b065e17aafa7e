"""Compilation of the CPU kernels: options, and the cache of machine code on disk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import platformdirs

OPTIONS: dict[str, Any] = {"boundscheck": False, "error_model": "numpy", "nogil": True}


def _source_digest() -> str:
    """Hash of this package's sources.

    Numba keys a cached kernel on the file that defines it only; helpers that are inlined from other
    files would go stale. One folder per state of the sources avoids that.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_directory() -> Path:
    """Folder of the compiled kernels (``AEGIS_CACHE_DIR`` overrides the user's cache folder)."""
    root = os.environ.get("AEGIS_CACHE_DIR") or platformdirs.user_cache_dir("aegis_dask")
    return Path(root) / "kernels" / f"numba-{numba.__version__}-{_source_digest()}"


CACHE_DIRECTORY = cache_directory()
_lock = threading.Lock()
_KERNELS: list[Any] = []


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper that is always inlined into the kernels that call it."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


def kernel(parallel: bool = False, cache: bool = True) -> Callable[[Callable[..., Any]], Any]:
    """Compile an entry point, cached on disk across processes.

    The cache folder is set only while the function is decorated: other users of Numba in the
    process keep theirs.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _lock:
            before = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(CACHE_DIRECTORY)
            try:
                compiled = numba.njit(parallel=parallel, cache=cache, **OPTIONS)(function)
            finally:
                numba.config.CACHE_DIR = before
        if cache:
            _KERNELS.append(compiled)
        return compiled

    return decorate


def generate(source: str, namespace: dict[str, Any]) -> Any:
    """Compile an inlined helper from unrolled source text that defines ``f``."""
    scope = dict(namespace)
    exec(source, scope)  # the text is made by this package, never by a user
    return inline(scope["f"])
