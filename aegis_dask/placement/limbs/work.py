"""What kernel calls on some limbs take, by the prices of `program.symbolic`."""

from __future__ import annotations

from math import log2, prod

from aegis_dask.placement.limbs.rounds import Schedule, Step, view_shape
from aegis_dask.placement.limbs.trace import View
from aegis_dask.program.symbolic import MAC_SECONDS, NTT_SECONDS, POINT_SECONDS


def seconds(schedule: Schedule, step: Step, device: int) -> float:
    """Return the estimated seconds of one thread for a step on a device."""
    instruction = step.instruction
    n = schedule.chain.ring_degree
    transform, mac = NTT_SECONDS * n * log2(n), MAC_SECONDS * n
    if instruction.name in ("empty", "zeros", "from_host"):
        return 0.0
    if instruction.out is not None:
        written = instruction.out
    else:
        assert instruction.target is not None
        written = instruction.target.buffer
    made, held = schedule.buffers[written], schedule.held(written, device)
    each = prod(made.shape) // max(1, made.shape[made.axis]) // made.shape[-1]
    if instruction.name in ("ntt", "intt"):
        return each * len(held) * transform
    if instruction.name == "raise_digits":
        constants, batch = instruction.arguments[1], made.shape[0]
        if written in schedule.raised:
            mine = [constants.conversions[k] for k in schedule.digits(constants, device)]
            products = sum(len(c.sources) * len(c.targets) for c in mine)
            return float(batch * (sum(len(c.sources) for c in mine) * transform + products * mac))
        kept = constants.restricted(set(held))
        products = sum(len(c.sources) * len(c.targets) for c in kept.conversions)
        return float(batch * (len(constants.sources) * transform + products * mac))
    if instruction.name == "inner_product":
        constants, batch = instruction.arguments[2], made.shape[0]
        digits = len(constants.conversions)
        if written in schedule.addends:
            numbers = schedule.digits(constants, device)
            digits = len(numbers)
            transforms = digits * len(held) - sum(
                len(constants.conversions[k].sources) for k in numbers
            )
            transforms = transforms if instruction.arguments[4] else 0
            return batch * (transforms * transform + 2 * digits * len(held) * mac)
        own = sum(1 for p in held if p < len(schedule.chain.primes))
        transforms = (digits * len(held) - own) if instruction.arguments[4] else 0
        return batch * (transforms * transform + 2 * digits * len(held) * mac)
    if instruction.name == "mod_down":
        leaving = len(instruction.arguments[1].conversion.sources)
        return each * ((leaving + len(held)) * transform + leaving * len(held) * mac)
    if instruction.name in ("gemm", "contract"):
        view = instruction.arguments[0]
        assert isinstance(view, View)
        terms = view_shape(schedule.buffers[view.buffer], view)[0]
        factor = 4 / 3 if instruction.name == "contract" else 1
        return float(each * terms * len(held) * factor * mac)
    if instruction.name == "encode_weights":
        return prod(made.shape[1:]) * len(held) * 3e-9
    return each * len(held) * n * POINT_SECONDS
