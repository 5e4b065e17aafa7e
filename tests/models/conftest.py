from __future__ import annotations

from pathlib import Path

import pytest

from aegis_dask.errors import ModelError
from aegis_dask.models.checkpoint import BertModel, find_minilm, load_minilm, random_bert
from tests.models.folders import TINY, write_folder


@pytest.fixture(scope="session")
def tiny() -> BertModel:
    return random_bert(TINY, 1)


@pytest.fixture
def folder(tmp_path: Path, tiny: BertModel) -> Path:
    """A complete checkpoint folder of `tiny`, for this test alone."""
    return write_folder(tmp_path / "tiny-bert", tiny)


@pytest.fixture(scope="session")
def minilm() -> BertModel:
    try:
        find_minilm()
    except ModelError as error:
        pytest.skip(str(error))
    return load_minilm()
