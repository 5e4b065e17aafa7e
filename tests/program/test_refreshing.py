"""Programs that refresh: encrypted as simulated, every kind; and what values are known to be."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator, SecretKey
from aegis_dask.errors import LevelError, MissingKeyError, ProgramError
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, capture
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Refresh, Within
from aegis_dask.program.refresh import Budget, insert, minimum_cut
from aegis_dask.program.simulated import Simulated
from aegis_dask.program.values import UNKNOWN, Bound, magnitudes

PRESET = "insecure-n10-d40-b4"
SLOTS = 512


class Machine:
    """Keys of the small preset, made once."""

    def __init__(self) -> None:
        self.params = BootstrappingParameters.preset(PRESET)
        self.secret: SecretKey = KeyGenerator(self.params.params).secret_key()
        required = Bootstrapper(self.params).required_keys
        self.keys: BootstrappingKeys = bootstrapping_keys(self.params, self.secret, required)
        evaluator = Evaluator(self.params.params, self.keys.evaluation)
        self.encrypted = Encrypted(evaluator, Bootstrapper(self.params, self.keys))

    def encrypt(self, x: np.ndarray, level: int) -> CipherArray:
        encryptor = Encryptor(self.params.params, self.secret)
        batch = encryptor.encrypt(x.reshape(-1, SLOTS), level=level)
        return CipherArray(batch, x.shape[:-1])

    def decrypt(self, y: CipherArray) -> np.ndarray:
        slots = Decryptor(self.params.params, self.secret).decrypt(y.batch)
        return np.asarray(slots).reshape(*y.shape, SLOTS)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize(
    ("how", "shape", "size", "bits"),
    [
        (Refresh(), (2,), 1.0, 18.0),
        (Refresh(real=True), (), 2.0, 18.0),
        (Refresh(merged=True), (2, 2), 1.0, 18.0),
        (Refresh(real=True, iterations=2), (1,), 1.0, 23.0),
        (Refresh(shrink=4), (1,), 30.0, 14.0),
        (Refresh(merged=True, shrink=3), (1, 2), 15.0, 15.0),
    ],
)
def test_every_kind_gives_the_values_back_at_the_level_it_says(
    machine: Machine, how: Refresh, shape: tuple[int, ...], size: float, bits: float
) -> None:
    rng = np.random.default_rng()
    x = rng.uniform(-size, size, (*shape, SLOTS)).astype(complex)
    if not (how.real or how.merged):
        x = x + 1j * rng.uniform(-size, size, x.shape)
    program = capture(SLOTS, lambda c: c.output("y", c.apply(how, c.input("x", shape))))
    begin = machine.params.input_level + (how.shrink > 0)
    y = run(program, machine.encrypted, {"x": machine.encrypt(x, begin)}, {})["y"]
    assert y.shape == shape
    assert y.batch.level == machine.params.output_level - (how.iterations > 1)
    assert y.batch.is_canonical
    expected = run(program, Simulated(), {"x": x}, {})["y"]
    np.testing.assert_array_equal(expected, x)
    assert np.abs(machine.decrypt(y) - x).max() < 2.0**-bits


def test_a_program_of_any_depth_runs_with_few_levels(machine: Machine) -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (1, 2))
        for _ in range(14):
            x = (x.square() * 2 - 1).within(1)  # Chebyshev: stays in [-1, 1]
        c.output("y", x)

    params = machine.params
    program = capture(SLOTS, build)
    errors = tuple(2.0**-b for b in params.literal.precision_bits)
    budget = Budget(params.output_level, params.input_level, 2.0, errors)
    placement = minimum_cut(program, budget)
    assert placement.bootstraps >= 2
    refreshed = insert(placement)
    x = np.cos(np.random.default_rng().uniform(0, np.pi, (1, 2, SLOTS))).astype(complex)
    e = machine.encrypted
    y = run(refreshed, e, {"x": machine.encrypt(x, params.output_level)}, {})["y"]
    expected = np.cos(2**14 * np.arccos(x.real))
    # each of the doublings after the first refresh quadruples its error
    assert np.abs(machine.decrypt(y) - expected).mean() < 4.0**8 * 2.0**-20


def test_without_keys_or_levels_errors_say_so(machine: Machine) -> None:
    program = capture(SLOTS, lambda c: c.output("y", c.apply(Refresh(), c.input("x", ()))))
    x = np.zeros(SLOTS, complex)
    lacking = Encrypted(Evaluator(machine.params.params, machine.keys.evaluation))
    with pytest.raises(MissingKeyError, match="no keys for bootstrapping"):
        run(program, lacking, {"x": machine.encrypt(x, 3)}, {})
    with pytest.raises(LevelError, match="cannot be refreshed") as error:
        run(program, machine.encrypted, {"x": machine.encrypt(x, 2)}, {})
    assert "in refresh of stage" in str(getattr(error.value, "__notes__", ""))


def test_a_simulated_run_finds_values_beyond_their_bounds() -> None:
    program = capture(SLOTS, lambda c: c.output("y", c.input("x", ()).within(4)))
    for size, largest in ((2.0, 0.5), (6.0, 1.5)):
        e = Simulated()
        run(program, e, {"x": np.full(SLOTS, -1j * size)}, {})
        assert e.largest == largest


def test_a_simulated_refresh_has_the_error_that_is_asked_for() -> None:
    how = Refresh(real=True, shrink=3)
    program = capture(SLOTS, lambda c: c.output("y", c.apply(how, c.input("x", (64,)))))
    x = np.zeros((64, SLOTS), complex)
    y = run(program, Simulated(refresh_bits=20), {"x": x}, {})["y"]
    assert np.all(y.imag == 0)
    assert np.std(y.real) == pytest.approx(2.0**-17, rel=0.05)


def test_what_is_known_of_the_size_of_values() -> None:
    found: dict[str, Any] = {}

    def build(c: Capture) -> None:
        x = c.input("x", (2, 2))
        a = found["a"] = x.within(8, 0.5)
        found["turned"] = a.rotate(1).times_i()
        found["pair"] = a.pair()
        found["sum"] = a + a
        found["both"] = found["sum"].within(4)
        poly = found["poly"] = found["sum"].chebyshev([0.0, 0.0, 3.0])
        c.output("y", poly.sum())

    program = capture(SLOTS, build)
    known = magnitudes(program)
    bound = {name: known[tensor.node] for name, tensor in found.items()}
    assert known[0] == bound["a"] == bound["turned"] == bound["pair"] == Bound(8, 0.5)
    # the sum itself: what a polynomial takes is at most 1, and someone states 4
    assert bound["sum"] == Bound(1, inf)
    assert bound["both"] == Bound(1, inf)
    assert 3 <= bound["poly"].value < 3.1
    assert known[program.outputs["y"]] == UNKNOWN


def test_bounds_must_be_positive() -> None:
    for wrong in ({"bound": 0.0}, {"bound": 1.0, "error": 0.0}, {"bound": inf}):
        with pytest.raises(ProgramError):
            Within(**wrong)
