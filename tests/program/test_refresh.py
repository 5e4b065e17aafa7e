"""Placing refreshes: valid, cheap, and explained."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_dask.ckks.polynomial import depth
from aegis_dask.errors import LevelError
from aegis_dask.program import operations
from aegis_dask.program.graph import Capture, EncryptedTensor, Program, capture, stack
from aegis_dask.program.interpreter import run
from aegis_dask.program.operations import Pair, Rotate
from aegis_dask.program.refresh import (
    METHODS,
    Budget,
    Refresh,
    eager,
    exact,
    insert,
    minimum_cut,
)
from aegis_dask.program.simulated import Simulated
from aegis_dask.program.values import parities

SLOTS = 64


class Refreshing(Simulated):
    """Simulated, and counts bootstraps."""

    bootstraps = 0

    def refresh(self, x: np.ndarray, how: Refresh) -> np.ndarray:
        count = int(np.prod(x.shape[:-1]))
        self.bootstraps += count // 2 if how.merged else count
        if how.merged or how.real:
            assert np.abs(x.imag).max() < 1e-9
        return super().refresh(x, how)


def levels_suffice(program: Program, usable: int) -> bool:
    levels: list[int] = []
    for node in program.nodes:
        if isinstance(node.op, Refresh):
            levels.append(usable)
            continue
        levels.append(min((levels[i] for i in node.inputs), default=usable) - node.op.depth)
    return min(levels) >= 0


def powers(depth: int, width: int) -> Program:
    """A chain of squares on many ciphertexts, with a waist of one in its middle."""

    def build(c: Capture) -> None:
        x = c.input("x", (width,))
        for _ in range(depth // 2):
            x = x.square()
        waist = x.sum()
        for _ in range(2):
            waist = waist.square()
        x = x * waist
        for _ in range(depth - depth // 2):
            x = x.square()
        c.output("y", x)

    return capture(SLOTS, build)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Random programs of real values on one or two ciphertexts."""
    choices = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 99)),
                            min_size=3, max_size=25))  # fmt: skip

    def build(c: Capture) -> None:
        values: list[EncryptedTensor] = [c.input("x", (2,))]
        for kind, a, b in choices:
            x, y = values[a % len(values)], values[b % len(values)]
            values.append((x * y, x + y, x.rotate(1 + a % 5), x * 0.5)[kind])
        c.output("y", values[-1] + values[len(values) // 2])

    return capture(SLOTS, build)


@settings(deadline=None, max_examples=60)
@given(programs(), st.integers(1, 4))
def test_every_placement_gives_every_operation_its_levels(program: Program, usable: int) -> None:
    prices = {}
    for name, place in METHODS.items():
        found = place(program, usable)
        refreshed = insert(found)
        assert levels_suffice(refreshed, usable), name
        prices[name] = found.price
    assert prices["exact"] <= min(prices.values()) + 1e-9


def test_a_refreshed_program_computes_the_same() -> None:
    program = powers(6, 4)
    x = np.random.default_rng().uniform(0.8, 1.0, (4, SLOTS)).astype(complex)
    expected = run(program, Simulated(), {"x": x}, {})["y"]
    placement = minimum_cut(program, 3)
    e = Refreshing()
    got = run(insert(placement), e, {"x": x}, {})["y"]
    assert np.array_equal(got, expected)
    assert e.bootstraps == placement.bootstraps > 0


def test_a_value_of_few_ciphertexts_is_preferred() -> None:
    program = powers(4, 32)
    cheap, dear = minimum_cut(program, 8), eager(program, 8)
    assert cheap.bootstraps <= exact(program, 8).bootstraps + 2
    assert cheap.bootstraps <= dear.bootstraps


def test_enough_levels_need_no_refresh() -> None:
    program = powers(4, 2)
    assert minimum_cut(program, program.depth).sites == ()
    assert eager(program, program.depth).sites == ()


def test_inputs_at_a_lower_level_are_refreshed_earlier() -> None:
    program = powers(4, 2)
    assert minimum_cut(program, program.depth, top_level=1).bootstraps > 0


def test_two_real_ciphertexts_share_a_bootstrap() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (3, 2))
        for _ in range(4):
            x = x.square()
        c.output("y", x)

    placement = minimum_cut(capture(SLOTS, build), 3)
    (site,) = placement.sites
    assert (site.bootstraps, site.merged) == (3, True)
    refreshes = [n.op for n in insert(placement).nodes if isinstance(n.op, Refresh)]
    assert refreshes == [Refresh(merged=True)]


def test_what_is_real_and_what_is_not() -> None:
    def build(c: Capture) -> None:
        x = c.input("x", (2, 2))
        z = x.pair()  # complex
        real = z + z.conjugate()
        imaginary = z - z.conjugate()
        c.output("a", real * imaginary.times_i(3))  # real
        c.output("b", imaginary * real)  # imaginary
        c.output("c", stack([real, z]))  # complex
        c.output("d", z.rotate(1))  # complex

    program = capture(SLOTS, build)
    kinds = parities(program)
    assert [kinds[program.outputs[k]] for k in "abcd"] == [
        "real", "imaginary", "complex", "complex",
    ]  # fmt: skip
    for node in program.nodes:
        if isinstance(node.op, Pair):
            assert kinds[node.id] == "complex"
        if isinstance(node.op, Rotate):
            assert kinds[node.id] == kinds[node.inputs[0]]


def test_an_operation_deeper_than_a_refresh_is_refused() -> None:
    def build(c: Capture) -> None:
        c.output("y", c.input("x", (1,)).chebyshev([0.0] * 31 + [1.0]))

    program = capture(SLOTS, build)
    for place in METHODS.values():
        with pytest.raises(LevelError, match=r"takes 5 levels.*gives 4"):
            place(program, 4)


def two_paths(short: int) -> Program:
    """A long path with a cheap early and a dear later place, added to one without; then 5 levels.

    Only what is said to be within 1 can be refreshed.
    """

    def squares(x: EncryptedTensor, count: int) -> EncryptedTensor:
        for _ in range(count):
            x = x.square()
        return x

    def build(c: Capture) -> None:
        x = c.input("x", ())
        early = squares(x, 2).within(1)
        late = squares(stack([early] * 16), 3).within(1)
        total = squares(late.sum(), 7) + squares(x, short)
        c.output("y", total.chebyshev([0.0] * 31 + [1.0]))

    return capture(SLOTS, build)


def test_an_early_refresh_that_leaves_a_later_one_too_low_is_taken_back() -> None:
    # After the cheap place the total comes at level 0, after the dear one at level 3.
    program, budget = two_paths(7), Budget(10, 3, 2.0)
    assert minimum_cut(program, budget).bootstraps == exact(program, budget).bootstraps == 17


def test_what_no_placement_can_refresh_is_refused() -> None:
    program, budget = two_paths(8), Budget(10, 3, 2.0)
    with pytest.raises(LevelError, match=r"no placement was found"):
        exact(program, budget)
    with pytest.raises(LevelError, match=r"chebyshev in stage .* runs out of levels"):
        minimum_cut(program, budget)


def test_depths_of_polynomials_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(degree: int) -> int:
        calls.append(degree)
        return depth(degree)

    def build(c: Capture) -> None:
        x = c.input("x", ())
        for _ in range(40):
            x = x.chebyshev([0.0, 0.0, 0.0, 1.0])
        c.output("y", x)

    program = capture(SLOTS, build)
    monkeypatch.setattr(operations, "depth", counted)
    assert len(minimum_cut(program, 4).sites) >= 10
    assert 0 < len(calls) <= 2 * len(program.nodes)


def test_a_placement_explains_itself() -> None:
    text = minimum_cut(powers(6, 4), 3).explain()
    assert "bootstraps at" in text
    assert "minimum cut" in text
    assert "at level" in text
