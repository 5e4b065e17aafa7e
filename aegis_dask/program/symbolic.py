"""The symbolic interpreter: no data, only shapes, levels and counts.

It says what a program will cost before anything is encrypted: rotations, products, key switches,
bytes and levels of every operation, the evaluation keys that it needs and the levels at which it
needs them. Chebyshev polynomials are counted by running their evaluation on symbols.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from aegis_dask.ckks.bootstrapping.parameters import (
    AnyParameters,
    BootstrappingParameters,
    scheme_of,
)
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.polynomial import evaluate_chebyshev
from aegis_dask.errors import LevelError, ProgramError
from aegis_dask.program.graph import Program, Stage
from aegis_dask.program.hoisting import two_stages
from aegis_dask.program.operations import (
    AddPlain,
    Input,
    MultiplyPlain,
    Operation,
    PlainMatrix,
    Refresh,
    Shape,
    Store,
)
from aegis_dask.program.parameters import digits_at

NTT_SECONDS = 1.7e-10
"""One thread, per point and butterfly stage of a number-theoretic transform."""
MAC_SECONDS = 1.4e-10
"""One thread, per modular multiply-accumulate in a GEMM or contraction."""
POINT_SECONDS = 5e-10
"""One thread, per point of an element-wise operation on data in memory."""
BOOTSTRAP_TRANSFORMS = 345
"""What a bootstrap takes, in transforms of all limbs over QP (docs/bootstrapping.md)."""

COUNTED = (
    "rotations",
    "conjugations",
    "plain_products",
    "products",
    "relinearisations",
    "rescales",
    "key_switches",
    "bootstraps",
)


@dataclass(frozen=True)
class Symbol:
    """An array of ciphertexts without data."""

    shape: Shape
    level: int
    components: int = 2

    @property
    def count(self) -> int:
        """Number of ciphertexts."""
        return prod(self.shape)

    @property
    def scale(self) -> None:
        """None: only ciphertexts have one."""


class Coupled(NamedTuple):
    """An operation through all limbs.

    Attributes
    ----------
    what
        ``raised``: decomposed for key switches (ModUp), ``switched``: multiplied by a key and
        divided by P (ModDown), ``rescaled``: such a division that drops a level too; ``divided``:
        a polynomial divided otherwise; ``summed``: a sum of rotated ciphertexts;
        ``bootstrapped``: a bootstrap.
    level
        Level before it.
    terms
        Rotated ciphertexts of such a sum, else 1.
    """

    what: str
    level: int
    terms: int = 1


@dataclass
class Cost:
    """Counts of one operation, stage or program.

    Attributes
    ----------
    counts
        Of the operations named in `COUNTED`, and ``plain_words``: distinct words of plaintext
        matrices in each limb. ``key_switches`` are those of rotations, conjugations and
        relinearisations together.
    seconds
        Estimated time on one thread.
    coupled
        Polynomials that are taken through all their limbs, at each level (see `Coupled`).
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    coupled: Counter[Coupled] = field(default_factory=Counter)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.counts + other.counts,
            self.seconds + other.seconds,
            self.coupled + other.coupled,
        )


