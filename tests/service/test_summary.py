"""What is said of stages, parameters and refreshes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aegis_dask.circuits.operators import layer_of, operator_of
from aegis_dask.ckks.bootstrapping.parameters import (
    BOOTSTRAPPING_PRESETS,
    BootstrappingParameters,
)
from aegis_dask.models.checkpoint import shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.service.job import Job, make_job
from aegis_dask.service.sources import assumed_calibration
from aegis_dask.service.summary import describe_job, describe_parameters
from aegis_dask.terminal import parameter_lines
from tests.service.conftest import CONFIG

PARAMS = BootstrappingParameters.preset("insecure-n11-d40-b13")


@pytest.fixture(scope="module")
def job() -> Job:
    model = shape_only(CONFIG)
    return make_job(model, assumed_calibration(model), load_graph("bert_layer"), 20, params=PARAMS)


@pytest.mark.parametrize(
    ("stage", "operator"),
    [
        ("layer0/mean-sum", "LayerNorm: centring"),
        ("layer0/feed-forward/centre", "LayerNorm: centring"),
        ("layer3/attention-rotate", "rotations before linear layers"),
        ("layer0/feed-forward/rotate", "rotations before linear layers"),
        ("layer0/attention/query", "attention: query, key, value"),
        ("layer0/attention-1/value", "attention: query, key, value"),
        ("layer0/attention/query-2", "attention: query, key, value"),
        ("layer0/attention/query-lanes", "attention: rotations of query, key, value"),
        ("layer0/attention/query-turned-2", "attention: rotations of query, key, value"),
        ("layer0/attention-2/value-copies", "attention: rotations of query, key, value"),
        ("layer0/attention/key-steps", "attention: rotations of query, key, value"),
        ("layer0/attention/distance-lanes", "attention: fixed distances"),
        ("layer0/attention/distance-scores", "attention: fixed distances"),
        ("layer0/attention/group-12", "attention: scores, exp, weighted values"),
        ("layer0/attention/group-12-3", "attention: scores, exp, weighted values"),
        ("layer0/attention/denominator-2", "attention: division"),
        ("layer0/attention-heads", "attention: division"),
        ("layer0/output/project-2", "attention: output projection"),
        ("layer11/norm1/root-2", "LayerNorm: variance, root, scale"),
        ("layer0/feed-forward/gelu-2", "feed-forward: up, GELU"),
        ("layer0/feed-forward/project", "feed-forward: down"),
        ("layer0/attention/denominator-refresh", "bootstrapping"),
        ("layer0/norm1/root-2-refresh", "bootstrapping"),
        ("square-refresh", "bootstrapping"),
        ("square-2", "square"),
        ("mine7-2", "mine"),
        ("mine", "mine"),
    ],
)
def test_stages_belong_to_operators(stage: str, operator: str) -> None:
    assert operator_of(stage) == operator


def test_no_stage_of_a_layer_is_without_an_operator(job: Job) -> None:
    named = {operator_of(s.name) for s in job.program.stages if layer_of(s.name)}
    assert {n for n in named if n != "bootstrapping" and ": " not in n} == {
        "rotations before linear layers"
    }


def test_a_stage_knows_its_layer() -> None:
    assert layer_of("layer12/norm1/root") == "layer12"
    assert layer_of("input-x") == ""


def test_a_job_tells_its_refreshes(job: Job) -> None:
    assert job.placement is not None
    told = describe_job(job, 20)
    assert told["parameters"]["name"] == PARAMS.params.name
    assert told["bootstrapping"] == {
        "bootstraps": job.placement.bootstraps,
        "sites": len(job.placement.sites),
        "input_level": 3,
        "output_level": 16,
        "usable_levels": 13,
    }


def test_parameters_are_told_with_and_without_refreshes(job: Job) -> None:
    assert job.placement is not None
    lines = parameter_lines(PARAMS.params, job.placement)
    assert lines["levels"] == "13 between refreshes, from 16 down to 3, scale 2^40"
    assert lines["bootstraps"] == f"{job.placement.bootstraps}, at {len(job.placement.sites)} sites"
    assert lines["security"] == "NONE (insecure)"
    literal = replace(BOOTSTRAPPING_PRESETS["n16-d40-b13"], sparse_weight=1, insecure=True)
    weak = BootstrappingParameters.from_literal(literal)  # its scheme alone would be secure
    assert parameter_lines(weak)["security"] == "NONE (insecure)"
    assert describe_parameters(weak)["security_bits"] is None
    assert describe_parameters(weak.params)["security_bits"] == 128
    assert "bootstraps" not in parameter_lines(PARAMS.params)
