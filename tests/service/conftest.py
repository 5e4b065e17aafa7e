"""A tiny model on disk with its calibration, a cluster, and keys: each made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from typer.testing import CliRunner, Result

from aegis_dask.cli import app
from aegis_dask.models.checkpoint import BertConfig, BertModel, load_bert, random_bert
from aegis_dask.runtime.cluster import LOCAL_CONFIG
from tests.models.folders import WORDS, write_folder

CONFIG = BertConfig(1, 32, 4, 64, max_positions=40, vocabulary=len(WORDS))
TEXT = "the cat sat on a mat . a mat sat on the cat ."
TOLERANCE = 2e-3
"""The polynomials are fitted to 1e-3, and LayerNorm weights are below 1."""


def aegis(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def json_of(*arguments: str | Path) -> dict[str, Any]:
    """Run a command that must succeed, and parse the one object that it prints."""
    result = aegis(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail by a mistake of the user, and return its message."""
    result = aegis(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr[result.stderr.index("error: ") + 7 :].split())


def random_texts(count: int = 200) -> list[str]:
    rng = np.random.default_rng(3)
    return [" ".join(rng.choice(WORDS[4:], rng.integers(1, 30))) for _ in range(count)]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny BERT with one layer, calibrated on random texts of its words."""
    root = tmp_path_factory.mktemp("checkpoint")
    folder = write_folder(root / "tiny", random_bert(CONFIG, 5))
    texts = root / "texts.txt"
    texts.write_text("\n".join(random_texts()), encoding="utf-8")
    result = aegis("calibrate", "--model", folder, "--text-file", texts)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> BertModel:
    return load_bert(checkpoint)


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a cluster of two worker processes."""
    import dask.config

    with (
        dask.config.set(LOCAL_CONFIG),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
        ) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def keys(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``aegis keys`` makes for feed_forward: the folder of client and bundle."""
    out = tmp_path_factory.mktemp("keys") / "new"
    result = aegis("keys", "feed_forward", "--model", checkpoint, "--insecure", "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def request_folder(checkpoint: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``aegis encrypt`` makes of `TEXT`."""
    out = tmp_path_factory.mktemp("request") / "new"
    client = keys / "client"
    result = aegis(
        "encrypt", "--model", checkpoint, "--client", client, "--text", TEXT, "--out", out
    )
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def graph_file(tmp_path: Path) -> Callable[[str], Path]:
    """Source -> a graph file that holds it."""

    def write(source: str) -> Path:
        path = tmp_path / "own.py"
        path.write_text(source, encoding="utf-8")
        return path

    return write
