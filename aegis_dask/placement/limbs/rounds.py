"""Who holds which limbs, what is exchanged when, and what is computed in between.

Limb i of every polynomial belongs to device ``i mod n`` (Cinnamon, ASPLOS 2025), or, where digits
are, to the one that has its digit. Operations that work limb by limb need nothing from others.
Those that go through all limbs do:

*broadcast*
    ModUp needs all limbs of its polynomial, ModDown those that leave: the special primes and, with
    a rescale, the dropped ones. Both are sent by those who have them to all others.
*input broadcast*
    The special primes are computed by every device, so that ModDown needs nothing: fewer bytes and
    one exchange less for each key switch, for work that is done n times (Cinnamon). The limbs that
    a rescale drops are treated alike.
*output aggregation*
    Every device raises its own digits to all limbs and multiplies them by the key: addends of the
    products, which stay apart through sums and automorphisms and are added where they are divided
    by P, each limb at its owner. The ModDown is that of a broadcast. Sums modulo primes are exact,
    so the residues do not change.
*cheapest*
    For every key switch, or sum of them that is divided once, the less of the last two.

A polynomial is sent once, whatever number of rotations use it (hoisting), and all exchanges that
can be made together are one *round*.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal, get_args

from aegis_dask.errors import ClusterError
from aegis_dask.placement.limbs.trace import Buffer, Instruction, View
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.conversion import DigitRaise

Exchange = Literal["broadcast", "input-broadcast", "output-aggregation", "cheapest"]
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)
LIMB_BYTES = 4


@dataclass(frozen=True)
class Gather:
    """Limbs of a view that every device sends to all others.

    Attributes
    ----------
    buffer
        Buffer that it makes, on every device, with these limbs.
    view
        What is sent.
    limbs
        Primes.
    polynomials
        How many there are of each limb.
    stage
        Stage that needs it first.
    """

    buffer: int
    view: View
    limbs: tuple[int, ...]
    polynomials: int
    stage: int


@dataclass(frozen=True)
class Reduction:
    """Addends of a view that devices send to the owners of their limbs, who add them.

    Attributes
    ----------
    buffer
        Buffer that it makes: a device has its own limbs.
    view
        What is added.
    limbs
        Primes.
    polynomials
        How many there are of each limb.
    senders
        Devices that have addends.
    stage
        Stage that needs it first.
    """

    buffer: int
    view: View
    limbs: tuple[int, ...]
    polynomials: int
    senders: frozenset[int]
    stage: int


@dataclass(frozen=True)
class Step:
    """An instruction on every device, and where it finds limbs that it does not own.

    Attributes
    ----------
    instruction
        The instruction.
    gathered
        Buffers of gathers: of the polynomial that is raised, or of the limbs that leave, of the
        operand and of the addend; None where the device has them.
    """

    instruction: Instruction
    gathered: tuple[int | None, ...] = ()


@dataclass
class Round:
    """What every device computes between two exchanges.

    Attributes
    ----------
    steps
        In order.
    gathers, reductions
        What is sent at its end.
    dropped
        Buffers that are not needed after it.
    """

    steps: list[Step] = field(default_factory=list)
    gathers: list[Gather] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """Rounds for a number of devices.

    Attributes
    ----------
    chain
        Primes.
    devices
        How many.
    exchange
        What is exchanged.
    buffers
        Those of the recorder and those of gathers.
    owners
        Device of every prime's limbs.
    everywhere
        Buffer -> primes whose limbs every device has.
    raised
        Buffer of raised digits -> for each digit the device that has it, with all limbs.
    addends
        Buffer -> devices that have addends of it, of all limbs; others have zeros.
    rounds
        In order.
    """

    chain: ModulusChain
    devices: int
    exchange: Exchange
    buffers: list[Buffer]
    owners: tuple[int, ...]
    everywhere: dict[int, frozenset[int]] = field(default_factory=dict)
    raised: dict[int, tuple[int, ...]] = field(default_factory=dict)
    addends: dict[int, frozenset[int]] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    def owner(self, prime: int) -> int:
        """Return the device of a limb."""
        return self.owners[prime]

    def digits(self, constants: DigitRaise, device: int) -> list[int]:
        """Return the digits whose limbs are a device's own, where limbs belong by digits."""
        return [
            k for k, c in enumerate(constants.conversions) if self.owner(c.sources[0]) == device
        ]

    def owned(self, primes: Sequence[int], device: int) -> list[int]:
        """Return those of some primes whose limbs are a device's own."""
        return [i for i in primes if self.owner(i) == device]

    def positions(self, primes: Sequence[int], device: int) -> list[int]:
        """Return where those of `owned` are among the primes."""
        return [i for i, p in enumerate(primes) if self.owner(p) == device]

    def held(self, buffer: int, device: int) -> list[int]:
        """Return the primes of a buffer's limbs that a device has, in order."""
        if buffer in self.raised or buffer in self.addends:
            return self.limbs(buffer)
        all_have = self.everywhere.get(buffer, frozenset())
        return [i for i in self.limbs(buffer) if i in all_have or self.owner(i) == device]

    def limbs(self, buffer: int) -> list[int]:
        """Return the primes of a buffer's limbs."""
        return [_known(i) for i in self.buffers[buffer].limbs]

    def limbs_of(self, view: View) -> list[int]:
        """Return the primes of all limbs of a view."""
        limbs = self.limbs(view.buffer)
        for kind, *rest in view.path:
            if kind == "limbs":
                limbs = limbs[rest[0] : rest[1]]
        return limbs

    def sent(self, gather: Gather, device: int) -> int:
        """Return the bytes that a device sends to each other one."""
        count = len(self.owned(gather.limbs, device)) * gather.polynomials
        return count * self.chain.ring_degree * LIMB_BYTES

    def sent_to(self, reduction: Reduction, device: int) -> int:
        """Return the bytes that each other device with addends sends to one."""
        count = len(self.owned(reduction.limbs, device)) * reduction.polynomials
        return count * self.chain.ring_degree * LIMB_BYTES

    def nbytes(self, buffer: int, device: int) -> int:
        """Return the bytes that a device holds of a buffer."""
        b = self.buffers[buffer]
        size = prod(b.shape) // max(1, b.shape[b.axis]) * len(self.held(buffer, device))
        if (of := self.raised.get(buffer)) is not None:
            size = size // max(1, len(of)) * of.count(device)
        return size * LIMB_BYTES


