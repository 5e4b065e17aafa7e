"""The command for GPU machines, on the emulated one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis_dask.ring.cuda_backend import sources
from benchmarks import gpu
from tests.cuda.moving import emulation
from tests.emulation.device import COMPILER

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for the emulation")


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