class Symbolic:
    """Arithmetic on `Symbol`: adds to `cost`."""

    def __init__(
        self, params: Parameters, bootstrapping: BootstrappingParameters | None = None
    ) -> None:
        self.params, self.bootstrapping = params, bootstrapping
        self.cost = Cost()
        self.rotation_levels: dict[int, int] = {}
        self.conjugation_level = -1
        self.product_level = -1
        self._ntt = NTT_SECONDS * params.ring_degree * params.literal.log_n
        self._point = POINT_SECONDS * params.ring_degree

    @property
    def keys(self) -> RequiredKeys:
        """Keys that what has been counted needs."""
        return RequiredKeys(
            dict(self.rotation_levels),
            None if self.conjugation_level < 0 else self.conjugation_level,
            None if self.product_level < 0 else self.product_level,
        )

    # -- prices ------------------------------------------------------------------------------

    def _limbs(self, level: int) -> int:
        return len(self.params.window(level))

    def note(self, what: str, count: int) -> None:
        """Add to a count."""
        self.cost.counts[what] += count

    def couple(self, what: str, count: int, level: int, terms: int = 1) -> None:
        """Count polynomials that go through all limbs."""
        self.cost.coupled[Coupled(what, level, terms)] += count

    def _elementwise(self, x: Symbol, factor: float = 1.0) -> None:
        polys = x.count * x.components * self._limbs(x.level)
        self.cost.seconds += factor * polys * self._point

    def _division(self, count: int, level: int, components: int) -> None:
        """Price a rescale: few limbs back, all others corrected."""
        self.couple("divided", count * components, level)
        transforms = count * components * (2 + self._limbs(level))
        self.cost.seconds += transforms * self._ntt

    def _align(self, level: int, *operands: Symbol) -> None:
        """Price bringing operands down to a level."""
        for x in operands:
            if x.level > level:
                self._division(x.count, level + 1, x.components)

    def _key_switch(
        self, count: int, level: int, hoisted: bool = False, rescaled: bool = False
    ) -> None:
        self.couple("rescaled" if rescaled else "switched", count, level)
        if not hoisted:
            self.couple("raised", count, level)
        w, special = self._limbs(level), len(self.params.chain.special_primes)
        digits = digits_at(self.params, level)
        down = 2 * (special + w)
        up = 0 if hoisted else digits * (w + special)
        inner = 2 * digits * (w + special)
        self.cost.seconds += count * ((down + up) * self._ntt + inner * self._point)
        self.note("key_switches", count)

    def _multiplied(self, count: int, level: int) -> None:
        self.note("products", count)
        self.note("relinearisations", count)
        self.note("rescales", count)
        self.product_level = max(self.product_level, level)
        self.cost.seconds += 4 * count * self._limbs(level) * self._point
        self._key_switch(count, level, rescaled=True)

    # -- structure ---------------------------------------------------------------------------

    def shape_of(self, x: Symbol) -> Shape:
        """Return the shape of an array of ciphertexts."""
        return x.shape

    def part(self, x: Symbol, start: int, stop: int) -> Symbol:
        """Return rows of the leading axis."""
        return Symbol((stop - start, *x.shape[1:]), x.level, x.components)

    def join(self, parts: list[Symbol]) -> Symbol:
        """Put parts together along the leading axis."""
        rows = sum(p.shape[0] for p in parts)
        return Symbol((rows, *parts[0].shape[1:]), parts[0].level, parts[0].components)

    def stack(self, tensors: Sequence[Symbol]) -> Symbol:
        """Give arrays a new last axis."""
        level = min(t.level for t in tensors)
        return Symbol((*tensors[0].shape, len(tensors)), level, _components(tensors))

    def concatenate(self, tensors: Sequence[Symbol]) -> Symbol:
        """Put arrays one after the other."""
        level = min(t.level for t in tensors)
        shape = (sum(t.shape[0] for t in tensors), *tensors[0].shape[1:])
        return Symbol(shape, level, _components(tensors))

    def flatten(self, x: Symbol) -> Symbol:
        """Give the array one axis."""
        return Symbol((x.count,), x.level, x.components)

    def pair(self, x: Symbol, sign: int) -> Symbol:
        """Count ``x[..., 0] + i sign x[..., 1]``."""
        self._elementwise(x)
        return Symbol(x.shape[:-1], x.level, x.components)

    # -- sums --------------------------------------------------------------------------------

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        """Count an addition; the operand at the higher level is brought down."""
        level = min(x.level, y.level)
        self._align(level, x, y)
        out = Symbol(x.shape or y.shape, level, max(x.components, y.components))
        self._elementwise(out)
        return out

    subtract = add

    def times_i(self, x: Symbol, power: int) -> Symbol:
        """Count a product with a power of i."""
        self._elementwise(x)
        return x

    def add_constant(self, x: Symbol, c: complex) -> Symbol:
        """Count an addition of a constant."""
        self._elementwise(x, 0.5)
        return x

    def sum(self, x: Symbol) -> Symbol:
        """Count the sum of all ciphertexts."""
        self._elementwise(x)
        return Symbol((), x.level, x.components)

    def add_plain(self, x: Symbol, vectors: Any = None) -> Symbol:
        """Count an addition of plaintexts."""
        self._elementwise(x, 0.5)
        return x

    # -- products ----------------------------------------------------------------------------

    def multiply_integer(self, x: Symbol, c: int) -> Symbol:
        """Count an exact product."""
        self._elementwise(x)
        return x

    def _plain(self, x: Symbol) -> Symbol:
        self._need(x.level, 1)
        self.note("plain_products", x.count)
        self.note("rescales", x.count)
        self._elementwise(x)
        self._division(x.count, x.level, x.components)
        return Symbol(x.shape, x.level - 1, x.components)

    def multiply_constant(self, x: Symbol, c: complex) -> Symbol:
        """Count a product with a constant."""
        return self._plain(x)

    def multiply_plain(self, x: Symbol, vectors: Any = None) -> Symbol:
        """Count a product with plaintexts."""
        return self._plain(x)

    def multiply(self, x: Symbol, y: Symbol) -> Symbol:
        """Count a product, relinearised and rescaled."""
        level, shape = min(x.level, y.level), x.shape or y.shape
        self._need(level, 1)
        self._align(level, x, y)
        self._multiplied(prod(shape), level)
        return Symbol(shape, level - 1)

    def contract(self, x: Symbol, y: Symbol, transposed: bool) -> Symbol:
        """Count sums of products, not relinearised."""
        level, rows = min(x.level, y.level), y.shape[1 if transposed else 0]
        self._align(level, x, y)
        self.note("products", y.count)
        self.product_level = max(self.product_level, level)
        macs = 4 * y.count * self._limbs(level) * self.params.ring_degree
        self.cost.seconds += macs * MAC_SECONDS
        return Symbol((rows,), level, 3)

    def sum_of_squares(self, x: Symbol) -> Symbol:
        """Count a sum of squares, not relinearised."""
        return Symbol((), self.contract(x, Symbol((1, x.count), x.level), False).level, 3)

    def relinearise(self, x: Symbol) -> Symbol:
        """Count a relinearisation with its rescale."""
        self._need(x.level, 1)
        self.note("relinearisations", x.count)
        self.note("rescales", x.count)
        self.product_level = max(self.product_level, x.level)
        self._key_switch(x.count, x.level, rescaled=True)
        return Symbol(x.shape, x.level - 1)

    def matrix_product(
        self, x: Symbol, matrix: PlainMatrix, store: Store, start: int, stop: int
    ) -> Symbol:
        """Count rows ``start:stop`` of a product with a plaintext matrix."""
        self._need(x.level, 1)
        shape = (stop - start, *matrix.outputs[1:])
        products = prod(shape) * x.count
        self.note("plain_products", products)
        self.note("plain_words", products * 2 * matrix.period)
        self.note("rescales", prod(shape))
        limbs, n = self._limbs(x.level), self.params.ring_degree
        self.cost.seconds += 2 * products * limbs * n * MAC_SECONDS
        self.cost.seconds += products * limbs * 2 * matrix.period * 3e-9
        self._division(prod(shape), x.level, 2)
        return Symbol(shape, x.level - 1)

    def chebyshev(self, x: Symbol, coefficients: Any) -> Symbol:
        """Count a polynomial by evaluating it on a symbol."""
        key = tuple(float(c) for c in coefficients)
        single, level = _chebyshev_cost(self.params, x.level, key)
        for what, count in single.counts.items():
            self.note(what, count * x.count)
        for site, count in single.coupled.items():
            self.cost.coupled[site] += count * x.count
        self.cost.seconds += single.seconds * x.count
        self.product_level = max(self.product_level, x.level)
        return Symbol(x.shape, level)

    # -- key switching -----------------------------------------------------------------------

    def _rotated(self, count: int, level: int, step: int, hoisted: bool = False) -> None:
        self.note("rotations", count)
        self._key_switch(count, level, hoisted)
        self.rotation_levels[step] = max(self.rotation_levels.get(step, -1), level)

    def rotate(self, x: Symbol, step: int) -> Symbol:
        """Count a rotation."""
        self._rotated(x.count, x.level, step)
        return x

    def rotations(self, x: Symbol, steps: Sequence[int]) -> Symbol:
        """Count rotations that share decompositions, as the encrypted interpreter does them."""
        outer, inner = two_stages(tuple(steps), self.params.slots)
        self._hoisted(x, outer)
        for k in range(len(outer)):
            self._hoisted(x, inner[: len(steps) - k * len(inner)])
        return Symbol((*x.shape, len(steps)), x.level)

    def _hoisted(self, x: Symbol, steps: Sequence[int]) -> None:
        for i, s in enumerate(s for s in steps if s):
            self._rotated(x.count, x.level, s, hoisted=i > 0)

    def rotate_sum(self, x: Symbol, steps: Sequence[int]) -> Symbol:
        """Count a rotation for each step but 0, and their sum."""
        out = Symbol(x.shape[:-1], x.level)
        self.couple("summed", out.count, x.level, sum(1 for s in steps if s))
        for s in steps:
            if s:
                self._rotated(out.count, x.level, s)
        self._elementwise(x)
        return out

    def conjugate(self, x: Symbol) -> Symbol:
        """Count a conjugation."""
        self.note("conjugations", x.count)
        self._key_switch(x.count, x.level)
        self.conjugation_level = max(self.conjugation_level, x.level)
        return x

    # -- refreshing --------------------------------------------------------------------------

    def within(self, x: Symbol, bound: float) -> Symbol:
        """Count nothing."""
        return x

    def lower(self, x: Symbol, by: int) -> Symbol:
        """Count a division."""
        self._need(x.level, by)
        self._division(x.count, x.level - by + 1, x.components)
        return Symbol(x.shape, x.level - by, x.components)

    def refresh(self, x: Symbol, how: Refresh) -> Symbol:
        """Count bootstraps."""
        if self.bootstrapping is None:
            raise LevelError(
                f"the program refreshes ciphertexts, and {self.params.name} has no levels for "
                "bootstrapping; choose BootstrappingParameters"
            )
        floor = self.bootstrapping.input_level + (how.shrink > 0)
        if x.level < floor:
            raise LevelError(
                f"{x.count} ciphertexts at level {x.level} cannot be refreshed: that takes level "
                f"{floor} or above with {self.params.name}; place refreshes for its levels"
            )
        count = x.count // 2 if how.merged else x.count
        self.note("bootstraps", count * how.iterations)
        self.couple("bootstrapped", count * how.iterations, x.level)
        limbs = len(self.params.extended_limbs(self.params.max_level))
        seconds = BOOTSTRAP_TRANSFORMS * limbs * self._ntt
        self.cost.seconds += count * seconds * how.price
        return Symbol(x.shape, self.bootstrapping.output_level - (how.iterations > 1))

    def _need(self, level: int, levels: int) -> None:
        if level < levels:
            raise LevelError(
                f"the program needs more levels than the {self.params.max_level} of "
                f"{self.params.name}; choose parameters with more levels"
            )


