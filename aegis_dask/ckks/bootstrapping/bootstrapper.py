"""Bootstrapping: ModRaise, CoeffsToSlots, EvalMod and SlotsToCoeffs, in one of two orders.

Slots first: SlotsToCoeffs is applied before the modulus is raised, on the lowest levels, where it
costs a fraction of what it would after EvalMod, and where EvalMod's error does not pass through it.
A refresh then begins some levels above 0 and ends as many levels higher.

Coefficients first: the order of the first papers, for ciphertexts that are exhausted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from aegis_dask.ckks.bootstrapping.evalmod import evaluate_mod
from aegis_dask.ckks.bootstrapping.fourier import Factor, factors, split_stages
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, RequiredKeys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.bootstrapping.raising import mod_raise
from aegis_dask.ckks.bootstrapping.transforms import (
    EncodedFactor,
    apply_factor,
    apply_raised,
    encode_factor,
    sum_raised,
)
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import check_same
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import LevelError, MissingKeyError, ParameterError, ScaleError
from aegis_dask.ring.memory import keep_at_least, keeping

Order = Literal["slots-first", "coefficients-first"]

FEW_BABY_STEPS = 4
"""What programs take: 1.5 GB fewer keys than 8 at N = 2^16, for a little more time. The keys of 8
serve 4 as well."""
RAISED_BABIES = 16
"""Rotations of a raised ciphertext are cheap, and so are their keys."""
WORKING_SET = 70
"""Ciphertexts over QP for which memory is kept between operations: what EvalMod goes through on a
batch of two. With half of that a refresh takes a third longer, in page faults."""
RAISED_TERMS = 8
"""Terms of a trace that are summed while it is raised."""


class Bootstrapper:
    """Refreshes ciphertexts of one number of slots.

    Parameters
    ----------
    params
        The parameters.
    keys
        The keys; without them `required_keys` says which are needed.
    slots
        Number of slots after which messages repeat, all of them by default.
    order
        Whether SlotsToCoeffs comes before the modulus is raised, or last.
    baby_steps
        Baby steps of each factor: fewer need fewer keys and more time.
    keep_memory
        Whether the buffers of a refresh stay for the next one. Without, each takes them from the
        system anew, which costs as much as the computation where page faults are slow: for a
        process that needs the memory for other things in between.
    """

    def __init__(
        self,
        params: BootstrappingParameters,
        keys: BootstrappingKeys | None = None,
        slots: int | None = None,
        order: Order = "slots-first",
        baby_steps: int = 8,
        keep_memory: bool = True,
    ) -> None:
        self.params, self.scheme = params, params.params
        self.slots = self.scheme.slots if slots is None else slots
        if not 1 <= self.slots <= self.scheme.slots or self.slots & (self.slots - 1):
            raise ParameterError(
                f"{self.slots} slots were given; a power of two up to {self.scheme.slots} is needed"
            )
        if order not in ("slots-first", "coefficients-first"):
            raise ParameterError(f"order is {order!r}; it is 'slots-first' or 'coefficients-first'")
        self.slots_first = order == "slots-first"
        self.baby_steps = baby_steps
        self.keys = keys
        if keys and keep_memory:
            keep_at_least(working_bytes(params))
        self._evaluator = Evaluator(self.scheme, keys.evaluation if keys else None)

    # -- levels -----------------------------------------------------------------------------

    @property
    def input_level(self) -> int:
        """Lowest level that a ciphertext is refreshed from."""
        return len(self._runs(self.params.literal.slots_to_coeffs, 5)) if self.slots_first else 0

    @property
    def output_level(self) -> int:
        """Level of a refreshed ciphertext."""
        if self.slots_first:
            return self.params.output_level
        return self.params.output_level - len(self.slots_to_coeffs)

    @property
    def raised_scale(self) -> Scale:
        """Scale of the message at level 0, where it is raised."""
        return self.params.raised_scale if self.slots_first else self.scheme.scales[0]

    @property
    def raised_level(self) -> int:
        """Level to which the modulus is raised."""
        runs = self._runs(len(self.params.literal.coeffs_to_slots), 3)
        return self.params.sine_level + len(runs)

    # -- matrices ---------------------------------------------------------------------------

    def _runs(self, levels: int, stages_each: int) -> list[int]:
        """Cut the stages into runs: all `levels` for full slots, as few as that for sparse ones."""
        stages = self.slots.bit_length() - 1
        count = levels if self._is_full else min(levels, -(-stages // stages_each))
        return split_stages(self.slots, self.scheme.ring_degree, max(1, count))

    def _encode(
        self, matrices: Sequence[Factor], top: int, gain: Scale, first_babies: int
    ) -> tuple[EncodedFactor, ...]:
        """Encode factors for levels `top` and below; they multiply the scale by `gain`."""
        out = []
        for i, matrix in enumerate(matrices):
            share = Scale({b: e / len(matrices) for b, e in gain.factors})
            scale = self.params.quotient(top - i) * share
            babies = self.baby_steps if i else first_babies
            out.append(encode_factor(self.scheme, matrix, top - i, scale, babies))
        return tuple(out)

    @cached_property
    def slots_to_coeffs(self) -> tuple[EncodedFactor, ...]:
        """Factors of SlotsToCoeffs in the order of their use, one level each."""
        params, scheme = self.params, self.scheme
        runs = self._runs(params.literal.slots_to_coeffs, 5)
        top = self.input_level if self.slots_first else params.output_level
        below = top - len(runs)
        target = self.raised_scale if self.slots_first else scheme.scales[below]
        gain = target / scheme.scales[top]
        return self._encode(factors(self.slots, runs, False), top, gain, self.baby_steps)

    @cached_property
    def coeffs_to_slots(self) -> tuple[EncodedFactor, ...]:
        """Factors of CoeffsToSlots in the order of their use, one level each."""
        params = self.params
        runs = self._runs(len(params.literal.coeffs_to_slots), 3)
        # u = x / q_0 becomes u / half_width. Halved, since a real part is a sum of conjugates, and
        # divided by the number of terms of the trace.
        constant = 0.5 / params.sine.half_width / (self.scheme.slots // self.slots)
        gain = params.sine_scales(self.raised_scale)[-1] / params.modulus
        matrices = factors(self.slots, runs, True, constant)
        babies = RAISED_BABIES if self._is_full else self.baby_steps
        return self._encode(matrices, self.raised_level, gain, babies)

    @property
    def _is_full(self) -> bool:
        return self.slots == self.scheme.slots

    @property
    def _trace(self) -> tuple[list[int], list[int]]:
        """Rotations that sum a ciphertext over the slots that repeat.

        Those that are summed while it is raised, and those to add one by one afterwards.
        """
        count = self.scheme.slots // self.slots
        terms = min(count, RAISED_TERMS)
        raised = [i * (self.scheme.slots // terms) for i in range(terms)]
        return raised, [self.slots << i for i in range((count // terms).bit_length() - 1)]

    @property
    def required_keys(self) -> RequiredKeys:
        """What `bootstrapping_keys` has to make."""
        terms, trace = self._trace
        rotations = dict.fromkeys(trace, self.raised_level)
        first, *rest = self.coeffs_to_slots
        for f in (*self.slots_to_coeffs, *rest, *(() if self._is_full else (first,))):
            for step in f.rotations:
                rotations[step] = max(rotations.get(step, 0), f.level)
        raised = tuple(terms)
        if self._is_full:
            raised = tuple(sorted(first.baby_rotations))
            if first.giants > 1:
                rotations[first.giant_rotation] = first.level
        level = self.params.sine_level
        return RequiredKeys(rotations, raised, level, level)

    # -- refreshing -------------------------------------------------------------------------

    def refresh(self, x: Ciphertext, real: bool = False) -> Ciphertext:
        """Return the same messages at `output_level`, with its canonical scale.

        Parameters
        ----------
        x
            A batch of ciphertexts of 2 components, at `input_level` or above. Real and imaginary
            parts of all slots must not exceed ``max_magnitude``.
        real
            All slots are real: half of EvalMod, when slots come first. What imaginary parts there
            are is dropped.

        Raises
        ------
        LevelError
            If a level is too low.
        ScaleError
            If x has three components, or a scale that cannot be changed at its level.
        MissingKeyError
            If a key is missing.
        """
        keys = self._check(x)
        real = real and self.slots_first
        parts = self._modular(x, keys, real)
        if real:
            return parts
        ev = self._evaluator
        out = ev.add(parts[: x.batch], ev.multiply_by_i(parts[x.batch :]))
        if not self.slots_first:
            for f in self.slots_to_coeffs:
                out = apply_factor(ev, out, f)
        return out

    def refresh_pair(self, x: Ciphertext, y: Ciphertext) -> tuple[Ciphertext, Ciphertext]:
        """Refresh two batches of real messages in one: ``x + i y``.

        An imaginary part of one would be added to the other. With coefficients first, taking the
        result apart costs one level.
        """
        self._check(x)
        keys = self._check(y)
        if x.batch != y.batch:
            raise ValueError(f"batches of {x.batch} and {y.batch} ciphertexts are no pairs")
        ev = self._evaluator
        both = ev.add(x, ev.multiply_by_i(y))
        if self.slots_first:
            parts = self._modular(both, keys, False)
            return parts[: x.batch], parts[x.batch :]
        parts = split_parts(ev, self.refresh(both), False)
        halves = parts.with_data(parts.data, scale=parts.scale * Scale({2: 1}))
        out = ev.to_level(halves, self.output_level - 1)
        return out[: x.batch], out[x.batch :]

    def refresh_precise(
        self, x: Ciphertext, bits: int = 16, iterations: int = 2, real: bool = False
    ) -> Ciphertext:
        """Refresh, then refresh the error that was made and subtract it.

        Meta-bootstrapping (Bae, Cheon, Cho, Kim, Kim, ePrint 2022/1167): k iterations give about k
        times the bits, up to the precision of the scale. Costs k refreshes and one level.

        Parameters
        ----------
        x
            As for `refresh`, at `input_level` or above.
        bits
            Bits that a single refresh gets right at worst.
        iterations
            Number of refreshes.
        real
            As for `refresh`.
        """
        ev, low = self._evaluator, max(self.input_level, 1)
        self._check(x)
        if x.level < low:
            raise LevelError(f"{x!r} cannot be refreshed precisely; begin at level {low} or above")
        x = ev.to_level(x, low)
        total = ev.to_level(self.refresh(x, real), self.output_level - 1)
        for k in range(1, iterations):
            rest = ev.sub(x, ev.to_level(total, low))
            # By an integer: exact, and no level. Undone by reading the scale as that much larger.
            fixed = self.refresh(_times(rest, bits * k), real)
            fixed = fixed.with_data(fixed.data, scale=fixed.scale * Scale({2: bits * k}))
            total = ev.add(total, ev.to_level(fixed, self.output_level - 1))
        return total

    # -- steps ------------------------------------------------------------------------------

    def _modular(self, x: Ciphertext, keys: BootstrappingKeys, real: bool) -> Ciphertext:
        """Return the refreshed parts: real ones, then imaginary ones unless `real`."""
        ev = self._evaluator
        with keeping(x.batch * working_bytes(self.params)):
            x = ev.to_level(x, self.input_level)
            if self.slots_first:
                for f in self.slots_to_coeffs:
                    x = apply_factor(ev, x, f)
            z = self._to_slots(x, keys)
            return evaluate_mod(ev, self.params, split_parts(ev, z, real), self.raised_scale)

    def _to_slots(self, x: Ciphertext, keys: BootstrappingKeys) -> Ciphertext:
        """ModRaise and CoeffsToSlots."""
        ev, modulus = self._evaluator, self.params.modulus
        raised = mod_raise(keys, x, self.raised_level)
        todo = self.coeffs_to_slots
        if self._is_full:
            z = apply_raised(ev, keys, raised, modulus, todo[0])
            todo = todo[1:]
        else:
            terms, trace = self._trace
            z = sum_raised(ev, keys, raised, modulus, terms)
            for step in trace:
                z = ev.add(z, ev.rotate(z, step))
        for f in todo:
            z = apply_factor(ev, z, f)
        return z

    def _check(self, x: Ciphertext) -> BootstrappingKeys:
        check_same(self._evaluator, x, names=("the bootstrapper", "the ciphertext"))
        if self.keys is None:
            raise MissingKeyError(
                "this bootstrapper has no keys; make them with bootstrapping_keys(params, "
                "secret_key, bootstrapper.required_keys) and give them to a new one"
            )
        if x.components != 2:
            raise ScaleError(f"{x!r} cannot be refreshed; relinearise it first")
        if x.level < self.input_level:
            raise LevelError(
                f"{x!r} cannot be refreshed: SlotsToCoeffs takes {self.input_level} levels before "
                f"the modulus is raised. Refresh it at level {self.input_level} or above, or with "
                "order='coefficients-first'"
            )
        if x.level == self.input_level and not x.is_canonical:
            raise ScaleError(
                f"{x!r} does not have the canonical scale of its level, 2^"
                f"{self.scheme.scales[x.level].log2:.2f}; rescale it, or refresh it at a higher "
                "level"
            )
        return self.keys

    def __repr__(self) -> str:
        return (
            f"Bootstrapper({self.params!r}, {self.slots} slots, level {self.input_level} to "
            f"{self.output_level})"
        )


def working_bytes(params: BootstrappingParameters) -> int:
    """Return the memory that one refresh takes beside keys and matrices."""
    scheme = params.params
    limbs = len(scheme.extended_limbs(scheme.max_level))
    return WORKING_SET * 2 * limbs * scheme.ring_degree * 4


def split_parts(ev: Evaluator, z: Ciphertext, real: bool) -> Ciphertext:
    """Return twice the real parts of a batch, then twice the imaginary ones unless `real`."""
    conjugate = ev.conjugate(z)
    parts = [ev.add(z, conjugate)]
    if not real:
        parts.append(ev.multiply_by_i(ev.sub(z, conjugate), 3))
    data = z.params.ring.empty((len(parts) * z.batch, *z.data.shape[1:]))
    for i, part in enumerate(parts):
        data[i * z.batch : (i + 1) * z.batch] = part.data
    return z.with_data(data)


def _times(x: Ciphertext, bits: int) -> Ciphertext:
    """Return ``2^bits x``, by an integer."""
    params, limbs = x.params, x.params.limbs(x.level)
    factor = [[(1 << bits) % params.chain.primes[i]] for i in limbs]
    return x.with_data(params.ring.multiply_runs(x.data, np.array(factor, np.uint32), limbs))
