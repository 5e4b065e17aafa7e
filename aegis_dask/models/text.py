"""From a text to the rows that a model takes, and from its result to a sentence embedding."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import ArrayLike, NDArray

from aegis_dask.errors import ModelError, TextError
from aegis_dask.models.checkpoint import TOKENIZER_FILE, BertModel
from aegis_dask.models.reference import Float, layer_norm


class Tokenizer:
    """Splits texts into the token numbers of a checkpoint.

    Whatever ``tokenizer.json`` says about truncation and padding is switched off: a text that is
    too long is an error, and padding is the business of `embed`.

    Parameters
    ----------
    folder
        Checkpoint folder, which holds ``tokenizer.json``.
    max_tokens
        Longest text that is accepted, special tokens included.

    Raises
    ------
    ModelError
        If the file is missing or damaged.
    """

    def __init__(self, folder: str | Path, max_tokens: int = 512) -> None:
        path = Path(folder, TOKENIZER_FILE)
        if not path.is_file():
            raise ModelError(f"{folder} has no file {TOKENIZER_FILE}; give a checkpoint folder")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises Exception itself
            raise ModelError(f"{path} is not a tokenizer ({error}); download it again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens

    @classmethod
    def for_model(cls, model: BertModel, max_tokens: int | None = None) -> Tokenizer:
        """Return the tokenizer of a loaded model, by default up to all of its positions.

        Raises
        ------
        ModelError
            If the model was generated, so has no tokenizer, or `max_tokens` exceeds its positions.
        """
        if model.path is None:
            raise ModelError(f"{model.name} has no tokenizer; load a checkpoint, or give token ids")
        limit = model.config.max_positions
        if max_tokens is not None and not 0 < max_tokens <= limit:
            raise ModelError(
                f"{max_tokens} tokens asked for; {model.name} has positions for 1 to {limit}"
            )
        return cls(model.path, max_tokens or limit)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the token numbers of a text, with the special tokens around them.

        Raises
        ------
        TextError
            If it is no string, holds nothing but white space, or is too long.
        """
        if not isinstance(text, str):
            raise TextError(f"expected a text (str), not {type(text).__name__}")
        if not text.strip():
            raise TextError("the text is empty; give at least one word")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(f"the text is not valid Unicode ({error}); decode it again") from error
        encoding = self._tokenizer.encode(text)
        if all(encoding.special_tokens_mask):
            raise TextError(
                f"no token is left of {_shortened(text)}; give at least one printable character"
            )
        if len(encoding.ids) > self.max_tokens:
            raise TextError(
                f"the text has {len(encoding.ids)} tokens ({_shortened(text)}), the limit is "
                f"{self.max_tokens}, special tokens included; shorten or split it"
            )
        return np.array(encoding.ids, np.int64)


def embed(
    model: BertModel, ids: Sequence[int] | NDArray[np.integer], length: int | None = None
) -> tuple[Float, NDArray[np.bool_]]:
    """Look up the embeddings of a text: what goes into the first layer.

    Parameters
    ----------
    model
        The model.
    ids
        Token numbers, at most as many as the model has positions.
    length
        Number of rows of the result, at least one per token; by default exactly that.

    Returns
    -------
    x, valid
        Float64 [length, hidden], 0 in the rows beyond the text, and bool [length], true for tokens.

    Raises
    ------
    TextError
        If there are no tokens or too many, or one is not in the vocabulary.
    """
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise TextError(
            f"token ids of shape {tokens.shape} and type {tokens.dtype}; "
            "expected a list of at least one integer"
        )
    config, tables = model.config, model.embeddings
    count = len(tokens)
    if count > config.max_positions:
        raise TextError(
            f"the text has {count} tokens, {model.name} takes at most {config.max_positions}; "
            "shorten or split it"
        )
    if tokens.min() < 0 or tokens.max() >= config.vocabulary:
        raise TextError(
            f"token ids from {tokens.min()} to {tokens.max()}, {model.name} knows 0 to "
            f"{config.vocabulary - 1}; the tokenizer belongs to another model"
        )
    if length is None:
        length = count
    if length < count:
        raise TextError(
            f"the text has {count} tokens, which do not fit a length of {length}; "
            "give a larger length, or shorten the text"
        )
    total = tables.word[tokens].astype(np.float64) + tables.position[:count] + tables.token_type[0]
    x = np.zeros((length, config.hidden))
    x[:count] = layer_norm(total, tables.norm)
    return x, np.arange(length) < count


def pool(hidden: ArrayLike, valid: NDArray[np.bool_]) -> Float:
    """Return the sentence embedding: the mean over tokens, of length 1 (as all-MiniLM defines it).

    Parameters
    ----------
    hidden
        Last hidden states, [length, hidden].
    valid
        Which rows are tokens, [length].
    """
    rows = np.asarray(hidden, np.float64)
    if rows.ndim != 2 or valid.shape != rows.shape[:1] or not valid.any():
        raise ValueError(
            f"hidden states of shape {rows.shape} come with a validity mask of shape "
            f"{valid.shape}; expected [length, hidden] and [length], at least one true"
        )
    mean = rows[valid].mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Return the cosine of the angle between two vectors: 1 for the same direction."""
    u, v = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))


def _shortened(text: str, characters: int = 40) -> str:
    # Repeated white space and control characters would make the message unreadable.
    printable = "".join(c for c in text if not unicodedata.category(c).startswith("C"))
    start = " ".join(printable[: 4 * characters].split())
    return repr(start if len(start) <= characters else start[:characters] + "...")