def _components(tensors: Sequence[Symbol]) -> int:
    return max(t.components for t in tensors)


class _ChebyshevEvaluator:
    """What `evaluate_chebyshev` asks of an evaluator, on symbols."""

    def __init__(self, arithmetic: Symbolic) -> None:
        self.arithmetic = arithmetic

    def multiply(self, x: Symbol, y: Symbol) -> Symbol:
        return self.arithmetic.multiply(x, y)

    def add(self, x: Symbol, y: Any) -> Symbol:
        if isinstance(y, Symbol):
            return self.arithmetic.add(x, y)
        return self.arithmetic.add_constant(x, y)

    sub = add

    def combinations(
        self, terms: Sequence[Symbol], weights: Any, constants: Any, scale: Any
    ) -> list[Symbol]:
        """Count sums of terms times constants."""
        a, x, (rows, inner) = self.arithmetic, terms[0], np.shape(weights)
        a.note("plain_products", rows * inner)
        limbs = a._limbs(x.level)
        a.cost.seconds += 2 * rows * inner * limbs * a.params.ring_degree * MAC_SECONDS
        return [self.rescale(x) for _ in range(rows)]

    def to_level(self, x: Symbol, level: int, scale: Any = None) -> Symbol:
        if level < x.level:
            self.arithmetic._division(1, level, 2)
        return Symbol(x.shape, level)

    def rescale(self, x: Symbol) -> Symbol:
        self.arithmetic.note("rescales", 1)
        self.arithmetic._division(1, x.level, 2)
        return Symbol(x.shape, x.level - 1)


