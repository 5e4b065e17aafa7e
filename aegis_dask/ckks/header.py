"""Header fields of written objects: each is checked before it is used."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import gcd, log2
from reprlib import repr as shorten
from typing import Any

from aegis_dask.ckks.galois import conjugation_element
from aegis_dask.ckks.parameters import (
    MAX_DIGITS,
    MAX_LOG_N,
    MIN_LOG_N,
    PRESETS,
    Parameters,
    ParametersLiteral,
)
from aegis_dask.ckks.sampling import SEED_BYTES
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import (
    IncompatibleError,
    InsecureParametersError,
    IntegrityError,
    ParameterError,
    SerializationError,
)

# These bound the work of `build_chain`; the largest secure modulus has about 140 levels at most.
MAX_LEVELS = 256
MAX_BASE_BITS = 1024
MAX_SPECIAL_PRIMES = 40
MAX_NAME = 64

MAX_FACTORS = 1024
MAX_EXPONENT = 4096
MAX_EXPONENT_DENOMINATOR = 1 << 64  # halved once per level and once per square root
MAX_BASE = 1 << 64

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_GALOIS = re.compile(r"[1-9][0-9]{0,6}")
_ROTATION = re.compile(r"0|[1-9][0-9]{0,6}")


def check_keys(what: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raise `SerializationError` unless exactly the expected names are there."""
    missing, unknown = set(expected) - set(found), set(found) - set(expected)
    if missing or unknown:
        raise SerializationError(
            f"{what}: missing {shorten(sorted(missing))}, unknown {shorten(sorted(unknown))}"
        )


def read_integer(what: str, value: Any, low: int, high: int) -> int:
    """Return an integer from `low` to `high` inclusive."""
    if type(value) is not int or not low <= value <= high:  # True is an int, but not here
        raise SerializationError(
            f"{what} is {shorten(value)}; an integer {low} to {high} is needed"
        )
    return value


def read_seeds(what: str, value: Any, count: int) -> bytes:
    """Return `count` seeds of 32 bytes from hexadecimal text."""
    digits = 2 * SEED_BYTES * count
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]*", value) or len(value) != digits:
        raise SerializationError(
            f"the seeds of {what} are {shorten(value)}; {digits} hexadecimal digits are needed"
        )
    return bytes.fromhex(value)


def read_galois_element(text: str, ring_degree: int) -> int:
    """Return the Galois element of a rotation, or of conjugation, from decimal text."""
    element = int(text) if _GALOIS.fullmatch(text) else 0
    rotation = element % 4 == 1 and 1 < element < 2 * ring_degree
    if not rotation and element != conjugation_element(ring_degree):
        raise SerializationError(
            f"{shorten(text)} is not the Galois element of a rotation (1 mod 4, below "
            f"{2 * ring_degree}) or of conjugation ({conjugation_element(ring_degree)})"
        )
    return element


def read_rotation(text: str, slots: int) -> int:
    """Return a rotation from 0 to ``slots - 1`` from decimal text."""
    if not _ROTATION.fullmatch(text) or int(text) >= slots:
        raise SerializationError(f"{shorten(text)} is not a rotation from 0 to {slots - 1}")
    return int(text)


# -- scale ----------------------------------------------------------------------------------


def write_scale(scale: Scale) -> list[list[int]]:
    """Return the exact scale as ``[base, numerator, denominator]`` of each factor."""
    return [[b, e.numerator, e.denominator] for b, e in scale.factors]


def read_scale(value: Any, params: Parameters) -> Scale:
    """Return a scale in lowest terms, from 1/2 to the modulus QP.

    Raises
    ------
    SerializationError
        If a factor or the value is out of bounds, or a number has a second form.
    """
    if not isinstance(value, list) or len(value) > MAX_FACTORS:
        raise SerializationError(
            f"the scale is {shorten(value)}; a list of at most {MAX_FACTORS} factors is needed"
        )
    for factor in value:
        if not _is_factor(factor):
            raise SerializationError(
                f"a factor of the scale is {shorten(factor)}; [base, numerator, denominator] is "
                f"needed, in lowest terms, with 1 < base < 2^64, a power of two as denominator and "
                f"an exponent of at most {MAX_EXPONENT}"
            )
    if any(a[0] >= b[0] for a, b in pairwise(value)):
        raise SerializationError("the bases of the scale are not in ascending order")
    bits = sum(log2(b) * (n / d) for b, n, d in value)
    if not -1 <= bits <= params.log2_key_modulus:
        raise SerializationError(
            f"the scale is 2^{bits:.1f}; 2^-1 to 2^{params.log2_key_modulus:.1f} is possible with "
            f"{params.name}"
        )
    return Scale({b: Fraction(n, d) for b, n, d in value})


