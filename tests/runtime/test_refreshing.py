"""Workers refresh ciphertexts, with keys of bootstrapping that they map from files."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.bootstrapper import FEW_BABY_STEPS, Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.errors import ClusterError, LevelError
from aegis_dask.placement.cut import split
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Refresh
from aegis_dask.program.refresh import Budget, insert, minimum_cut
from aegis_dask.runtime.executor import Executor

SLOTS = 512


def squares(c: Capture) -> None:
    x = c.input("x", (2,))
    for _ in range(9):
        with c.stage("square", over=2):
            x = ((x + x.square()) * 0.5).within(1)
    c.output("y", x)


def test_pairs_that_are_refreshed_in_one_are_not_taken_apart() -> None:
    budget = Budget(4, 0, 1.0)
    program = insert(minimum_cut(capture(SLOTS, squares), budget))
    refreshed = [
        (stage, program.nodes[i].op)
        for stage in program.stages
        for i in stage.nodes
        if isinstance(program.nodes[i].op, Refresh)
    ]
    assert refreshed
    for stage, op in refreshed:
        assert isinstance(op, Refresh)
        assert stage.over == (None if op.merged else 2)
    # However small the tasks are: a pair is the whole array here.
    units = split(program, 2, [100.0] * len(program.stages))
    assert all(u.rows is None for u in units if program.stages[u.stage].over is None)
    assert Refresh(merged=True).splits((3, 2))
    assert not Refresh(merged=True).splits((2,))


@pytest.mark.parametrize("processes", [False, True])
def test_a_deep_program_gives_the_residues_of_this_process(processes: bool) -> None:
    params = BootstrappingParameters.preset("insecure-n10-d40-b4")
    scheme = params.params
    secret = KeyGenerator(scheme).secret_key()
    required = Bootstrapper(params, baby_steps=FEW_BABY_STEPS).required_keys
    keys = bootstrapping_keys(params, secret, required)
    budget = Budget(params.output_level, params.input_level, params.literal.max_magnitude)
    program = insert(minimum_cut(capture(SLOTS, squares), budget))
    values = np.random.default_rng().uniform(-1, 1, (2, SLOTS))
    batch = Encryptor(scheme, secret).encrypt(values, level=params.output_level)
    x = CipherArray(batch, (2,))

    with Executor.local(workers=2, processes=processes) as executor:
        executor.prepare(keys=keys)
        result = executor.run(program, {"x": x})
        found = result.outputs["y"]
        executor.prepare(scheme, keys.evaluation)
        with pytest.raises((ClusterError, LevelError), match="bootstrapping"):
            executor.run(program, {"x": x})

    here = Encrypted(
        Evaluator(scheme, keys.evaluation), Bootstrapper(params, keys, baby_steps=FEW_BABY_STEPS)
    )
    expected = run(program, here, {"x": x}, {})["y"]
    assert np.array_equal(found.batch.data, expected.batch.data)
    plain = values
    for _ in range(9):
        plain = (plain + plain**2) / 2
    got = np.asarray(Decryptor(scheme, secret).decrypt(found.batch))
    assert np.abs(got - plain).max() < 1e-3
