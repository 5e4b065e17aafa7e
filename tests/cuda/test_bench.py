"""`aegis bench` on a GPU: what is timed has been done, and it is said what computed."""

from __future__ import annotations

import pytest

from aegis_dask import bench
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.runtime.calibrate import kernel_speed
from tests.cuda.moving import emulation
from tests.emulation.device import EmulatedDevice, needs_compiler

pytestmark = needs_compiler


class Lazy:
    """Counts launches that nobody has waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting = 0
        launch = EmulatedDevice.launch

        def launched(device: EmulatedDevice, *arguments: object) -> None:
            self.waiting += 1
            launch(device, *arguments)  # type: ignore[arg-type]

        def synchronize(device: EmulatedDevice) -> None:
            self.waiting = 0

        monkeypatch.setattr(EmulatedDevice, "launch", launched)
        monkeypatch.setattr(EmulatedDevice, "synchronize", synchronize)


def test_times_are_of_finished_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lazy = Lazy(monkeypatch)
    at_readings: list[int] = []
    clock = bench.perf_counter

    def read() -> float:
        at_readings.append(lazy.waiting)
        return clock()

    monkeypatch.setattr(bench, "perf_counter", read)
    with emulation():
        params = Parameters.preset("insecure-n10-d40")
        report = bench.measure(params, 16, bench.np.random.default_rng())
        assert report.passed
        assert sum(at_readings[1:-1]) == 0
        bench._print_tables(report, 0.0)
    assert "computed on" in capsys.readouterr().out


def test_the_speed_of_a_gpu_is_that_of_finished_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = Lazy(monkeypatch)
    monkeypatch.setattr("aegis_dask.runtime.calibrate.PRESET", "insecure-n10-d40")
    monkeypatch.setattr("aegis_dask.runtime.calibrate.REPEATS", 1)
    with emulation():
        assert 0 < kernel_speed() < 1  # an emulation is slow
    assert lazy.waiting == 0
