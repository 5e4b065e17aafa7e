"""What a client sends about its job, read before anything is built of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any

from aegis_dask.ckks.bootstrapping.parameters import AnyParameters, parameters_from_dict
from aegis_dask.ckks.header import check_keys, read_integer
from aegis_dask.ckks.parameters import MAX_LOG_N
from aegis_dask.errors import SerializationError
from aegis_dask.models.calibration import Calibration

MAX_NAME = 256
_KEYS = frozenset(
    {
        *("graph", "model", "weights", "tokens", "parameters", "bootstrapping"),
        *("calibration", "fingerprint"),
    }
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class JobDescription:
    """A job as its client describes it: types and bounds are checked, nothing is compared yet.

    Attributes
    ----------
    graph, model
        Names; they are printed, and never opened.
    weights
        SHA-256 of the model's weights, None for generated ones.
    tokens
        Positions of a text, a power of two.
    params
        Parameters, with bootstrapping if the job refreshes.
    calibration
        Calibrated ranges.
    fingerprint
        Of the job that this describes.
    """

    graph: str
    model: str
    weights: str | None
    tokens: int
    params: AnyParameters
    calibration: Calibration
    fingerprint: str


def read_description(data: Mapping[str, Any], *, allow_insecure: bool = False) -> JobDescription:
    """Return what `Job.to_dict` wrote.

    Parameters
    ----------
    data
        As it was read.
    allow_insecure
        Whether its parameters may have less than 128-bit security. The other side names them.

    Raises
    ------
    InsecureParametersError
        If they have, and that is not allowed.
    SerializationError
        If a field is missing, unknown or malformed.
    ParameterError
        If the parameters make no sense together.
    RangeError
        If the calibration is malformed.
    """
    check_keys("the description of a job", data, _KEYS)
    tokens = read_integer("the number of tokens", data["tokens"], 1, 1 << (MAX_LOG_N - 1))
    if tokens & (tokens - 1):
        raise SerializationError(f"the number of tokens is {tokens}; a power of two is needed")
    return JobDescription(
        _name("the graph", data["graph"]),
        _name("the model", data["model"]),
        None if data["weights"] is None else _sha256("the weights", data["weights"]),
        tokens,
        parameters_from_dict(data["parameters"], data["bootstrapping"], allow_insecure),
        Calibration.from_dict(data["calibration"]),
        _sha256("the job", data["fingerprint"]),
    )


def _name(what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise SerializationError(
            f"the name of {what} is {shorten(value)}; at most {MAX_NAME} printable characters are "
            "needed"
        )
    return value


def _sha256(what: str, value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise SerializationError(
            f"the checksum of {what} is {shorten(value)}; 64 hexadecimal digits are needed"
        )
    return value
