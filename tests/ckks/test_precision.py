from __future__ import annotations

import numpy as np
import pytest

from aegis_dask.ckks.precision import precision_stats


def test_bits_are_minus_log2_of_the_error() -> None:
    expected = np.zeros(4)
    stats = precision_stats(expected, [2.0**-10, 2.0**-20, 2.0**-20, 2.0**-20])
    assert stats.worst == 10
    assert stats.max_error == 2.0**-10
    assert stats.median == 20
    assert stats.mean == pytest.approx(-np.log2((2.0**-10 + 3 * 2.0**-20) / 4))


def test_complex_errors_count_with_their_modulus() -> None:
    assert precision_stats([1 + 1j], [1 + 1j + (3 + 4j) * 2.0**-10]).max_error == 5 * 2.0**-10


def test_no_error_is_infinite_precision() -> None:
    stats = precision_stats([1.0, 2j], [1.0, 2j])
    assert stats.worst == stats.mean == stats.median == float("inf")


def test_an_error_above_one_has_negative_bits() -> None:
    assert precision_stats([0.0], [8.0]).worst == -3


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"shape \(2,\), the result \(1,\)"):
        precision_stats([1.0, 2.0], [1.0])


def test_the_text_names_worst_and_average() -> None:
    text = str(precision_stats([0.0, 0.0], [2.0**-20, 2.0**-20]))
    assert text == "20.0 bits at worst, 20.0 on average (largest error 9.54e-07)"
