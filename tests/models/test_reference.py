from __future__ import annotations

import math
import time

import numpy as np
import pytest

from aegis_dask.models.checkpoint import BertLayer, BertModel, Linear, Norm
from aegis_dask.models.reference import encode, gelu, layer, layer_norm, softmax
from aegis_dask.models.text import embed

Rows = list[list[float]]


def slow_linear(row: list[float], weights: Linear) -> list[float]:
    return [
        math.fsum(float(w) * x for w, x in zip(ws, row, strict=True)) + float(b)
        for ws, b in zip(weights.weight, weights.bias, strict=True)
    ]


def slow_norm(row: list[float], norm: Norm) -> list[float]:
    mean = math.fsum(row) / len(row)
    variance = math.fsum((x - mean) ** 2 for x in row) / len(row)
    return [
        (x - mean) / math.sqrt(variance + norm.eps) * float(w) + float(b)
        for x, w, b in zip(row, norm.weight, norm.bias, strict=True)
    ]


def slow_layer(weights: BertLayer, rows: Rows, valid: list[bool], heads: int) -> Rows:
    """The layer by loops over Python floats, as it is written in the textbook."""
    width = len(rows[0]) // heads
    query = [slow_linear(row, weights.query) for row in rows]
    key = [slow_linear(row, weights.key) for row in rows]
    value = [slow_linear(row, weights.value) for row in rows]
    result = []
    for i, row in enumerate(rows):
        attended: list[float] = []
        for head in range(heads):
            columns = range(head * width, (head + 1) * width)
            weight = [
                math.exp(sum(query[i][c] * key[j][c] for c in columns) / math.sqrt(width))
                if valid[j]
                else 0.0
                for j in range(len(rows))
            ]
            attended += [
                sum(w * v[c] for w, v in zip(weight, value, strict=True)) / sum(weight)
                for c in columns
            ]
        output = slow_linear(attended, weights.output)
        middle = slow_norm([a + b for a, b in zip(output, row, strict=True)], weights.norm1)
        raised = [
            0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in slow_linear(middle, weights.up)
        ]
        down = slow_linear(raised, weights.down)
        result.append(slow_norm([a + b for a, b in zip(down, middle, strict=True)], weights.norm2))
    return result


def test_a_model_agrees_with_loops_over_python_floats(tiny: BertModel) -> None:
    x, valid = embed(tiny, [2, 4, 5, 6, 3], 7)
    rows = x.tolist()
    for weights in tiny.layers:
        rows = slow_layer(weights, rows, valid.tolist(), tiny.config.heads)
    got = encode(tiny, x, valid)
    # Two layers of sums of at most 16 products of values below 10: 2^-45.
    np.testing.assert_allclose(got[:5], np.array(rows)[:5], rtol=0, atol=2**-45)
    assert got.dtype == np.float64


def test_padding_takes_no_part_wherever_it_lies(tiny: BertModel, rng: np.random.Generator) -> None:
    x = rng.normal(size=(6, 8))
    valid = np.array([True, False, True, True, False, True])
    got = encode(tiny, x, valid)
    assert not got[~valid].any()
    assert np.array_equal(got[valid], encode(tiny, x[valid], np.ones(4, bool)))
    x[~valid] = rng.normal(scale=1e6, size=(2, 8))
    assert np.array_equal(got, encode(tiny, x, valid))


def test_what_is_observed_has_the_promised_names_and_shapes(tiny: BertModel) -> None:
    seen: dict[str, np.ndarray] = {}
    x, valid = embed(tiny, [2, 4, 5, 6, 3], 7)
    result = encode(tiny, x, valid, seen.__setitem__)
    shapes = {
        "query": (2, 7, 4),
        "key": (2, 7, 4),
        "value": (2, 7, 4),
        "scores": (2, 5, 5),
        "norm1.input": (5, 8),
        "norm1.output": (5, 8),
        "gelu.input": (5, 16),
        "norm2.input": (5, 8),
        "output": (5, 8),
    }
    expected = {f"layer.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    assert {name: values.shape for name, values in seen.items()} == expected
    assert np.array_equal(seen["layer.1.output"], result[:5])
    for name in ("query", "key", "value"):
        assert not seen[f"layer.0.{name}"][:, 5:].any()
    scores = seen["layer.1.query"] @ seen["layer.1.key"].swapaxes(1, 2) / 2
    np.testing.assert_allclose(scores[:, :5, :5], seen["layer.1.scores"], rtol=0, atol=1e-14)
    for i in (0, 1):
        normed = layer_norm(seen[f"layer.{i}.norm2.input"], tiny.layers[i].norm2)
        assert np.array_equal(normed, seen[f"layer.{i}.output"])


def test_one_layer_alone_needs_no_name(tiny: BertModel) -> None:
    names: list[str] = []
    x, valid = embed(tiny, [2, 4, 3])
    layer(tiny.layers[0], x, valid, 2, lambda name, _: names.append(name))
    assert names[0] == "query"
    assert names[-1] == "output"


@pytest.mark.parametrize(
    ("x", "valid"),
    [
        (np.zeros(8), np.ones(8, bool)),
        (np.zeros((3, 8)), np.ones(4, bool)),
        (np.zeros((3, 8)), np.ones(3)),
        (np.zeros((3, 8)), np.zeros(3, bool)),
    ],
)
def test_rows_and_their_mask_must_agree(tiny: BertModel, x: np.ndarray, valid: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \[length, hidden\] and bool \[length\]"):
        encode(tiny, x, valid)


def test_gelu_is_the_exact_one() -> None:
    points = np.linspace(-9, 9, 1801)
    exact = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in points]
    np.testing.assert_allclose(gelu(points), exact, rtol=0, atol=1e-14)  # erf's 1e-15, times 9


def test_gelu_of_512_tokens_takes_well_below_a_second(rng: np.random.Generator) -> None:
    values = rng.normal(size=(512, 1536))
    start = time.perf_counter()
    gelu(values)
    assert time.perf_counter() - start < 1


def test_softmax_survives_large_scores() -> None:
    np.testing.assert_array_equal(softmax(np.array([[1000.0, 1000.0, -1000.0]])), [[0.5, 0.5, 0]])


def test_layer_norm_divides_by_the_number_of_entries() -> None:
    one = np.ones(4, np.float32)
    got = layer_norm(np.array([[1.0, 1.0, 3.0, 3.0]]), Norm(one, 0 * one, 1e-12))
    np.testing.assert_allclose(got, [[-1, -1, 1, 1]], rtol=0, atol=1e-12)  # eps