def _is_factor(factor: Any) -> bool:
    if not isinstance(factor, list) or len(factor) != 3 or any(type(v) is not int for v in factor):
        return False
    base, numerator, denominator = factor
    return (
        1 < base < MAX_BASE
        and 1 <= denominator <= MAX_EXPONENT_DENOMINATOR
        and denominator & (denominator - 1) == 0
        and 0 < abs(numerator) <= MAX_EXPONENT * denominator
        and gcd(numerator, denominator) == 1
    )


# -- parameters -----------------------------------------------------------------------------


def write_parameters(params: Parameters) -> dict[str, Any]:
    """Return the header fields ``parameters`` and ``fingerprint``."""
    literal = params.to_dict()
    literal["level_bits"] = list(literal["level_bits"])
    read_literal(literal)  # what cannot be read back is not written
    return {"parameters": literal, "fingerprint": params.fingerprint}


def read_parameters(
    fields: Mapping[str, Any], params: Parameters | None, allow_insecure: bool
) -> Parameters:
    """Return the parameters that the header names.

    Parameters
    ----------
    fields
        Header with ``parameters`` and ``fingerprint``.
    params
        The parameters to insist on, or None to rebuild those of the header.
    allow_insecure
        Whether the rebuilt ones may have less than 128-bit security.

    Raises
    ------
    IncompatibleError
        If the fingerprint is not that of `params`.
    InsecureParametersError
        If the parameters are insecure and that is not allowed.
    SerializationError
        If the literal is malformed or inconsistent.
    IntegrityError
        If it has another fingerprint than the header says.
    """
    literal, fingerprint = read_literal(fields["parameters"]), fields["fingerprint"]
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        raise SerializationError(f"the fingerprint is {shorten(fingerprint)}, not 64 hex digits")
    if params is not None:
        if fingerprint != params.fingerprint:
            raise IncompatibleError(
                f"the data belong to parameters {literal.name or '(unnamed)'} with fingerprint "
                f"{fingerprint[:16]}, {params!r} was expected with {params.fingerprint[:16]}"
            )
        return params
    refuse_insecure(literal, allow_insecure)
    try:
        own = Parameters.from_literal(literal)
    except InsecureParametersError:
        raise
    except ParameterError as e:
        raise SerializationError(f"the parameters in the header are not valid: {e}") from e
    if own.fingerprint != fingerprint:
        raise IntegrityError(
            f"the parameters in the header have fingerprint {own.fingerprint[:16]}, it says "
            f"{fingerprint[:16]}; the data are damaged or of a version that chose other primes"
        )
    return own


def refuse_insecure(literal: Any, allow_insecure: bool) -> None:
    """Raise `InsecureParametersError` for a literal that says so, unless that is allowed."""
    if literal.insecure and not allow_insecure:
        raise InsecureParametersError(
            f"the data belong to parameters {literal.name or '(unnamed)'}, which are marked as "
            "insecure; pass allow_insecure=True for tests only"
        )


def read_name(value: Any) -> str:
    """Return a name of parameters: it will be printed."""
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise SerializationError(
            f"the name of the parameters is {shorten(value)}; at most {MAX_NAME} printable "
            "characters are needed"
        )
    return value


def read_literal(value: Any) -> ParametersLiteral:
    """Return a literal of bounded size; `Parameters` checks whether it makes sense."""
    if not isinstance(value, dict):
        raise SerializationError(f"the parameters are {shorten(value)}, not an object")
    check_keys("parameters", value, [f.name for f in dataclass_fields(ParametersLiteral)])
    bits, name, insecure = value["level_bits"], read_name(value["name"]), value["insecure"]
    if not isinstance(bits, list | tuple) or len(bits) > MAX_LEVELS:
        raise SerializationError(
            f"level_bits is {shorten(bits)}; a list of at most {MAX_LEVELS} is needed"
        )
    if not isinstance(insecure, bool):
        raise SerializationError(f"insecure is {shorten(insecure)}; true or false is needed")
    literal = ParametersLiteral(
        log_n=read_integer("log_n", value["log_n"], MIN_LOG_N, MAX_LOG_N),
        base_bits=read_integer("base_bits", value["base_bits"], 1, MAX_BASE_BITS),
        level_bits=tuple(read_integer("a level's size", b, 1, 60) for b in bits),
        special_primes=read_integer(
            "special_primes", value["special_primes"], 1, MAX_SPECIAL_PRIMES
        ),
        digits=read_integer("digits", value["digits"], 1, MAX_DIGITS),
        scale_bits=read_integer("scale_bits", value["scale_bits"], 1, MAX_BASE_BITS),
        insecure=insecure,
        name=name,
    )
    # A preset's name must not dress up other parameters.
    if name in PRESETS and literal != PRESETS[name]:
        literal = replace(literal, name="")
    return literal
