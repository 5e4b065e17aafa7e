"""English texts of our own: for calibrating approximations, for accuracy, for demonstrations.

Calibration needs texts as varied as what users send: the sentence pairs range from one word to
sixty, over daily life, science, medicine, law, finance, code, customer support, news, questions,
numbers and names, some with unusual punctuation; the passages are long enough for 512 tokens.
"""

from __future__ import annotations

import importlib.resources
from typing import Literal, NamedTuple, TypeAlias, get_args

Label: TypeAlias = Literal["paraphrase", "related", "unrelated"]
LABELS: tuple[Label, ...] = get_args(Label)


class Pair(NamedTuple):
    """Two sentences, and whether they say the same, are about the same, or neither."""

    a: str
    b: str
    label: Label


def sentence_pairs() -> list[Pair]:
    """Return the sentence pairs. One sentence may stand in several of them, always as `a`."""
    pairs = []
    for line in _read("sentences.txt").splitlines():
        a, b, text = line.split("\t")
        label = next(known for known in LABELS if known == text)
        pairs.append(Pair(a, b, label))
    return pairs


def sentences() -> list[str]:
    """Return every sentence of the pairs once, in their order."""
    return list(dict.fromkeys(text for pair in sentence_pairs() for text in (pair.a, pair.b)))


def passages() -> list[str]:
    """Return the long passages, of 190 to 590 tokens in all-MiniLM's vocabulary."""
    return _read("passages.txt").strip().split("\n\n")


def _read(name: str) -> str:
    # The package of this module and the folder below it, so that no namespace package is needed.
    folder = importlib.resources.files("aegis_dask.models") / "data"
    return (folder / name).read_text(encoding="utf-8")
