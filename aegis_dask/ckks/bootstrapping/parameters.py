"""Parameters of a scheme with bootstrapping: levels for computing, and above them the circuit's.

From the bottom: `ordinary levels` (rational, 35 or 40 bits), which end with those that a refreshed
ciphertext has; the levels of EvalMod (pairs of primes); those of CoeffsToSlots.

=================  ============================================================================
level              role
=================  ============================================================================
``input_level``    a ciphertext is refreshed from here (SlotsToCoeffs takes the levels below)
``output_level``   a refreshed ciphertext
``sine_level``     a coefficient in a slot, before EvalMod
``max_level``      after ModRaise
=================  ============================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from reprlib import repr as shorten
from typing import Any

from aegis_dask.ckks.bootstrapping.sine import Sine, log2_failure
from aegis_dask.ckks.header import (
    MAX_BASE_BITS,
    MAX_LEVELS,
    MAX_SPECIAL_PRIMES,
    check_keys,
    read_integer,
    read_literal,
    read_name,
    refuse_insecure,
)
from aegis_dask.ckks.parameters import (
    MAX_DIGITS,
    MAX_LOG_N,
    MIN_LOG_N,
    Parameters,
    ParametersLiteral,
)
from aegis_dask.ckks.scale import Scale
from aegis_dask.ckks.security import check_sparse_key_modulus, max_log2_sparse_modulus
from aegis_dask.errors import InsecureParametersWarning, ParameterError, SerializationError
from aegis_dask.ring.chain import ModulusChain, Window


@dataclass(frozen=True)
class BootstrappingLiteral:
    """Unchecked choice of parameters with bootstrapping.

    Attributes
    ----------
    log_n, base_bits, special_primes, digits, scale_bits, insecure, name
        As in `ParametersLiteral`.
    usable_levels
        Levels between two refreshes.
    level_bits
        Size of each of them: 35, 40 or 45.
    sine_bits
        Sizes of the levels of EvalMod from the bottom, 50 to 60: as many as the degree and the
        double angles take. Larger ones on top pay: near its maximum the cosine magnifies the error
        of the first square.
    coeffs_to_slots
        Sizes of the levels of CoeffsToSlots from the bottom, 50 to 60. Those of 50 on top use the
        terminal primes that are there (see `ring.chain.build_chain`).
    slots_to_coeffs
        Levels of SlotsToCoeffs, of `level_bits` each.
    ratio_bits
        log2 of ``q_0 / Delta`` as ModRaise sees it: larger is a better sine and more noise.
    max_magnitude
        Largest real or imaginary part of a slot that may be refreshed.
    sine_degree, doublings, sine_bound
        See `Sine`.
    precision_bits
        -log2 of the largest error of a slot for parts up to 1, of a refresh and of a precise one:
        measured, with a margin of half a bit (docs/bootstrapping.md).
    sparse_weight
        Nonzero coefficients of the ephemeral secret.
    sparse_special_primes
        Special primes of the key that switches to it; its digits are single primes.
    """

    log_n: int
    usable_levels: int
    special_primes: int
    digits: int
    coeffs_to_slots: tuple[int, ...]
    base_bits: int = 50
    level_bits: int = 40
    scale_bits: int = 40
    sine_bits: tuple[int, ...] = (58, 58, 58, 58, 58, 60, 60, 58)
    slots_to_coeffs: int = 3
    ratio_bits: int = 13
    max_magnitude: float = 2.0
    sine_degree: int = 30
    doublings: int = 3
    sine_bound: int = 14
    precision_bits: tuple[float, float] = (20.0, 22.5)
    sparse_weight: int = 32
    sparse_special_primes: int = 1
    insecure: bool = False
    name: str = ""

    @property
    def scheme(self) -> ParametersLiteral:
        """The literal of the scheme."""
        ordinary = (self.level_bits,) * (self.usable_levels + self.slots_to_coeffs)
        return ParametersLiteral(
            self.log_n,
            self.base_bits,
            (*ordinary, *self.sine_bits, *self.coeffs_to_slots),
            self.special_primes,
            self.digits,
            self.scale_bits,
            insecure=self.insecure,
            name=self.name,
        )


BOOTSTRAPPING_PRESETS: dict[str, BootstrappingLiteral] = {
    p.name: p
    for p in (
        BootstrappingLiteral(16, 13, 12, 4, (58, 58, 50, 50), name="n16-d40-b13"),
        BootstrappingLiteral(
            16,
            15,
            12,
            4,
            (54, 54, 50, 50),
            level_bits=35,
            scale_bits=35,
            sine_bits=(55,) * 8,
            precision_bits=(15.5, 17.5),
            name="n16-d35-b15",
        ),
        BootstrappingLiteral(
            15,
            3,
            4,
            8,
            (50, 50),
            level_bits=35,
            scale_bits=35,
            sine_bits=(52,) * 8,
            slots_to_coeffs=2,
            ratio_bits=12,
            sine_bound=17,
            precision_bits=(14.5, 17.0),
            sparse_weight=64,
            name="n15-d35-b3",
        ),
        BootstrappingLiteral(
            10, 4, 9, 4, (58, 50, 50), sparse_weight=16, insecure=True, name="insecure-n10-d40-b4"
        ),
        BootstrappingLiteral(12, 7, 10, 4, (58, 50, 50), insecure=True, name="insecure-n12-d40-b7"),
        BootstrappingLiteral(
            11, 13, 12, 4, (58, 50, 50), insecure=True, name="insecure-n11-d40-b13"
        ),
    )
}
"""Parameter sets by name; ``b`` counts the usable levels. Every name without ``insecure`` is
128-bit secure (checked on the moduli of all keys)."""


class BootstrappingParameters:
    """Checked parameters with bootstrapping: `params` of the scheme, and those of the circuit.

    Raises
    ------
    ParameterError
        If the literal is inconsistent.
    InsecureParametersError
        If a key's modulus, that of the sparse secret's key included, is too large.
    """

    def __init__(self, literal: BootstrappingLiteral) -> None:
        self.literal = literal
        levels = literal.sine_degree.bit_length() + literal.doublings
        if len(literal.sine_bits) != levels:
            raise ParameterError(
                f"{len(literal.sine_bits)} levels of EvalMod were given; a cosine of degree "
                f"{literal.sine_degree} and {literal.doublings} double angles take {levels}"
            )
        self.params = Parameters.from_literal(literal.scheme)
        self.sine = Sine(
            literal.sine_bound,
            literal.sine_degree,
            literal.doublings,
            literal.max_magnitude * 2.0**-literal.ratio_bits,
        )
        if not literal.insecure:
            check_sparse_key_modulus(
                literal.log_n,
                literal.sparse_weight,
                self.sparse_chain.log2_key_modulus,
                "the key to the ephemeral secret",
            )
        elif self.params.is_secure and not self.is_secure:  # or the scheme has warned
            warnings.warn(
                f"parameters {literal.name or '(unnamed)'} are insecure: {self.weakness}. Use them "
                "for tests only.",
                InsecureParametersWarning,
                stacklevel=3,
            )
        if not 0 < literal.ratio_bits < 30:
            raise ParameterError(f"ratio_bits is {literal.ratio_bits}, it must be 1 to 29")

    @classmethod
    def from_literal(cls, literal: BootstrappingLiteral) -> BootstrappingParameters:
        """Check a literal and build its parameters (cached)."""
        return _from_literal(literal)

    @classmethod
    def preset(cls, name: str) -> BootstrappingParameters:
        """Return a parameter set by name, for example ``"n16-d40-b13"``."""
        if name not in BOOTSTRAPPING_PRESETS:
            known = ", ".join(sorted(BOOTSTRAPPING_PRESETS))
            raise ParameterError(f"no preset {name!r} with bootstrapping; there are {known}")
        return _from_literal(BOOTSTRAPPING_PRESETS[name])

    @property
    def is_secure(self) -> bool:
        """Whether all keys meet their 128-bit bounds, that to the ephemeral secret included."""
        return not self.weakness

    @cached_property
    def weakness(self) -> str:
        """Why the parameters are insecure, or ""."""
        if self.params.weakness:
            return self.params.weakness
        log_n, weight = self.literal.log_n, self.literal.sparse_weight
        found, limit = self.sparse_chain.log2_key_modulus, max_log2_sparse_modulus(log_n, weight)
        if found <= limit:
            return ""
        return (
            f"the key to the ephemeral secret with {weight} nonzero coefficients has {found:.0f} "
            f"bits, at most {limit} would be secure at this ring degree"
        )

    # -- levels -----------------------------------------------------------------------------

    @property
    def max_level(self) -> int:
        """Level after ModRaise."""
        return self.params.max_level

    @property
    def sine_level(self) -> int:
        """Level of the input of EvalMod."""
        return self.max_level - len(self.literal.coeffs_to_slots)

    @property
    def output_level(self) -> int:
        """Level of a refreshed ciphertext."""
        return self.literal.usable_levels + self.literal.slots_to_coeffs

    @property
    def input_level(self) -> int:
        """Lowest level that a ciphertext is refreshed from."""
        return self.literal.slots_to_coeffs

    @property
    def usable_levels(self) -> int:
        """Levels between two refreshes."""
        return self.literal.usable_levels

    # -- scales -----------------------------------------------------------------------------

    @cached_property
    def modulus(self) -> Scale:
        """q_0 as a scale."""
        return self.params.window_scale(self.params.window(0))

    @cached_property
    def raised_scale(self) -> Scale:
        """Scale of the message at level 0 before it is raised: ``q_0 / 2^ratio_bits``."""
        return self.modulus / Scale({2: self.literal.ratio_bits})

    def quotient(self, level: int) -> Scale:
        """Return ``Q_level / Q_(level - 1)``, what a rescale divides by."""
        upper, lower = self.params.window(level), self.params.window(level - 1)
        return self.params.window_scale(upper) / self.params.window_scale(lower)

    def sine_scales(self, raised_scale: Scale) -> tuple[Scale, ...]:
        """Return the scale per level within EvalMod: canonical up to the output level's.

        EvalMod returns ``m Delta / q_0`` where m is wanted, Delta being the scale of the raised
        message. The scale at the output level is the canonical one times ``q_0 / Delta``, so that
        calling it canonical divides by that number exactly. Upwards, products keep these scales as
        they do canonical ones.
        """
        return _sine_scales(self, raised_scale)

    # -- the ephemeral secret -----------------------------------------------------------------

    @cached_property
    def sparse_chain(self) -> ModulusChain:
        """Chain of the key to the ephemeral secret: the primes of level 0 and few special ones."""
        chain, window = self.params.chain, self.params.window(0)
        return ModulusChain(
            chain.ring_degree,
            chain.primes[window.start : window.stop],
            chain.special_primes[: self.literal.sparse_special_primes],
            (Window(0, len(window)),),
        )

    @property
    def log2_failure(self) -> float:
        """log2 of a bound on the probability that a refresh of one ciphertext fails."""
        literal = self.literal
        return log2_failure(literal.sine_bound, literal.sparse_weight, self.params.ring_degree)

    def __repr__(self) -> str:
        return (
            f"BootstrappingParameters({self.params!r}: {self.usable_levels} usable levels, from "
            f"{self.input_level} to {self.output_level}, q_0 / scale 2^{self.literal.ratio_bits}, "
            f"{'128-bit secure' if self.is_secure else 'INSECURE'})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_literal, (self.literal,)


AnyParameters = Parameters | BootstrappingParameters


def scheme_of(params: AnyParameters) -> Parameters:
    """Return the parameters of the scheme."""
    return params.params if isinstance(params, BootstrappingParameters) else params


def parameters_from_dict(
    scheme: Mapping[str, Any],
    bootstrapping: Mapping[str, Any] | None,
    allow_insecure: bool = False,
) -> AnyParameters:
    """Return parameters from the fields of their literals, as JSON gives them back.

    Parameters
    ----------
    scheme
        Fields of a `ParametersLiteral`.
    bootstrapping
        Fields of a `BootstrappingLiteral`, or None for parameters without bootstrapping.
    allow_insecure
        Whether they may have less than 128-bit security.

    Raises
    ------
    SerializationError
        If fields are missing, unknown or malformed.
    InsecureParametersError
        If they are marked as insecure, and that is not allowed.
    ParameterError
        If they are no parameters, or the two literals differ.
    """
    literal = read_literal(scheme)
    if bootstrapping is None:
        refuse_insecure(literal, allow_insecure)
        return Parameters.from_literal(literal)
    own = _read_literal(bootstrapping)
    if own.scheme != literal:
        raise ParameterError("the parameters of the scheme and of bootstrapping differ")
    refuse_insecure(own, allow_insecure)
    preset = BOOTSTRAPPING_PRESETS.get(own.name, own)
    # A preset's name must not dress up other parameters.
    return _from_literal(own if own == preset else replace(own, name=""))


MAX_STAGES = 16
"""Levels of each part of the circuit."""
# Largest sine bound, weight, ... : these bound the work of `Sine` and of the circuit.
_RANGES = {
    "log_n": (MIN_LOG_N, MAX_LOG_N),
    "usable_levels": (1, MAX_LEVELS),
    "special_primes": (1, MAX_SPECIAL_PRIMES),
    "digits": (1, MAX_DIGITS),
    "base_bits": (1, MAX_BASE_BITS),
    "level_bits": (1, 60),
    "scale_bits": (1, MAX_BASE_BITS),
    "slots_to_coeffs": (1, MAX_STAGES),
    "ratio_bits": (1, 29),
    "sine_degree": (4, 256),
    "doublings": (0, 8),
    "sine_bound": (1, 512),
    "sparse_weight": (1, 1 << MAX_LOG_N),
    "sparse_special_primes": (1, MAX_SPECIAL_PRIMES),
}


def _read_literal(value: Any) -> BootstrappingLiteral:
    """Return a literal of bounded size; `BootstrappingParameters` checks whether it makes sense."""
    if not isinstance(value, Mapping):
        raise SerializationError(f"the bootstrapping is {shorten(value)}, not an object")
    check_keys("bootstrapping", value, [f.name for f in fields(BootstrappingLiteral)])
    literal: dict[str, Any] = {
        name: read_integer(name, value[name], *bounds) for name, bounds in _RANGES.items()
    }
    for name in ("sine_bits", "coeffs_to_slots"):
        sizes = _read_list(name, value[name], 1, MAX_STAGES)
        literal[name] = tuple(read_integer(f"a size of {name}", b, 1, 60) for b in sizes)
    precision = _read_list("precision_bits", value["precision_bits"], 2, 2)
    literal["precision_bits"] = tuple(_read_number("a precision", b, 1, 60) for b in precision)
    literal["max_magnitude"] = _read_number("max_magnitude", value["max_magnitude"], 1e-6, 1e6)
    insecure, name = value["insecure"], value["name"]
    if not isinstance(insecure, bool):
        raise SerializationError(f"insecure is {shorten(insecure)}; true or false is needed")
    return BootstrappingLiteral(**literal, insecure=insecure, name=read_name(name))


def _read_list(what: str, value: Any, fewest: int, most: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not fewest <= len(value) <= most:
        raise SerializationError(f"{what} is {shorten(value)}; {fewest} to {most} are needed")
    return value


def _read_number(what: str, value: Any, low: float, high: float) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise SerializationError(
            f"{what} is {shorten(value)}; a number {low:g} to {high:g} is needed"
        )
    return float(value)


@lru_cache(maxsize=16)
def _from_literal(literal: BootstrappingLiteral) -> BootstrappingParameters:
    return BootstrappingParameters(literal)


@lru_cache(maxsize=64)
def _sine_scales(params: BootstrappingParameters, raised_scale: Scale) -> tuple[Scale, ...]:
    scheme, output = params.params, params.output_level
    out = list(scheme.scales[:output])
    out.append(scheme.scales[output] * params.modulus / raised_scale)
    for level in range(output + 1, params.sine_level + 1):
        quotient = params.quotient(level)
        out.append((out[-1] * quotient).sqrt())
    return tuple(out)