@lru_cache(maxsize=4096)
def _chebyshev_cost(
    params: Parameters, level: int, coefficients: tuple[float, ...]
) -> tuple[Cost, int]:
    """Return the cost of a polynomial of one ciphertext, and the level of its value."""
    arithmetic = Symbolic(params)
    evaluator: Any = _ChebyshevEvaluator(arithmetic)
    x: Any = Symbol((), level)
    scales: Any = [x.scale] * (level + 1)
    out = evaluate_chebyshev(evaluator, x, coefficients, scales=scales)
    return arithmetic.cost, out.level


@dataclass(frozen=True, eq=False)
class RequiredKeys:
    """Evaluation keys of a program, each with the highest level at which it is used.

    Those of bootstrapping are not among them.
    """

    rotations: dict[int, int]
    conjugation: int | None
    relinearisation: int | None

    @property
    def count(self) -> int:
        """Number of keys."""
        singles = (self.conjugation is not None) + (self.relinearisation is not None)
        return len(self.rotations) + singles


@dataclass(frozen=True, eq=False)
class Analysis:
    """What a program costs with given parameters.

    Attributes
    ----------
    program, params, top_level
        The program, with what parameters of the scheme, and the level of its inputs.
    levels
        Level of every node's value.
    node_cost
        Cost of every node.
    node_bytes
        Size of every node's value.
    keys
        Evaluation keys that it needs, without those of bootstrapping.
    bootstrapping
        Parameters of bootstrapping, if the program refreshes.
    node_keys
        Those of `keys` that every node needs.
    """

    program: Program
    params: Parameters
    top_level: int
    levels: list[int]
    node_cost: list[Cost]
    node_bytes: list[int]
    keys: RequiredKeys
    bootstrapping: BootstrappingParameters | None = None
    node_keys: Sequence[RequiredKeys] = ()

    @property
    def total(self) -> Cost:
        """Cost of the whole program."""
        return sum(self.node_cost, Cost())

    @property
    def stage_work(self) -> list[float]:
        """Estimated seconds on one thread of every stage."""
        return [sum(self.node_cost[i].seconds for i in s.nodes) for s in self.program.stages]

    def stage_cost(self, stage: Stage) -> Cost:
        """Return the cost of a stage."""
        return sum((self.node_cost[i] for i in stage.nodes), Cost())

    @property
    def working_bytes(self) -> int:
        """Bytes of what the largest stage takes and gives: a worker holds that much, undivided."""
        program, size = self.program, self.node_bytes
        return max(
            sum(size[i] for i in [*program.arguments(s), *program.results(s)])
            for s in program.stages
        )

    @property
    def final_level(self) -> int:
        """Lowest level among the outputs."""
        return min(self.levels[i] for i in self.program.outputs.values())


