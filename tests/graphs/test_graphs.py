"""The graphs that come with the library: they load, and compute what their reference says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.errors import ProgramError
from aegis_dask.models import reference as plain
from aegis_dask.models.calibration import Calibration, calibrate
from aegis_dask.models.checkpoint import BertConfig, BertModel, random_bert
from aegis_dask.models.graphs import graph_names, load_graph
from aegis_dask.models.text import embed
from aegis_dask.service.job import make_job

CONFIG = BertConfig(2, 16, 2, 32, max_positions=32, vocabulary=40)


@pytest.fixture(scope="module")
def calibrated() -> tuple[BertModel, Calibration]:
    model, rng = random_bert(CONFIG, 2), np.random.default_rng(4)
    texts = [rng.integers(0, 40, rng.integers(2, 33)) for _ in range(120)]
    return model, calibrate(model, texts)


def test_the_graphs_of_the_library_are_found_by_name_and_by_path() -> None:
    names = graph_names()
    assert names == ["bert_layer", "bert_model", "feed_forward", "self_attention"]
    for name in names:
        assert load_graph(name).name == name
        assert load_graph(f"graphs/{name}.py").name == name


@pytest.mark.parametrize("name", graph_names())
@pytest.mark.parametrize("length", [17, 32])
def test_a_graph_computes_what_its_reference_says(
    name: str, length: int, calibrated: tuple[BertModel, Calibration]
) -> None:
    model, calibration = calibrated
    job = make_job(model, calibration, load_graph(name), length, encrypted=False)
    ids = np.random.default_rng(length).integers(0, 40, length)
    x = job.input_of(embed(model, ids)[0])
    simulated, largest = job.simulate(x)
    expected = job.reference(x)
    assert largest <= 1
    assert expected is not None
    # Polynomials are fitted to 1e-3; a second layer passes on the error of the first.
    assert np.abs(simulated - expected).max() < 5e-3 * len(job.layers)


def test_the_two_halves_make_the_layer(calibrated: tuple[BertModel, Calibration]) -> None:
    model, calibration = calibrated
    x, valid = embed(model, np.arange(20))
    halves = [
        make_job(model, calibration, load_graph(name), 20, encrypted=False)
        for name in ("self_attention", "feed_forward")
    ]
    middle = halves[0].reference(x)
    assert middle is not None
    np.testing.assert_allclose(halves[1].input_of(x), middle, atol=1e-12)
    whole = plain.layer(model.layers[0], x, valid, CONFIG.heads)
    np.testing.assert_allclose(halves[1].reference(middle), whole, atol=1e-12)


@pytest.fixture
def graph(tmp_path: Path) -> Callable[[str], Path]:
    def write(source: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(source)
        return path

    return write


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def program(", r"mine.py cannot be loaded: SyntaxError: .*line 1"),
        ("\n1 / 0\n", r"cannot be loaded \(line 2\): ZeroDivisionError"),
        ("x = 1", r"does not define program\(x, layers\)"),
        ("program = 1", r"does not define program\(x, layers\)"),
        ("def program(x, layers): ...\nlayers = True", "layers is True"),
        ("def program(x, layers): ...\nprepare = 1", "prepare is 1"),
    ],
)
def test_a_file_that_is_no_graph_is_refused(
    source: str, message: str, graph: Callable[[str], Path]
) -> None:
    with pytest.raises(ProgramError, match=message):
        load_graph(graph(source))


def test_a_missing_graph_is_refused_with_the_names_that_there_are() -> None:
    for name in ("nothing", "graphs/nothing.py", "/nowhere/at/all.py"):
        with pytest.raises(ProgramError, match=r"there is no graph .*bert_layer, bert_model"):
            load_graph(name)


def test_functions_of_a_graph_that_fail_are_named(
    graph: Callable[[str], Path], calibrated: tuple[BertModel, Calibration]
) -> None:
    path = graph(
        "layers = 1\n"
        "def program(x, layers):\n    return x\n"
        "def prepare(model, x):\n    return x[1:]\n"
        "def reference(model, x):\n    return model.nothing\n"
    )
    job = make_job(*calibrated, load_graph(path), 20, encrypted=False)
    x = np.zeros((20, 16))
    with pytest.raises(ProgramError, match=r"prepare.* returns the shape \(19, 16\)"):
        job.input_of(x)
    with pytest.raises(ProgramError, match=r"reference.* of graph mine fails: AttributeError"):
        job.reference(x)
