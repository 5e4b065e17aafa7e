"""Check and measure the GPU backend: `python -m benchmarks.gpu --all`.

Sections run one after the other, and each is kept when it is done, so a run that was interrupted
goes on where it was, as long as the code is the same (``--fresh`` begins again). Every kernel and
operation is first compared with the CPU, all residues, with fresh random inputs. It needs CuPy and
a GPU; ``--small`` takes a small ring and works on any backend.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from aegis_dask.errors import BackendError
from aegis_dask.models.checkpoint import BertConfig
from aegis_dask.ring.registry import backend_name, device_memory, release_device
from benchmarks import _gpu_sections as sections
from benchmarks._measure import machine_info
from benchmarks._tables import table

RESULTS = Path("benchmarks/results/gpu.json")
_ROOT = Path(__file__).resolve().parents[1]

PRESET, SMALL = "n16-d40-b13", "insecure-n10-d40-b4"
BASE = BertConfig(1, 768, 12, 3072, max_positions=2048, vocabulary=1000)
TINY = BertConfig(1, 32, 4, 64, max_positions=64, vocabulary=11)
BATCH_SECONDS = 0.05
PRETENDED = "Pretended"
"""How the names of GPUs begin that are none (`tests/pretended`)."""


def _layer(tokens: int) -> Callable[[sections.Section, bool], None]:
    def run(section: sections.Section, small: bool) -> None:
        config, length = (TINY, 32) if small else (BASE, tokens)
        sections.layer(section, config, length, secure=not small)

    return run


SECTIONS: Mapping[str, Callable[[sections.Section, bool], None]] = {
    "kernels": lambda section, _: sections.kernels(section),
    "operations": lambda section, _: sections.operations(section),
    "bootstrap": lambda section, _: sections.bootstrap(section),
    "layer-128": _layer(128),
    "layer-2048": _layer(2048),
}


def device_info() -> dict[str, Any]:
    """Return name, memory and versions of the GPU, or what runs instead."""
    name = backend_name()
    if name != "cuda":
        return {"name": f"no GPU: backend {name}"}
    from aegis_dask.ring.cuda_backend.device import require_cupy

    cupy = require_cupy()
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    name = found["name"].decode()
    return {
        "name": name,
        "is_pretended": name.startswith(PRETENDED),
        "memory_bytes": int(found["totalGlobalMem"]),
        "l2_bytes": int(found["l2CacheSize"]),
        "multiprocessors": int(found["multiProcessorCount"]),
        "architecture": f"sm_{found['major']}{found['minor']}",
        "cuda": int(cupy.cuda.runtime.runtimeGetVersion()),
        "driver": int(cupy.cuda.runtime.driverGetVersion()),
        "cupy": cupy.__version__,
    }


@cache
def code() -> str:
    """Return a checksum of what is measured: there may be no commit, and uncommitted changes."""
    digest = hashlib.sha256()
    for folder in ("aegis_dask", "benchmarks"):
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_done(section: Mapping[str, Any] | None) -> bool:
    """Whether an earlier run has measured a section, of this code, and all was right."""
    return (
        section is not None
        and not section["error"]
        and section.get("code") == code()
        and all(r["equal"] is not False for r in section["records"])
    )


def measure(name: str, small: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run one section; what goes wrong is part of the result."""
    say(name)
    begin, error = time.perf_counter(), ""
    release_device()  # what the section before has left would count as taken by this one
    section = sections.Section(SMALL if small else PRESET, 0.0 if small else BATCH_SECONDS, say)
    try:
        SECTIONS[name](section, small)
    except Exception as e:
        error = f"{type(e).__name__}: {e}"
        say(f"  FAILED: {error}")
    return {
        "records": [r.to_dict() for r in section.records],
        "error": error,
        "seconds": round(time.perf_counter() - begin, 1),
        "pool_bytes": device_memory() or None,
        "code": code(),
        **{k: v for k, v in machine_info().items() if k in ("date", "commit")},
    }


def markdown(run: Mapping[str, Any]) -> str:
    """Return the run as tables."""
    device = run["device"]
    facts = [device["name"]]
    if "cuda" in device:
        facts += [
            f"{device['memory_bytes'] / 2**30:.0f} GiB",
            f"CUDA {device['cuda']}",
            f"driver {device['driver']}",
            f"CuPy {device['cupy']}",
        ]
    parts = [", ".join(facts) + "."]
    bandwidth = None
    for name, found in run["sections"].items():
        rows = []
        for r in found["records"]:
            rate = r["bytes"] / r["seconds"] if r["bytes"] else None
            if r["name"] == "copy":
                bandwidth = rate
            rows.append(
                [
                    r["name"],
                    _duration(r["seconds"]),
                    f"{rate / 1e9:.0f}" if rate else "-",
                    f"{rate / bandwidth:.0%}" if rate and bandwidth else "-",
                    str(r["launches"] or "-"),
                    {None: "-", True: "yes", False: "**NO**"}[r["equal"]],
                    r["note"] or "-",
                ]
            )
        header = ["", "time", "GB/s", "of a copy", "launches", "equal to the CPU", ""]
        pool = f", pool {found['pool_bytes'] / 1e9:.1f} GB" if found["pool_bytes"] else ""
        parts.append(
            f"### {name}\n\n{found['date']}, commit {found['commit']}, {found['seconds']} s{pool}."
        )
        if found["error"]:
            parts.append(f"**Failed**: {found['error']}")
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _stored(path: Path, device: Mapping[str, Any], fresh: bool) -> dict[str, Any]:
    """Return what an earlier run on this device has left."""
    if not fresh and path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["device"] == device:
            return found
    return {"device": dict(device), "sections": {}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run sections; 1 if one failed or a result differs from the CPU's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--all", action="store_true", help="all sections")
    chosen.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    parser.add_argument("--small", action="store_true", help="a small ring, to try the command")
    parser.add_argument("--json", type=Path, help=f"the records; {RESULTS}, none with --small")
    args = parser.parse_args(argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        device = device_info()
        if not args.small and "cuda" not in device:
            raise BackendError(
                f"{device['name']}; a GPU and CuPy are needed (docs/gpu.md), or --small to try"
            )
        if device.get("is_pretended") and not (args.small or args.json):
            raise BackendError(
                f"{device['name']}: its times are those of an emulation, and are not kept with "
                "those of GPUs; give them a file with --json"
            )
    except BackendError as e:
        say(f"error: {e}")
        return 2
    path = args.json or (None if args.small else _ROOT / RESULTS)
    run = _stored(path or Path("/nonexistent"), device, args.fresh)
    for name in args.only or SECTIONS:
        before = run["sections"].get(name)
        if _is_done(before):
            say(f"{name}: kept from {before['date']}")
            continue
        run["sections"][name] = measure(name, args.small, say)
        if path is not None:  # after every section: nothing is lost
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(run, indent=1) + "\n")
    print(markdown(run))
    failed = any(
        s["error"] or any(r["equal"] is False for r in s["records"])
        for s in run["sections"].values()
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
