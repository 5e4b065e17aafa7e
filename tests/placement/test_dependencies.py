"""Dependencies of small programs by hand, and what holds for those of models."""

from __future__ import annotations

import json
from pathlib import Path

import networkx as nx
import pytest

from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ProgramError
from aegis_dask.models.checkpoint import named_config, shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.placement.dependencies import Dependencies, dependencies
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.symbolic import analyse
from aegis_dask.service.job import make_job
from aegis_dask.service.sources import assumed_calibration, first_layers


def found_in(build: object) -> Dependencies:
    params = Parameters.preset("insecure-n10-d40")
    return dependencies(analyse(capture(params.slots, build), params))  # type: ignore[arg-type]


def kinds(d: Dependencies) -> list[tuple[str, str, bool]]:
    return [(d.program.nodes[e.target].op.name, e.rows, e.rns) for e in d.edges]


def test_sums_of_two_arrays_are_local_and_products_couple_limbs() -> None:
    def build(c: Capture) -> None:
        x, y = c.input("x", (4,)), c.input("y", (4,))
        c.output("z", (x + y) * y)

    d = found_in(build)
    assert kinds(d) == [
        *[("add", "own", False)] * 2,
        *[("multiply", "own", True)] * 2,
    ]
    assert len(d.clusters) == 1  # everything can be divided by rows
    assert d.clusters[0].rows == 4
    assert d.between() == {}
    assert [[d.program.nodes[i].op.name for i in c.nodes] for c in d.separable] == [
        ["input", "input", "add"]
    ]


def test_a_sum_over_rows_and_what_all_rows_need_are_the_applications() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        c.output("z", x - x.sum())

    d = found_in(build)
    assert kinds(d) == [
        ("sum", "sum", False),
        ("subtract", "own", False),
        ("subtract", "all", False),
    ]
    assert [c.rows for c in d.clusters] == [4, 1]
    sizes = {(a, b): s for (a, b), s in d.between().items()}
    assert set(sizes) == {(0, 1), (1, 0)}
    assert sizes[0, 1] == 4 * sizes[1, 0]


def test_rotations_couple_limbs_and_not_ciphertexts() -> None:
    def build(c: Capture) -> None:
        c.output("y", c.input("x", (3,)).rotate(1))

    assert kinds(found_in(build)) == [("rotate", "own", True)]


@pytest.fixture(scope="module")
def layer() -> Dependencies:
    graph = load_graph("bert_layer")
    model = first_layers(shape_only(named_config("bert-base", 2048)), graph.layers)
    return dependencies(make_job(model, assumed_calibration(model), graph, 2048).analysis)


def test_every_value_is_in_one_cluster_and_edges_between_them_couple_ciphertexts(
    layer: Dependencies,
) -> None:
    members = sorted(i for c in layer.clusters for i in c.nodes)
    assert members == list(range(len(layer.program.nodes)))
    cluster = layer.cluster_of()
    for e in layer.edges:
        if cluster[e.source] != cluster[e.target]:
            assert e.kind == "application"
    assert sum(c.seconds for c in layer.clusters) == pytest.approx(layer.seconds)
    assert nx.number_weakly_connected_components(layer.graph()) == 1


def test_limbs_of_a_layer_are_coupled_nearly_everywhere(layer: Dependencies) -> None:
    assert 0 < layer.separable_share < 0.2
    assert set(layer.bytes_by_kind) == {"local", "rns", "application"}


def test_they_are_written_for_other_programs(layer: Dependencies, tmp_path: Path) -> None:
    layer.write(tmp_path / "layer.graphml")
    read = nx.read_graphml(tmp_path / "layer.graphml")
    assert len(read) == len(layer.clusters)
    layer.write(tmp_path / "layer.json")
    data = json.loads((tmp_path / "layer.json").read_text())
    assert len(data["edges"]) == len(layer.edges)
    with pytest.raises(ProgramError, match=r"must end in \.graphml or \.json"):
        layer.write(tmp_path / "layer.dot")
