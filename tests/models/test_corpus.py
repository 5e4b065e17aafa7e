from __future__ import annotations

import itertools
from collections import Counter

import numpy as np

from aegis_dask.models.checkpoint import BertModel, find_minilm
from aegis_dask.models.corpus import LABELS, passages, sentence_pairs, sentences
from aegis_dask.models.reference import encode
from aegis_dask.models.text import Tokenizer, cosine, embed, pool


def test_there_are_enough_pairs_of_every_kind() -> None:
    counts = Counter(pair.label for pair in sentence_pairs())
    assert set(counts) == set(LABELS)
    assert counts.total() >= 240
    assert min(counts.values()) >= 60


def test_no_pair_and_no_text_comes_twice() -> None:
    pairs = sentence_pairs()
    assert len({frozenset((pair.a, pair.b)) for pair in pairs}) == len(pairs)
    assert all(pair.a != pair.b for pair in pairs)
    assert len(set(passages())) == len(passages())
    second = Counter(pair.b for pair in pairs)
    assert max(second.values()) == 1
    assert not second.keys() & {pair.a for pair in pairs}


def test_texts_have_no_stray_white_space() -> None:
    for text in itertools.chain(sentences(), passages()):
        assert text == " ".join(text.split())
        assert text


def test_lengths_range_from_one_word_to_sixty() -> None:
    words = sorted(len(text.split()) for text in sentences())
    assert sum(count <= 3 for count in words) >= 20
    assert sum(30 <= count <= 60 for count in words) >= 20
    assert words[-1] <= 60


def test_sentences_are_those_of_the_pairs_once_each() -> None:
    texts = sentences()
    assert len(texts) == len(set(texts))
    assert set(texts) == {text for pair in sentence_pairs() for text in (pair.a, pair.b)}


def test_passages_fill_512_tokens(minilm: BertModel) -> None:
    tokenizer = Tokenizer(find_minilm(), 10_000)
    lengths = sorted(len(tokenizer.encode(text)) for text in passages())
    assert lengths[0] >= 150
    assert lengths[-1] <= 600
    assert sum(length > 512 for length in lengths) >= 2


def test_minilm_ranks_paraphrases_above_related_above_unrelated(minilm: BertModel) -> None:
    tokenizer = Tokenizer.for_model(minilm)

    def vector(text: str) -> np.ndarray:
        x, valid = embed(minilm, tokenizer.encode(text))
        return pool(encode(minilm, x, valid), valid)

    pairs = sentence_pairs()[:60]
    vectors = {text: vector(text) for text in {t for pair in pairs for t in (pair.a, pair.b)}}
    scores = {
        label: [cosine(vectors[p.a], vectors[p.b]) for p in pairs if p.label == label]
        for label in LABELS
    }
    means = [float(np.mean(scores[label])) for label in LABELS]
    assert means == sorted(means, reverse=True)
    assert min(scores["paraphrase"]) > max(scores["unrelated"])
