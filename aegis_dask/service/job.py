"""Jobs: a graph on a model for texts of some length, with the parameters it takes.

A job holds nothing secret. Client and server build the same one, each from its own copy of model
and graph, and compare fingerprints: nothing that one sends the other is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.encoder import EncoderLayer
from aegis_dask.circuits.packing import Layout, Packing
from aegis_dask.ckks.bootstrapping.parameters import (
    BOOTSTRAPPING_PRESETS,
    AnyParameters,
    BootstrappingParameters,
)
from aegis_dask.ckks.parameters import (
    MAX_LOG_N,
    MIN_LOG_N,
    PRESETS,
    Parameters,
)
from aegis_dask.errors import AegisError, LevelError, ParameterError, ProgramError, TextError
from aegis_dask.models.calibration import Calibration
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.models.programs import INPUT, OUTPUT, bert_program, encoder_layers, hidden_layout
from aegis_dask.program.graph import Program
from aegis_dask.program.interpreter import run
from aegis_dask.program.parameters import parameters_for
from aegis_dask.program.refresh import Budget, Placement, insert, minimum_cut
from aegis_dask.program.simulated import Simulated
from aegis_dask.program.symbolic import Analysis, analyse
from aegis_dask.program.trim import trim
from aegis_dask.service.description import read_description
from aegis_dask.service.keys import KeyList, list_keys

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
        The captured program, for texts of just that length, with its refreshes.
    params
        Parameters with enough levels; None for a simulated run.
    bootstrapping
        Parameters with bootstrapping (`params` are those of their scheme); None if the levels
        suffice without.
    placement
        Where it refreshes; None without bootstrapping.
    """

    model: BertModel
    calibration: Calibration
    graph: Graph
    packing: Packing
    layers: list[EncoderLayer]
    program: Program
    params: Parameters | None
    bootstrapping: BootstrappingParameters | None = None
    placement: Placement | None = None

    @property
    def layout(self) -> Layout:
        """Layout of input and output."""
        return hidden_layout(self.model, self.packing)

    @property
    def depth(self) -> int:
        """Levels that the longest path takes to compute, refreshes or not."""
        return (self.program if self.placement is None else self.placement.program).depth

    @cached_property
    def analysis(self) -> Analysis:
        """Counts, levels and keys.

        Raises
        ------
        ParameterError
            If the job has no parameters.
        LevelError
            If the parameters have too few levels.
        """
        return analyse(self.program, self.parameters)

    @property
    def parameters(self) -> AnyParameters:
        """Those that keys are made for, with bootstrapping if the job refreshes.

        Raises
        ------
        ParameterError
            If the job has none.
        """
        return self.bootstrapping or self._params

    @property
    def _params(self) -> Parameters:
        if self.params is None:
            raise ParameterError("this job is for simulation only: it has no parameters")
        return self.params

    @cached_property
    def keys(self) -> KeyList:
        """Evaluation keys, those of bootstrapping included."""
        return list_keys(self.analysis)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what client and server must agree on; the same for every length of text."""
        whole = self.for_length(self.packing.tokens)
        content = {
            "model": self.model.sha256,
            "graph": self.graph.name,
            "layers": len(self.layers),
            "tokens": self.packing.tokens,
            "slots": self.packing.slots,
            "parameters": self.params.fingerprint if self.params else None,
            "bootstrapping": asdict(self.bootstrapping.literal) if self.bootstrapping else None,
            "ranges": [layer.ranges.to_dict() for layer in self.layers],
            "program": [
                (node.op.name, _settings(node.op), node.inputs, node.shape, node.depth)
                for node in whole.program.nodes
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def input_of(self, x: Float) -> Float:
        """Return what is encrypted, from the embeddings of a text."""
        prepare = self.graph.prepare
        return x if prepare is None else _call(self, "prepare", prepare, x)

    def reference(self, x: Float) -> Float | None:
        """Return the result for the input `x` in float64, if the graph says how."""
        reference = self.graph.reference
        return None if reference is None else _call(self, "reference", reference, x)

    def simulate(self, x: Float, noise_bits: float | None = None) -> tuple[Float, float]:
        """Run the program on `x` in plain, with the packing and polynomials of the encrypted run.

        Takes a smaller ring's slots than the job where that is possible: the values are the same.
        With `noise_bits` operations make errors of that size (see `Simulated`).

        Returns
        -------
        ndarray, float
            The result, and the largest input of a polynomial relative to the interval that it was
            fitted on: above 1 the encrypted result would be meaningless.
        """
        slots = min(choose_slots(self.packing.tokens, self.model.config.heads), self.packing.slots)
        packing = replace(self.packing, slots=slots)
        layout = hidden_layout(self.model, packing)
        program = _capture(self.graph, self.model, self.layers, packing)
        arithmetic: Any = Simulated(noise_bits)
        inputs = {INPUT: packing.pack(x, layout)}
        with np.errstate(all="ignore"):  # far outside the intervals polynomials overflow
            outputs = run(program, arithmetic, inputs, self.model.tensors())
        return packing.unpack(outputs[OUTPUT], layout), arithmetic.largest

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
        program = _capture(self.graph, self.model, self.layers, packing)
        if self.bootstrapping is None:
            return replace(self, packing=packing, program=trim(program))
        job = replace(self, packing=packing, program=program, placement=None)
        return _refreshed(job, self.bootstrapping)

    @property
    def untrimmed(self) -> Program:
        """The program with values at the levels at which they are made (see `program.trim`)."""
        if self.placement is not None:
            return insert(self.placement)
        return _capture(self.graph, self.model, self.layers, self.packing)

    def split_by_columns(self, shards: int) -> Job:
        """Return the job with its feed-forward networks in shards, to compare with.

        They are split by columns and rows (`circuits.encoder.EncoderLayer.shards`).
        """
        layers = [replace(layer, shards=shards) for layer in self.layers]
        program = _capture(self.graph, self.model, layers, self.packing)
        job = replace(self, layers=layers, program=program, placement=None)
        if self.bootstrapping is None:
            return replace(job, program=trim(program))
        return _refreshed(job, self.bootstrapping)

    def to_dict(self) -> dict[str, Any]:
        """Return what a server needs to build the job, beside model and graph."""
        return {
            "graph": self.graph.name,
            "model": self.model.name,
            "weights": self.model.sha256,
            "tokens": self.packing.tokens,
            "parameters": asdict(self._params.literal),
            "bootstrapping": asdict(self.bootstrapping.literal) if self.bootstrapping else None,
            "calibration": self.calibration.to_dict(),
            "fingerprint": self.fingerprint,
        }


def _call(job: Job, name: str, function: Callable[[BertModel, Float], Float], x: Float) -> Float:
    """Call a float64 function of the graph, which is the user's code."""
    try:
        out = np.asarray(function(job.model, x), np.float64)
    except Exception as e:
        raise ProgramError(
            f"{name}(model, x) of graph {job.graph.name} fails: {type(e).__name__}: {e}"
        ) from e
    if out.shape != x.shape:
        raise ProgramError(
            f"{name}(model, x) of graph {job.graph.name} returns the shape {out.shape}, expected "
            f"is that of x, {x.shape}"
        )
    return out


def _settings(value: Any) -> Any:
    """Return what identifies an operation or a matrix, beside calibrated ranges and weights.

    Numbers computed from ranges are left out: they may differ in the last bit between machines.
    """
    if is_dataclass(value):
        return {f.name: _settings(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple):
        numbers = any(isinstance(v, float) for v in value)
        return f"{len(value)} numbers" if numbers else [_settings(v) for v in value]
    if isinstance(value, float | complex):
        return f"{value:.6g}" if value == 0 or abs(value) > 1e-6 else "small"
    return value if isinstance(value, int | str | None) else type(value).__name__


def choose_slots(tokens: int, heads: int) -> int:
    """Return the slots that hold `tokens` positions with one block per head, or more."""
    blocks = 1 << (heads - 1).bit_length()
    return min(max(1 << (MIN_LOG_N - 1), tokens * blocks), 1 << (MAX_LOG_N - 1))


def positions_for(length: int) -> int:
    """Return the positions that hold texts of `length` tokens: a power of two."""
    return Packing.for_length(1 << (MAX_LOG_N - 1), length).tokens


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
    params: AnyParameters | None = None,
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
        Slots of a ciphertext. By default those of the smallest ring whose 128-bit secure parameters
        have enough levels, or else can bootstrap; if insecure ones are allowed, of the smallest
        that holds the tokens.
    scale_bits
        log2 of the scale: 35, 40 or 45.
    allow_insecure
        Take a small ring without security. Never for real data.
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
    ProgramError
        If the graph cannot be captured, or the text is too long for any ring.
    RangeError
        If the calibration is of another model, or has too few layers.
    """
    count = graph.layers or len(model.layers)
    if count > len(model.layers):
        raise ParameterError(
            f"graph {graph.name} uses {count} layers, {model.name} has {len(model.layers)}"
        )
    model = model.first_layers(count)
    calibration.check_model(model)
    calibration = replace(calibration, layers=calibration.layers[:count])
    layers = encoder_layers(model, calibration)
    positions = tokens or positions_for(length)

    def job(size: int, chosen: Parameters | None, refreshes: bool = False) -> Job:
        packing = Packing(size, positions, length)
        program = _capture(graph, model, layers, packing)
        if not refreshes:  # else once it has them
            program = trim(program)
        return Job(model, calibration, graph, packing, layers, program, chosen)

    if isinstance(params, BootstrappingParameters):
        return _refreshed(job(params.params.slots, params.params, True), params)
    if params is not None:
        return job(params.slots, params)
    smallest = slots or choose_slots(positions, model.config.heads)
    simulated = job(smallest, None)
    if not encrypted:
        return simulated
    depth = needed = max(2, simulated.program.depth)
    if slots or allow_insecure:
        return job(smallest, parameters_for(depth, smallest, scale_bits, allow_insecure))
    for size in _powers(smallest, 1 << (MAX_LOG_N - 1)):
        try:
            made = job(size, parameters_for(depth, size, scale_bits))
            # Several lanes, where there are slots for them, can take more levels.
            needed = max(needed, made.program.depth)
            if made.program.depth > made._params.max_level:
                made = replace(made, params=parameters_for(made.program.depth, size, scale_bits))
            return made
        except ParameterError:
            continue
    found = []
    presets = secure_bootstrapping(scale_bits, positions)
    # With fewer blocks than heads attention goes by groups of heads.
    most = max((p.params.slots for p in presets), default=0)
    for preset in (p for p in presets if p.params.slots >= min(smallest, most)):
        try:
            found.append(_refreshed(job(preset.params.slots, preset.params, True), preset))
        except LevelError:  # too few levels for one operation, or nothing that can be refreshed
            continue
    if not found:
        raise ParameterError(_no_parameters(graph, needed, smallest, scale_bits))
    return min(found, key=lambda j: j.analysis.total.seconds)


def secure_bootstrapping(scale_bits: int, slots: int) -> list[BootstrappingParameters]:
    """Return 128-bit secure parameters with bootstrapping, of a scale and with enough slots."""
    return [
        BootstrappingParameters.preset(p.name)
        for p in BOOTSTRAPPING_PRESETS.values()
        if not p.insecure and p.scale_bits == scale_bits and 1 << (p.log_n - 1) >= slots
    ]


def budget_of(params: BootstrappingParameters) -> Budget:
    """Return what a refresh asks and gives."""
    literal = params.literal
    errors = tuple(2.0**-bits for bits in literal.precision_bits)
    return Budget(params.output_level, params.input_level, literal.max_magnitude, errors)


def _refreshed(job: Job, params: BootstrappingParameters) -> Job:
    """Return a job with refreshes in its program."""
    placement = minimum_cut(job.program, budget_of(params))
    return replace(
        job,
        program=trim(insert(placement), params.output_level, params.output_level),
        bootstrapping=params,
        placement=placement,
        params=params.params,
    )


def _capture(
    graph: Graph, model: BertModel, layers: Sequence[EncoderLayer], packing: Packing
) -> Program:
    try:
        return bert_program(model, layers, packing, graph.program)
    except AegisError:
        raise
    except Exception as e:  # the graph is the user's code
        raise ProgramError(
            f"program(x, layers) of graph {graph.name} fails: {type(e).__name__}: {e}"
        ) from e


def _no_parameters(graph: Graph, depth: int, slots: int, scale_bits: int) -> str:
    most = max(
        (
            len(p.level_bits)
            for p in PRESETS.values()
            if not p.insecure and p.scale_bits == scale_bits and 1 << (p.log_n - 1) >= slots
        ),
        default=0,
    )
    known = sorted({p.scale_bits for p in PRESETS.values() if not p.insecure})
    have = f"have at most {most}" if most else f"do not exist (scales are 2^b for b in {known})"
    return (
        f"graph {graph.name} takes {depth} levels, and 128-bit secure parameters with "
        f"{slots} slots or more and scale 2^{scale_bits} {have}, nor can those with bootstrapping "
        "run it. Take another scale, or, to try it on data that need no protection, allow insecure "
        "parameters (--insecure)"
    )


def _powers(low: int, high: int) -> list[int]:
    out = [low]
    while out[-1] < high:
        out.append(2 * out[-1])
    return out


def read_job(
    data: Mapping[str, Any], model: BertModel, graph: Graph, *, allow_insecure: bool = False
) -> Job:
    """Build the job that `Job.to_dict` describes, from one's own model and graph.

    Parameters
    ----------
    data
        The description.
    model, graph
        One's own.
    allow_insecure
        Whether its parameters may have less than 128-bit security.

    Raises
    ------
    InsecureParametersError
        If they have, and that is not allowed.
    SerializationError, RangeError
        If it is malformed.
    ParameterError
        If its parameters are none, or the result differs from what it describes.
    """
    found = read_description(data, allow_insecure=allow_insecure)
    if found.graph != graph.name:
        raise ParameterError(f"the job is for graph {found.graph!r}, this is {graph.name!r}")
    if found.weights != model.sha256:
        raise ParameterError(
            f"the job is for the model {found.model!r} (sha256 {found.weights}), this is "
            f"{model.name!r} (sha256 {model.sha256}); give the same model"
        )
    tokens = found.tokens
    job = make_job(model, found.calibration, graph, tokens, params=found.params, tokens=tokens)
    if job.fingerprint != found.fingerprint:
        raise ParameterError(
            "the job differs from what it was made for: another graph of that name, or another "
            "version of this library; use the same ones, or make keys again"
        )
    return job
