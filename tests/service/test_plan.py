"""``aegis plan``: what a job would take, and where it is refreshed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.errors import LevelError, SerializationError
from aegis_dask.models.calibration import Calibration
from aegis_dask.models.checkpoint import BertModel, shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.service import plan
from aegis_dask.service.job import Job, make_job
from aegis_dask.service.plan import compare, describe_comparison, estimate, refreshes_of
from aegis_dask.service.refresh_plot import plot_levels
from aegis_dask.service.sources import assumed_calibration
from tests.service.conftest import CONFIG, aegis, json_of, refused

PARAMS = BootstrappingParameters.preset("insecure-n11-d40-b13")
LAYERS = 2


@pytest.fixture(scope="module")
def job() -> Job:
    """A job of a tiny model without weights, deep enough to be refreshed in every layer."""
    model = shape_only(replace(CONFIG, layers=LAYERS))
    return make_job(model, assumed_calibration(model), load_graph("bert_model"), 20, params=PARAMS)


@pytest.fixture(scope="module")
def shallow(model: BertModel, checkpoint: Path) -> Job:
    calibration = Calibration.load(checkpoint / "calibration.json")
    return make_job(model, calibration, load_graph("feed_forward"), 20, allow_insecure=True)


# -- counts ----------------------------------------------------------------------------------


def test_the_estimate_agrees_with_the_analysis(shallow: Job) -> None:
    counted, analysis = estimate(shallow), shallow.analysis
    assert counted.keys == shallow.keys
    assert counted.total.counts["rotations"] == analysis.total.counts["rotations"]
    assert counted.seconds == pytest.approx(analysis.total.seconds)
    assert (counted.refreshes, counted.bootstraps, counted.refresh_bytes) == ((), 0, 0)
    assert counted.memory_bytes(1) == counted.memory_bytes(8)


def test_bootstraps_are_counted_with_their_keys_time_and_memory(job: Job) -> None:
    counted = estimate(job)
    assert job.placement is not None
    assert counted.bootstraps == job.placement.bootstraps > 0
    assert counted.refreshed_ciphertexts == job.placement.unmerged
    assert counted.operators["bootstrapping"].counts["bootstraps"] == counted.bootstraps
    assert counted.operators["bootstrapping"].seconds > 0
    assert counted.keys.count > job.analysis.keys.count
    assert counted.memory_bytes(2) - counted.memory_bytes(1) == counted.refresh_bytes > 0


def test_every_refresh_is_listed_with_its_levels(job: Job) -> None:
    found, placement = refreshes_of(job.analysis), job.placement
    assert placement is not None
    assert [r.level for r in found] == [s.level for s in placement.sites]
    assert [r.bootstraps for r in found] == [s.bootstraps for s in placement.sites]
    for r, site in zip(found, placement.sites, strict=True):
        op = site.kind.operation
        assert r.level_after == PARAMS.output_level - (r.iterations > 1)
        assert (r.kind == "merged", r.divisor) == (op.merged, 1 << op.shrink)
        assert r.operation == placement.program.nodes[site.node].op.name
        assert r.users
    assert {r.layer for r in found} == {f"layer{i}" for i in range(LAYERS)}


def test_layers_add_up_to_the_whole(job: Job) -> None:
    counted = estimate(job)
    assert sum(counted.bootstraps_per_layer.values()) == counted.bootstraps
    assert list(counted.bootstraps_per_layer) == ["layer0", "layer1"]


# -- beside other placements -----------------------------------------------------------------


def test_eager_placement_takes_more_bootstraps(job: Job) -> None:
    assert job.placement is not None
    planned, *eager = compare(job.placement).values()
    assert planned is job.placement
    assert len(eager) == 2
    for other in eager:
        assert other is not None
        assert other.price > planned.price


def test_a_placement_that_gets_stuck_has_no_figures(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise LevelError("stuck")

    monkeypatch.setattr(plan, "eager", fail)
    assert job.placement is not None
    planned, *eager = describe_comparison(compare(job.placement))
    assert planned["bootstraps"] == job.placement.bootstraps
    assert [e["bootstraps"] for e in eager] == [None, None]


# -- the plot --------------------------------------------------------------------------------


def test_the_plot_is_one_page_that_needs_nothing_else(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "levels.html"
    path.write_text("old")
    plot_levels(job.analysis, path, "levels of <b>this</b>")
    page = path.read_text(encoding="utf-8")
    assert "levels of &lt;b&gt;this&lt;/b&gt;" in page
    assert "<script src" not in page
    assert "<link " not in page
    for r in refreshes_of(job.analysis):
        assert r.stage in page
        assert f"{r.kind}: " in page
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_that_cannot_be_written_leaves_nothing(job: Job, tmp_path: Path) -> None:
    with pytest.raises(SerializationError, match="cannot be written"):
        plot_levels(job.analysis, tmp_path / "no" / "levels.html", "")
    with pytest.raises(SerializationError, match=r"does not end in \.html"):
        plot_levels(job.analysis, tmp_path / "levels.svg", "")
    assert list(tmp_path.iterdir()) == []


# -- the command -----------------------------------------------------------------------------


def test_plan_counts_a_graph_with_parameters(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--insecure", "--length", "32")
    values = json_of(*options)
    assert values["calibrated"] is True
    assert values["parameters"]["security_bits"] is None
    assert values["bootstrapping"] is None
    assert values["depth"] <= values["parameters"]["levels"]
    total = values["total"]
    assert total["rotations"] == sum(o["rotations"] for o in values["operators"])
    assert min(total[k] for k in ("rotations", "conjugations", "plain_products", "products")) > 0
    assert total["key_switches"] >= total["rotations"] + total["conjugations"]
    result = aegis(*options, "--refreshes")
    assert "INSECURE" in result.stderr
    shown = " ".join(result.stdout.split())
    for word in (
        "rotations",
        "conjugations",
        "key switches",
        "evaluation keys",
        "ciphertexts in",
        "time",
        "Nothing is refreshed: the levels suffice.",
    ):
        assert word in shown


def test_plan_chooses_secure_parameters_and_shows_where_it_refreshes(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "levels.html"
    options = ("plan", "bert_layer", "--model", checkpoint, "--refreshes")
    values = json_of(*options, "--plot", path)
    assert values["parameters"]["name"] == "n16-d40-b13"
    assert values["parameters"]["security_bits"] == 128
    refreshes = values["refreshes"]
    assert sum(r["bootstraps"] for r in refreshes) == values["bootstraps"] > 0
    assert values["bootstraps"] == values["bootstrapping"]["bootstraps"]
    assert {r["layer"] for r in refreshes} == {"layer0"}
    assert values["bootstraps_per_layer"] == {"layer0": values["bootstraps"]}
    planned, *eager = values["placements"]
    assert planned["bootstraps"] == values["bootstraps"]
    assert all(e["bootstraps"] >= planned["bootstraps"] for e in eager)
    assert refreshes[0]["stage"] in path.read_text(encoding="utf-8")
    result = aegis(*options)
    shown = " ".join(result.stdout.split())
    for word in (
        "13 between refreshes, from 16 down to 3",
        "128 bits",
        "bootstrapping",
        f"{refreshes[0]['level']} -> {refreshes[0]['level_after']}",
        f"Bootstraps per layer: layer0 {values['bootstraps']}.",
        "minimum cut",
        "eager",
    ):
        assert word in shown
    assert "INSECURE" not in result.output


LONG = ("--shape", "bert-base", "--length", "2048")


def test_a_long_text_needs_no_weights_to_be_counted() -> None:
    values = json_of("plan", "bert_layer", *LONG)
    assert values["bootstraps_per_layer"]["layer0"] <= 100
    assert values["refreshed_ciphertexts"] <= 200
    assert values["parameters"]["security_bits"] == 128
    assert values["total"]["rotations"] > 5_000
    assert values["placements"] == []


@pytest.mark.slow
def test_twelve_layers_of_a_long_text_are_planned_within_a_minute() -> None:
    start = time.perf_counter()
    values = json_of("plan", "bert_model", *LONG)
    assert time.perf_counter() - start < 60
    assert len(values["bootstraps_per_layer"]) == 12
    assert max(values["bootstraps_per_layer"].values()) <= 100


def test_plan_refuses_what_no_secure_parameters_can_run(checkpoint: Path) -> None:
    options = ("plan", "bert_layer", "--model", checkpoint, "--scale-bits", "45")
    message = refused(*options)
    assert "graph bert_layer takes" in message
    assert "nor can those with bootstrapping run it. Take another scale" in message


def test_plan_refuses_shapes_and_lengths_that_there_are_not(checkpoint: Path) -> None:
    assert "choose one of bert-base" in refused("plan", "bert_layer", "--shape", "bert-huge")
    assert "positions for 40" in refused(
        "plan", "bert_layer", "--model", checkpoint, "--length", "41"
    )
    assert "--shape has no weights" in refused(
        "plan", "bert_layer", "--shape", "bert-base", "--model", checkpoint
    )
    assert "scales are 2^b for b in" in refused("plan", "bert_layer", "--scale-bits", "41")


def test_plan_refuses_plots_that_it_cannot_write_before_it_counts(tmp_path: Path) -> None:
    options = ("plan", "bert_layer", "--shape", "bert-huge", "--plot")
    message = refused(*options, tmp_path / "levels.png")
    assert "levels.png does not end in .html" in message
    assert "such as" in message
    assert "in a folder that exists" in refused(*options, tmp_path / "no" / "levels.html")
