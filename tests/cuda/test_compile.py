"""Every kernel compiles for the GPUs of interest; NVRTC needs no GPU and no driver."""

from __future__ import annotations

import re
import struct

import pytest

from aegis_dask.ring.cuda_backend import sources
from aegis_dask.ring.cuda_backend.device import OPTIONS

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
MAX_REGISTERS = 65536  # of a multiprocessor
MAX_SPILLED = 32
"""Bytes: the compiler lets go of a few words for more threads at a time."""


def checked(result: tuple) -> object:
    status, *values = result
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
    return values[0] if values else None


def compile_for(architecture: str, log_n: int) -> tuple[bytes, str]:
    """Return the machine code and what the assembler says."""
    try:
        program = checked(
            nvrtc.nvrtcCreateProgram(sources.text().encode(), b"kernels.cu", 0, None, None)
        )
    except RuntimeError as e:  # the library itself is missing
        pytest.skip(str(e))
    options = [
        *(o.replace("-std", "--std").encode() for o in OPTIONS),
        f"-DLOG_N={log_n}".encode(),
        f"--gpu-architecture={architecture}".encode(),
        b"--ptxas-options=-v",
    ]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    log = b" " * checked(nvrtc.nvrtcGetProgramLogSize(program))
    checked(nvrtc.nvrtcGetProgramLog(program, log))
    assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, code))
    checked(nvrtc.nvrtcDestroyProgram(program))
    return code, log.decode()


def usage(log: str) -> dict[str, tuple[int, int, int]]:
    """Kernel -> registers, bytes of shared memory, bytes spilled, from the assembler's report."""
    found = {}
    for name, rest in re.findall(
        r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry|\Z)", log, re.DOTALL
    ):
        registers = re.search(r"Used (\d+) registers", rest)
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = re.findall(r"(\d+) bytes spill", rest)
        assert registers
        found[name] = (
            int(registers[1]),
            int(shared[1]) if shared else 0,
            sum(int(s) for s in spills),
        )
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_and_fits(architecture: str) -> None:
    _, log = compile_for(architecture, 16)
    found = usage(log)
    assert found.keys() == sources.kernels().keys(), log
    for name, (registers, shared, spilled) in found.items():
        assert spilled <= MAX_SPILLED, f"{name}: {spilled} bytes"
        assert registers * sources.threads(name, 16) <= MAX_REGISTERS, name
        assert shared <= 48 << 10, name


def instructions(code: bytes) -> dict[str, int]:
    """Kernel -> 16-byte instructions of its section of the machine code, an ELF file."""
    assert code[:5] == b"\x7fELF\x02"
    (table,) = struct.unpack_from("<Q", code, 40)
    each, count, names = struct.unpack_from("<3H", code, 58)
    headers = [struct.unpack_from("<2I4Q", code, table + each * i) for i in range(count)]
    first = headers[names][4]
    found = {}
    for name, _, _, _, _, size in headers:
        text = code[first + name : code.index(b"\0", first + name)].decode()
        if text.startswith(".text."):
            found[text.removeprefix(".text.")] = size // 16
    return found


def test_loops_over_registers_are_unrolled() -> None:
    """As `benchmarks.gpu_model` counts them; a loop over registers picks them by moves."""
    code, _ = compile_for("sm_90", 16)
    found = instructions(code)
    assert found.keys() == sources.kernels().keys()
    limits = {
        "ntt_rows": 600,
        "ntt_tails": 740,
        "intt_rows": 700,
        "intt_tails": 880,
        "ntt_tails_inner": 1260,
        "ntt_tails_divide": 1950,
        "ntt_tails_divide_products": 3600,
        "add": 70,
        "tensor": 250,
        "inner_products": 1000,
        "convert": 720,
        "gemm": 1300,
        "gemm_thin": 700,
        "contract": 800,
    }
    assert {k: v for k, v in found.items() if v > limits.get(k, 2000)} == {}


@pytest.mark.parametrize("log_n", [10, 11, 15, 17])
def test_kernels_compile_for_other_degrees(log_n: int) -> None:
    code, log = compile_for("sm_90", log_n)
    assert code
    assert all(spilled <= MAX_SPILLED for _, _, spilled in usage(log).values()), log