def _known(prime: int | None) -> int:
    if prime is None:
        raise ClusterError("limbs of an array were never used: their primes are not known")
    return prime


def schedule(
    chain: ModulusChain,
    buffers: Sequence[Buffer],
    instructions: Sequence[Instruction],
    devices: int,
    exchange: Exchange,
    keep: Sequence[int] = (),
) -> Schedule:
    """Divide instructions among devices by limbs.

    Parameters
    ----------
    chain, buffers, instructions
        From a `Recorder`.
    devices
        How many.
    exchange
        What is exchanged.
    keep
        Buffers that are needed at the end.

    Raises
    ------
    ClusterError
        If there is no such exchange.
    """
    if exchange not in EXCHANGES:
        raise ClusterError(
            f"there is no exchange {exchange!r}; choose one of {', '.join(EXCHANGES)}"
        )
    owners = list(range(len(chain.all_primes)))
    if exchange in ("output-aggregation", "cheapest"):
        owners = _digits(chain, instructions)
    out = Schedule(chain, devices, exchange, list(buffers), tuple(i % devices for i in owners))
    return _Scheduler(out).run(instructions, keep)


class _Scheduler:
    def __init__(self, out: Schedule) -> None:
        self.out = out
        self.special = frozenset(range(len(out.chain.primes), len(out.chain.all_primes)))
        self.version: defaultdict[int, int] = defaultdict(int)  # writes into a buffer
        self.written: dict[int, int] = {}  # buffer -> round after which its contents are there
        self.read: defaultdict[int, int] = defaultdict(int)  # buffer -> last round that reads it
        self.last: dict[int, int] = {}  # buffer -> last round that needs it
        self.known: dict[tuple[str, int], list[tuple[Gather, int]]] = {}
        self.aggregated: frozenset[int] = frozenset()  # buffers of digits that stay where they are

    def run(self, instructions: Sequence[Instruction], keep: Sequence[int]) -> Schedule:
        if self.out.exchange in ("output-aggregation", "cheapest") and self.out.devices > 1:
            self.aggregated = _aggregated(self.out, instructions)
        for instruction in instructions:
            self.add(self.added_up(instruction))
        for buffer, last in self.last.items():
            if buffer not in keep:
                self.out.rounds[last].dropped.append(buffer)
        return self.out

    def round(self, index: int) -> Round:
        rounds = self.out.rounds
        while len(rounds) <= index:
            rounds.append(Round())
        return rounds[index]

    def add(self, instruction: Instruction) -> None:
        gathered: list[tuple[Gather, int] | None] = []
        name, arguments = instruction.name, instruction.arguments
        everywhere: frozenset[int] = frozenset()
        replicates = self.out.exchange != "broadcast"
        if name == "raise_digits" and instruction.out in self.aggregated:
            constants = arguments[1]
            self.out.raised[instruction.out] = tuple(
                self.out.owner(c.sources[0]) for c in constants.conversions
            )
        elif name == "inner_product" and arguments[1].buffer in self.out.raised:
            assert instruction.out is not None
            self.out.addends[instruction.out] = frozenset(self.out.raised[arguments[1].buffer])
        elif name == "raise_digits":
            view, constants = arguments
            gathered = [self.gather(view, constants.sources, instruction)]
            if replicates:
                everywhere = self.special | set(instruction.keywords["also"])
        elif name == "inner_product":
            view, digits, constants = arguments[:3]
            gathered = [self.gather(view, constants.sources, instruction)]
            everywhere = self.out.everywhere.get(digits.buffer, frozenset())
        elif name == "mod_down":
            view, constants, addend, _ = arguments
            leaving = [int(i) for i in constants.conversion.sources]
            gathered = [self.gather(view, leaving, instruction), None]
            if addend is not None:
                dropped = [i for i in leaving if i not in self.special]
                gathered[1] = self.gather(addend, dropped, instruction)
        elif name in LINEAR and instruction.views:
            kept = [self.out.everywhere.get(v.buffer, frozenset()) for v in instruction.views]
            everywhere = frozenset.intersection(*kept)
        if instruction.out is not None and everywhere:
            self.out.everywhere[instruction.out] = everywhere
        reads = {v.buffer for v in instruction.views}
        when = max((self.written.get(b, 0) for b in reads), default=0)
        for found in gathered:
            if found is not None:
                when = max(when, found[1] + 1)
        target = instruction.target
        if target is not None:
            when = max(when, self.written.get(target.buffer, 0), self.read[target.buffer])
            self.written[target.buffer] = when
            self.version[target.buffer] += 1
            reads.add(target.buffer)
        if instruction.out is not None:
            self.written[instruction.out] = when
            reads.add(instruction.out)
        for found in gathered:
            if found is not None:
                reads.add(found[0].buffer)
        for buffer in reads:
            self.read[buffer] = max(self.read[buffer], when)
            self.last[buffer] = max(self.last.get(buffer, 0), when)
        buffers = tuple(None if g is None else g[0].buffer for g in gathered)
        self.round(when).steps.append(Step(instruction, buffers))

    def added_up(self, instruction: Instruction) -> Instruction:
        """Return an instruction on sums instead of addends, but where it can take addends."""
        addends = self.out.addends
        apart = [v for v in instruction.views if v.buffer in addends]
        if not apart:
            return instruction
        if (
            instruction.name in LINEAR
            and len(apart) == len(instruction.views)
            and instruction.out is not None
        ):
            senders = (addends[v.buffer] for v in apart)
            addends[instruction.out] = frozenset[int]().union(*senders)
            return instruction

        def sum_of(x: Any) -> Any:
            if not isinstance(x, View) or x.buffer not in addends:
                return x
            return self.reduce(x, instruction.stage)

        return replace(
            instruction,
            arguments=tuple(sum_of(a) for a in instruction.arguments),
            keywords={k: sum_of(a) for k, a in instruction.keywords.items()},
        )

    def reduce(self, view: View, stage: int) -> View:
        """Return the sum of the addends of a view."""
        when = self.written.get(view.buffer, 0)
        source = self.out.buffers[view.buffer]
        limbs = tuple(self.out.limbs_of(view))
        shape = view_shape(source, view)
        self.out.buffers.append(Buffer(shape, len(shape) - 2, list(limbs)))
        buffer = len(self.out.buffers) - 1
        senders = self.out.addends[view.buffer]
        count = polynomials(source, view)
        self.round(when).reductions.append(Reduction(buffer, view, limbs, count, senders, stage))
        self.written[buffer] = when + 1
        self.read[view.buffer] = max(self.read[view.buffer], when + 1)
        self.last[view.buffer] = max(self.last.get(view.buffer, 0), when + 1)
        return View(buffer)

    def gather(
        self, view: View, limbs: Sequence[int], instruction: Instruction
    ) -> tuple[Gather, int] | None:
        """Return a gather of limbs of a view, and the round at whose end it is made."""
        have = self.out.everywhere.get(view.buffer, frozenset())
        wanted = tuple(int(i) for i in limbs if int(i) not in have)
        if not wanted or self.out.devices == 1:
            return None
        there = self.known.setdefault((repr(view), self.version[view.buffer]), [])
        for gather, when in there:
            if set(gather.limbs) >= set(wanted):
                return gather, when
        when = self.written.get(view.buffer, 0)
        source = self.out.buffers[view.buffer]
        count = polynomials(source, view)
        shape = (*view_shape(source, view)[:-2], len(wanted), source.shape[-1])
        self.out.buffers.append(Buffer(shape, len(shape) - 2, list(wanted)))
        buffer = len(self.out.buffers) - 1
        self.out.everywhere[buffer] = frozenset(wanted)
        gather = Gather(buffer, view, wanted, count, instruction.stage)
        self.round(when).gathers.append(gather)
        there.append((gather, when))
        # What is sent must not change before it has been: the next round may write it.
        self.read[view.buffer] = max(self.read[view.buffer], when + 1)
        self.last[view.buffer] = max(self.last.get(view.buffer, 0), when + 1)
        return gather, when


