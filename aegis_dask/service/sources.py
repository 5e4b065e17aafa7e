"""Where a job comes from: a model's folder, a text, and ranges that were calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis_dask.errors import ModelError, RangeError, TextError
from aegis_dask.models import corpus
from aegis_dask.models.calibration import Calibration, calibrate, typical_calibration
from aegis_dask.models.checkpoint import BertModel, find_minilm, load_bert, load_minilm
from aegis_dask.models.text import Tokenizer

Ids = NDArray[np.int64]
CALIBRATION_FILE = "calibration.json"
"""Name of the file with calibrated ranges beside the weights of a model."""


def open_model(path: Path | None, sha256: str | None = None) -> BertModel:
    """Load a checkpoint folder, or all-MiniLM-L6-v2 from its package if none is given.

    Parameters
    ----------
    path
        Folder, or None.
    sha256
        Checksum that the weights must have; that of MiniLM is known.

    Raises
    ------
    ModelError
        If it is missing or damaged, or the checksum is another.
    """
    if path is not None:
        return load_bert(path, sha256)
    if sha256 is not None:
        return load_bert(find_minilm(), sha256)
    return load_minilm()


def first_layers(model: BertModel, count: int | None) -> BertModel:
    """Return a model cut to its first layers; None for all of them."""
    if count is not None and count > len(model.layers):
        raise ModelError(
            f"{count} layers are needed, {model.name} has {len(model.layers)}; use another graph "
            "or another model"
        )
    return model if count is None else model.first_layers(count)


def cut(ids: Ids, length: int) -> Ids:
    """Return a text cut to `length` tokens, its last special token kept."""
    return ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1:])


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file, one per line; empty lines are skipped.

    Raises
    ------
    TextError
        If it cannot be read or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise TextError(f"{path} cannot be read: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise TextError(f"{path} is not UTF-8 ({e}); convert it") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise TextError(f"{path} holds no text; give one text per line")
    return texts


def sample_ids(model: BertModel, length: int, texts: Sequence[str] | None = None) -> list[Ids]:
    """Return token ids to calibrate a model with, cut to `length` tokens.

    Parameters
    ----------
    model
        With a tokenizer in its folder.
    length
        Longest text. Longer ones than the calibration's are likely to leave its ranges.
    texts
        By default the sentences and passages that come with the library.
    """
    if texts is None:
        texts = [*corpus.sentences(), *corpus.passages()]
    limit = Tokenizer.for_model(model, length).max_tokens
    assert model.path is not None
    unlimited = Tokenizer(model.path, 1 << 30)
    return [cut(unlimited.encode(text), limit) for text in texts]


def saved_calibration(model: BertModel, path: Path | None = None) -> Calibration | None:
    """Return the calibration in a file, by default the one beside the weights if there is one.

    Raises
    ------
    RangeError
        If the file is damaged or belongs to another model.
    """
    if path is None:
        if model.path is None or not (model.path / CALIBRATION_FILE).is_file():
            return None
        path = model.path / CALIBRATION_FILE
    calibration = Calibration.load(path)
    try:
        calibration.check_model(model)
    except RangeError as e:
        raise RangeError(f"{path}: {e}") from None
    return calibration


def measure_calibration(model: BertModel, length: int) -> Calibration:
    """Calibrate a model on the texts that come with the library, cut to `length` tokens."""
    return calibrate(model, sample_ids(model, min(length, model.config.max_positions)))


def assumed_calibration(model: BertModel) -> Calibration:
    """Return typical ranges for a model that was not calibrated: to count, not to compute."""
    return replace(typical_calibration(model.config), sha256=model.sha256)
