"""Claims that a machine can check, in groups: `python -m benchmarks.claims GROUP`.

A group is a module here with a function ``claims(options) -> list[Claim]``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Options:
    """What the command line asks for; no names means every claim of the group."""

    only: tuple[str, ...] = ()
    quick: bool = False

    def wants(self, name: str) -> bool:
        """Whether the claim `name` is asked for."""
        return not self.only or name in self.only


@dataclass(frozen=True)
class Finding:
    """What was measured. Not `sound`: the claim is missed whatever the value, see `note`."""

    value: float | None
    note: str = ""
    sound: bool = True


@dataclass(frozen=True)
class Claim:
    """One line: a name, what its value must satisfy (``">= 5.5"``), and how to find the value."""

    name: str
    target: str
    unit: str
    measure: Callable[[], Finding]
    command: str = ""
    slow: bool = False

    def holds(self, finding: Finding) -> bool:
        """Whether the finding meets the target."""
        match = re.fullmatch(r"(<=|>=|==|<|>) ([-+.\de]+)", self.target)
        if match is None:
            raise ValueError(f"target {self.target!r} is not a comparison with a number")
        compare, bound = _COMPARISONS[match[1]], float(match[2])
        return finding.sound and finding.value is not None and compare(finding.value, bound)
