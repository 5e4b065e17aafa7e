"""What the names of stages say: the layer of the model, and the operator in it."""

from __future__ import annotations

import re
from functools import lru_cache

# Pattern of a stage's name without its layer -> operator. The first that matches counts.
OPERATORS = (
    (r".*-refresh", "bootstrapping"),
    (r"(.*/)?(mean-sum|mean|centre)", "LayerNorm: centring"),
    (r"attention-(rotate|pair)|(.*/)?((inner-)?rotate|pair)", "rotations before linear layers"),
    (r"attention(-\d+)?/(query|key|value)", "attention: query, key, value"),
    (
        r"attention(-\d+)?/(query|key|value)-(lanes|turned|copies|steps)",
        "attention: rotations of query, key, value",
    ),
    (r"attention(-\d+)?/distance.*", "attention: fixed distances"),
    (r"attention(-\d+)?/group-\d+", "attention: scores, exp, weighted values"),
    (
        r"attention(-\d+)?/(denominator(-sum)?|numerator|divide)|attention-heads",
        "attention: division",
    ),
    (r"output/.*", "attention: output projection"),
    (r"norm\d/.*", "LayerNorm: variance, root, scale"),
    (r"feed-forward/gelu", "feed-forward: up, GELU"),
    (r"feed-forward/.*", "feed-forward: down"),
)
LAYER = re.compile(r"(layer\d+)/(.*)")


@lru_cache(maxsize=1 << 16)
def operator_of(stage: str) -> str:
    """Return the operator that a stage is a part of; without numbers for stages of other graphs."""
    layer = LAYER.fullmatch(stage)
    name = layer[2] if layer else stage
    for pattern, operator in OPERATORS:
        if re.fullmatch(rf"({pattern})(-\d+)?", name):  # a refresh within cuts a stage: x, x-2, ..
            return operator
    return re.sub(r"(-?\d+)+$", "", name)


def layer_of(stage: str) -> str:
    """Return the layer that a stage belongs to, empty if to none."""
    layer = LAYER.fullmatch(stage)
    return layer[1] if layer else ""
