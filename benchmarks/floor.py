"""Least time of an operation: arithmetic and bytes counted from the parameters.

The model of a vector CPU: two instructions on 16 words a cycle and core; a transform takes 14 of
them per 16 butterflies, base conversion and inner product 4 per 16 multiply-accumulates and 20 per
16 reductions. Keys come from memory at the measured read bandwidth, every other array is written
once and read once at the measured copy bandwidth. Left out: element-wise arithmetic, permutations,
twiddle factors, and everything in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

WORD_BYTES = 4
VECTOR_WORDS = 16
INSTRUCTIONS_PER_CYCLE = 2
PER_BUTTERFLY, PER_MAC, PER_REDUCTION = (c / VECTOR_WORDS for c in (14, 4, 20))

BABY_STEPS, GIANT_STEPS = 16, 8
"""Split of matvec_128."""


@dataclass(frozen=True)
class Shape:
    """Limbs at the level of an operation, and of the division to the level below."""

    degree: int
    digits: tuple[int, ...] | list[int]
    special: int
    dropped: int
    below: int

    @property
    def limbs(self) -> int:
        """Limbs of a polynomial."""
        return sum(self.digits)

    @property
    def extended(self) -> int:
        """Limbs of a polynomial over QP."""
        return self.limbs + self.special


@dataclass(frozen=True)
class Work:
    """Counts, all in limbs of `degree` points.

    `buffers` counts reads plus writes of everything but keys.
    """

    degree: int
    transforms: int = 0
    conversion_macs: int = 0
    inner_macs: int = 0
    reductions: int = 0
    keys: int = 0
    buffers: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.degree,
            self.transforms + other.transforms,
            self.conversion_macs + other.conversion_macs,
            self.inner_macs + other.inner_macs,
            self.reductions + other.reductions,
            self.keys + other.keys,
            self.buffers + other.buffers,
        )

    def __mul__(self, times: int) -> Work:
        total = Work(self.degree)
        for _ in range(times):
            total = total + self
        return total

    @property
    def limb_bytes(self) -> int:
        """Bytes of one limb."""
        return WORD_BYTES * self.degree

    @property
    def key_bytes(self) -> int:
        """Bytes of the evaluation keys that are read."""
        return self.keys * self.limb_bytes

    @property
    def buffer_bytes(self) -> int:
        """Bytes read and written otherwise."""
        return self.buffers * self.limb_bytes

    @property
    def cycles(self) -> float:
        """Cycles of one core for the arithmetic."""
        butterflies = self.transforms * (self.degree.bit_length() - 1) / 2
        instructions = (
            PER_BUTTERFLY * butterflies
            + PER_MAC * (self.conversion_macs + self.inner_macs)
            + PER_REDUCTION * self.reductions
        )
        return instructions * self.degree / INSTRUCTIONS_PER_CYCLE


@dataclass(frozen=True)
class Machine:
    """Measured with `threads` threads."""

    threads: int
    clock_ghz: float
    read_gb_s: float
    copy_gb_s: float


@dataclass(frozen=True)
class Floor:
    """Least time in milliseconds, by part."""

    arithmetic: float
    keys: float
    buffers: float

    @property
    def total(self) -> float:
        """Least time when memory and arithmetic do not overlap."""
        return self.arithmetic + self.keys + self.buffers

    @property
    def hidden(self) -> float:
        """Least time when the smaller of memory and arithmetic is hidden behind the larger."""
        return max(self.arithmetic, self.keys + self.buffers)


def floor(work: Work, machine: Machine) -> Floor:
    """Price the counts."""
    return Floor(
        arithmetic=work.cycles / machine.threads / machine.clock_ghz / 1e6,
        keys=work.key_bytes / machine.read_gb_s / 1e6,
        buffers=work.buffer_bytes / machine.copy_gb_s / 1e6,
    )


def work(shape: Shape) -> Mapping[str, Work]:
    """Return the counts of every operation that has a floor, at the level of `shape`."""
    limbs, special = shape.limbs, shape.special
    raise_, inner = _raise(shape), _inner_product(shape)
    down = _divide(shape, 2, special, limbs)
    down_rescaling = _divide(shape, 2, special + shape.dropped, shape.below)

    def buffers(count: int) -> Work:
        return Work(shape.degree, buffers=count)

    babies = raise_ + inner * (BABY_STEPS - 1)
    # The modular matrix product: every baby step is read once, every giant step written once.
    product = Work(
        shape.degree,
        inner_macs=BABY_STEPS * GIANT_STEPS * 2 * shape.extended,
        reductions=GIANT_STEPS * 2 * shape.extended,
        buffers=(BABY_STEPS + GIANT_STEPS) * 2 * shape.extended,
    )
    giant = _divide(shape, 1, special, limbs) + raise_ + inner
    return {
        "add": buffers(3 * 2 * limbs),
        "multiply_plain": buffers((2 + 1 + 2) * limbs),
        "rescale": _divide(shape, 2, shape.dropped, shape.below) + buffers(2 * limbs),
        # 4 components are read and 3 written by the tensor product; 2 of them are added later.
        "multiply_relin_rescale": buffers(9 * limbs) + raise_ + inner + down_rescaling,
        "rotate": raise_ + inner + down + buffers(limbs),
        "hoisted_rotations_8": raise_ + (inner + down + buffers(limbs)) * 8,
        "matvec_128": babies + product + giant * (GIANT_STEPS - 1) + down_rescaling,
    }


def _raise(shape: Shape) -> Work:
    """ModUp: one polynomial back to coefficients, every digit extended to QP and transformed."""
    raised = [(own, shape.extended - own) for own in shape.digits]
    new = sum(targets for _, targets in raised)
    return Work(
        shape.degree,
        transforms=shape.limbs + new,
        conversion_macs=sum(own * targets for own, targets in raised),
        reductions=new,
        # Read the operand; coefficients and raised digits are written and read.
        buffers=shape.limbs + 2 * shape.limbs + 2 * new,
    )


def _inner_product(shape: Shape) -> Work:
    """Sum over digits times key, both halves; the sums are written and read."""
    outputs = 2 * shape.extended
    return Work(
        shape.degree,
        inner_macs=len(shape.digits) * outputs,
        reductions=outputs,
        keys=len(shape.digits) * outputs,
        buffers=2 * outputs,
    )


def _divide(shape: Shape, polynomials: int, sources: int, targets: int) -> Work:
    """Division by `sources` primes: ModDown or rescale, the result written once."""
    return Work(
        shape.degree,
        transforms=polynomials * (sources + targets),
        conversion_macs=polynomials * sources * targets,
        reductions=polynomials * targets,
        # Sources and their remainders are written and read.
        buffers=polynomials * (2 * sources + 2 * targets + targets),
    )
