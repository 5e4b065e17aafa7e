"""Checkpoints become programs: weights by name, biases moved, one stage path per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from aegis_dask.circuits.encoder import EncoderLayer, feed_forward_block
from aegis_dask.circuits.packing import Packing
from aegis_dask.circuits.ranges import Tolerances
from aegis_dask.circuits.tokens import TokenMatrix
from aegis_dask.errors import RangeError
from aegis_dask.models.calibration import Calibration, calibrate, typical_calibration
from aegis_dask.models.checkpoint import BertConfig, BertModel, random_bert, shape_only
from aegis_dask.models.programs import (
    INPUT,
    OUTPUT,
    bert_program,
    encoder_layers,
    hidden_layout,
)
from aegis_dask.models.reference import gelu, layer_norm, linear
from aegis_dask.models.text import embed
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import MatrixProduct
from aegis_dask.program.simulated import Simulated

CONFIG = BertConfig(2, 32, 4, 64, vocabulary=100, max_positions=64)
PACKING = Packing(512, 32, 32)


@pytest.fixture(scope="module")
def model() -> BertModel:
    return random_bert(CONFIG, 5)


@pytest.fixture(scope="module")
def calibration(model: BertModel) -> Calibration:
    rng = np.random.default_rng(0)
    return calibrate(model, [rng.integers(1, 100, 32) for _ in range(20)])


def test_layers_name_their_weights(model: BertModel, calibration: Calibration) -> None:
    layers = encoder_layers(model, calibration)
    program = bert_program(model, layers, PACKING)
    used = {
        name
        for node in program.nodes
        if isinstance(node.op, MatrixProduct)
        for name in node.op.matrix.weights  # type: ignore[attr-defined]
    }
    assert used == {name for name, t in model.tensors().items() if t.ndim == 2}
    assert list(program.inputs) == [INPUT]
    assert list(program.outputs) == [OUTPUT]
    shapes = {program.nodes[i].shape for i in (program.inputs[INPUT], program.outputs[OUTPUT])}
    assert shapes == {hidden_layout(model, PACKING).shape} == {(1, 2)}
    paths = {s.name.split("/")[0] for s in program.stages[1:]}
    assert paths == {"layer0", "layer1"}


def test_the_value_bias_goes_through_attention_unchanged(
    model: BertModel, calibration: Calibration
) -> None:
    for weights, layer in zip(model.layers, encoder_layers(model, calibration), strict=True):
        bias = weights.output.weight.astype(float) @ weights.value.bias + weights.output.bias
        np.testing.assert_allclose(layer.output.bias, bias, rtol=1e-12)


def test_fits_follow_the_ranges_and_tolerances(model: BertModel, calibration: Calibration) -> None:
    coarse = encoder_layers(model, calibration, Tolerances(gelu=0.1))
    fine = encoder_layers(model, calibration, Tolerances(gelu=1e-5))
    for a, b, ranges in zip(coarse, fine, calibration.layers, strict=True):
        assert a.fits.gelu.degree < b.fits.gelu.degree
        assert (a.fits.gelu.low, a.fits.gelu.high) == (ranges.gelu_low, ranges.gelu_high)
        assert a.fits.norm_eps == CONFIG.norm_eps


def test_a_program_may_be_any_body(model: BertModel, calibration: Calibration) -> None:
    def body(x: TokenMatrix, layers: Sequence[EncoderLayer]) -> TokenMatrix:
        return feed_forward_block(x, layers[1])

    layers = encoder_layers(model, calibration)
    program = bert_program(model, layers, PACKING, body)
    x, _ = embed(model, np.random.default_rng(3).integers(1, 100, 32))
    layout = hidden_layout(model, PACKING)
    inputs = {INPUT: PACKING.pack(x, layout) + 0j}
    found = run(program, Simulated(), inputs, model.tensors())[OUTPUT]
    weights = model.layers[1]
    inner = gelu(linear(x, weights.up))
    expected = layer_norm(x + linear(inner, weights.down), weights.norm2)
    np.testing.assert_allclose(PACKING.unpack(found, layout), expected, atol=5e-3)


def test_the_first_layers_of_a_calibrated_model_can_be_run_alone(
    model: BertModel, calibration: Calibration
) -> None:
    first = replace(model, layers=model.layers[:1])
    assert len(encoder_layers(first, calibration)) == 1


def test_the_calibration_of_another_model_is_refused(
    model: BertModel, calibration: Calibration
) -> None:
    with pytest.raises(RangeError, match="calibrate this model"):
        encoder_layers(replace(model, sha256="00"), calibration)
    with pytest.raises(RangeError, match="calibrate this model"):
        encoder_layers(random_bert(replace(CONFIG, layers=3), 1), calibration)


def test_a_shape_without_weights_makes_the_same_program(
    model: BertModel, calibration: Calibration
) -> None:
    empty = shape_only(CONFIG)
    program = bert_program(empty, encoder_layers(empty, typical_calibration(CONFIG)), PACKING)
    names = [
        s.name for s in bert_program(model, encoder_layers(model, calibration), PACKING).stages
    ]
    assert [s.name for s in program.stages] == names