def all_keys(parts: Iterable[RequiredKeys]) -> RequiredKeys:
    """Return the keys that several parts of a program need together."""
    rotations: dict[int, int] = {}
    conjugation = relinearisation = -1
    for part in parts:
        for step, level in part.rotations.items():
            rotations[step] = max(rotations.get(step, -1), level)
        conjugation = max(conjugation, -1 if part.conjugation is None else part.conjugation)
        if part.relinearisation is not None:
            relinearisation = max(relinearisation, part.relinearisation)
    return RequiredKeys(
        dict(sorted(rotations.items())),
        None if conjugation < 0 else conjugation,
        None if relinearisation < 0 else relinearisation,
    )


def analyse(
    program: Program,
    params: AnyParameters,
    top_level: int | None = None,
) -> Analysis:
    """Count a program.

    Parameters
    ----------
    program, params
        Their slots must agree. A program that refreshes takes parameters with bootstrapping.
    top_level
        Level of the inputs: by default just what the program needs, or that of refreshed values if
        it refreshes.

    Raises
    ------
    ProgramError
        If the slots differ.
    LevelError
        If the parameters have too few levels, or none for bootstrapping where that is needed.
    """
    bootstrapping = params if isinstance(params, BootstrappingParameters) else None
    scheme = scheme_of(params)
    if program.slots != scheme.slots:
        raise ProgramError(
            f"the program is for {program.slots} slots, {scheme.name} has {scheme.slots}"
        )
    refreshes = any(isinstance(node.op, Refresh) for node in program.nodes)
    if top_level is None:
        top_level = program.depth
        if refreshes and bootstrapping is not None:
            top_level = bootstrapping.output_level
    if top_level > scheme.max_level or (program.depth > top_level and not refreshes):
        raise LevelError(
            f"the program takes {program.depth} levels; inputs at level {top_level} were asked "
            f"for and {scheme.name} has {scheme.max_level}. Choose parameters with more levels"
        )
    e = Symbolic(scheme, bootstrapping)
    values: list[Symbol] = []
    costs: list[Cost] = []
    needed: list[RequiredKeys] = []
    for node in program.nodes:
        e.cost, e.rotation_levels = Cost(), {}
        e.conjugation_level = e.product_level = -1
        op: Operation = node.op
        if isinstance(op, Input):
            values.append(Symbol(op.size, top_level))
        else:
            values.append(_infer(op, e, [values[i] for i in node.inputs]))
        costs.append(e.cost)
        needed.append(e.keys)
    limb_bytes = 4 * scheme.ring_degree
    sizes = [v.count * v.components * len(scheme.window(v.level)) * limb_bytes for v in values]
    levels = [v.level for v in values]
    keys, found = all_keys(needed), bootstrapping if refreshes else None
    return Analysis(program, scheme, top_level, levels, costs, sizes, keys, found, needed)


def _infer(op: Operation, e: Any, inputs: list[Symbol]) -> Symbol:
    """Run an operation on symbols, without building its plaintexts."""
    out: Symbol
    if isinstance(op, AddPlain):
        out = e.add_plain(inputs[0])
    elif isinstance(op, MultiplyPlain):
        out = e.multiply_plain(inputs[0])
    else:
        out = op.run(e, {}, *inputs)
    return out