LINEAR = ("add", "sub", "negate", "automorphism")
"""Operations that can be applied to addends one by one."""


def _digits(chain: ModulusChain, instructions: Sequence[Instruction]) -> list[int]:
    """Return the digit of every prime, its own number where it is in none."""
    out = list(range(len(chain.all_primes)))
    for i in instructions:
        if i.name == "raise_digits":
            constants = i.arguments[1]
            for k, conversion in enumerate(constants.conversions):
                for prime in conversion.sources:
                    out[int(prime)] = constants.first_digit + k
    return out


def _aggregated(out: Schedule, instructions: Sequence[Instruction]) -> frozenset[int]:
    """Return the buffers of raised digits whose products are to be added up in parts."""
    raises = {i.out: i for i in instructions if i.name == "raise_digits" and i.out is not None}
    if out.exchange == "output-aggregation":
        return frozenset(raises)
    terms: dict[int, set[int]] = {}  # buffer of addends -> digits that it is made of
    uses: Counter[int] = Counter()  # digits -> products and divisions that they go into
    divided: list[set[int]] = []
    for i in instructions:
        if i.name == "inner_product" and i.out is not None:
            digits = i.arguments[1].buffer
            terms[i.out] = {digits}
            uses[digits] += 1
            continue
        found = set[int]().union(*(terms.get(v.buffer, set()) for v in i.views))
        if not found:
            continue
        if i.name == "mod_down":
            divided.append(found)
            uses.update(found)
        elif i.name in LINEAR and i.out is not None:
            terms[i.out] = found
        else:
            uses.update(dict.fromkeys(found, 9))
    chosen: set[int] = set()
    for found in divided:
        # One product and one division each: those that several share are broadcast once.
        if all(uses[d] == 2 for d in found):
            constants = raises[next(iter(found))].arguments[1]
            polys = max(out.buffers[d].shape[0] for d in found)
            broadcast = sum(out.buffers[d].shape[0] for d in found) * len(constants.sources)
            if polys * _limbs_aggregated(out, constants) < broadcast * (out.devices - 1):
                chosen |= found
    return frozenset(chosen)


