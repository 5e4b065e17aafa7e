"""Binds this project's kernels, when CuPy has loaded them, to the emulation: in every process."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from typing import Any

DEVICE = "aegis_dask.ring.cuda_backend.device"


class Finder(MetaPathFinder):
    """Changes one function of the module for GPUs when that is imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Return the module as it is found without this, executed with a change."""
        if name != DEVICE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            module._function = bound(module._function)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def bound(function: Any) -> Any:
    """Return a function that binds a kernel, once CuPy has compiled and loaded it."""
    cuda = ctypes.CDLL("libcuda.so.1")

    @cache
    def _function(kernel: str, log_n: int, device: int) -> int:
        from aegis_dask.ring.cuda_backend import sources
        from tests.emulation.device import library

        found = function(kernel, log_n, device)
        emulated = ctypes.cast(getattr(library(log_n), f"launch_{kernel}"), ctypes.c_void_p)
        parameters = len(sources.parameters(kernel))
        cuda.pretended_bind(ctypes.c_void_p(found), emulated, parameters)
        return int(found)

    return _function


sys.meta_path.insert(0, Finder())
