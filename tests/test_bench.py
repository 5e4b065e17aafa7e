"""The benchmark on a small ring, and how the command answers mistakes."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aegis_dask import bench
from aegis_dask.ckks.parameters import PRESETS
from aegis_dask.cli import app
from aegis_dask.ring.threads import get_threads, max_threads, set_threads

PRESET = "insecure-n12-d40"  # the smallest with room for a product by runs of 128 slots


def aegis_bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", *arguments])


def json_of(*arguments: str) -> dict[str, Any]:
    result = aegis_bench("--preset", PRESET, "--json", *arguments)
    assert result.exit_code == 0, result.output
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


@pytest.fixture
def restored_threads():
    before = get_threads()
    yield
    set_threads(before)


def test_every_operation_has_its_row_and_the_tables_say_what_matters() -> None:
    result = aegis_bench("--preset", PRESET)
    assert result.exit_code == 0, result.output
    for text in (
        "13 -> 9",  # a polynomial of degree 15: four levels
        "13 -> 13",  # a rotation: none
        "13 -> 12",  # a matrix: one
        "13 -> 8",  # the three in sequence
        "none (insecure)",
        "without the secret key",
        "peak memory",
    ):
        assert text in " ".join(result.stdout.split())


def test_an_insecure_preset_is_announced_on_stderr() -> None:
    result = aegis_bench("--preset", PRESET)
    assert "warning" in result.stderr
    assert "insecure" in result.stderr


def test_json_is_one_object_with_a_precision_per_operation() -> None:
    report = json_of("--seed", "7")
    assert report["passed"] is True
    assert report["parameters"]["preset"] == PRESET
    assert report["parameters"]["security_bits"] is None
    levels = [(op["level_before"], op["level_after"]) for op in report["operations"]]
    assert levels == [(None, 13), (13, 9), (13, 13), (13, 12), (13, 8)]
    for op in report["operations"]:
        assert op["worst_bits"] >= 20
        assert op["mean_bits"] > op["worst_bits"]
        assert op["milliseconds"] > 0


def test_a_seed_repeats_the_values_and_not_the_noise() -> None:
    runs = [json_of("--seed", "7")["operations"] for _ in range(2)]
    # Equal keys and equal encryption errors would leave equal decryption errors.
    assert [op["mean_bits"] for op in runs[0]] != [op["mean_bits"] for op in runs[1]]


def test_too_little_precision_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MIN_PRECISION_BITS", 60.0)
    result = aegis_bench("--preset", PRESET)
    assert result.exit_code == 1
    assert "less than 60 bits" in result.stdout


def test_threads_are_those_asked_for(restored_threads: None) -> None:
    assert json_of("--threads", "1")["threads"] == 1


def test_more_threads_than_there_are_is_a_user_error() -> None:
    result = aegis_bench("--preset", PRESET, "--threads", str(max_threads() + 1))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert f"1 to {max_threads()}" in result.stderr


def test_an_unknown_preset_is_a_user_error_that_lists_the_known_ones() -> None:
    result = aegis_bench("--preset", "n99")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'n99'" in result.stderr
    assert all(name in result.stderr for name in PRESETS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--threads", "0"),
        ("--threads", "two"),
        ("--seed", "x"),
        ("--preset",),
        ("--no-such-option",),
        ("stray",),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments: tuple[str, ...]) -> None:
    result = aegis_bench(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr
