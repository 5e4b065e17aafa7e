"""Writing a program down at the granularity of polynomials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ClusterError
from aegis_dask.placement.limbs.late import LateDivision
from aegis_dask.placement.limbs.trace import (
    Buffer,
    Instruction,
    KeyPart,
    PerLimb,
    Recorder,
    Traced,
    View,
)
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Program
from aegis_dask.program.interpreter import run_stage
from aegis_dask.program.operations import Input, Refresh, Store
from aegis_dask.program.symbolic import RequiredKeys
from aegis_dask.ring.registry import using

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Ring


@dataclass(frozen=True)
class Recording:
    """A program as kernel calls.

    Attributes
    ----------
    program, params
        What was written down.
    buffers, instructions
        All calls, in order; each names its stage.
    inputs, outputs
        Name -> array of ciphertexts without data.
    """

    program: Program
    params: Parameters
    buffers: list[Buffer]
    instructions: list[Instruction]
    inputs: dict[str, CipherArray]
    outputs: dict[str, CipherArray]

    @property
    def constant_bytes(self) -> int:
        """Bytes of the plaintexts among the instructions."""
        total = 0
        for instruction in self.instructions:
            for a in instruction.arguments:
                a = a.values if isinstance(a, PerLimb) else a
                total += a.nbytes if isinstance(a, np.ndarray) else 0
        return total

    def input_buffer(self, name: str) -> int:
        """Return the buffer of an input."""
        return _traced(self.inputs[name]).view.buffer

    def output_view(self, name: str) -> View:
        """Return the view that is an output."""
        return _traced(self.outputs[name]).view


def record(
    program: Program,
    params: Parameters,
    keys: RequiredKeys,
    inputs: Mapping[str, CipherArray],
    store: Store,
    late: bool = False,
) -> Recording:
    """Write down what the encrypted interpreter does.

    Parameters
    ----------
    program, params
        What runs. Programs that refresh are refused.
    keys
        Evaluation keys that it has (`program.symbolic.analyse`).
    inputs
        Of these levels and scales; their residues are not looked at.
    store
        Weights by name, which become constants.
    late
        Divide sums of rotations once (`placement.limbs.late`).

    Raises
    ------
    ClusterError
        If the program refreshes ciphertexts.
    """
    for node in program.nodes:
        if isinstance(node.op, Refresh):
            raise ClusterError(
                f"stage {program.stages[node.stage].name!r} refreshes ciphertexts: programs with "
                "bootstrapping are not divided by limbs. Use parameters with as many levels as "
                "the program takes, or a strategy that divides by ciphertexts"
            )
    recorder = Recorder(params.chain)
    given = {}
    for name, value in inputs.items():
        batch = value.batch
        data: Any = recorder.make(tuple(batch.data.shape), params.limbs(batch.level))
        given[name] = CipherArray(batch.with_data(data), value.shape)
    values: dict[int, Any] = {program.inputs[name]: x for name, x in given.items()}
    with using(cast("Ring", recorder)):
        evaluator = Evaluator(params)
        evaluator.keys = _Keys(params, keys)  # type: ignore[assignment]
        interpreter: Any = LateDivision(evaluator) if late else Encrypted(evaluator)
        for stage in program.stages:
            recorder.stage = stage.index
            if not all(isinstance(program.nodes[i].op, Input) for i in stage.nodes):
                values.update(run_stage(program, stage, interpreter, store, values))
    outputs = {name: values[i] for name, i in program.outputs.items()}
    return Recording(program, params, recorder.buffers, recorder.instructions, given, outputs)


def _traced(x: CipherArray) -> Traced:
    return cast("Traced", x.batch.data)


class _Key:
    def __init__(self, part: KeyPart) -> None:
        self.a = self.b = part
        self.level = part.level


class _Keys:
    """Evaluation keys without data: of these rotations, and all others."""

    def __init__(self, params: Parameters, keys: RequiredKeys) -> None:
        self.params, self.required = params, keys

    def path(self, steps: int, level: int = 0) -> tuple[int, ...]:
        steps %= self.params.slots
        return (steps,) if steps else ()

    def steps_at(self, level: int) -> frozenset[int]:
        return frozenset(
            s % self.params.slots for s, highest in self.required.rotations.items()
            if highest >= level
        )  # fmt: skip

    def for_element(self, galois_element: int, level: int = 0) -> _Key:
        return _Key(KeyPart(galois_element, level))

    def for_multiplication(self, level: int = 0) -> _Key:
        return _Key(KeyPart(None, level))


def unrecorded(x: CipherArray, data: Any) -> CipherArray:
    """Return an array of ciphertexts that was written down, with data."""
    return CipherArray(x.batch.with_data(data), x.shape)
