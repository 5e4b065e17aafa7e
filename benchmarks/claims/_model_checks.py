"""The secure demonstration, and a whole model encrypted end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.claims import Claim, Finding
from benchmarks.claims._layer_checks import demo
from benchmarks.claims._processes import ROOT, passing

_RECORD = Path("benchmarks/results/model.json")
_GIB = 2**30


@cache
def _model() -> dict[str, Any]:
    """Run `python -m benchmarks.model` and return its record."""
    subprocess.run([sys.executable, "-m", "benchmarks.model"], cwd=ROOT, check=True, timeout=3600)
    record: dict[str, Any] = json.loads((ROOT / _RECORD).read_text())
    return record


Record = dict[str, Any]


def _claim(
    source: Callable[[], Record],
    name: str,
    target: str,
    unit: str,
    value: Callable[[Record], float],
    note: Callable[[Record], str] = lambda r: "",
) -> Claim:
    def measure() -> Finding:
        record = source()
        return Finding(value(record), note(record))

    return Claim(name, target, unit, measure, slow=True)


def _demo(name: str, target: str, unit: str, value: Callable[[Record], float]) -> Claim:
    return _claim(
        lambda: demo("--workers", "2"), name, target, unit, value, lambda r: str(r["parameters"])
    )


def _layers(
    name: str,
    target: str,
    unit: str,
    value: Callable[[Record], float],
    note: Callable[[Record], str] = lambda r: "",
) -> Claim:
    return _claim(_model, name, target, unit, value, note)


def claims() -> list[Claim]:
    """Claims of the secure demo, then of six layers end to end; all take minutes."""
    return [
        _demo(
            "demo-secure",
            ">= 128",
            "bits of security",
            lambda r: r["parameters"]["security_bits"] or 0,
        ),
        _demo("demo-secure-tokens", ">= 32", "tokens", lambda r: r["tokens"]),
        _demo(
            "demo-secure-seconds",
            "< 360",
            "s, kernels compiled anew",
            lambda r: round(r["seconds_in_all"], 1),
        ),
        _demo(
            "demo-secure-max-error",
            "<= 1e-2",
            "of layer outputs",
            lambda r: r["precision"]["max_error"],
        ),
        _layers(
            "six-layers-secure",
            ">= 128",
            "bits of security",
            lambda r: r["parameters"]["security_bits"] or 0,
            lambda r: (
                f"{r['layers']} layers, {r['tokens']} tokens, {len(r['run']['workers'])} "
                f"workers, {r['parameters']['name']}"
            ),
        ),
        _layers("six-layers-tokens", ">= 128", "tokens", lambda r: r["tokens"]),
        _layers(
            "six-layers-minutes",
            "< 40",
            "min, calibration and keys included",
            lambda r: round(r["total_seconds"] / 60, 2),
            lambda r: f"evaluation {r['run']['seconds']:.0f} s",
        ),
        _layers(
            "six-layers-cosine",
            ">= 0.99",
            "to the sentence embedding in float64",
            lambda r: round(r["cosine"], 7),
        ),
        _layers(
            "six-layers-memory",
            "< 16",
            "GiB, whole host, shared pages once",
            lambda r: round(r["host_peak_bytes"] / _GIB, 2),
            lambda r: f"keys {r['evaluation_key_bytes'] / _GIB:.2f} GiB of it",
        ),
        _layers(
            "fewer-bootstraps-than-eager",
            ">= 2",
            "times",
            lambda r: round(r["bootstraps"]["eager"]["same_limits"] / r["bootstraps"]["total"], 2),
            lambda r: f"{r['bootstraps']}",
        ),
        passing(
            "values-out-of-range",
            "tests/models/test_calibration.py",
            "-k",
            "a_text_outside or too_large_to_be_refreshed",
        ),
    ]
