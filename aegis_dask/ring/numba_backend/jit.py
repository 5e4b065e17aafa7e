"""Compilation of the CPU kernels: options, and the cache of machine code on disk."""

from __future__ import annotations

import hashlib
import os
import sys
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
_announced: list[str] = []


def inline(function: Callable[..., Any]) -> Any:
    """Compile a helper that is always inlined into the kernels that call it."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


def kernel(parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile an entry point, cached on disk across processes.

    The cache folder is set only while the function is decorated: other users of Numba in the
    process keep theirs.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        with _lock:
            before = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(CACHE_DIRECTORY)
            try:
                return numba.njit(parallel=parallel, cache=True, **OPTIONS)(function)
            except RuntimeError:  # no folder can be written: every process compiles for itself
                return numba.njit(parallel=parallel, **OPTIONS)(function)
            finally:
                numba.config.CACHE_DIR = before

    return decorate


def announce(compiled: Any) -> None:
    """Say on stderr that a kernel is about to be compiled, unless its machine code is on disk.

    On a terminal one line is rewritten for every kernel; elsewhere a single line is printed.
    """
    name = compiled.py_func.__name__
    if name in _announced or any(CACHE_DIRECTORY.glob(f"*/*.{name}-*.nbi")):
        return
    _announced.append(name)
    message = "aegis_dask: compiling the CPU kernels for this machine, once (about a minute)"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{message}: {len(_announced)}, {name} ", end="", file=sys.stderr, flush=True)
    elif len(_announced) == 1:
        print(f"{message}; kept in {CACHE_DIRECTORY}", file=sys.stderr, flush=True)


def announced_done() -> None:
    """Clear the progress line once a kernel has been compiled."""
    if _announced and sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _define(source: str, namespace: dict[str, Any]) -> Callable[..., Any]:
    scope = dict(namespace)
    exec(source, scope)  # the text is made by this package, never by a user
    function: Callable[..., Any] = scope["f"]
    return function


def generate(source: str, namespace: dict[str, Any]) -> Any:
    """Compile a helper that is always inlined, from unrolled source text that defines ``f``."""
    return inline(_define(source, namespace))


def generate_call(source: str, namespace: dict[str, Any]) -> Any:
    """Compile a helper that is called, not inlined; it is cached with the kernels that call it."""
    return numba.njit(**OPTIONS)(_define(source, namespace))
