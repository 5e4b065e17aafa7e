"""Values are brought down where they are made, to the level at which they are used."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ProgramError
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, EncryptedTensor, Program, capture, stack
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Lower, Refresh
from aegis_dask.program.symbolic import analyse
from aegis_dask.program.trim import levels_of, needed_levels, trim

SLOTS = 512


def late(c: Capture) -> None:
    """x is used three levels further down, in eight rotations."""
    x = c.input("x", (2,))
    with c.stage("deep", over=2):
        y = ((x * 0.5) * 0.5) * 0.5
    with c.stage("steps", over=2):
        z = (x * 0.25).rotations(range(8))
    with c.stage("use"):
        c.output("y", y.contract(z, transposed=True).relinearise())


def lowered(program: Program) -> list[tuple[str, int, tuple[int, ...]]]:
    return [
        (program.stages[n.stage].name, n.op.by, n.shape)
        for n in program.nodes
        if isinstance(n.op, Lower)
    ]


def test_a_value_is_lowered_once_before_it_is_rotated() -> None:
    program = capture(SLOTS, late)
    found = trim(program)
    assert lowered(found) == [("steps", 2, (2,))]
    assert found.depth == program.depth
    params = Parameters.preset("insecure-n10-d40")
    before, after = (analyse(p, params) for p in (program, found))
    assert after.final_level == before.final_level
    assert after.total.seconds < before.total.seconds
    assert max(after.keys.rotations.values()) == max(before.keys.rotations.values()) - 2
    assert trim(found).nodes == found.nodes


def test_values_stay_what_they_are() -> None:
    program = capture(SLOTS, late)
    params = Parameters.preset("insecure-n10-d40")
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(secret, rotations=range(1, 8))
    encryptor, decryptor = Encryptor(params, secret), Decryptor(params, secret)
    rng = np.random.default_rng()
    values = rng.uniform(-1, 1, (2, SLOTS))
    x = CipherArray(encryptor.encrypt(values), (2,))
    for p in (program, trim(program)):
        y = run(p, Encrypted(Evaluator(params, keys)), {"x": x}, {})["y"]
        expected = sum(v / 8 * np.array([np.roll(v, -s) for s in range(8)]) / 4 for v in values)
        for j in range(8):
            assert np.abs(decryptor.decrypt(y.batch[j]) - expected[j]).max() < 2**-18


def test_inputs_refreshes_and_partial_sums_keep_their_level() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (4,))
        with c.stage("halves", over=4):
            total = (x * 0.5).sum()
        fresh = c.apply(Refresh(), x)
        low = (total * 0.5) * 0.5
        c.output("y", low * x.sum() + fresh.sum())

    program = trim(capture(SLOTS, build), 6, 6)
    for node in program.nodes:
        if isinstance(node.op, Lower):
            op = program.nodes[node.inputs[0]].op
            assert op.name not in ("input", "refresh")
            assert program.stages[node.stage].name != "halves"


def test_it_goes_down() -> None:
    with pytest.raises(ProgramError, match="not by 0"):
        Lower(0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_program(data: st.DataObject) -> None:
    """No value is kept above its use, results keep their level, nothing runs out of levels."""

    def build(c: Capture) -> None:
        values: list[EncryptedTensor] = [c.input("x", ()), c.input("z", ())]
        for _ in range(data.draw(st.integers(1, 14))):
            a, b = (data.draw(st.sampled_from(values)) for _ in range(2))
            kind = data.draw(st.integers(0, 5))
            if kind == 0:
                values.append(a * b)
            elif kind == 1:
                values.append(a + b)
            elif kind == 2:
                values.append(a.rotate(1))
            elif kind == 3:
                values.append(a * 0.5)
            elif kind == 4:
                values.append(stack([a, b]).sum())
            else:
                values.append(a.conjugate())
        c.output("y", values[-1])
        c.output("also", data.draw(st.sampled_from(values)))

    program = capture(SLOTS, build)
    found = trim(program)
    top = program.depth
    before, after = levels_of(program, top), levels_of(found, top)
    assert min(after) >= 0
    for name in program.outputs:
        assert after[found.outputs[name]] == before[program.outputs[name]]
    need = needed_levels(found, after)
    for node in found.nodes:
        if node.op.name not in ("input", "refresh"):
            assert after[node.id] == need[node.id]
    assert trim(found).nodes == found.nodes
