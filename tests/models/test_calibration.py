"""Calibration: ranges hold for texts like the samples, and others are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.circuits.packing import Packing, positions
from aegis_dask.circuits.ranges import TOKEN_CLASSES, LayerRanges, fit_layer
from aegis_dask.errors import RangeError
from aegis_dask.models.calibration import (
    CLASS_THRESHOLD,
    Calibration,
    Margins,
    _packed,
    calibrate,
    check_inside,
    typical_calibration,
)
from aegis_dask.models.checkpoint import (
    BertConfig,
    BertModel,
    named_config,
    random_bert,
    shape_only,
)
from aegis_dask.models.reference import encode
from aegis_dask.models.text import embed

CONFIG = BertConfig(2, 32, 4, 64, vocabulary=100, max_positions=64)
NONE = Margins(log_sum=0.0, score=0.0, gelu=0.0, variance=1.0, magnitude=1.0)


def texts(count: int, seed: int = 0, longest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 100, rng.integers(2, longest + 1)) for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> BertModel:
    return random_bert(CONFIG, 5)


@pytest.fixture(scope="module")
def calibration(model: BertModel) -> Calibration:
    return calibrate(model, texts(60))


# -- what is measured ---------------------------------------------------------------------------


def test_the_samples_are_inside_without_any_margin(model: BertModel) -> None:
    found = calibrate(model, texts(12), NONE)
    eps = 1e-9  # the extremes themselves, computed in another order
    wider = replace(found, layers=tuple(nudged(r, eps) for r in found.layers))
    for ids in texts(12):
        x, valid = embed(model, ids)
        assert np.array_equal(check_inside(model, wider, x, valid), encode(model, x, valid))


def nudged(r: LayerRanges, eps: float) -> LayerRanges:
    a = r.attention
    offset = {c: tuple(v + eps for v in f) for c, f in a.offset.items()}
    spread, low = a.spread + 2 * eps, a.score_low - 2 * eps
    attention = replace(a, offset=offset, spread=spread, score_low=low)
    norms = [replace(n, low=n.low - eps, high=n.high + eps) for n in (r.norm1, r.norm2)]
    return replace(
        r,
        attention=attention,
        norm1=norms[0],
        norm2=norms[1],
        gelu_low=r.gelu_low - eps,
        gelu_high=r.gelu_high + eps,
        magnitudes={k: v + eps for k, v in r.magnitudes.items()},
    )


def test_ranges_are_the_extremes_of_the_model(model: BertModel) -> None:
    sample = texts(10)
    found = calibrate(model, sample, NONE)
    gelu, variance, magnitude = [], [], []

    def observe(name: str, values: Any) -> None:
        if name == "layer.1.gelu.input":
            gelu.append((values.min(), values.max()))
        if name == "layer.1.norm2.input":
            variance.append((values.var(axis=1)[1:-1].min(), values.var(axis=1)[1:-1].max()))
        if name == "layer.0.output":
            magnitude.append(np.abs(values).max())

    for ids in sample:
        if len(ids) > 2:
            encode(model, *embed(model, ids), observe)
    last = found.layers[1]
    assert last.gelu_low == pytest.approx(min(g[0] for g in gelu))
    assert last.gelu_high == pytest.approx(max(g[1] for g in gelu))
    assert last.magnitudes["input"] == pytest.approx(max(magnitude))
    low, high = min(v[0] for v in variance), max(v[1] for v in variance)
    # of the tokens that are neither first nor last, around the geometric mean
    assert last.norm2.scale["other"] == pytest.approx(np.sqrt(low * high))
    assert last.norm2.low <= np.sqrt(low / high) * (1 + 1e-9)
    assert last.norm2.high >= np.sqrt(high / low) * (1 - 1e-9)


def test_margins_widen_every_range(model: BertModel) -> None:
    tight, wide = calibrate(model, texts(10), NONE), calibrate(model, texts(10))
    m = Margins()
    for a, b in zip(tight.layers, wide.layers, strict=True):
        for c in TOKEN_CLASSES:
            np.testing.assert_allclose(
                b.attention.offset[c], np.array(a.attention.offset[c]) + m.log_sum
            )
        assert b.attention.spread == pytest.approx(a.attention.spread + 2 * m.log_sum)
        low = (a.attention.score_low - m.log_sum) * (1 + m.score)
        assert b.attention.score_low == pytest.approx(low)
        assert b.norm1.low == pytest.approx(a.norm1.low / m.variance)
        assert b.norm1.high == pytest.approx(a.norm1.high * m.variance)
        width = m.gelu * (a.gelu_high - a.gelu_low)
        assert b.gelu_low == pytest.approx(a.gelu_low - width)
        assert b.gelu_high == pytest.approx(a.gelu_high + width)


def test_a_head_that_looks_at_a_distance_gets_it() -> None:
    """Queries are keys of the previous token, large: the log-sum-exp is that score."""
    plain = random_bert(BertConfig(1, 32, 2, 32, vocabulary=100, max_positions=64), 3)
    rng = np.random.default_rng(0)
    # Position embeddings that a rotation of the hidden space takes from t to t - 1.
    turn = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    rows = [rng.standard_normal(32)]
    for _ in range(63):
        rows.append(turn @ rows[-1])
    e = plain.embeddings
    embeddings = replace(
        e,
        position=np.array(rows, np.float32),
        word=e.word * np.float32(5),
        norm=replace(e.norm, weight=np.ones(32, np.float32), bias=np.zeros(32, np.float32)),
    )
    keys = rng.standard_normal((32, 32)) / np.sqrt(32) * 3
    layer = plain.layers[0]
    layer = replace(
        layer,
        key=replace(layer.key, weight=keys.astype(np.float32)),
        query=replace(layer.query, weight=(keys @ turn.T).astype(np.float32)),
    )
    looking = replace(plain, embeddings=embeddings, layers=(layer,))
    found = calibrate(looking, texts(40)).layers[0].attention
    assert list(found.distances) == [-1]
    assert all(f > 0.3 for f in found.distances[-1])
    # heads with a distance need no centre
    np.testing.assert_array_equal(np.array(found.centre), np.zeros((2, 16)))
    without = calibrate(plain, texts(40)).layers[0].attention
    assert without.distances == {}


def test_offsets_per_class_are_used_where_they_pay(model: BertModel) -> None:
    for ranges in calibrate(model, texts(40)).layers:
        offsets = np.array([ranges.attention.offset[c] for c in TOKEN_CLASSES])
        assert offsets.shape == (3, 4)
        saved = np.ptp(offsets, axis=0)
        assert ((saved == 0) | (saved > CLASS_THRESHOLD)).all()


def test_positions_are_those_of_a_packed_text(model: BertModel) -> None:
    """Where the packed text starts over, a neighbour is another token: that is measured too."""
    for length in (1, 20, 32, 33, 64):
        packing = Packing(1 << 10, positions(length), length)
        assert np.array_equal(_packed(length), packing.source)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 7])
def test_few_texts_are_refused(model: BertModel, count: int) -> None:
    with pytest.raises(RangeError, match=f"at least 8 texts, {count} were given"):
        calibrate(model, texts(count))


def test_most_other_texts_are_inside(model: BertModel, calibration: Calibration) -> None:
    refused = 0
    for ids in texts(40, seed=1):
        try:
            check_inside(model, calibration, *embed(model, ids))
        except RangeError:
            refused += 1
    assert refused <= 4


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gelu_high": 0.5}, r"an input of GELU is [\d.]+ .* to 0\.5"),
        ({"gelu_low": -0.25}, r"an input of GELU is -[\d.]+ .*range -0\.25"),
        ({"norm1": {"high": 0.5}}, r"the variance before norm1 is [\d.]+"),
        ({"norm2": {"low": 1.5}}, r"the variance before norm2 is [\d.]+"),
        ({"attention": {"spread": 0.5}}, r"the logarithm of a softmax denominator is -[\d.]+"),
        ({"attention": {"score_low": -1.0}}, r"a score is -[\d.]+ .*range -1 to 0"),
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_text_outside_is_refused_with_layer_function_value_and_range(
    model: BertModel, calibration: Calibration, layer: int, changes: dict[str, Any], what: str
) -> None:
    ranges = calibration.layers[layer]
    changed = {
        k: replace(getattr(ranges, k), **v) if isinstance(v, dict) else v
        for k, v in changes.items()
    }
    layers = list(calibration.layers)
    layers[layer] = replace(ranges, **changed)
    with pytest.raises(RangeError, match=f"layer {layer}: {what}.*Calibrate with texts like"):
        check_inside(model, replace(calibration, layers=tuple(layers)), *embed(model, texts(1)[0]))


def test_values_too_large_to_be_refreshed_are_refused(
    model: BertModel, calibration: Calibration
) -> None:
    """Nothing on the server can see that a value leaves the range of a bootstrap."""
    x, valid = embed(model, texts(1)[0])
    for layer, name, value in ((0, "update1", "norm1, input"), (1, "hidden", "norm1, output")):
        ranges = list(calibration.layers)
        small = {**ranges[layer].magnitudes, name: 1e-3}
        ranges[layer] = replace(ranges[layer], magnitudes=small)
        narrow = replace(calibration, layers=tuple(ranges))
        with pytest.raises(RangeError, match=f"layer {layer}: the magnitude of {value} is"):
            check_inside(model, narrow, x, valid)


def test_another_model_is_refused(model: BertModel, calibration: Calibration) -> None:
    calibration.check_model(model)
    calibration.check_model(replace(model, layers=model.layers[:1]))  # a part of it
    wrong = [
        replace(model, sha256="0" * 64),
        replace(model, layers=model.layers * 2),
        random_bert(replace(CONFIG, heads=2), 5),
        random_bert(replace(CONFIG, hidden=64), 5),
    ]
    for other in wrong:
        with pytest.raises(RangeError, match="calibrate this model"):
            calibration.check_model(other)


# -- files --------------------------------------------------------------------------------------


def test_a_calibration_is_written_and_read(
    model: BertModel, calibration: Calibration, tmp_path: Path
) -> None:
    distances = {-1: (0.0, 0.5, 0.25, 1.0), 2: (1.0, 0.0, 0.0, 0.0)}
    first = calibration.layers[0]
    first = replace(first, attention=replace(first.attention, distances=distances))
    saved = replace(calibration, layers=(first, calibration.layers[1]), sha256="ab" * 32)
    saved.save(tmp_path / "ranges.json")
    assert Calibration.load(tmp_path / "ranges.json") == saved
    assert Calibration.from_dict(saved.to_dict()) == saved
    assert [p.name for p in tmp_path.iterdir()] == ["ranges.json"]
    assert (saved.texts, saved.longest) == (60, max(len(t) for t in texts(60)))
    assert saved.tokens == sum(len(t) for t in texts(60))


def test_a_file_is_written_at_once_or_not_at_all(
    calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ranges.json"
    path.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(OSError, match="disk full"):
        calibration.save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["ranges.json"]


def broken(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Change one entry; a value of ... deletes it."""
    copy = json.loads(json.dumps(data))
    *parents, last = path.split(".")
    target = copy
    for key in parents:
        target = target[int(key)] if isinstance(target, list) else target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return dict(copy)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 0),
        ("format", ...),
        ("model", ...),
        ("sha256", 7),
        ("texts", "many"),
        ("longest", ...),
        ("layers", 3),
        ("layers", [None]),
        ("layers.0.attention", ...),
        ("layers.0.attention", 1.5),
        ("layers.0.attention.score_low", None),
        ("layers.0.attention.score_low", float("nan")),
        ("layers.0.attention.score_low", 1.0),
        ("layers.0.attention.spread", float("inf")),
        ("layers.0.attention.spread", 0.0),
        ("layers.0.attention.offset.first", [1.0]),
        ("layers.0.attention.offset.other", ...),
        ("layers.0.attention.centre", [[0.0], [0.0, 1.0]]),
        ("layers.0.attention.centre", 3),
        ("layers.0.attention.distances", {"near": [0.0] * 4}),
        ("layers.0.attention.distances", {"1": [0.0] * 3}),
        ("layers.0.attention.distances", []),
        ("layers.1.norm1.low", 100.0),
        ("layers.1.norm1.low", 0.0),
        ("layers.1.norm2.scale.last", 0.0),
        ("layers.1.norm2", ...),
        ("layers.1.gelu_low", 100.0),
        ("layers.1.magnitudes", 3),
        ("layers.1.magnitudes.hidden", "large"),
        ("layers.1.magnitudes.update1", ...),
        ("layers.1.magnitudes.output", 0.0),
    ],
)
def test_a_damaged_calibration_is_refused(
    calibration: Calibration, tmp_path: Path, path: str, value: Any
) -> None:
    file = tmp_path / "ranges.json"
    file.write_text(json.dumps(broken(calibration.to_dict(), path, value)))
    with pytest.raises(RangeError, match=r"ranges\.json.*aegis calibrate"):
        Calibration.load(file)


@pytest.mark.parametrize("content", [None, "", "no JSON", "[]", "3", '"text"', '{"format": 1}'])
def test_another_file_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ranges.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RangeError, match=r"ranges\.json is not a calibration file"):
        Calibration.load(file)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ranges.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RangeError, match="is not a calibration file"):
        Calibration.load(file)


# -- shapes without weights ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert-base", "bert-large", "minilm-l6", "bert-tiny"])
def test_typical_ranges_fit_any_shape(name: str) -> None:
    config = named_config(name, 2048)
    found = typical_calibration(config)
    found.check_model(shape_only(config))
    assert Calibration.from_dict(found.to_dict()) == found
    assert len(found.layers) == config.layers
    fit_layer(found.layers[0], config.norm_eps)
