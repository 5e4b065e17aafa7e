from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ModelError, TextError
from aegis_dask.models.checkpoint import BertModel, load_bert
from aegis_dask.models.reference import encode
from aegis_dask.models.text import Tokenizer, cosine, embed, pool


def sentence_embedding(model: BertModel, text: str, length: int | None = None) -> np.ndarray:
    x, valid = embed(model, Tokenizer.for_model(model).encode(text), length)
    return pool(encode(model, x, valid), valid)


def test_a_text_becomes_its_words_between_special_tokens(folder: Path) -> None:
    ids = Tokenizer(folder).encode("The cat sat\non a dog.")
    assert ids.tolist() == [2, 4, 5, 6, 7, 8, 1, 10, 3]
    assert ids.dtype == np.int64


def test_truncation_and_padding_of_the_file_are_switched_off(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    assert settings["truncation"]["max_length"] == 5
    assert settings["padding"]["strategy"] == {"Fixed": 7}
    assert len(Tokenizer(folder).encode("cat")) == 3
    assert len(Tokenizer(folder).encode("the cat sat on a mat .")) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        (" \n\t ", "the text is empty"),
        ("\x00\x01", "no token is left"),
        ("\ud800", "not valid Unicode"),
        (None, r"expected a text \(str\), not NoneType"),
        (b"cat", r"expected a text \(str\), not bytes"),
        (["cat"], r"expected a text \(str\), not list"),
    ],
)
def test_what_is_no_text_is_refused(folder: Path, text: Any, message: str) -> None:
    with pytest.raises(TextError, match=message):
        Tokenizer(folder).encode(text)


def test_a_text_that_is_too_long_is_refused_with_both_numbers(folder: Path) -> None:
    tokenizer = Tokenizer(folder, 6)
    assert len(tokenizer.encode("the cat sat .")) == 6
    with pytest.raises(
        TextError, match=r"has 7 tokens \('the cat sat on a'\), the limit is 6.*sho"
    ):
        tokenizer.encode("the cat sat on a")
    with pytest.raises(TextError, match=r"\('(cat ){10}\.\.\.'\)"):
        tokenizer.encode("cat  " * 1000)


def test_the_limit_of_a_model_is_its_number_of_positions(folder: Path, tiny: BertModel) -> None:
    model = load_bert(folder)
    assert Tokenizer.for_model(model).max_tokens == 12
    assert Tokenizer.for_model(model, 5).max_tokens == 5
    for wrong in (0, 13):
        with pytest.raises(ModelError, match=f"{wrong} tokens asked for; .* 1 to 12"):
            Tokenizer.for_model(model, wrong)
    with pytest.raises(ModelError, match="random BERT, seed 1 has no tokenizer"):
        Tokenizer.for_model(tiny)


def test_a_missing_or_broken_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        Tokenizer(folder)
    (folder / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no file tokenizer\.json"):
        Tokenizer(folder)


def test_embeddings_are_the_normalised_sum_of_the_three_tables(tiny: BertModel) -> None:
    x, valid = embed(tiny, [2, 5, 3], 5)
    assert x.dtype == np.float64
    assert x.shape == (5, 8)
    assert valid.tolist() == [True, True, True, False, False]
    assert not x[3:].any()
    tables = tiny.embeddings
    total = tables.word[5].astype(float) + tables.position[1] + tables.token_type[0]
    expected = (total - total.mean()) / np.sqrt(total.var() + 1e-12)
    expected = expected * tables.norm.weight + tables.norm.bias
    np.testing.assert_allclose(x[1], expected, rtol=0, atol=1e-14)  # values below 4, float64


def test_without_a_length_there_is_no_padding(tiny: BertModel) -> None:
    x, valid = embed(tiny, np.array([2, 5, 3]))
    assert x.shape == (3, 8)
    assert valid.all()


@pytest.mark.parametrize(
    ("ids", "length", "message"),
    [
        ([], None, "expected a list of at least one integer"),
        ([[2, 3]], None, r"shape \(1, 2\)"),
        ([2.0, 3.0], None, "type float64"),
        ([2] * 13, None, "has 13 tokens, random BERT, seed 1 takes at most 12"),
        ([2, 11], None, "token ids from 2 to 11, .* knows 0 to 10"),
        ([-1, 3], None, "token ids from -1 to 3"),
        ([2, 5, 3], 2, "has 3 tokens, which do not fit a length of 2"),
    ],
)
def test_token_ids_are_checked(tiny: BertModel, ids: Any, length: int | None, message: str) -> None:
    with pytest.raises(TextError, match=message):
        embed(tiny, ids, length)


def test_pooling_is_the_mean_of_the_tokens_at_length_one() -> None:
    hidden = [[3.0, 1.0], [3.0, 7.0], [100.0, 100.0]]
    np.testing.assert_allclose(pool(hidden, np.array([True, True, False])), [0.6, 0.8], atol=1e-15)
    with pytest.raises(ValueError, match="at least one true"):
        pool(hidden, np.zeros(3, bool))
    with pytest.raises(ValueError, match=r"shape \(3, 2\) come with .* shape \(2,\)"):
        pool(hidden, np.ones(2, bool))


def test_cosine_does_not_depend_on_the_lengths() -> None:
    assert cosine([1, 0], [7, 0]) == 1
    assert cosine([1, 0], [0, 3]) == 0
    assert cosine([1, 1], [-2, -2]) == pytest.approx(-1, abs=1e-15)


def test_minilm_tokens_are_the_published_ones(minilm: BertModel) -> None:
    ids = Tokenizer.for_model(minilm).encode("This is an example sentence")
    assert ids.tolist() == [101, 2023, 2003, 2019, 2742, 6251, 102]


def test_minilm_embedding_is_the_published_one(minilm: BertModel) -> None:
    # First numbers that sentence-transformers prints, in float32: good to 2e-7.
    got = sentence_embedding(minilm, "This is an example sentence")
    expected = [0.06765693, 0.06349593, 0.04871314, 0.07930495, 0.03744806, 0.00265273]
    np.testing.assert_allclose(got[:6], expected, rtol=0, atol=2e-7)
    assert got.shape == (384,)
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-15)


def test_padding_does_not_change_an_embedding(minilm: BertModel) -> None:
    # Sums in another order: 2^-45 of values below 1.
    short = sentence_embedding(minilm, "The cat sat on the mat.")
    padded = sentence_embedding(minilm, "The cat sat on the mat.", 32)
    np.testing.assert_allclose(padded, short, rtol=0, atol=2**-45)


def test_a_text_beyond_512_tokens_is_refused(minilm: BertModel) -> None:
    tokenizer = Tokenizer.for_model(minilm)
    assert len(tokenizer.encode("cat " * 510)) == 512
    with pytest.raises(TextError, match=r"has 513 tokens .* the limit is 512"):
        tokenizer.encode("cat " * 511)
