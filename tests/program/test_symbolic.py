"""Counts, levels, bytes and keys are those of an encrypted run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.galois import conjugation_element, rotation_element
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import LevelError, MissingKeyError, ProgramError
from aegis_dask.program.encrypted import Encrypted
from aegis_dask.program.graph import Capture, Program, capture, stack
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Input, Refresh
from aegis_dask.program.symbolic import COUNTED, Analysis, RequiredKeys, analyse
from tests.program.machines import (
    SLOTS,
    Matrix,
    Vectors,
    decrypt,
    encrypt,
    random_slots,
    run_encrypted,
    worst_bits,
)
from tests.program.test_encrypted import OPERATIONS, STORE, program_of
from tests.program.test_interpreter import PROGRAM
from tests.program.test_interpreter import STORE as PROGRAM_STORE
from tests.schemes import Scheme

NAME = "insecure-n10-d40"
DENSE = np.random.default_rng(9).uniform(-0.1, 0.1, 32)
EVEN = np.where(np.arange(31) % 2 == 0, DENSE[:31], 0.0)


def polynomials(c: Capture) -> None:
    """Polynomials of 31 degrees: all powers, even ones, and some that cancel when divided."""
    x = c.input("x", (2,))
    c.output("dense", x.chebyshev(DENSE))
    c.output("even", x.chebyshev(EVEN))
    c.output("equal", x.chebyshev([0.05] * 16))
    c.output("constant", x.chebyshev([0.5]))


PROGRAMS: dict[str, tuple[Program, Any]] = {
    "all together": (PROGRAM, PROGRAM_STORE),
    "polynomials": (capture(SLOTS, polynomials), {}),
    **{name: (program_of(name), STORE) for name in OPERATIONS},
}


# -- levels and bytes ---------------------------------------------------------------------------


def every_value(e: Any, program: Program, inputs: dict[str, Any], store: Any) -> list[Any]:
    values: list[Any] = []
    for node in program.nodes:
        if isinstance(node.op, Input):
            values.append(inputs[node.op.label])
        else:
            values.append(node.op.run(e, store, *(values[i] for i in node.inputs)))
    return values


@pytest.mark.parametrize("name", PROGRAMS)
def test_levels_and_bytes_are_those_of_ciphertexts(
    name: str, schemes: Callable[[str], Scheme], rng: np.random.Generator
) -> None:
    s, (program, store) = schemes(NAME), PROGRAMS[name]
    found = analyse(program, s.params)
    assert found.top_level == program.depth
    inputs = {
        k: encrypt(s, random_slots(rng, *program.nodes[i].shape, SLOTS).real + 0j, found.top_level)
        for k, i in program.inputs.items()
    }
    values = every_value(Encrypted(s.evaluator), program, inputs, store)
    for node, value in zip(program.nodes, values, strict=True):
        batch = value.batch
        assert value.shape == node.shape
        assert batch.components == node.components
        assert batch.level == found.levels[node.id] == program.depth - node.depth
        assert batch.nbytes == found.node_bytes[node.id]
    final = min(values[i].batch.level for i in program.outputs.values())
    assert found.final_level == final


def test_inputs_may_be_higher_than_needed() -> None:
    params = Parameters.preset(NAME)
    low, high = analyse(PROGRAM, params), analyse(PROGRAM, params, params.max_level)
    assert high.final_level - low.final_level == params.max_level - PROGRAM.depth
    assert high.total.counts == low.total.counts
    assert high.total.seconds > low.total.seconds


def test_too_few_levels_are_an_error() -> None:
    def deep(c: Capture) -> None:
        x = c.input("x", ())
        for _ in range(7):
            x = x * x
        c.output("y", x)

    params, program = Parameters.preset(NAME), capture(SLOTS, deep)
    with pytest.raises(LevelError, match=r"takes 7 levels.* has 6"):
        analyse(program, params)
    with pytest.raises(LevelError, match="inputs at level 1"):
        analyse(PROGRAM, params, 1)
    with pytest.raises(ProgramError, match="256 slots"):
        analyse(capture(256, deep), params)


# -- counts -------------------------------------------------------------------------------------


class Meter:
    """Counts what kernels and the evaluator do, where they do it."""

    def __init__(self, s: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.monkeypatch, ring = monkeypatch, s.params.ring
        conjugation = conjugation_element(s.params.ring_degree)

        def switched(rows: int, element: int) -> None:
            kinds = {1: "relinearisations", conjugation: "conjugations"}
            self.counts[kinds.get(element, "rotations")] += rows
            self.counts["key_switches"] += rows

        def on_switch(x: Any, *args: Any, galois_element: int = 1, **_: Any) -> None:
            switched(len(x), args[5] if len(args) > 5 else galois_element)

        def on_mod_down(x: Any, down: Any, addend: Any = None, galois_element: int = 1) -> None:
            if galois_element != 1:
                switched(len(x), galois_element)

        def on_gemm(x: Any, weights: Any, *_: Any, **__: Any) -> None:
            batch = x.shape[1] if x.ndim == 5 else 1
            self.counts["plain_products"] += weights.shape[-1] * weights.shape[-2] * batch
            if x.ndim == 4:
                self.counts["plain_words"] += weights[0].size

        def on_contract(x: Any, y: Any, *_: Any) -> None:
            self.counts["products"] += y.shape[0] * y.shape[1]

        self.watch(ring, "switch_key", on_switch)
        self.watch(ring, "mod_down", on_mod_down)
        self.watch(ring, "gemm", on_gemm)
        self.watch(ring, "contract", on_contract)
        self.watch(ring, "tensor", lambda x, *_: self.counts.update(products=len(x)))
        self.watch(Evaluator, "rescale", lambda _, x: self.counts.update(rescales=x.batch))
        self.watch(
            Evaluator,
            "relinearise",
            lambda _, x, rescale=False: self.counts.update(rescales=x.batch if rescale else 0),
        )
        self.watch(
            Evaluator,
            "_multiply_plain",
            lambda _, x, *__: self.counts.update(plain_products=x.batch),
        )
        self.watch(
            Encrypted,
            "multiply_plain",
            lambda _, x, *__: self.counts.update(plain_products=x.batch.batch),
        )

    def watch(self, owner: Any, name: str, count: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            count(*args, **kwargs)
            return original(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, watched)


@pytest.mark.usefixtures("arrays_of_numpy")
@pytest.mark.parametrize("name", PROGRAMS)
def test_counts_are_those_of_the_kernels(
    name: str,
    schemes: Callable[[str], Scheme],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s, (program, store) = schemes(NAME), PROGRAMS[name]
    x = {
        k: encrypt(s, random_slots(rng, *program.nodes[i].shape, SLOTS).real + 0j, program.depth)
        for k, i in program.inputs.items()
    }
    meter = Meter(s, monkeypatch)
    run(program, Encrypted(s.evaluator), x, store)
    assert +meter.counts == analyse(program, s.params).total.counts


def test_costs_of_stages_add_up() -> None:
    params = Parameters.preset(NAME)
    found = analyse(PROGRAM, params)
    stages = [found.stage_cost(s) for s in PROGRAM.stages]
    assert sum((c.counts for c in stages), Counter()) == found.total.counts
    assert sum(c.seconds for c in stages) == pytest.approx(found.total.seconds)
    assert found.stage_work == pytest.approx([c.seconds for c in stages])
    assert set(found.total.counts) <= {*COUNTED, "plain_words"}


# -- keys ---------------------------------------------------------------------------------------


def with_keys(c: Capture) -> None:
    """Rotations of which none is composed of the others, at different levels."""
    x = c.input("x", (2,))
    y = (x.rotate(5) * x).conjugate() * 0.5
    z = stack([y, y]).rotate_sum([0, 100]) + y.sum_of_squares().relinearise()
    c.output("z", z.rotations([0, -38]).flatten())


@pytest.fixture(scope="module")
def keyed() -> tuple[Scheme, Program, Analysis]:
    params = Parameters.preset(NAME)
    program = capture(SLOTS, with_keys)
    generator, found = KeyGenerator(params), analyse(program, params)
    secret = generator.secret_key()
    all_keys = generator.evaluation_keys(
        secret, rotations=list(found.keys.rotations), conjugation=True
    )
    return Scheme(params, secret, generator.public_key(secret), all_keys), program, found


def cut_to(keys: EvaluationKeys, needed: RequiredKeys) -> EvaluationKeys:
    """Exactly the keys needed, none of them for a level above its use."""
    n, relin = keys.params.ring_degree, None
    galois = {}
    for step, level in needed.rotations.items():
        g = rotation_element(step, n)
        galois[g] = keys.galois[g].truncated(level)
    if needed.conjugation is not None:
        g = conjugation_element(n)
        galois[g] = keys.galois[g].truncated(needed.conjugation)
    if needed.relinearisation is not None:
        assert keys.relinearisation is not None
        relin = keys.relinearisation.truncated(needed.relinearisation)
    return EvaluationKeys(keys.params, relin, galois)


def lacking(needed: RequiredKeys) -> Iterator[RequiredKeys]:
    """Without one of the keys, or with one for a level less."""
    for step, level in needed.rotations.items():
        rest = {k: v for k, v in needed.rotations.items() if k != step}
        for rotations in (rest, {**rest, step: level - 1}):
            yield RequiredKeys(rotations, needed.conjugation, needed.relinearisation)
    for low in (None, 0):
        yield RequiredKeys(needed.rotations, low, needed.relinearisation)
        yield RequiredKeys(needed.rotations, needed.conjugation, low)


def test_the_keys_are_needed_all_and_at_their_levels(
    keyed: tuple[Scheme, Program, Analysis], rng: np.random.Generator
) -> None:
    s, program, found = keyed
    assert program.depth == 3
    assert found.keys.rotations == {5: 3, 100: 1, SLOTS - 38: 0}
    assert found.keys.conjugation == 2
    assert found.keys.relinearisation == 3
    assert found.keys.count == 5
    x, levels = {"x": random_slots(rng, 2, SLOTS)}, {"x": program.depth}
    whole = run_encrypted(s, program, x, levels=levels)
    cut = run_encrypted(s, program, x, levels=levels, keys=cut_to(s.keys, found.keys))
    assert worst_bits(decrypt(s, cut["z"]), decrypt(s, whole["z"])) > 25
    without = [r for r in lacking(found.keys) if r.rotations.get(SLOTS - 38) != -1]
    assert len(without) == 3 + 2 + 4
    for fewer in without:
        with pytest.raises(MissingKeyError):
            run_encrypted(s, program, x, levels=levels, keys=cut_to(s.keys, fewer))


def test_a_program_without_key_switches_needs_no_key() -> None:
    program = capture(SLOTS, lambda c: c.output("y", c.input("x", (2,)) * 0.5))
    assert analyse(program, Parameters.preset(NAME)).keys.count == 0


# -- refreshes ----------------------------------------------------------------------------------


def refreshing(merged: bool = False, **how: Any) -> Program:
    """Three (or three pairs of) ciphertexts refreshed after two products, then one more."""

    def build(c: Capture) -> None:
        x = c.input("x", (3, 2) if merged else (3,))
        y = c.apply(Refresh(merged=merged, **how), x.square().square().rotate(5))
        c.output("y", y.square())

    return capture(512, build)


@pytest.mark.parametrize(
    ("how", "bootstraps"),
    [({}, 3), ({"real": True}, 3), ({"merged": True}, 3), ({"iterations": 2}, 6)],
)
def test_refreshes_are_counted_and_give_levels(how: dict[str, Any], bootstraps: int) -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")
    program = refreshing(**how)
    found = analyse(program, params)
    assert found.total.counts["bootstraps"] == bootstraps
    assert found.bootstrapping is params
    assert found.top_level == params.output_level
    out = program.outputs["y"]
    after = params.output_level - (how.get("iterations", 1) > 1)
    assert (found.levels[out - 1], found.levels[out]) == (after, after - 1)
    # the program's own keys only, for its own levels
    assert found.keys.rotations == {5: params.output_level - 2}
    assert found.keys.relinearisation == params.output_level


def test_a_real_refresh_is_cheaper_and_a_precise_one_dearer() -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")

    def seconds(**how: Any) -> float:
        return analyse(refreshing(**how), params).total.seconds

    assert seconds(real=True) < seconds() < seconds(real=True, iterations=2)


def test_refreshes_are_refused_without_levels_for_them() -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")
    with pytest.raises(LevelError, match="no levels for bootstrapping"):
        analyse(refreshing(), params.params)
    with pytest.raises(LevelError, match="that takes level 3 or above"):
        analyse(refreshing(), params, top_level=4)
    with pytest.raises(LevelError, match="that takes level 4 or above"):
        analyse(refreshing(shrink=1), params, top_level=5)


def test_vectors_are_not_built_for_counting() -> None:
    class Unbuilt(Vectors):
        def build(self, *_: Any) -> Any:
            raise AssertionError

    vectors = Unbuilt(np.zeros((2, 4), complex))
    program = capture(
        SLOTS,
        lambda c: c.output(
            "y",
            c.input("x", (2,))
            .add_plain(vectors)
            .multiply_plain(vectors)
            .matrix_product(Matrix("not there", (2,), (1,), 4)),
        ),
    )
    assert analyse(program, Parameters.preset(NAME)).total.counts["plain_words"] == 16
