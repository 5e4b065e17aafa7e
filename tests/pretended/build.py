"""Build a pretended CUDA into the environment that runs this (see `scripts/pretended-gpu`).

CuPy calls the CUDA runtime in one of its extension modules, where it is linked statically. That one
is compiled again from CuPy's own source, for the runtime of `cuda.cpp`; it stands in the place of
the original, and everything else is CuPy as it is installed. Its kernels are compiled by NVRTC
and loaded; `site/sitecustomize.py` binds those of this project to the emulation.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CXX = os.environ.get("CXX", "g++")
OPTIONS = ("-std=c++17", "-O2", "-shared", "-fPIC")
CUPY = "cupy-cuda13x"
TARGET = "cupy_backends/cuda/api/runtime"
CONSTANTS = {
    "CUPY_USE_CUDA_PYTHON": False,
    "CUPY_CUFFT_STATIC": False,
    "CUPY_CYTHON_VERSION": "3",
    "CUPY_CUDA_VERSION": 13000,
    "CUPY_HIP_VERSION": 0,
}
"""As CuPy's own build sets them."""


def run(*command: object, **options: object) -> str:
    """Run a command; return what it printed."""
    words = [str(c) for c in command]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    return str(done.stdout)


def sources(folder: Path) -> Path:
    """Download CuPy's source, of the version that is installed, and unpack it."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "cupy"]
    package = f"cupy=={version(CUPY)}"
    # pip asks the package for its dependencies, which without CUDA it tells as a stub only.
    run(*pip, "-d", folder, package, env=os.environ | {"CUPY_INSTALL_USE_STUB": "1"})
    (archive,) = folder.glob("cupy-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def undefined(module: Path) -> list[str]:
    """Return the functions of the CUDA runtime that an object file calls."""
    return re.findall(r"\b(cuda[A-Z]\w+)", run("nm", "--undefined-only", module))


def build(out: Path) -> None:
    """Compile everything, and put CuPy's module into the environment."""
    from Cython.Build import cythonize
    from setuptools import Extension

    found = find_spec("nvidia")
    assert found is not None
    assert found.submodule_search_locations is not None
    headers = Path(next(iter(found.submodule_search_locations))) / "cu13" / "include"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        root = sources(Path(name))
        os.chdir(root)
        extension = Extension(TARGET.replace("/", "."), [f"{TARGET}.pyx"], language="c++")
        cythonize(
            [extension],
            language_level=3,
            compile_time_env=CONSTANTS,
            compiler_directives={"warn.deprecated.IF": False},
            quiet=True,
        )
        includes = (sysconfig.get_path("include"), np.get_include(), ".", "cupy_backends", headers)
        flags = [f"-I{i}" for i in includes]
        defined = ["-DCUPY_CACHE_KEY=pretended", '-DCYTHON_EXTERN_C=extern "C"', "-w"]
        module = root / "runtime.o"
        run(CXX, *OPTIONS, *flags, *defined, "-c", f"{TARGET}.cpp", "-o", module)
        missing = root / "missing.cpp"
        known = run("nm", "-D", "--defined-only", cuda(out, headers))
        absent = [f for f in undefined(module) if f" {f}\n" not in known]
        missing.write_text(
            '#include <cstdio>\nextern "C" {\n'
            + "\n".join(
                f'int {f}() {{ fputs("{f} is not there\\n", stderr); return 801; }}' for f in absent
            )
            + "\n}\n"
        )
        cuda(out, headers, missing)
        place = Path(str(find_spec("cupy_backends").submodule_search_locations[0]))  # type: ignore[union-attr,index]
        (target,) = place.glob("cuda/api/runtime.*.so")
        link = ["-l:libcuda.so.1", f"-L{out}", f"-Wl,-rpath,{out}"]
        run(CXX, *OPTIONS, module, "-o", target, *link)
    nvml = "libnvidia-ml.so.1"
    run(CXX, *OPTIONS, HERE / "nvml.cpp", "-o", out / nvml, f"-Wl,-soname,{nvml}")


def cuda(out: Path, headers: Path, *more: Path) -> Path:
    """Compile runtime and driver."""
    name = "libcuda.so.1"
    files = (HERE / "cuda.cpp", *more)
    run(CXX, *OPTIONS, "-Wall", f"-I{headers}", *files, "-o", out / name, f"-Wl,-soname,{name}")
    return out / name


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve())
