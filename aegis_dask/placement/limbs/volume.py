"""Bytes that programs divided by limbs exchange, counted: for sizes and primes that are not run.

With l limbs, a special primes and n devices a key switch costs ``(l + 2a)(n - 1)`` limbs if ModUp
and ModDown broadcast, ``l (n - 1)`` if special primes are computed everywhere; rotations of one
polynomial share the l. A sum of rotated ciphertexts can instead be formed in parts, each device
with digits of its own, and be added once: ``2 l (n - 1)`` whatever the number of terms (*output
aggregation*, Cinnamon, ASPLOS 2025, with as many special primes as a device has limbs, each device
dividing its own part). With our keys, and rounded as on one device, parts are added before they are
divided: ``2 (l + 2 a)(n - 1)``, which is what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, prod

from aegis_dask.ckks.parameters import Parameters
from aegis_dask.placement.limbs.rounds import LIMB_BYTES, Exchange
from aegis_dask.program.operations import Conjugate, Rotate, Rotations
from aegis_dask.program.symbolic import Analysis, Cost


@dataclass(frozen=True)
class Scheme:
    """Limbs of a scheme, for counting.

    Attributes
    ----------
    name
        For tables.
    limbs
        Level -> limbs of a polynomial.
    dropped
        Level -> primes that leave with a rescale from there.
    special
        Special primes.
    digits
        Limbs of a polynomial -> digits that it is raised from.
    top
        Limbs after ModRaise.
    limb_bytes
        Bytes of a limb.
    """

    name: str
    limbs: Callable[[int], int]
    dropped: Callable[[int], int]
    special: int
    digits: Callable[[int], int]
    top: int
    limb_bytes: int

    def ciphertext_bytes(self, level: int, components: int = 2) -> int:
        """Return the bytes of a ciphertext."""
        return components * self.limbs(level) * self.limb_bytes


def scheme_of(params: Parameters) -> Scheme:
    """Return the limbs of our own parameters."""

    def dropped(level: int) -> int:
        new = set(params.limbs(level - 1))
        return sum(i not in new for i in params.limbs(level))

    return Scheme(
        params.name,
        lambda level: len(params.window(level)),
        dropped,
        len(params.chain.special_primes),
        lambda limbs: ceil(limbs * params.digits / len(params.window(params.max_level))),
        len(params.window(params.max_level)),
        LIMB_BYTES * params.ring_degree,
    )


# What one bootstrap takes through all limbs, counted in a run of n16-d40-b13: polynomials raised
# (85, with 22 limbs on average; here in limbs after ModRaise), divided by P, and rescaled.
RAISED_IN_BOOTSTRAP = 40
SWITCHED_IN_BOOTSTRAP = 118
RESCALED_IN_BOOTSTRAP = 110


def _bootstrap(scheme: Scheme, exchange: Exchange) -> int:
    """Return the limbs that a bootstrap sends to each other device."""
    dropped = scheme.dropped(1)
    limbs = RESCALED_IN_BOOTSTRAP * dropped
    if exchange != "output-aggregation":
        limbs += RAISED_IN_BOOTSTRAP * scheme.top
    if exchange in ("broadcast", "output-aggregation"):
        limbs += SWITCHED_IN_BOOTSTRAP * scheme.special
    return limbs


def paper(output_level: int) -> Scheme:
    """Return the setting of the AEGIS paper: 35 primes and 4 special ones, 8 bytes a residue.

    N = 2^16, 10 digits, 14 levels of bootstrapping (as far as it is known): a refreshed ciphertext
    has 21 limbs. The levels of a program for other parameters are counted from there.

    Parameters
    ----------
    output_level
        Level of a refreshed ciphertext in the program.
    """
    return Scheme(
        "35 + 4 primes of 8 bytes",
        lambda level: 21 - output_level + level,
        lambda level: 1,
        4,
        lambda limbs: 1 + ceil((limbs - 1) / 4),  # the base prime is a digit of its own
        35,
        8 << 16,
    )


def volume(cost: Cost, scheme: Scheme, devices: int, exchange: Exchange) -> int:
    """Return the bytes that all devices receive from others.

    Parameters
    ----------
    cost
        What is computed (`Analysis.node_cost`).
    scheme
        Primes.
    devices
        How many.
    exchange
        See `placement.limbs.rounds`. ``"cheapest"`` counts what Cinnamon would send, less than what
        is run here (see the module).
    """
    limbs = 0  # to each other device
    added = 0  # to the owners of limbs, by all who have addends
    for (what, level, terms), count in cost.coupled.items():
        if what == "bootstrapped":
            limbs += count * _bootstrap(scheme, exchange)
            if exchange == "output-aggregation":
                added += count * SWITCHED_IN_BOOTSTRAP * _addends(scheme, scheme.top, devices)
            continue
        here = scheme.limbs(level)
        if what == "raised":
            limbs += count * here if exchange != "output-aggregation" else 0
        elif what == "divided":
            limbs += count * (scheme.dropped(level) if level else 0)
        elif what == "summed":
            if exchange == "cheapest":
                limbs -= count * max(0, terms - 2) * here
        else:
            dropped = scheme.dropped(level) if what == "rescaled" else 0
            # The limbs of the addend that a rescale drops, and in a broadcast what ModDown needs.
            limbs += count * 2 * dropped
            if exchange in ("broadcast", "output-aggregation"):
                limbs += count * 2 * (scheme.special + dropped)
            if exchange == "output-aggregation":
                added += count * _addends(scheme, here, devices)
    return (limbs * (devices - 1) + added) * scheme.limb_bytes


def _addends(scheme: Scheme, limbs: int, devices: int) -> int:
    """Return the limbs that are sent to be added up, for a key switch of so many limbs."""
    senders = min(devices, scheme.digits(limbs))
    return 2 * (limbs + scheme.special) * (senders - 1)


def volumes(analysis: Analysis, scheme: Scheme, devices: int, exchange: Exchange) -> dict[str, int]:
    """Return `volume` for every stage of a program.

    A value that several operations rotate is sent once, for the first of them.
    """
    program = analysis.program
    sent: set[int] = set()
    out: dict[str, int] = {}
    for stage in program.stages:
        cost = analysis.stage_cost(stage)
        size = volume(cost, scheme, devices, exchange)
        for i in stage.nodes:
            node = program.nodes[i]
            if not isinstance(node.op, (Rotate, Rotations, Conjugate)):
                continue
            if exchange == "output-aggregation":
                continue  # the polynomial is not sent
            (source,) = node.inputs
            if source in sent:
                count = prod(program.nodes[source].shape)
                limbs = count * scheme.limbs(analysis.levels[source])
                size -= limbs * (devices - 1) * scheme.limb_bytes
            sent.add(source)
        if size:
            out[stage.name] = size
    return out
