"""Whatever is written about a client's data is for its owner only, whatever the umask allows."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.mapped import save_expanded
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.serialization import save_secret_key
from aegis_dask.models.calibration import typical_calibration
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import load_graph
from aegis_dask.runtime.context import Context, write_context
from aegis_dask.service.client import Client
from aegis_dask.service.files import write_array
from tests.service.conftest import json_of

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX"),
    pytest.mark.filterwarnings("ignore::aegis_dask.errors.InsecureParametersWarning"),
]


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The umask takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Modes of everything in a folder, by relative path."""
    return {str(p.relative_to(folder)): stat.S_IMODE(p.lstat().st_mode) for p in folder.rglob("*")}


def assert_private(folder: Path) -> None:
    found = modes(folder)
    assert found
    for name, mode in found.items():
        assert mode == (0o700 if (folder / name).is_dir() else 0o600), f"{name}: {mode:o}"


def test_everything_of_client_and_server(
    checkpoint: Path, model: BertModel, keys: Path, tmp_path: Path
) -> None:
    client = Client.open(keys / "client", model, load_graph("feed_forward"))
    client.save(tmp_path / "client")
    client.save_bundle(tmp_path / "bundle")
    client.request(np.zeros((5, model.config.hidden)), tmp_path / "request")
    command = ("decrypt", "--model", checkpoint, "--client", keys / "client")
    json_of(*command, "--response", tmp_path / "request", "--output", tmp_path / "out.npy")
    assert {p.name for p in tmp_path.iterdir()} == {"client", "bundle", "request", "out.npy"}
    assert len(modes(tmp_path)) == 10
    assert_private(tmp_path)


def test_a_result_replaces_a_file_that_others_could_read(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    path.write_bytes(b"old")
    write_array(path, np.arange(3.0))
    assert_private(tmp_path)
    np.testing.assert_array_equal(np.load(path), np.arange(3.0))


def test_keys_and_ranges(model: BertModel, tmp_path: Path) -> None:
    params = Parameters.preset("insecure-n10-d40")
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    save_secret_key(secret, tmp_path / "secret", unencrypted=True)
    save_expanded(generator.evaluation_keys(secret), tmp_path / "expanded")
    typical_calibration(model.config).save(tmp_path / "ranges.json")
    assert_private(tmp_path)


def test_what_workers_map_is_in_a_folder_of_their_owner(tmp_path: Path) -> None:
    write_context(Context(store={"weight": np.zeros(3)}), tmp_path / "context")
    assert stat.S_IMODE((tmp_path / "context").stat().st_mode) == 0o700
