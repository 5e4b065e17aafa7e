"""The table of shapes and scale."""

from __future__ import annotations

import pytest

from benchmarks.scaling import main


@pytest.mark.slow
def test_a_row_for_every_shape_and_length(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shapes", "bert-tiny", "--tokens", "32,64", "--devices", "1,2"]
    assert main([*arguments, "--machine", "h200-pcie"]) == 0
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith("| bert-tiny")]
    assert [row.split("|")[2].strip() for row in rows] == ["32", "64"]
    assert "GB, 1 / 2" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "bert-huge"], "no shapes bert-huge"),
        (["--tokens", "many"], "are numbers"),
        (["--devices", "0"], "are positive"),
    ],
)
def test_mistakes_are_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
