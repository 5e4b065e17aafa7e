"""Sentence embeddings of a model simulated with its encrypted circuits, against float64.

Two-fold: ranges are calibrated on one half of the texts, embeddings compared on the other half,
then the other way round, so that no text is judged by ranges that it took part in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits.packing import Packing
from aegis_dask.errors import RangeError
from aegis_dask.models.calibration import calibrate, check_inside
from aegis_dask.models.checkpoint import BertModel, load_minilm
from aegis_dask.models.corpus import passages, sentence_pairs
from aegis_dask.models.programs import (
    INPUT,
    OUTPUT,
    bert_program,
    encoder_layers,
    hidden_layout,
)
from aegis_dask.models.text import Tokenizer, cosine, embed, pool
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.service.job import choose_slots

Ids = NDArray[np.int64]
PIECE = 64
"""Tokens of the pieces into which passages are cut to calibrate for sentences."""


@dataclass
class Similarities:
    """Cosine similarities of simulated and float64 embeddings.

    Attributes
    ----------
    cosines
        Of every text that was run.
    lengths
        Its tokens.
    refused
        Why a text was refused before it ran, if values left the calibrated ranges.
    pairs
        For sentence pairs, the change of their similarity score.
    """

    cosines: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        c = np.array(self.cosines)
        text = (
            f"{len(c)} texts of {min(self.lengths)} to {max(self.lengths)} tokens: cosine "
            f"{c.mean():.7f} on average, {c.min():.7f} at worst; {len(self.refused)} refused"
        )
        if self.pairs:
            text += (
                f"; {len(self.pairs)} pairs, their score changes by at most {max(self.pairs):.1e}"
            )
        return text


def cut(ids: Ids, length: int) -> list[Ids]:
    """Cut a text into pieces of at most `length` tokens, each with first and last token."""
    inner, step = ids[1:-1], length - 2
    pieces = [inner[i : i + step] for i in range(0, len(inner), step)]
    return [np.concatenate([ids[:1], p, ids[-1:]]) for p in pieces if len(p) > 8] or [ids]


def joined(texts: Sequence[Ids], length: int) -> list[Ids]:
    """Join texts to sequences of exactly `length` tokens."""
    flow = np.concatenate([t[1:-1] for t in texts])
    step = length - 2
    return [
        np.concatenate([texts[0][:1], flow[i : i + step], texts[0][-1:]])
        for i in range(0, len(flow) - step + 1, step)
    ]


class _Simulator:
    def __init__(self, model: BertModel, calibration_texts: Sequence[Ids]) -> None:
        self.model = model
        self.calibration = calibrate(model, calibration_texts)
        self.layers = encoder_layers(model, self.calibration)
        self.store = model.tensors()

    def embedding(self, ids: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the embeddings, simulated and exact."""
        x, valid = embed(self.model, ids)
        expected = check_inside(self.model, self.calibration, x, valid)
        tokens = Packing.for_length(1 << 20, len(ids)).tokens
        packing = Packing(choose_slots(tokens, self.model.config.heads), tokens, len(ids))
        layout = hidden_layout(self.model, packing)
        program = bert_program(self.model, self.layers, packing)
        inputs = {INPUT: packing.pack(x, layout)}
        out = run(program, Simulated(), inputs, self.store)[OUTPUT]
        return pool(packing.unpack(out, layout), valid), pool(expected, valid)


def sentences(limit: int | None = None) -> Similarities:
    """Compare on the bundled sentence pairs (the first `limit` of them)."""
    model = load_minilm()
    tokenizer = Tokenizer.for_model(model)
    pairs = sentence_pairs()[:limit]
    long = [p for text in passages() for p in cut(_encode(model, text), PIECE)]
    encoded = [(tokenizer.encode(p.a), tokenizer.encode(p.b)) for p in pairs]
    out = Similarities()
    for fold in (0, 1):
        train = [ids for i, pair in enumerate(encoded) if i % 2 != fold for ids in pair]
        simulator = _Simulator(model, [*train, *long])
        for i, pair in enumerate(encoded):
            if i % 2 != fold:
                continue
            both = [_compare(simulator, ids, out) for ids in pair]
            if all(b is not None for b in both):
                (a, exact_a), (b, exact_b) = both[0], both[1]  # type: ignore[misc]
                out.pairs.append(abs(cosine(a, b) - cosine(exact_a, exact_b)))
            if (i + fold) % 50 == 0:
                print(out if out.cosines else "", file=sys.stderr, flush=True)
    return out


def long_texts(length: int = 512, limit: int = 4) -> Similarities:
    """Compare on texts of exactly `length` tokens: passages, and sentences joined."""
    model = load_minilm()
    tokenizer = Tokenizer.for_model(model)
    whole = [_encode(model, text) for text in passages()]
    short = [tokenizer.encode(s) for p in sentence_pairs() for s in (p.a, p.b)]
    out = Similarities()
    for fold in (0, 1):
        own = [t for i, t in enumerate(whole) if i % 2 == fold] + short[fold::2]
        other = [t for i, t in enumerate(whole) if i % 2 != fold] + short[1 - fold :: 2]
        train = [piece for t in other for piece in cut(t, length)] + joined(other, length)
        simulator = _Simulator(model, train)
        exact = [np.append(t[: length - 1], t[-1]) for t in own if len(t) >= length]
        tests = exact + joined(own, length)
        for ids in tests[: max(1, limit // 2)]:
            _compare(simulator, ids, out)
    return out


def _encode(model: BertModel, text: str) -> Ids:
    """Tokenise a text of any length."""
    assert model.path is not None
    return Tokenizer(model.path, 1 << 20).encode(text)


def _compare(
    simulator: _Simulator, ids: Ids, out: Similarities
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    try:
        got, expected = simulator.embedding(ids)
    except RangeError as error:
        out.refused.append(f"{len(ids)} tokens: {error}")
        return None
    out.cosines.append(cosine(got, expected))
    out.lengths.append(len(ids))
    return got, expected


if __name__ == "__main__":
    result = sentences()
    print(result)
    for line in result.refused:
        print("refused", line)
    result = long_texts()
    print(result)
    for line in result.refused:
        print("refused", line)
