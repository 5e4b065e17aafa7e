"""One device's part of a program that is divided by limbs: its limbs, and the kernels on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.placement.limbs.rounds import LINEAR, Round, Schedule, Step
from aegis_dask.placement.limbs.trace import KeyPart, PerLimb, Primes, View
from aegis_dask.ring.backend import Array, Ring
from aegis_dask.ring.conversion import DigitRaise


class Key(NamedTuple):
    """An evaluation key, and the rows of it that a level uses ``[digit, limb]``."""

    b: Array
    a: Array
    rows: Any


KeyLookup = Callable[[KeyPart], Key]


def key_lookup(evaluator: Evaluator) -> KeyLookup:
    """Return what finds the keys of an evaluator."""
    keys, levels = evaluator.keys, evaluator.levels

    def find(part: KeyPart) -> Key:
        if part.element is None:
            key = keys.for_multiplication(part.level)
        else:
            key = keys.for_element(part.element, part.level)
        return Key(key.b, key.a, levels.key_rows(key.level, part.level))

    return find


class State(dict[int, Array]):
    """Buffers of a device between two rounds: the limbs that it has of each."""

    @property
    def nbytes(self) -> int:
        """Size of all of them."""
        return sum(int(x.nbytes) for x in self.values())


class Shard:
    """What one device does.

    Parameters
    ----------
    schedule
        The rounds.
    device
        Its number.
    ring
        Its kernels.
    key
        Finds evaluation keys.
    """

    def __init__(self, schedule: Schedule, device: int, ring: Ring, key: KeyLookup) -> None:
        self.schedule, self.device, self.ring, self.key = schedule, device, ring, key
        self.state = State()

    def run(self, round_: Round, state: State) -> State:
        """Run a round and return the buffers after it: those given, which are changed."""
        self.state = state
        for step in round_.steps:
            self._step(step)
        for buffer in round_.dropped:
            state.pop(buffer, None)
        return state

    def accept(
        self,
        round_: Round,
        state: State,
        received: Sequence[Sequence[Array]],
        addends: Sequence[Sequence[Array]] = (),
    ) -> None:
        """Put together what all devices sent at the end of a round (`outgoing`), in order.

        Parameters
        ----------
        round_, state
            The round, and the buffers after it, which are changed.
        received
            Of every device, what it sent for the gathers.
        addends
            For every reduction, what each of the other senders sent.
        """
        for i, gather in enumerate(round_.gathers):
            parts = [sent[i] for sent in received]
            first = parts[0]
            count = len(gather.limbs)
            whole = self.ring.empty((*first.shape[:-2], count, first.shape[-1]))
            for device, part in enumerate(parts):
                own = self.schedule.owned(gather.limbs, device)
                for row, prime in enumerate(own):
                    whole[..., gather.limbs.index(prime), :] = part[..., row, :]
            state[gather.buffer] = whole
        self.state = state
        for reduction, others in zip(round_.reductions, addends, strict=True):
            own = self.schedule.owned(reduction.limbs, self.device)
            total = self.rows(reduction.view, own)
            for part in others if own else ():
                total = self.ring.add(total, part, own)
            state[reduction.buffer] = total

    def outgoing_to(self, round_: Round, state: State, stage: int, device: int) -> list[Array]:
        """Return copies of the addends for a device at the end of a round (see `outgoing`)."""
        self.state = state
        return [
            self.rows(r.view, self.schedule.owned(r.limbs, device))
            for r in round_.reductions
            if r.stage == stage and self.device in r.senders
        ]

    def outgoing(self, round_: Round, state: State, stage: int) -> list[Array]:
        """Return copies of the limbs that this device sends at the end of a round.

        Parameters
        ----------
        round_, state
            The round, and the buffers after it.
        stage
            Of the gathers that are wanted.
        """
        self.state = state
        return [
            self.rows(g.view, self.schedule.owned(g.limbs, self.device))
            for g in round_.gathers
            if g.stage == stage
        ]

    # -- operands ----------------------------------------------------------------------------

    def _held(self, buffer: int) -> list[int]:
        return self.schedule.held(buffer, self.device)

    def _view(self, view: View) -> tuple[Array, list[int]]:
        """Return the limbs of a view that are here, and their primes."""
        buffer = self.schedule.buffers[view.buffer]
        x, held, axis = self.state[view.buffer], self._held(view.buffer), buffer.axis
        limbs = self.schedule.limbs(view.buffer)
        for kind, *rest in view.path:
            if kind == "limbs":
                limbs = limbs[rest[0] : rest[1]]
                first = [i for i, p in enumerate(held) if p in limbs]
                cut = slice(first[0], first[-1] + 1) if first else slice(0, 0)
                held = held[cut]
                x = x[(slice(None),) * axis + (cut,)]
            elif kind == "reshape":
                x = x.reshape((*rest[0][:-2], len(held), rest[0][-1]))
                axis = x.ndim - 2
            elif kind == "swap":
                x = x.swapaxes(*rest)
            else:
                x, axis = x[tuple(rest)], _axis_after(rest, axis)
        return x, held

    def rows(self, view: View, primes: Sequence[int]) -> Array:
        """Return a copy of the limbs of some primes, in that order."""
        return self._whole(view, None, primes)

    def _operand(self, x: Any, primes: Sequence[int] | None) -> Any:
        if isinstance(x, View):
            return self._view(x)[0]
        if isinstance(x, Primes):
            return self.schedule.owned(x.indices, self.device)
        if isinstance(x, PerLimb):
            assert primes is not None
            return np.ascontiguousarray(x.values[self.schedule.positions(primes, self.device)])
        return x

    # -- instructions ------------------------------------------------------------------------

    def _step(self, step: Step) -> None:
        instruction = step.instruction
        special = getattr(self, f"_{instruction.name}", None)
        if special is not None:
            special(step)
            return
        if instruction.name in LINEAR and instruction.out is not None:
            self._linear(step)
            return
        primes = next((a.indices for a in instruction.arguments if isinstance(a, Primes)), None)
        operands = [self._operand(a, primes) for a in instruction.arguments]
        if instruction.target is not None:
            target = self._view(instruction.target)[0]
            if 0 not in target.shape:
                target[...] = getattr(self.ring, instruction.name)(*operands)
            return
        out, held = self._begin(step)
        if held:
            self.state[out] = getattr(self.ring, instruction.name)(*operands)

    def _linear(self, step: Step) -> None:
        """Run an operation on all limbs that this device has: also on addends, and copies."""
        instruction = step.instruction
        out, held = self._begin(step)
        if not held:
            return

        def operand(x: Any) -> Any:
            if isinstance(x, Primes):
                return held
            if isinstance(x, View):
                there, primes = self._view(x)
                return there if primes == held else self.rows(x, held)
            return x

        operands = [operand(a) for a in instruction.arguments]
        self.state[out] = getattr(self.ring, instruction.name)(*operands)

    def _shape(self, buffer: int) -> tuple[int, ...]:
        b = self.schedule.buffers[buffer]
        shape = list(b.shape)
        shape[b.axis] = len(self._held(buffer))
        if (of := self.schedule.raised.get(buffer)) is not None:
            shape[1] = of.count(self.device)
        return tuple(shape)

    def _begin(self, step: Step) -> tuple[int, list[int]]:
        """Return the buffer that a step makes and its limbs here; without any it is made."""
        out = step.instruction.out
        assert out is not None
        held = self._held(out)
        if not held:
            self._empty(step)
        return out, held

    def _empty(self, step: Step) -> None:
        out = step.instruction.out
        assert out is not None
        self.state[out] = self.ring.empty(self._shape(out))

    def _zeros(self, step: Step) -> None:
        out = step.instruction.out
        assert out is not None
        self.state[out] = self.ring.zeros(self._shape(out))

    def _from_host(self, step: Step) -> None:
        instruction = step.instruction
        assert instruction.out is not None
        limbs = self.schedule.limbs(instruction.out)
        rows = self._operand(instruction.arguments[0], limbs)
        self.state[instruction.out] = self.ring.from_host(rows)

    def _store(self, step: Step) -> None:
        target = step.instruction.target
        assert target is not None
        self._view(target)[0][...] = self._view(step.instruction.arguments[0])[0]

    def _raise_digits(self, step: Step) -> None:
        view, constants = step.instruction.arguments
        out, held = self._begin(step)
        if not held:
            return
        if out in self.schedule.raised:
            own = _digits(constants, self.schedule.digits(constants, self.device))
            self.state[out] = self.ring.raise_digits(
                self.rows(view, [int(i) for i in own.sources]), own
            )
            return
        x = self._whole(view, step.gathered[0], constants.sources)
        self.state[out] = self.ring.raise_digits(x, _raised(constants, held))

    def _inner_product(self, step: Step) -> None:
        view, digits, constants, part, transform = step.instruction.arguments
        out, held = self._begin(step)
        if not held:
            return
        if out in self.schedule.addends:
            self.state[out] = self._addends(view, digits, constants, self.key(part), transform)
            return
        own = _raised(constants, held)
        window = set(int(i) for i in constants.sources)
        x = self._whole(view, step.gathered[0], [p for p in held if p in window])
        key = self.key(part)
        columns = [i for i, p in enumerate(constants.limbs) if int(p) in set(held)]
        rows = np.ascontiguousarray(key.rows[:, columns])
        raised = self._view(digits)[0]
        self.state[out] = self.ring.inner_product(x, raised, own, key.b, key.a, transform, rows)

    def _addends(
        self, view: View, digits: View, constants: DigitRaise, key: Key, transform: bool
    ) -> Array:
        """Return the products of this device's own digits with a key, all limbs of them."""
        numbers = self.schedule.digits(constants, self.device)
        raised = self._view(digits)[0]
        if not numbers:
            return self.ring.zeros((len(raised), 2, len(constants.limbs), raised.shape[-1]))
        own = _digits(constants, numbers)
        # The rows of other digits are not looked at.
        x = self.ring.zeros((len(raised), len(constants.sources), raised.shape[-1]))
        given = self.rows(view, [int(i) for i in own.sources])
        for row, prime in enumerate(own.sources):
            x[:, int(np.searchsorted(constants.sources, prime))] = given[:, row]
        rows = np.ascontiguousarray(key.rows[numbers])
        return self.ring.inner_product(x, raised, own, key.b, key.a, transform, rows)

    def _mod_down(self, step: Step) -> None:
        view, constants, addend, element = step.instruction.arguments
        out, held = self._begin(step)
        if not held:
            return
        limbs = self.schedule.limbs_of(view)
        targets = [int(i) for i in constants.conversion.targets]
        kept = [
            limbs[r] for p, r in zip(targets, constants.target_rows, strict=True)
            if p in set(held) and r >= 0
        ]  # fmt: skip
        special = len(self.schedule.chain.primes)
        leaving = [limbs[r] for r in constants.source_rows]
        order = [p for p in leaving if p < special] + kept
        rows = [*order, *(p for p in leaving if p >= special)]
        x = self._whole(view, step.gathered[0], rows)
        added = None if addend is None else self._whole(addend, step.gathered[1], order)
        where = {p: row for row, p in enumerate(rows)}
        down = constants.restricted(
            set(held),
            np.array([where[p] for p in leaving], np.int64),
            np.array([where.get(p, -1) if p in kept else -1 for p in held], np.int64),
        )
        self.state[out] = self.ring.mod_down(x, down, added, element)

    def _whole(self, view: View, gathered: int | None, primes: Sequence[int]) -> Array:
        """Return limbs of a view, from what is here and what was gathered."""
        x, held = self._view(view)
        rows = {p: x[..., i, :] for i, p in enumerate(held)}
        if gathered is not None:
            y = self.state[gathered]
            for i, p in enumerate(self.schedule.limbs(gathered)):
                rows.setdefault(p, y[..., i, :])
        out = self.ring.empty((*x.shape[:-2], len(primes), x.shape[-1]))
        for i, p in enumerate(primes):
            out[..., i, :] = rows[int(p)]
        return out


def _axis_after(items: Sequence[Any], axis: int) -> int:
    """Return where an axis, which is kept, is after indexing."""
    source = made = 0
    for item in items:
        if item is None:
            made += 1
            continue
        if source == axis:
            return made
        made += isinstance(item, slice)
        source += 1
    raise AssertionError(f"axis {axis} is not among {items}")


def _digits(constants: DigitRaise, numbers: Sequence[int]) -> DigitRaise:
    """Return the constants that raise some digits only, to all limbs."""
    conversions = tuple(constants.conversions[k] for k in numbers)
    sources = np.concatenate([np.zeros(0, np.int64), *(c.sources for c in conversions)])
    kept = np.searchsorted(constants.sources, sources)
    position = {k: i for i, k in enumerate(numbers)}
    return replace(
        constants,
        digit_of=np.array([position.get(int(d), -1) for d in constants.digit_of], np.int64),
        factors=(constants.factors[0][kept], constants.factors[1][kept]),
        conversions=conversions,
        sources=sources,
    )


def _raised(constants: DigitRaise, held: Sequence[int]) -> DigitRaise:
    return constants.restricted(set(held))
