"""Jobs: what client and server agree on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.parameters import (
    BOOTSTRAPPING_PRESETS,
    BootstrappingParameters,
)
from aegis_dask.errors import (
    InsecureParametersError,
    ParameterError,
    ProgramError,
    RangeError,
    SerializationError,
    TextError,
)
from aegis_dask.models.calibration import Calibration, typical_calibration
from aegis_dask.models.checkpoint import BertConfig, BertModel, random_bert, shape_only
from aegis_dask.models.graphs import load_graph
from aegis_dask.service import local
from aegis_dask.service.job import Job, make_job, read_job
from aegis_dask.service.sources import cut, first_layers
from tests.service.conftest import CONFIG


@pytest.fixture(scope="module")
def calibration(checkpoint: Path) -> Calibration:
    return Calibration.load(checkpoint / "calibration.json")


@pytest.fixture(scope="module")
def job(model: BertModel, calibration: Calibration) -> Job:
    return make_job(model, calibration, load_graph("feed_forward"), 20, allow_insecure=True)


def test_a_job_is_rebuilt_from_what_it_writes(job: Job, model: BertModel) -> None:
    rebuilt = read_job(job.to_dict(), model, load_graph("feed_forward"), allow_insecure=True)
    assert rebuilt.fingerprint == job.fingerprint
    assert rebuilt.params == job.params
    assert (rebuilt.packing.tokens, rebuilt.packing.length) == (32, 32)
    assert rebuilt.for_length(20).program.depth == job.program.depth
    assert rebuilt.analysis.keys.rotations == job.analysis.keys.rotations


def test_every_length_of_text_needs_the_same_keys(job: Job) -> None:
    keys = [job.for_length(n).analysis.keys for n in (1, 2, 19, 31, 32)]
    assert all(k.rotations == keys[0].rotations for k in keys)
    assert len({(k.conjugation, k.relinearisation) for k in keys}) == 1
    with pytest.raises(TextError, match="33 tokens, keys and parameters are for 32"):
        job.for_length(33)


def test_a_graph_of_the_same_name_that_computes_something_else_is_noticed(
    job: Job, model: BertModel, tmp_path: Path
) -> None:
    source = (Path(__file__).parents[2] / "graphs" / "feed_forward.py").read_text()
    other = tmp_path / "feed_forward.py"
    once = "feed_forward_block(x, layers[0])"
    other.write_text(source.replace(once, f"feed_forward_block({once}, layers[0])"))
    with pytest.raises(ParameterError, match="the job differs from what it was made for"):
        read_job(job.to_dict(), model, load_graph(other), allow_insecure=True)


def test_another_model_is_noticed(job: Job) -> None:
    data = job.to_dict()
    with pytest.raises(ParameterError, match="is for the model 'tiny'"):
        read_job(data, random_bert(CONFIG, 6), load_graph("feed_forward"), allow_insecure=True)
    with pytest.raises(ParameterError, match="'feed_forward', this is 'bert_layer'"):
        read_job(data, job.model, load_graph("bert_layer"), allow_insecure=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("parameters"),
        lambda d: d["parameters"].update(log_n="10"),
        lambda d: d["parameters"].update(log_n=40),
        lambda d: d["parameters"].update(more=1),
        lambda d: d["parameters"].update(level_bits=None),
        lambda d: d["calibration"].update(layers=[{}]),
        lambda d: d["calibration"].update(layers=[]),
        lambda d: d.update(tokens="many"),
        lambda d: d.update(tokens=31),
        lambda d: d.update(fingerprint=""),
    ],
)
def test_a_malformed_job_is_refused(job: Job, change: Callable[[dict[str, Any]], Any]) -> None:
    data = job.to_dict()
    data["parameters"] = dict(data["parameters"])
    data["calibration"] = dict(data["calibration"])
    change(data)
    with pytest.raises((SerializationError, ParameterError, ProgramError, RangeError)):
        read_job(data, job.model, load_graph("feed_forward"), allow_insecure=True)


def test_insecure_parameters_that_the_other_side_names_are_refused(
    job: Job, model: BertModel, calibration: Calibration
) -> None:
    with pytest.raises(InsecureParametersError, match="marked as insecure"):
        read_job(job.to_dict(), model, load_graph("feed_forward"))
    # A sparse secret of one coefficient: all else is as in the secure set, its name too.
    literal = replace(BOOTSTRAPPING_PRESETS["n16-d40-b13"], insecure=True, sparse_weight=1)
    params = BootstrappingParameters.from_literal(literal)
    graph = load_graph("bert_layer")
    forged = make_job(model, calibration, graph, 20, params=params).to_dict()
    with pytest.raises(InsecureParametersError, match="marked as insecure"):
        read_job(forged, model, graph)
    with pytest.raises(ParameterError, match="differs from what it was made for"):
        read_job(forged, model, graph, allow_insecure=True)  # without the name it is another one


def test_secure_parameters_are_chosen_unless_insecure_ones_are_asked_for(
    model: BertModel, calibration: Calibration
) -> None:
    secure = make_job(model, calibration, load_graph("self_attention"), 20)
    assert secure.params is not None
    assert secure.params.is_secure
    small = make_job(model, calibration, load_graph("self_attention"), 20, allow_insecure=True)
    assert small.params is not None
    assert not small.params.is_secure
    assert small.params.ring_degree < secure.params.ring_degree
    with pytest.raises(ParameterError, match=r"takes \d+ levels.*nor can those with bootstrapping"):
        make_job(model, calibration, load_graph("bert_layer"), 20, scale_bits=45)


def test_a_deep_program_is_refreshed_with_secure_parameters(
    model: BertModel, calibration: Calibration
) -> None:
    job = make_job(model, calibration, load_graph("bert_layer"), 20)
    assert job.bootstrapping is BootstrappingParameters.preset("n16-d40-b13")
    assert job.params is job.bootstrapping.params
    assert job.params.is_secure
    assert job.placement is not None
    assert 1 <= job.placement.bootstraps == job.analysis.total.counts["bootstraps"]
    assert job.keys.count > job.analysis.keys.count
    shorter = job.for_length(17)
    assert shorter.placement is not None
    assert [s.kind for s in shorter.placement.sites] == [s.kind for s in job.placement.sites]
    assert shorter.keys.required == job.keys.required
    assert shorter.fingerprint == job.fingerprint
    again = read_job(json.loads(json.dumps(job.to_dict())), model, load_graph("bert_layer"))
    assert again.bootstrapping is job.bootstrapping
    assert again.fingerprint == job.fingerprint
    damaged = job.to_dict()
    damaged["bootstrapping"]["usable_levels"] = 12
    with pytest.raises(ParameterError):
        read_job(damaged, model, load_graph("bert_layer"))


def test_parameters_have_the_levels_that_several_lanes_take() -> None:
    # With slots for several lanes attention of these heads takes two levels more.
    model = shape_only(BertConfig(1, 48, 12, 96, max_positions=40))
    typical = typical_calibration(model.config)
    (layer,) = typical.layers

    def job(spread: float, scale_bits: int) -> Job:
        ranges = replace(layer, attention=replace(layer.attention, spread=spread))
        calibration = replace(typical, layers=(ranges,))
        graph = load_graph("self_attention")
        return make_job(model, calibration, graph, 32, scale_bits=scale_bits)

    with pytest.raises(ParameterError, match=r"takes 27 levels, .* have at most 26"):
        job(8.0, 45)  # 25 levels in the smallest ring
    deep = job(13.0, 40)  # 30 levels in the smallest ring, as many as there are
    assert deep.depth > 30
    assert deep.bootstrapping is not None
    assert deep.analysis.total.counts["bootstraps"] >= 1


def test_the_values_do_not_depend_on_the_slots(model: BertModel, calibration: Calibration) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((20, 32)) * 0.5
    graph = load_graph("feed_forward")
    results = [
        make_job(model, calibration, graph, 20, slots=slots, encrypted=False).simulate(x)[0]
        for slots in (512, 2048)
    ]
    np.testing.assert_allclose(*results, atol=1e-12)


def test_cutting_keeps_the_last_special_token() -> None:
    ids = np.arange(10)
    assert list(cut(ids, 4)) == [0, 1, 2, 9]
    assert list(cut(ids, 10)) == list(ids)


def test_layers_that_a_model_does_not_have_are_refused(model: BertModel) -> None:
    assert len(first_layers(model, None).layers) == 1
    with pytest.raises(Exception, match="3 layers are needed, tiny has 1"):
        first_layers(model, 3)


def test_more_memory_than_there_is_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def job(keys: int, values: int) -> Any:
        analysis = SimpleNamespace(working_bytes=values, bootstrapping=None)
        return SimpleNamespace(keys=SimpleNamespace(count=3, nbytes=keys), analysis=analysis)

    monkeypatch.setattr(local.system, "MEMORY_LIMIT", 1000)
    local.check_memory(job(400, 400))
    with pytest.raises(ParameterError, match=r"2 workers.*fewer workers"):
        local.check_memory(job(400, 400), workers=2)
    with pytest.raises(ParameterError, match=r"this machine has 1\.00 kB"):
        local.check_memory(job(1001, 0))


@pytest.mark.parametrize(("more", "is_spoiled"), [(0.0, False), (13.0, True)])
def test_a_text_whose_denominators_are_near_the_noise_is_refused(
    model: BertModel, calibration: Calibration, more: float, is_spoiled: bool
) -> None:
    """As if other tokens had larger ones: inside the ranges, but the inverse takes nearly zeros."""
    graph = load_graph("self_attention")
    ids = [i % 11 for i in range(20)]
    attention = calibration.layers[0].attention
    wide = replace(
        attention,
        score_low=attention.score_low - more,
        spread=attention.spread + more,
        offset={c: tuple(v + more for v in of) for c, of in attention.offset.items()},
    )
    layer = replace(calibration.layers[0], attention=wide)
    wider = replace(calibration, layers=(layer, *calibration.layers[1:]))
    job = make_job(model, wider, graph, len(ids), allow_insecure=True)
    if is_spoiled:
        with pytest.raises(RangeError, match=r"the noise of the encryption .*of 20 tokens"):
            local.prepare(job, ids)
    else:
        local.prepare(job, ids)
    simulated = make_job(model, wider, graph, len(ids), encrypted=False)
    local.prepare(simulated, ids)  # no encryption, no noise
