"""A whole encoder layer: encrypted, simulated and in float64."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest

from aegis_dask.circuits.encoder import attention_block, feed_forward_block
from aegis_dask.circuits.lanes import split_tokens
from aegis_dask.circuits.packing import Packing
from aegis_dask.circuits.tokens import TokenMatrix
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.errors import RangeError
from aegis_dask.models.calibration import Calibration, calibrate, check_inside
from aegis_dask.models.checkpoint import BertConfig, BertModel, random_bert
from aegis_dask.models.programs import INPUT, OUTPUT, bert_program, encoder_layers, hidden_layout
from aegis_dask.models.reference import encode
from aegis_dask.models.text import embed
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Program, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.parameters import parameters_for
from aegis_dask.program.simulated import Simulated
from aegis_dask.program.symbolic import Analysis, analyse
from tests.arrays import same
from tests.program.machines import run_in_parts

# The fits are good to 1e-3 each, and four of them follow each other.
FIT_ERROR = 5e-3


@dataclass(frozen=True)
class Case:
    """A random model of some shape, calibrated on random texts, and one more text."""

    config: BertConfig
    slots: int
    length: int

    @cached_property
    def model(self) -> BertModel:
        return random_bert(self.config, 1)

    @cached_property
    def packing(self) -> Packing:
        return Packing.for_length(self.slots, self.length)

    def random_text(self, seed: int, length: int | None = None) -> np.ndarray:
        rng = np.random.default_rng(seed)
        length = length or int(rng.integers(self.length // 2 + 1, self.length + 1))
        return rng.integers(1, self.config.vocabulary, length)

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.model, [self.random_text(seed) for seed in range(40)])

    @cached_property
    def text(self) -> tuple[np.ndarray, np.ndarray]:
        """The first new text that does not leave the calibrated ranges."""
        for seed in range(40, 60):
            x, valid = embed(self.model, self.random_text(seed, self.length))
            with suppress(RangeError):
                check_inside(self.model, self.calibration, x, valid)
                return x, valid
        raise AssertionError("twenty texts outside the ranges of forty others")

    @cached_property
    def program(self) -> Program:
        layers = encoder_layers(self.model, self.calibration)
        return bert_program(self.model, layers, self.packing)

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        layout = hidden_layout(self.model, self.packing)
        return {INPUT: self.packing.pack(self.text[0], layout) + 0j}

    @cached_property
    def simulated(self) -> np.ndarray:
        e = Simulated()
        found = run(self.program, e, self.inputs, self.model.tensors())[OUTPUT]
        assert e.largest <= 1
        return np.asarray(found)

    def error(self, slots: np.ndarray) -> float:
        """Largest error against the model in float64."""
        found = self.packing.unpack(slots, hidden_layout(self.model, self.packing))
        return float(np.max(np.abs(found - encode(self.model, *self.text))))


def config(layers: int, hidden: int, heads: int, **sizes: Any) -> BertConfig:
    inner = sizes.pop("inner", 2 * hidden)
    return BertConfig(layers, hidden, heads, inner, vocabulary=100, max_positions=256, **sizes)


CASES = {
    "padded": Case(config(1, 32, 2), 512, 30),
    "full": Case(config(1, 48, 4), 512, 32),
    "two layers": Case(config(2, 32, 4), 512, 32),
    "holes": Case(config(1, 44, 2, inner=70), 512, 27),
    "more heads than blocks": Case(config(1, 48, 8), 128, 32),
    "one block": Case(config(1, 16, 2), 64, 64),
    "long": Case(config(1, 32, 4), 1024, 128),
    "one token": Case(config(1, 32, 2), 512, 1),
    "one ciphertext": Case(config(1, 16, 2, inner=16), 512, 32),
    "gated": Case(config(1, 32, 2, gated=True), 512, 30),
}


@pytest.mark.parametrize("name", CASES)
def test_a_simulated_layer_is_the_model(name: str) -> None:
    case = CASES[name]
    assert case.error(case.simulated) < FIT_ERROR * len(case.model.layers)


@pytest.mark.parametrize("name", ["padded", "holes", "more heads than blocks", "gated"])
def test_parts_of_every_stage_are_the_stage(name: str) -> None:
    case = CASES[name]
    store, e = case.model.tensors(), Simulated()
    found = run_in_parts(case.program, e, case.inputs, store, lambda over: range(over + 1))
    # sums of floats in another order
    np.testing.assert_allclose(found[case.program.outputs[OUTPUT]], case.simulated, atol=1e-9)


# -- encrypted ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    case: Case
    analysis: Analysis
    e: Encrypted
    inputs: dict[str, CipherArray]
    decryptor: Decryptor
    output: CipherArray


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("holes", "gated")]


@pytest.fixture(scope="module", params=["padded", *SLOW])
def encrypted(request: pytest.FixtureRequest) -> Run:
    """With the keys of the analysis, at the levels of the analysis."""
    case: Case = CASES[request.param]
    program = case.program
    params = parameters_for(program.depth, case.slots, allow_insecure=True)
    analysis = analyse(program, params)
    generator, needed = KeyGenerator(params), analysis.keys
    secret = generator.secret_key()
    lanes = int(split_tokens(case.packing, case.model.config.heads).lanes > 1)
    # After the first projection, and with lanes its mask. With holes the variance is corrected by
    # the square of the mean, which is taken from the input.
    first = 0 if request.param == "holes" else lanes
    assert needed.relinearisation == program.depth - 1 - first
    keys = generator.evaluation_keys(
        secret,
        rotations=needed.rotations,
        conjugation=True,
        level=max(needed.relinearisation or 0, needed.conjugation or 0),
    )
    x = case.inputs[INPUT]
    batch = Encryptor(params, secret).encrypt(x.reshape(-1, x.shape[-1]), level=program.depth)
    inputs = {INPUT: CipherArray(batch, x.shape[:-1])}
    e = Encrypted(Evaluator(params, keys))
    output = run(program, e, inputs, case.model.tensors())[OUTPUT]
    return Run(case, analysis, e, inputs, Decryptor(params, secret), output)


def test_an_encrypted_layer_is_the_simulated_one(encrypted: Run) -> None:
    case, output = encrypted.case, encrypted.output
    found = np.asarray(encrypted.decryptor.decrypt(output.batch)).reshape(case.simulated.shape)
    # at scale 2^40 one operation leaves 28 bits; 36 levels of them, and values up to 8, take some
    assert np.max(np.abs(found - case.simulated)) < 2.0**-19
    assert case.error(found) < FIT_ERROR
    assert output.batch.level == encrypted.analysis.final_level == 0


def test_parts_of_every_encrypted_stage_give_the_same_residues(encrypted: Run) -> None:
    case, program = encrypted.case, encrypted.case.program
    found = run_in_parts(
        program,
        encrypted.e,
        encrypted.inputs,
        case.model.tensors(),
        lambda over: sorted({0, (over + 2) // 3, over}),
    )
    residues = found[program.outputs[OUTPUT]].batch.data
    assert same(residues, encrypted.output.batch.data)


# -- structure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["full", "gated"])
def test_a_layer_takes_the_levels_of_its_parts(name: str) -> None:
    case = CASES[name]
    layer = encoder_layers(case.model, calibrate(case.model, [[3, 4, 5]] * 8))[0]
    layout, fits = hidden_layout(case.model, case.packing), layer.fits

    def depth_of(block: Any) -> int:
        def build(c: Any) -> None:
            x = TokenMatrix(c.input("x", layout.shape), layout, case.packing)
            c.output("y", block(x, layer).tensor)

        return capture(case.slots, build).depth

    def levels(polynomial: Any) -> int:
        return int(polynomial.degree).bit_length()

    lanes = int(split_tokens(case.packing, case.model.config.heads).lanes > 1)
    # queries, scores, exp, 1 / denominator or values, division; projection; LayerNorm; with lanes
    # masks of queries and of the denominator
    softmax = lanes + 2 + fits.exponential.depth + max(1, lanes + fits.inverse.depth) + 1
    assert depth_of(attention_block) == softmax + 1 + 3 + levels(fits.norm1)
    inner = levels(fits.gelu) + (layer.gate is not None)
    assert depth_of(feed_forward_block) == 1 + inner + 1 + 3 + levels(fits.norm2)
