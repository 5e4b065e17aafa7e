"""Parameters: an unchecked literal, then one checked, immutable object."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from math import log2
from typing import TYPE_CHECKING, Any

from aegis_dask.ckks.scale import Scale
from aegis_dask.ckks.security import check_key_modulus, max_log2_modulus
from aegis_dask.errors import IncompatibleError, InsecureParametersWarning, ParameterError
from aegis_dask.ring.chain import ModulusChain, Window, build_chain
from aegis_dask.ring.registry import get_ring

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Ring

MAX_DIGITS = 8
MIN_SPECIAL_MARGIN_BITS = 8
"""How much P exceeds the largest digit: the noise of key switching grows with their ratio."""
MIN_LOG_N, MAX_LOG_N = 10, 17


@dataclass(frozen=True)
class ParametersLiteral:
    """Unchecked choice of parameters.

    Attributes
    ----------
    log_n
        log2 of the ring degree N, 10 to 17. There are N/2 slots.
    base_bits
        Size of Q_0, the modulus of level 0.
    level_bits
        Size of each level above it, from the bottom (see `ring.chain.build_chain`).
    special_primes
        Number of 30-bit primes in P. P must exceed the largest digit.
    digits
        Number of digits of an evaluation key, 1 to 8: more digits need fewer special primes, so
        leave more levels, but make key switching slower.
    scale_bits
        log2 of the scale at level 0.
    insecure
        Accept less than 128-bit security, with a warning. Never for real data.
    name
        Preset name, if any; it does not take part in equality of parameters.
    """

    log_n: int
    base_bits: int
    level_bits: tuple[int, ...]
    special_primes: int
    digits: int
    scale_bits: int
    insecure: bool = False
    name: str = ""


PRESETS: dict[str, ParametersLiteral] = {
    p.name: p
    for p in (
        ParametersLiteral(13, 50, (30,) * 3, 2, 4, 30, name="n13-d30"),
        ParametersLiteral(14, 50, (40,) * 5 + (60,), 4, 4, 40, name="n14-d40"),
        ParametersLiteral(15, 50, (40,) * 11 + (60, 60), 8, 3, 40, name="n15-d40"),
        ParametersLiteral(16, 50, (35,) * 33 + (60,), 12, 4, 35, name="n16-d35"),
        ParametersLiteral(16, 50, (40,) * 29 + (60,), 15, 3, 40, name="n16-d40"),
        ParametersLiteral(16, 60, (45,) * 25 + (60,), 15, 3, 45, name="n16-d45"),
        ParametersLiteral(16, 60, (54,) * 22, 16, 3, 54, name="n16-d54"),
        ParametersLiteral(
            10, 50, (40,) * 5 + (60,), 4, 4, 40, insecure=True, name="insecure-n10-d40"
        ),
        ParametersLiteral(11, 50, (35,) * 9, 6, 3, 35, insecure=True, name="insecure-n11-d35"),
        ParametersLiteral(
            12, 50, (40,) * 11 + (60, 60), 8, 3, 40, insecure=True, name="insecure-n12-d40"
        ),
        ParametersLiteral(10, 60, (54,) * 4, 5, 3, 54, insecure=True, name="insecure-n10-d54"),
    )
}
"""Parameter sets by name. Every name without ``insecure`` is 128-bit secure (checked)."""


class Parameters:
    """Checked parameters: immutable, hashable, equal when every prime and digit is equal.

    Use `Parameters.preset` or `Parameters.from_literal`.

    Raises
    ------
    ParameterError
        If the literal is inconsistent.
    InsecureParametersError
        If the modulus of an evaluation key exceeds the 128-bit bound and ``insecure`` is not set.
    """

    def __init__(self, literal: ParametersLiteral) -> None:
        _check_literal(literal)
        self.literal = literal
        self.chain: ModulusChain = build_chain(
            1 << literal.log_n, literal.base_bits, literal.level_bits, literal.special_primes
        )
        if not literal.insecure:  # before work that grows with the square of the number of primes
            check_key_modulus(literal.log_n, self.log2_key_modulus, "an evaluation key")
        self.digit_bounds = balanced_digits(self.chain.primes, literal.digits)
        largest = max(
            sum(log2(p) for p in self.chain.primes[i:j])
            for i, j in itertools.pairwise(self.digit_bounds)
        )
        if log2(self.chain.special_modulus) < largest + MIN_SPECIAL_MARGIN_BITS:
            raise ParameterError(
                f"the largest of {literal.digits} digits has {largest:.0f} bits, P only "
                f"{log2(self.chain.special_modulus):.0f}; P must be {MIN_SPECIAL_MARGIN_BITS} bits "
                "larger to keep the noise of key switching low: use more digits or special primes"
            )
        if literal.insecure and not self.is_secure:
            warnings.warn(
                f"parameters {literal.name or '(unnamed)'} are insecure: {self.weakness}. Use them "
                "for tests only.",
                InsecureParametersWarning,
                stacklevel=4,
            )

    @classmethod
    def from_literal(cls, literal: ParametersLiteral) -> Parameters:
        """Check a literal and build its parameters (cached)."""
        return _from_literal(literal)

    @classmethod
    def preset(cls, name: str) -> Parameters:
        """Return a parameter set by name, for example ``"n16-d40"``."""
        if name not in PRESETS:
            raise ParameterError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}")
        return _from_literal(PRESETS[name])

    # -- sizes ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Preset name, or a description of the ring."""
        return self.literal.name or f"n{self.literal.log_n}-custom"

    @property
    def ring_degree(self) -> int:
        """N."""
        return self.chain.ring_degree

    @property
    def slots(self) -> int:
        """Number of complex values in a ciphertext, N/2."""
        return self.chain.ring_degree // 2

    @property
    def max_level(self) -> int:
        """Level of a fresh ciphertext: that many multiplications can follow."""
        return self.chain.max_level

    @property
    def log2_key_modulus(self) -> float:
        """log2 of the modulus QP of the evaluation keys."""
        return self.chain.log2_key_modulus

    @property
    def is_secure(self) -> bool:
        """Whether the evaluation keys meet the 128-bit bound."""
        return not self.weakness

    @property
    def weakness(self) -> str:
        """Why the parameters are insecure, or ""."""
        limit = max_log2_modulus(self.literal.log_n)
        if self.log2_key_modulus <= limit:
            return ""
        return (
            f"log2 QP is {self.log2_key_modulus:.0f}, at most {limit} would be secure at this "
            "ring degree"
        )

    @property
    def digits(self) -> int:
        """Number of digits of an evaluation key."""
        return len(self.digit_bounds) - 1

    @property
    def evaluation_key_bytes(self) -> int:
        """Size of one evaluation key in memory; half of it when written (seeded)."""
        return self.key_bytes(self.max_level)

    def key_bytes(self, level: int) -> int:
        """Return the size in memory of an evaluation key for levels up to `level`."""
        rows = len(self.key_digits(level)) * len(self.key_limbs(level))
        return 2 * rows * 4 * self.ring_degree

    def key_limbs(self, level: int) -> list[int]:
        """Return the prime indices of an evaluation key for levels up to `level`.

        Those of every window up to there, which may reach beyond that of `level`, and of P.
        """
        windows = self.chain.windows[: level + 1]
        first = len(self.chain.primes)
        return [
            *range(min(w.start for w in windows), max(w.stop for w in windows)),
            *range(first, len(self.chain.all_primes)),
        ]

    def key_digits(self, level: int) -> range:
        """Return the digits of an evaluation key for levels up to `level`."""
        windows, bounds = self.chain.windows[: level + 1], self.digit_bounds
        first = bisect_right(bounds, min(w.start for w in windows)) - 1
        return range(first, bisect_left(bounds, max(w.stop for w in windows)))

    # -- levels -----------------------------------------------------------------------------

    def window(self, level: int) -> Window:
        """Return the limb window of a level."""
        return self.chain.windows[level]

    def limbs(self, level: int) -> list[int]:
        """Return the prime indices of a level."""
        return list(self.chain.windows[level].limbs())

    def extended_limbs(self, level: int) -> list[int]:
        """Return the prime indices of a level and of P."""
        first = len(self.chain.primes)
        return self.limbs(level) + list(range(first, len(self.chain.all_primes)))

    @cached_property
    def log2_moduli(self) -> tuple[float, ...]:
        """log2 Q_l per level."""
        return tuple(
            sum(log2(p) for p in self.chain.primes[w.start : w.stop]) for w in self.chain.windows
        )

    def window_scale(self, window: Window) -> Scale:
        """Return the modulus of a window as a scale."""
        return Scale(dict.fromkeys(self.chain.primes[window.start : window.stop], 1))

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """Canonical scale per level."""
        out = [Scale({2: self.literal.scale_bits})]
        for lower, upper in zip(self.chain.windows, self.chain.windows[1:], strict=False):
            out.append((out[-1] * self.window_scale(upper) / self.window_scale(lower)).sqrt())
        return tuple(out)

    @property
    def ring(self) -> Ring:
        """Kernels of this ring on the configured device."""
        return get_ring(self.chain)

    # -- identity ---------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that two parties must agree on, as hex."""
        content: dict[str, Any] = {
            "ring_degree": self.ring_degree,
            "primes": self.chain.primes,
            "special_primes": self.chain.special_primes,
            "windows": [(w.start, w.stop) for w in self.chain.windows],
            "digit_bounds": self.digit_bounds,
            "scale_bits": self.literal.scale_bits,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_literal, (self.literal,)

    def to_dict(self) -> dict[str, Any]:
        """Return the literal as JSON-ready data."""
        return asdict(self.literal)

    def __repr__(self) -> str:
        return (
            f"Parameters({self.name}: N=2^{self.literal.log_n}, {self.max_level} levels, "
            f"scale 2^{self.literal.scale_bits}, log2 QP {self.log2_key_modulus:.0f}, "
            f"{'128-bit secure' if self.is_secure else 'INSECURE'})"
        )


def balanced_digits(primes: Sequence[int], count: int) -> tuple[int, ...]:
    """Cut `primes` into at most `count` runs whose largest product is as small as possible.

    Returns
    -------
    tuple of int
        The first index of every run, and the number of primes.
    """
    bits = [0.0, *itertools.accumulate(log2(p) for p in primes)]
    total = len(primes)
    # best[i]: (largest run, bounds) of the primes before i, with the runs so far
    best: list[tuple[float, tuple[int, ...]]] = [(b, (0, i)) for i, b in enumerate(bits)]
    for _ in range(min(count, total) - 1):
        best = [
            min((max(best[j][0], bits[i] - bits[j]), (*best[j][1], i)) for j in range(i))
            if i
            else (0.0, (0,))
            for i in range(total + 1)
        ]
    return tuple(sorted(set(best[total][1])))


def _check_literal(p: ParametersLiteral) -> None:
    problems = []
    if not MIN_LOG_N <= p.log_n <= MAX_LOG_N:
        problems.append(f"log_n is {p.log_n}, it must be {MIN_LOG_N} to {MAX_LOG_N}")
    if not 1 <= p.digits <= MAX_DIGITS:
        problems.append(f"digits is {p.digits}, it must be 1 to {MAX_DIGITS}")
    if not 1 <= p.special_primes <= 40:
        problems.append(f"special_primes is {p.special_primes}, it must be 1 to 40")
    if not 20 <= p.scale_bits < p.base_bits:
        problems.append(
            f"scale_bits is {p.scale_bits}, it must be at least 20 and below base_bits "
            f"({p.base_bits}): their difference bounds the values at level 0"
        )
    if problems:
        raise ParameterError("; ".join(problems))


@lru_cache(maxsize=64)
def _from_literal(literal: ParametersLiteral) -> Parameters:
    return Parameters(literal)


def check_same(*objects: Any, names: Sequence[str] | None = None) -> None:
    """Raise `IncompatibleError` unless all `objects` carry the same parameters."""
    first = objects[0]
    for i, other in enumerate(objects[1:], 1):
        if other.params is not first.params and other.params != first.params:
            a, b = (names[0], names[i]) if names else (type(first).__name__, type(other).__name__)
            raise IncompatibleError(
                f"{a} belongs to {first.params!r} and {b} to {other.params!r}; use keys, "
                "plaintexts and ciphertexts of one parameter set"
            )
