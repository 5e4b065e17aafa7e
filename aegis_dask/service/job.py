"""Jobs: a graph on a model for texts of some length, with the parameters it takes.

A job holds nothing secret. Client and server build the same one, each from its own copy of the
model, and compare fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.encoder import EncoderLayer
from aegis_dask.circuits.packing import Layout, Packing
from aegis_dask.ckks.parameters import MAX_LOG_N, MIN_LOG_N, Parameters, ParametersLiteral
from aegis_dask.errors import ParameterError, RangeError, TextError
from aegis_dask.models.calibration import Calibration
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.models.programs import bert_program, encoder_layers, hidden_layout
from aegis_dask.program.graph import Program
from aegis_dask.program.parameters import parameters_for
from aegis_dask.program.symbolic import Analysis, analyse

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Job:
    """What runs.

    Attributes
    ----------
    model
        The model, cut to the layers that the graph uses.
    calibration
        Its ranges, of those layers.
    graph
        The graph program.
    packing
        Slots, positions and the length of the text.
    layers
        What the graph is given.
    program
        The captured program.
    params
        Parameters with enough levels; None for a simulated run.
    """

    model: BertModel
    calibration: Calibration
    graph: Graph
    packing: Packing
    layers: list[EncoderLayer]
    program: Program
    params: Parameters | None

    @property
    def layout(self) -> Layout:
        """Layout of input and output."""
        return hidden_layout(self.model, self.packing)

    @property
    def analysis(self) -> Analysis:
        """Counts, levels and keys.

        Raises
        ------
        ParameterError
            If the job has no parameters.
        """
        return analyse(self.program, self._params)

    @property
    def _params(self) -> Parameters:
        if self.params is None:
            raise ParameterError("this job is for simulation only: it has no parameters")
        return self.params

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what client and server must agree on."""
        content = {
            "model": self.model.sha256,
            "graph": self.graph.name,
            "layers": len(self.layers),
            "tokens": self.packing.tokens,
            "parameters": self.params.fingerprint if self.params else None,
            "ranges": [layer.ranges.to_dict() for layer in self.layers],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def reference(self, x: Float) -> Float | None:
        """Return the result in float64, if the graph says how."""
        return None if self.graph.reference is None else self.graph.reference(self.model, x)

    def for_length(self, length: int) -> Job:
        """Return the job for another length of text with the same number of positions.

        Raises
        ------
        TextError
            If the text is too long.
        """
        if length == self.packing.length:
            return self
        if not 1 <= length <= self.packing.tokens:
            raise TextError(
                f"the text has {length} tokens, keys and parameters are for {self.packing.tokens}; "
                "shorten it or make keys for longer texts"
            )
        packing = replace(self.packing, length=length)
        program = bert_program(self.model, self.layers, packing, self.graph.program)
        return replace(self, packing=packing, program=program)

    def to_dict(self) -> dict[str, Any]:
        """Return what a server needs to build the job, beside model and graph."""
        return {
            "graph": self.graph.name,
            "model": self.model.name,
            "tokens": self.packing.tokens,
            "parameters": asdict(self._params.literal),
            "calibration": self.calibration.to_dict(),
            "fingerprint": self.fingerprint,
        }


def choose_slots(tokens: int, heads: int) -> int:
    """Return the slots that hold `tokens` positions with one block per head, or more."""
    blocks = 1 << (heads - 1).bit_length()
    return min(max(1 << (MIN_LOG_N - 1), tokens * blocks), 1 << (MAX_LOG_N - 1))


def make_job(
    model: BertModel,
    calibration: Calibration,
    graph: Graph,
    length: int,
    *,
    slots: int | None = None,
    scale_bits: int = 40,
    allow_insecure: bool = False,
    encrypted: bool = True,
    params: Parameters | None = None,
    tokens: int | None = None,
) -> Job:
    """Build a job.

    Parameters
    ----------
    model, calibration, graph
        What to run. Both are cut to the layers that the graph uses.
    length
        Tokens of the text.
    slots
        Slots of a ciphertext. By default the smallest ring whose 128-bit secure parameters have
        enough levels; if insecure ones are allowed, the smallest that holds the tokens.
    scale_bits
        log2 of the scale: 35, 40 or 45.
    allow_insecure
        Accept less than 128-bit security where no secure set has enough levels.
    encrypted
        False for a job that is only simulated.
    params
        Use these instead of choosing.
    tokens
        Positions, a power of two; by default the fewest that hold the text.

    Raises
    ------
    ParameterError
        If no parameters have enough levels.
    RangeError
        If the calibration is of another model, or has too few layers.
    """
    count = graph.layers or len(model.layers)
    if count > len(model.layers):
        raise ParameterError(
            f"graph {graph.name} uses {count} layers, {model.name} has {len(model.layers)}"
        )
    calibration.check_model(model)
    if count > len(calibration.layers):
        raise RangeError(
            f"graph {graph.name} uses {count} layers, {len(calibration.layers)} are calibrated"
        )
    model = replace(model, layers=model.layers[:count])
    calibration = replace(calibration, layers=calibration.layers[:count])
    layers = encoder_layers(model, calibration)
    positions = tokens or Packing.for_length(1 << 20, length).tokens

    def program_for(size: int) -> tuple[Packing, Program]:
        packing = Packing(size, positions, length)
        return packing, bert_program(model, layers, packing, graph.program)

    if params is not None:
        packing, program = program_for(params.slots)
        return Job(model, calibration, graph, packing, layers, program, params)
    smallest = choose_slots(positions, model.config.heads)
    if slots is not None:
        smallest = slots
    packing, program = program_for(smallest)
    if not encrypted:
        return Job(model, calibration, graph, packing, layers, program, None)
    sizes = [smallest] if slots is not None else _powers(smallest, 1 << (MAX_LOG_N - 1))
    for size in sizes:
        try:
            chosen = parameters_for(max(2, program.depth), size, scale_bits)
        except ParameterError:
            continue
        packing, program = program_for(size)
        return Job(model, calibration, graph, packing, layers, program, chosen)
    chosen = parameters_for(max(2, program.depth), smallest, scale_bits, allow_insecure)
    return Job(model, calibration, graph, packing, layers, program, chosen)


def _powers(low: int, high: int) -> list[int]:
    out = [low]
    while out[-1] < high:
        out.append(2 * out[-1])
    return out


def read_job(data: Mapping[str, Any], model: BertModel, graph: Graph) -> Job:
    """Build the job that `Job.to_dict` describes, from one's own model and graph.

    Raises
    ------
    ParameterError
        If it is malformed, or the result differs from what it describes.
    """
    try:
        fields = {**data["parameters"]}
        fields["level_bits"] = tuple(int(b) for b in fields["level_bits"])
        params = Parameters.from_literal(ParametersLiteral(**fields))
        calibration = Calibration.from_dict(data["calibration"])
        tokens, expected = int(data["tokens"]), str(data["fingerprint"])
        name = str(data["graph"])
    except (KeyError, TypeError, ValueError) as e:
        raise ParameterError(f"a malformed job: {type(e).__name__}: {e}") from None
    if name != graph.name:
        raise ParameterError(f"the job is for graph {name!r}, this is {graph.name!r}")
    job = make_job(model, calibration, graph, tokens, params=params, tokens=tokens)
    if job.fingerprint != expected:
        raise ParameterError(
            "the job differs from what it was made for: another model, graph or version of this "
            "library; make keys again"
        )
    return job
