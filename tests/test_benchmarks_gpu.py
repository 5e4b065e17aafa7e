"""The command for GPU machines, on the emulated one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_dask.ring.cuda_backend import sources
from benchmarks import gpu
from benchmarks.claims import Options
from benchmarks.claims import gpu as gpu_claims
from tests.cuda.moving import emulation
from tests.emulation.device import needs_compiler


@needs_compiler
def test_sections_compare_with_the_cpu_and_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "device_info", lambda: {"name": "an emulation"})
    arguments = ["--small", "--json", str(path), "--only", "kernels", "operations", "bootstrap"]
    with emulation():
        assert gpu.main(arguments) == 0
        shown = capsys.readouterr()
        assert "kept from" not in shown.err
        assert gpu.main(arguments) == 0
        assert capsys.readouterr().err.count("kept from") == 3
        run = json.loads(path.read_text())
        run["sections"]["operations"]["records"][0]["equal"] = False  # to be looked at again
        run["sections"]["bootstrap"]["code"] = "before a change"
        path.write_text(json.dumps(run))
        assert gpu.main(arguments) == 0
        assert capsys.readouterr().err.count("kept from") == 1
    run = json.loads(path.read_text())
    records = [r for s in run["sections"].values() for r in s["records"]]
    assert len(records) > 20
    assert all(r["equal"] is not False for r in records)
    switch = next(r for r in records if r["name"] == "key switch")
    assert switch["equal"]
    assert 10 <= switch["launches"] <= 16
    assert "| key switch" in shown.out


def test_the_cpu_runs_a_layer_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.main(["--small", "--only", "layer-128"]) == 0
    assert "12 layers at this rate" in capsys.readouterr().out


def test_a_difference_fails_the_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(section: gpu.sections.Section, small: bool) -> None:
        section.records.append(gpu.sections.Record("ntt", 1.0, equal=False))

    def broken(section: gpu.sections.Section, small: bool) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(gpu, "SECTIONS", {"kernels": wrong, "bootstrap": broken})
    assert gpu.main(["--small", "--all"]) == 1
    shown = capsys.readouterr().out
    assert "**NO**" in shown
    assert "**Failed**: ValueError: no such thing" in shown


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.backend_name() == "cuda":
        pytest.skip("there is a GPU")
    assert gpu.main(["--all"]) == 2
    assert "a GPU and CuPy are needed (docs/gpu.md)" in capsys.readouterr().err


def test_every_kernel_is_in_the_table_of_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "gpu.md").read_text()
    assert all(f"`{unit}`" in page for unit in sources.UNITS)


def run_with(**records: list[dict[str, object]]) -> object:
    """Stand in for `gpu.measure`: sections with these records."""
    return lambda name, *_: {"records": records[name.replace("-", "_")], "error": ""}


def record(name: str, seconds: float, **more: object) -> dict[str, object]:
    return {"name": name, "seconds": seconds, "equal": True, "note": "", "figures": {}, **more}


def test_claims_read_the_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = record(
        "layer of width 768, 2048 tokens",
        21.0,
        equal=None,
        figures={"median_task_seconds": 0.06, "dask_share": 0.01},
    )
    measure = run_with(
        kernels=[record("copy", 1e-3, bytes=4e9), record("ntt of 60 limbs", 3e-5, bytes=6e7)],
        operations=[record("rotate", 1e-4), record("multiply, relinearise, rescale", 3e-4)],
        layer_2048=[layer],
    )
    monkeypatch.setattr(gpu, "device_info", lambda: {"name": "a GPU", "cuda": 13000})
    monkeypatch.setattr(gpu, "measure", measure)
    claims = {c.name: c for c in gpu_claims.claims(Options())}
    wanted = {
        "gpu-ntt": (2.0, True),
        "gpu-rotate": (100.0, True),
        "gpu-multiply": (300.0, False),
        "gpu-operations-equal": (2, True),
        "gpu-layer-2048": (21.0, False),
        "gpu-median-task": (60.0, True),
        "gpu-dask-share": (0.01, True),
    }
    for name, (value, holds) in wanted.items():
        finding = claims[name].measure()
        assert finding.value == pytest.approx(value), name
        assert claims[name].holds(finding) is holds, name


def test_a_pretended_gpu_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended = {"name": "Pretended GPU 0", "is_pretended": True, "cuda": 13000}
    monkeypatch.setattr(gpu, "device_info", lambda: pretended)
    claim = next(c for c in gpu_claims.claims(Options()) if c.name == "gpu-rotate")
    with pytest.raises(RuntimeError, match="not measured: Pretended GPU 0"):
        claim.measure()
    assert gpu.main(["--all"]) == 2
    assert "are those of an emulation" in capsys.readouterr().err


def test_claims_about_a_gpu_are_missed_without_one() -> None:
    claim = next(c for c in gpu_claims.claims(Options()) if c.name == "gpu-rotate")
    with pytest.raises(RuntimeError, match="not measured: no GPU"):
        claim.measure()
    assert all(c.slow for c in gpu_claims.claims(Options()) if c.name.startswith("gpu-"))
