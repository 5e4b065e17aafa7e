"""The figures of docs/counts.md are what the library counts."""

from __future__ import annotations

import re
import time
import tracemalloc
from math import prod
from pathlib import Path

import pytest

from aegis_dask.circuits.packing import Packing
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.models.calibration import typical_calibration
from aegis_dask.models.checkpoint import named_config, shape_only
from aegis_dask.models.programs import INPUT, bert_program, encoder_layers
from aegis_dask.program.graph import Node, Program
from aegis_dask.program.operations import MatrixProduct
from aegis_dask.program.parameters import parameters_for
from aegis_dask.program.refresh import insert, minimum_cut
from aegis_dask.program.symbolic import COUNTED, Analysis, analyse
from aegis_dask.service.job import budget_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "counts.md"
TOKENS, SLOTS = 2048, 1 << 15
BOOTSTRAPPING = BootstrappingParameters.preset("n16-d40-b13")


def build(layers: int) -> Program:
    model = shape_only(named_config("bert-base", TOKENS))
    found = encoder_layers(model, typical_calibration(model.config))
    return bert_program(model, found[:layers], Packing(SLOTS, TOKENS, TOKENS))


@pytest.fixture(scope="module")
def params() -> Parameters:
    return parameters_for(build(1).depth, SLOTS, allow_insecure=True)


@pytest.fixture(scope="module")
def layer(params: Parameters) -> Analysis:
    return analyse(build(1), params)


def printed(heading: str) -> dict[str, int]:
    """Return the column "ours" of the table under a heading of the document."""
    section = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|", section, re.MULTILINE)
    assert rows
    return {label: int(number.replace(",", "")) for label, number in rows}


