"""Fuzzing of the parsers of what others send: `python -m benchmarks.fuzzing`.

Every input is a function of the seed, the target's name and its number, so each can be made again.
What must hold for each: the parser returns or raises an `AegisError`, within the target's CPU time,
and asks for no more memory than a small multiple of the input and a constant.

To add a parser, add a `Target` to `benchmarks.fuzzing.targets.all_targets`: a name, valid examples,
and a function of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal["container", "json", "numbers", "bytes"]
"""What mutations know about the examples: the wire format, JSON, JSON of which only numbers are
changed, or nothing."""
Generate = Callable[[Random, Sequence[bytes]], bytes]


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes
    ----------
    name
        For tables; a part of the seed of its inputs.
    examples
        Valid inputs, the same in every process.
    parse
        The parser. What it returns is dropped.
    kind
        How inputs are made of examples, beside mutations of bytes that every kind gets; or a
        function that makes them.
    share
        How many inputs it gets, relative to the others.
    seconds
        CPU time that one input may take.
    multiple, constant
        Most memory while it runs: `multiple` times the bytes of the input, and `constant` bytes.
    """

    name: str
    examples: tuple[bytes, ...]
    parse: Callable[[bytes], object]
    kind: Kind | Generate = "container"
    share: float = 1.0
    seconds: float = 1.0
    multiple: int = 16
    constant: int = 4 << 20
