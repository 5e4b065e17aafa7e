"""What the GPU backend must show: by emulation anywhere, by `benchmarks.gpu` where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import gpu
from benchmarks.claims import Claim, Finding, Options
from benchmarks.claims._processes import ROOT, passing, pytest, tests_of

_TESTS = "tests/cuda/"
_COMPARED = ("kernels", "operations", "bootstrap")
_SUITE = ("tests/ckks", "tests/program", "tests/circuits")
"""Tests of the CPU that can run on any backend."""
#: claim -> section, record, figure of it, factor to the unit, target, unit
_FIGURES: dict[str, tuple[str, str, str, float, str, str]] = {
    "rotate": ("operations", "rotate", "seconds", 1e6, "<= 200", "us"),
    "multiply": ("operations", "multiply, relinearise, rescale", "seconds", 1e6, "<= 200", "us"),
    "hoisted-8": ("operations", "8 hoisted rotations", "seconds", 1e6, "<= 700", "us"),
    "bootstrap": ("bootstrap", "bootstrap, complex slots", "seconds", 1e3, "<= 25", "ms"),
    "bootstrap-stretch": ("bootstrap", "bootstrap, complex slots", "seconds", 1e3, "<= 15", "ms"),
    "base-128": (
        *("layer-128", "layer of width 768, 128 tokens", "seconds", 12, "<= 12.2"),
        "s, 12 times a layer",
    ),
    "base-128-stretch": (
        *("layer-128", "layer of width 768, 128 tokens", "seconds", 12, "<= 8"),
        "s, 12 times a layer",
    ),
    "layer-2048": ("layer-2048", "layer of width 768, 2048 tokens", "seconds", 1, "<= 20", "s"),
    "base-2048": (
        *("layer-2048", "layer of width 768, 2048 tokens", "seconds", 12, "<= 240"),
        "s, 12 times a layer",
    ),
    "median-task": (
        *("layer-2048", "layer of width 768, 2048 tokens", "median_task_seconds", 1e3, ">= 50"),
        "ms, tasks of the layer of 2,048 tokens",
    ),
    "dask-share": (
        *("layer-2048", "layer of width 768, 2048 tokens", "dask_share", 1, "<= 0.02"),
        "of the time of the layer of 2,048 tokens",
    ),
}


PRETENDED = "scripts/pretended-gpu"


def _require_gpu() -> None:
    device = gpu.device_info()
    if "cuda" not in device or device.get("is_pretended"):
        raise RuntimeError(f"not measured: {device['name']}")


def _pretended_suite() -> Finding:
    """Run the tests of the CPU with the real CuPy on a pretended GPU."""
    command = ("python", "-m", "pytest", "-q", "--backend", "cuda", *_SUITE)
    return tests_of(str(ROOT / PRETENDED), *command)


def _pretended_sections() -> Finding:
    """Compare kernels, operations and bootstrapping at N = 2^16, with the real CuPy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gpu.json")
        command = ["python", "-m", "benchmarks.gpu", "--only", *_COMPARED, "--json", str(path)]
        done = subprocess.run([ROOT / PRETENDED, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
        sections = json.loads(path.read_text())["sections"].values()
    verdicts = [r["equal"] for s in sections for r in s["records"]]
    return Finding(verdicts.count(True), sound=done.returncode == 0 and False not in verdicts)


def _pretended_gpus(*command: str, **environment: str) -> str:
    """Run a command on two pretended GPUs; return what it prints."""
    done = subprocess.run(
        [ROOT / PRETENDED, *command],
        cwd=ROOT,
        env={**os.environ, "PRETENDED_GPUS": "2", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


_HALF_A_LAYER = ("aegis", "run", "feed_forward", "--text", "Any sentence.", "--insecure", "--json")


def _pretended_cluster() -> Finding:
    """Run half a layer on dask-cuda's cluster of two pretended GPUs."""
    report = json.loads(_pretended_gpus(*_HALF_A_LAYER, "--cluster", "cuda"))
    tasks = f"{report['run']['tasks']} tasks on two workers"
    return Finding(round(report["precision"]["worst_bits"], 1), tasks)


def _pretended_fault() -> Finding:
    """Run half a layer on a standing cluster, of whose two GPUs one fails."""
    name = f"claim-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        fault = Path(folder, "fault")
        fault.touch()
        up = ("aegis", "cluster", "up", name, "--workers", "2", "--gpus", "2")
        _pretended_gpus(*up, PRETENDED_FAULT=str(fault))
        try:
            report = json.loads(_pretended_gpus(*_HALF_A_LAYER, "--scheduler", f"@{name}"))
        finally:
            _pretended_gpus("aegis", "cluster", "down", name)
        has_failed = not fault.exists()
    bits = round(report["precision"]["worst_bits"], 1)
    note = f"taken up {report['run']['resumed']} times"
    return Finding(bits, note, sound=has_failed and report["run"]["resumed"] == 1)


def _suite() -> Finding:
    """Run the tests of the CPU on the GPU."""
    _require_gpu()
    return pytest("--backend", "cuda", *_SUITE)


class _Runs:
    """Sections of `benchmarks.gpu`, each run when first asked for."""

    def __init__(self) -> None:
        self._sections: dict[str, dict[str, Any]] = {}

    def section(self, name: str) -> dict[str, Any]:
        """Return a section.

        Raises
        ------
        RuntimeError
            If there is no GPU, or the section fails.
        """
        _require_gpu()
        if name not in self._sections:
            self._sections[name] = gpu.measure(name, False, lambda _: None)
        found = self._sections[name]
        if found["error"]:
            raise RuntimeError(found["error"])
        return found

    def figure(self, section: str, record: str, figure: str, factor: float) -> Finding:
        """Return a figure of a record."""
        found = next(r for r in self.section(section)["records"] if r["name"] == record)
        value = found[figure] if figure in found else found["figures"][figure]
        return Finding(round(value * factor, 4), found["note"], found["equal"] is not False)

    def equal(self, section: str) -> Finding:
        """Return how many results of a section are the CPU's; unsound if one is not."""
        verdicts = [r["equal"] for r in self.section(section)["records"]]
        return Finding(verdicts.count(True), sound=False not in verdicts)

    def transform(self) -> Finding:
        """Return the time of the transform over that of reading and writing its limbs twice."""
        records = self.section("kernels")["records"]
        copy = next(r for r in records if r["name"] == "copy")
        ntt = next(r for r in records if r["name"].startswith("ntt of"))
        floor = ntt["bytes"] / (copy["bytes"] / copy["seconds"])
        note = f"{ntt['name']}: {ntt['seconds'] * 1e6:.1f} us, floor {floor * 1e6:.1f} us"
        return Finding(round(ntt["seconds"] / floor, 3), note)


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    runs = _Runs()

    def on_gpu(name: str, target: str, unit: str, measure: Callable[[], Finding]) -> Claim:
        return Claim(f"gpu-{name}", target, unit, measure, slow=True)

    return [
        passing("emulated-kernels", _TESTS + "test_kernels.py"),
        passing("emulated-operations", _TESTS + "test_scheme.py", "-k", "operations"),
        passing("emulated-bootstrap", _TESTS + "test_scheme.py", "-k", "bootstrapping"),
        passing("emulated-layer", _TESTS + "test_layer.py"),
        passing("emulated-runs", _TESTS + "test_executor.py", _TESTS + "test_residency.py"),
        passing("emulated-suite", "--backend", "emulation", *_SUITE, slow=True),
        Claim(
            *("pretended-suite", ">= 1", "tests passed with the real CuPy, none failed"),
            *(_pretended_suite, f"{PRETENDED} python -m pytest --backend cuda {' '.join(_SUITE)}"),
            slow=True,
        ),
        Claim(
            *("pretended-2-16", ">= 1", "results at N = 2^16, all residues the CPU's"),
            _pretended_sections,
            f"{PRETENDED} python -m benchmarks.gpu --only {' '.join(_COMPARED)} --json FILE",
            slow=True,
        ),
        Claim(
            *("pretended-cluster", ">= 10", "bits at worst, on dask-cuda's workers"),
            _pretended_cluster,
            f"PRETENDED_GPUS=2 {PRETENDED} aegis run feed_forward --insecure --cluster cuda",
            slow=True,
        ),
        Claim(
            *("pretended-fault", ">= 10", "bits at worst, though one of two GPUs fails"),
            *(_pretended_fault, f"PRETENDED_FAULT=FILE {PRETENDED} aegis cluster up --gpus 2"),
            slow=True,
        ),
        passing("compiles", _TESTS + "test_compile.py"),
        passing("errors", _TESTS + "test_backend.py"),
        passing("transfers", _TESTS + "test_transfers.py"),
        *(
            on_gpu(f"{name}-equal", ">= 1", "results, all residues the CPU's", partial(
                runs.equal, name
            ))
            for name in _COMPARED
        ),
        on_gpu("suite", ">= 1", "tests passed, none failed", _suite),
        on_gpu("ntt", "<= 2", "x the time to move its limbs twice", runs.transform),
        *(
            on_gpu(name, target, unit, partial(runs.figure, section, record, figure, factor))
            for name, (section, record, figure, factor, target, unit) in _FIGURES.items()
        ),
    ]  # fmt: skip