class Ledger:
    """Sums counts over the nodes of some stages."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis, self.program = analysis, analysis.program

    def nodes(self, stages: str, operations: str = ".*") -> list[Node]:
        """Return nodes by patterns for the name of the stage without its layer, and the type."""
        return [
            n
            for n in self.program.nodes
            if re.fullmatch(stages, self.program.stages[n.stage].name.partition("/")[2])
            and re.fullmatch(operations, type(n.op).__name__)
        ]

    def __call__(self, what: str, stages: str, operations: str = ".*") -> int:
        nodes = self.nodes(stages, operations)
        return sum(self.analysis.node_cost[n.id].counts[what] for n in nodes)

    def outputs(self, stages: str, operations: str) -> int:
        """Number of ciphertexts that operations give."""
        return sum(prod(n.shape) for n in self.nodes(stages, operations))


def test_one_layer_is_counted_as_printed(layer: Analysis) -> None:
    n, program = Ledger(layer), layer.program
    qkv, groups = "attention/(query|key|value)", r"attention/group-\d+"
    inner = "feed-forward/gelu"
    found = {
        "Ciphertexts of the input": prod(program.nodes[program.inputs[INPUT]].shape),
        "Ciphertexts of Q, K and V": sum(
            prod(node.op.matrix.outputs[:-1])
            for node in n.nodes(qkv, "MatrixProduct")
            if isinstance(node.op, MatrixProduct)
        ),
        "Ciphertexts between FC1 and FC2": n.outputs(inner, "Chebyshev"),
        "Score ciphertexts": n.outputs(groups, "Chebyshev"),
        "Plaintext products, QKV": n("plain_products", qkv, "MatrixProduct"),
        "Plaintext products, O": n("plain_products", "output/project", "MatrixProduct"),
        "Plaintext products, FC1": n("plain_products", inner, "MatrixProduct"),
        "Plaintext products, FC2": n("plain_products", "feed-forward/project", "MatrixProduct"),
        "Plaintext products, all four": n("plain_products", ".*", "MatrixProduct"),
        "Words of weights per limb": n("plain_words", ".*"),
        "Rotations, QKV": n("rotations", "attention-rotate") + n("rotations", qkv, "RotateSum"),
        "Rotations, O": n("rotations", "output/.*"),
        "Rotations, FC1": n("rotations", "feed-forward/rotate")
        + n("rotations", inner, "RotateSum"),
        "Rotations, FC2": n("rotations", "feed-forward/inner-rotate", "Rotations")
        + n("rotations", "feed-forward/project"),
        "Conjugations, linear layers": n("conjugations", f"{qkv}|output/.*|feed-forward/.*"),
        "QK^T, products": n("products", groups, "Contract") // 2,
        "QK^T, relinearisations": n.outputs(groups, "AddPlain"),
        "QK^T, rotations": n("rotations", "attention/key(-steps)?", "Rotate|Rotations") + 63 * 64,
        "QK^T, conjugations": n("conjugations", groups),
        "SV, products": n("products", groups, "Contract") // 2,
        "SV, relinearisations": n("relinearisations", groups, "Relinearise")
        - n.outputs(groups, "AddPlain"),
        "SV, rotations": n("rotations", "attention/value-steps", "Rotations") + 63 * 32,
        "Softmax denominators, rotations": n("rotations", groups) - 63 * (64 + 32),
        "LayerNorm, rotations": n("rotations", ".*mean|norm./root"),
        "LayerNorm, masks": n("plain_products", ".*mean|norm./root", "MultiplyPlain"),
        "exp, products": n("products", groups, "Chebyshev|Multiply"),
        "1/denominator, products": n("products", "attention/denominator"),
        "Division, products": n("products", "attention/divide"),
        "GELU, products": n("products", inner),
        "LayerNorm, products": n("products", "norm.*"),
    }
    assert found == printed("One layer")


def test_totals_and_keys_are_as_printed(layer: Analysis) -> None:
    found = {name.replace("_", " "): layer.total.counts[name] for name in COUNTED[:-1]}
    keys, params = layer.keys, layer.params
    levels = [*keys.rotations.values(), keys.conjugation or 0, keys.relinearisation or 0]
    found["levels"] = layer.program.depth
    found["evaluation keys"] = keys.count
    found["MiB of keys"] = round(sum(params.key_bytes(level) for level in levels) / 2**20)
    found["MiB of full keys"] = round(keys.count * params.key_bytes(params.max_level) / 2**20)
    found["operations in the program"] = len(layer.program.nodes)
    found["stages"] = len(layer.program.stages)
    assert found == printed("Totals of one layer")


def test_twelve_layers_are_captured_in_little_time_and_memory() -> None:
    tracemalloc.start()
    start = time.perf_counter()
    program = build(12)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 60
    assert peak < 256 << 20
    assert len(program.stages) == printed("Twelve layers")["stages"]


@pytest.mark.slow
def test_twelve_layers_are_twelve_times_one(layer: Analysis) -> None:
    program = build(12)
    placement = minimum_cut(program, budget_of(BOOTSTRAPPING))
    found = analyse(insert(placement), BOOTSTRAPPING)
    for name in COUNTED[:-1]:
        assert found.total.counts[name] == 12 * layer.total.counts[name], name
    assert {
        "levels": program.depth,
        "operations in the program": len(program.nodes),
        "stages": len(program.stages),
        "rotations": found.total.counts["rotations"],
        "key switches": found.total.counts["key_switches"],
        "products": found.total.counts["products"],
        "plain products": found.total.counts["plain_products"],
        "bootstraps": found.total.counts["bootstraps"],
        "ciphertexts refreshed": placement.unmerged,
        "evaluation keys of the program": found.keys.count,
    } == printed("Twelve layers")


def test_the_fits_are_those_that_are_printed() -> None:
    model = shape_only(named_config("bert-base", TOKENS))
    fits = encoder_layers(model, typical_calibration(model.config))[0].fits
    assert (fits.exponential.base.degree, fits.exponential.squarings) == (31, 1)
    assert fits.inverse.doublings == 8
    assert (fits.norm1.degree, fits.norm2.degree, fits.gelu.degree) == (15, 31, 63)
