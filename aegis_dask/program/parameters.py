"""Parameters for a program: as many levels as it takes."""

from __future__ import annotations

import itertools
import warnings

from aegis_dask.ckks.parameters import (
    MAX_LOG_N,
    MIN_LOG_N,
    PRESETS,
    Parameters,
    ParametersLiteral,
)
from aegis_dask.errors import InsecureParametersWarning, ParameterError

TOP_BITS = 60
"""The top level is wider: fresh ciphertexts are then encrypted at a larger scale."""


def _base_bits(scale_bits: int) -> int:
    """Return the bits of level 0, two primes: about ten more than the scale, for the message."""
    return 50 if scale_bits <= 40 else 60


def parameters_for(
    depth: int, slots: int, scale_bits: int = 40, allow_insecure: bool = False
) -> Parameters:
    """Return parameters with `slots` slots and at least `depth` levels.

    The smallest preset that fits is preferred. Without one, and only when allowed, an insecure set
    is made to measure, with the number of digits that makes key switching cheapest.

    Parameters
    ----------
    depth
        Levels of the program, at least 2.
    slots
        Power of two.
    scale_bits
        35, 40 or 45.
    allow_insecure
        Whether less than 128-bit security will do. Never for real data.

    Raises
    ------
    ParameterError
        If no preset fits and insecure ones are not allowed, or the ring is too small or too large.
    """
    log_n = slots.bit_length()
    if not MIN_LOG_N <= log_n <= MAX_LOG_N or slots != 1 << (log_n - 1):
        raise ParameterError(
            f"there are rings with a power of two of slots from {1 << (MIN_LOG_N - 1)} to "
            f"{1 << (MAX_LOG_N - 1)}; {slots} was given"
        )
    fitting = [
        Parameters.preset(p.name)
        for p in PRESETS.values()
        if p.log_n == log_n
        and not p.insecure
        and p.scale_bits == scale_bits
        and len(p.level_bits) >= depth
    ]
    if fitting:
        return min(fitting, key=lambda p: p.max_level)
    if not allow_insecure:
        raise ParameterError(
            f"no 128-bit secure set has {depth} levels at 2^{log_n - 1} slots: that takes a larger "
            "ring or bootstrapping. To try the program on data that need no protection, allow "
            "insecure parameters (--insecure)"
        )
    literals = []
    base, levels = _base_bits(scale_bits), (scale_bits,) * (depth - 1) + (TOP_BITS,)
    for digits in range(2, 9):
        special = -(-(base + sum(levels)) // (30 * digits)) + 1
        for count in range(special, special + 3):
            literal = ParametersLiteral(
                log_n,
                base,
                levels,
                count,
                digits,
                scale_bits,
                insecure=True,
                name=f"insecure-n{log_n}-d{scale_bits}-l{depth}",
            )
            if count <= 40 and _is_valid(literal):
                literals.append(literal)
                break
    if not literals:
        raise ParameterError(f"no parameters have {depth} levels at 2^{log_n - 1} slots")
    return Parameters.from_literal(min(literals, key=_key_switch_work))


def _is_valid(literal: ParametersLiteral) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureParametersWarning)
            Parameters.from_literal(literal)
    except ParameterError:
        return False
    return True


def _key_switch_work(literal: ParametersLiteral) -> int:
    """Return limb transforms of a key switch, averaged over the levels."""
    p = Parameters.from_literal(literal)
    special = literal.special_primes
    return sum(
        (digits_at(p, level) + 2) * (len(p.window(level)) + special)
        for level in range(p.max_level + 1)
    )


def digits_at(params: Parameters, level: int) -> int:
    """Return the number of digits into which a key switch at a level decomposes."""
    window = params.window(level)
    return sum(
        a < window.stop and b > window.start for a, b in itertools.pairwise(params.digit_bounds)
    )