def _limbs_aggregated(out: Schedule, constants: DigitRaise) -> int:
    """Return the limbs that are sent for an aggregated key switch: addends, special primes."""
    senders = {out.owner(c.sources[0]) for c in constants.conversions}
    sums = sum(len(senders - {out.owner(int(p))}) for p in constants.limbs)
    special = len(constants.limbs) - len(constants.sources)
    return 2 * (sums + special * (out.devices - 1))


def view_shape(buffer: Buffer, view: View) -> tuple[int, ...]:
    """Return the shape of a view, with all limbs of the buffer that it keeps."""
    shape = list(buffer.shape)
    for kind, *rest in view.path:
        if kind == "limbs":
            shape[-2] = rest[1] - rest[0]
        elif kind == "reshape":
            shape = list(rest[0])
        elif kind == "swap":
            a, b = rest
            shape[a], shape[b] = shape[b], shape[a]
        else:
            new: list[int] = []
            source = 0
            for item in rest:
                if item is None:
                    new.append(1)
                    continue
                if isinstance(item, slice):
                    new.append(len(range(*item.indices(shape[source]))))
                source += 1
            shape = new
    return tuple(shape)


def polynomials(buffer: Buffer, view: View) -> int:
    """Return how many polynomials a view shows."""
    return prod(view_shape(buffer, view)[:-2])
