"""Prepared weights: exact, kept up to a bound, never another matrix's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask.config
import numpy as np
import pytest

from aegis_dask.circuits import linear
from aegis_dask.circuits.packing import feature_layout
from aegis_dask.ckks.encoder import embed
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import BackendError, EncodingError
from aegis_dask.program.weights import PreparedWeights, coefficients
from tests.arrays import same

SCALE = Scale.from_int(1 << 30)


class Counted:
    """A matrix that counts how often rows of it are built."""

    def __init__(self, matrix: Any) -> None:
        self.matrix, self.built = matrix, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.matrix, name)

    def __dask_tokenize__(self) -> Any:
        return "counted", self.matrix

    def build(self, *arguments: Any) -> Any:
        self.built += 1
        return self.matrix.build(*arguments)


@pytest.fixture
def matrix() -> linear.BlockMatrix:
    layout = feature_layout(64, 16)
    return linear.BlockMatrix(("w",), layout, layout, 4)


@pytest.fixture
def store(rng: np.random.Generator) -> dict[str, Any]:
    return {"w": rng.uniform(-1, 1, (64, 64))}


def weights(limit: int | None) -> PreparedWeights:
    return PreparedWeights(Parameters.preset("insecure-n10-d40").ring, limit)


def test_coefficients_are_rounded_embeddings(rng: np.random.Generator) -> None:
    values = rng.uniform(-1, 1, (3, 5, 16)) + 1j * rng.uniform(-1, 1, (3, 5, 16))
    found = coefficients(values, SCALE)
    assert found.shape == (32, 3, 5)
    assert found.dtype == np.int64
    assert found.flags.c_contiguous
    assert np.array_equal(np.moveaxis(found, 0, -1), np.rint(embed(values, 32) * 2.0**30))


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**40, -(2.0**40)])
def test_what_is_no_weight_is_refused(bad: float) -> None:
    with pytest.raises(EncodingError, match="below 2\\^62"):
        coefficients(np.full((1, 16), bad + 0j), SCALE)


def test_rows_are_prepared_once(matrix: Any, store: dict[str, Any]) -> None:
    prepared, counted = weights(1 << 30), Counted(matrix)
    first = prepared.of(counted, store, SCALE)(0, 1)
    # Another object that says the same, as every run brings its own.
    again = Counted(replace(matrix))
    assert prepared.of(again, store, SCALE)(0, 1) is first
    assert (counted.built, again.built) == (1, 0)
    expected = coefficients(matrix.build(store, 0, 1).reshape(-1, *first.shape[2:], 16), SCALE)
    assert same(first, expected)
    assert prepared.nbytes == first.nbytes


def test_what_differs_is_prepared_anew(matrix: Any, store: dict[str, Any]) -> None:
    prepared = weights(1 << 30)
    first = prepared.of(matrix, store, SCALE)(0, 1)
    others = [
        prepared.of(matrix, dict(store), SCALE)(0, 1),  # may hold other weights
        prepared.of(matrix, store, Scale.from_int(1 << 29))(0, 1),
        prepared.of(replace(matrix, row_scale=np.full(64, 2.0)), store, SCALE)(0, 1),
        prepared.of(matrix, store, SCALE)(1, 2),
    ]
    assert all(o is not first for o in others)
    assert same(others[0], first)
    assert not same(others[2], first)


def test_what_was_used_longest_ago_makes_room(matrix: Any, store: dict[str, Any]) -> None:
    size = weights(0).of(matrix, store, SCALE)(0, 1).nbytes
    counted, prepared = Counted(matrix), weights(2 * size)
    rows = prepared.of(counted, store, SCALE)
    rows(0, 1), rows(1, 2), rows(0, 1)
    prepared.of(replace(matrix, row_scale=2.0), store, SCALE)(0, 1)  # in place of the second
    assert prepared.nbytes == 2 * size
    built = counted.built
    rows(0, 1)
    assert counted.built == built
    rows(1, 2)
    assert counted.built == built + 1


def test_nothing_is_kept_without_room(matrix: Any, store: dict[str, Any]) -> None:
    for limit in (0, 1):
        counted, prepared = Counted(matrix), weights(limit)
        rows = prepared.of(counted, store, SCALE)
        assert same(rows(0, 1), rows(0, 1))
        assert (counted.built, prepared.nbytes) == (2, 0)


@pytest.mark.usefixtures("arrays_of_numpy")
def test_the_bound_can_be_configured() -> None:
    assert weights(None).limit == 0  # the CPU's own choice
    with dask.config.set({"aegis.prepared-weights": "2 MiB"}):
        assert weights(None).limit == 2 << 20
    with (
        dask.config.set({"aegis.prepared-weights": "many"}),
        pytest.raises(BackendError, match="give a size"),
    ):
        weights(None)
