"""Expanded bootstrapping keys in a directory that processes share."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks import mapped
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.mapped import (
    EVALUATION,
    open_expanded_bootstrapping,
    save_expanded_bootstrapping,
)
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.mapped import ALIGNMENT, DATA, INDEX, open_expanded, save_expanded
from aegis_dask.errors import IncompatibleError, IntegrityError, SerializationError
from tests.arrays import host, same
from tests.ckks.bootstrapping.written import NAMES, assert_same, each, few_keys, refreshing

POSIX = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
FILES = [EVALUATION, f"{EVALUATION}/{INDEX}", f"{EVALUATION}/{DATA}", INDEX, DATA]


@pytest.fixture
def keys() -> BootstrappingKeys:
    return few_keys()


@pytest.fixture
def saved(keys: BootstrappingKeys, tmp_path: Path) -> Path:
    save_expanded_bootstrapping(keys, tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize("name", NAMES)
def test_opened_keys_refresh_as_those_written(name: str, tmp_path: Path) -> None:
    made = refreshing(name)
    save_expanded_bootstrapping(made.keys, tmp_path / "keys")
    opened = open_expanded_bootstrapping(tmp_path / "keys", made.params, verify=True)
    assert opened.params is made.params
    assert_same(opened, made.keys)
    assert same(made.refresh(opened).data, made.refreshed.data)


def test_opened_keys_are_maps_of_the_files(keys: BootstrappingKeys, saved: Path) -> None:
    assert not any("a" in vars(key) for key in each(keys))  # not kept in memory
    opened = open_expanded_bootstrapping(saved, keys.params)
    assert opened.nbytes == keys.nbytes
    for key in each(opened):
        assert "a" in vars(key)  # nothing is made on first use
        for half in map(host, (key.b, key.a)):
            assert isinstance(half, np.memmap)
            assert not half.flags.writeable
            assert half.flags.c_contiguous
            assert half.ctypes.data % ALIGNMENT == 0
    assert_same(opened, keys)
    size = sum((saved / name).stat().st_size for name in (DATA, f"{EVALUATION}/{DATA}"))
    assert keys.nbytes <= size < keys.nbytes + 2 * ALIGNMENT * len(list(each(keys)))
    assert sorted(str(p.relative_to(saved)) for p in saved.rglob("*")) == sorted(FILES)


def test_halves_that_are_there_are_not_made_again(
    keys: BootstrappingKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [key.a for key in each(keys)]
    with monkeypatch.context() as patch:
        for key in (keys.to_sparse, keys.raised[0]):
            patch.setattr(type(key.ring), "uniform", None)
        save_expanded_bootstrapping(keys, tmp_path / "keys")
    opened = open_expanded_bootstrapping(tmp_path / "keys", keys.params)
    for key, half in zip(each(opened), expected, strict=True):
        assert same(key.a, half)


def test_opened_keys_can_be_written_again(
    keys: BootstrappingKeys, saved: Path, tmp_path: Path
) -> None:
    opened = open_expanded_bootstrapping(saved, keys.params)
    save_expanded_bootstrapping(opened, tmp_path / "second")
    for name in FILES[1:]:
        assert (saved / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_keys_outlive_their_directory(keys: BootstrappingKeys, saved: Path, tmp_path: Path) -> None:
    opened = open_expanded_bootstrapping(saved, keys.params)
    os.rename(saved, tmp_path / "moved")
    assert_same(opened, keys)


@POSIX
def test_only_the_owner_can_read_the_files(keys: BootstrappingKeys, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save_expanded_bootstrapping(keys, tmp_path / "keys")
    finally:
        os.umask(before)
    for path in (tmp_path / "keys", *(tmp_path / "keys" / name for name in FILES)):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


# -- what is refused ----------------------------------------------------------------------------


def test_an_existing_directory_is_not_touched(
    keys: BootstrappingKeys, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("keys", "empty", "file"):
        with pytest.raises(SerializationError, match="open it with open_expanded_bootstrapping"):
            save_expanded_bootstrapping(keys, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "keys"]
    open_expanded_bootstrapping(saved, keys.params, verify=True)


def test_a_slower_process_leaves_the_result_of_the_faster(
    keys: BootstrappingKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, target = os.rename, tmp_path / "keys"

    def late(source: Any, to: Any) -> None:
        if Path(to) == target:
            monkeypatch.setattr(os, "rename", rename)
            save_expanded_bootstrapping(keys, target)
        rename(source, to)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(SerializationError, match="exists"):
        save_expanded_bootstrapping(keys, target)
    assert os.listdir(tmp_path) == ["keys"]
    open_expanded_bootstrapping(target, keys.params, verify=True)


@pytest.mark.parametrize("succeeding", range(4))
def test_a_failed_write_leaves_nothing(
    keys: BootstrappingKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeding: int
) -> None:
    finish, left = mapped._finish, [None] * succeeding

    def full(file: Any) -> None:
        if not left:
            raise OSError(28, "No space left on device")
        left.pop()
        finish(file)

    monkeypatch.setattr(mapped, "_finish", full)
    with pytest.raises(OSError, match="No space"):
        save_expanded_bootstrapping(keys, tmp_path / "keys")
    assert os.listdir(tmp_path) == []


def test_keys_that_contradict_their_parameters_are_not_written(
    keys: BootstrappingKeys, tmp_path: Path
) -> None:
    raised = keys.raised[0]
    for wrong in (
        replace(keys, to_sparse=raised),
        replace(keys, raised={512: raised}),
        replace(keys, raised={0: replace(raised, b=raised.b[:, :-1])}),
        replace(keys, raised={0: replace(raised, seed=b"short")}),
    ):
        with pytest.raises(SerializationError):
            save_expanded_bootstrapping(wrong, tmp_path / "keys")
    other = BootstrappingParameters.preset(NAMES[1])
    with pytest.raises(IncompatibleError):
        save_expanded_bootstrapping(replace(keys, params=other), tmp_path / "keys")
    assert os.listdir(tmp_path) == []


def test_keys_of_other_parameters_are_refused(keys: BootstrappingKeys, saved: Path) -> None:
    with pytest.raises(IncompatibleError, match=f"{NAMES[0]}.*{NAMES[1]}"):
        open_expanded_bootstrapping(saved, BootstrappingParameters.preset(NAMES[1]))
    for field, value in (("sparse_weight", 17), ("sparse_special_primes", 2)):
        literal = replace(keys.params.literal, **{field: value})
        with pytest.raises(IncompatibleError, match="ephemeral secret with"):
            open_expanded_bootstrapping(saved, BootstrappingParameters(literal))


def test_a_directory_of_another_kind_is_refused(
    keys: BootstrappingKeys, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(SerializationError, match="no index of expanded keys"):
        open_expanded(saved, keys.params.params)
    save_expanded(keys.evaluation, tmp_path / "other")
    with pytest.raises(SerializationError, match="no index of expanded bootstrapping keys"):
        open_expanded_bootstrapping(tmp_path / "other", keys.params)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_an_os_error(keys: BootstrappingKeys, saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError):
        open_expanded_bootstrapping(saved, keys.params)


@pytest.mark.parametrize("change", [-4, -4096, 4, 4096])
@pytest.mark.parametrize("name", [DATA, f"{EVALUATION}/{DATA}"])
def test_a_file_of_another_size_is_refused(
    keys: BootstrappingKeys, saved: Path, name: str, change: int
) -> None:
    size = (saved / name).stat().st_size
    os.truncate(saved / name, size + change)
    with pytest.raises(IntegrityError, match=f"has {size + change} bytes, its index describes"):
        open_expanded_bootstrapping(saved, keys.params)


@pytest.mark.parametrize("name", [DATA, f"{EVALUATION}/{DATA}"])
@pytest.mark.parametrize("place", [5, -5])
def test_damage_is_found_on_request(
    keys: BootstrappingKeys, saved: Path, name: str, place: int
) -> None:
    content = bytearray((saved / name).read_bytes())
    content[place] ^= 1
    (saved / name).write_bytes(content)
    open_expanded_bootstrapping(saved, keys.params)
    with pytest.raises(IntegrityError, match=f"half {'b' if place > 0 else 'a'} of .* is damaged"):
        open_expanded_bootstrapping(saved, keys.params, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(format="other"), "no index of expanded bootstrapping keys"),
        (lambda i: i.update(version=2), "version 2, this library reads version 1"),
        (lambda i: i.update(more=1), "unknown .'more'"),
        (lambda i: i.pop("ephemeral_secret"), "missing .'ephemeral_secret'"),
        (lambda i: i.update(keys={}), "not a list"),
        (lambda i: i.update(keys=[]), "no key to the ephemeral secret"),
        (lambda i: i["keys"].pop(0), "no key to the ephemeral secret"),
        (lambda i: i["keys"].append(3), "not an object"),
        (lambda i: i["keys"][0].pop("seed"), "missing .'seed'"),
        (lambda i: i["keys"][0].update(seed="00"), "64 hexadecimal digits"),
        (lambda i: i["keys"][0].update(sha256=["00", "11"]), "two are needed"),
        (lambda i: i["keys"][1].update(rotation=512), "'512' is not a rotation"),
        (lambda i: i["keys"][1].update(rotation=-1), "'-1' is not a rotation"),
        (lambda i: i["keys"][1].update(rotation=True), "'True' is not a rotation"),
        (lambda i: i["keys"][1].update(rotation=10**30), "is not a rotation"),
        (lambda i: i["keys"][1].update(rotation=None), "twice or not in order"),
        (lambda i: i["keys"].append(i["keys"][0]), "twice or not in order"),
        (lambda i: i["keys"].append(i["keys"][1]), "twice or not in order"),
        (lambda i: i["keys"].reverse(), "twice or not in order"),
    ],
)
def test_a_wrong_index_is_refused(
    keys: BootstrappingKeys, saved: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    index = json.loads((saved / INDEX).read_text())
    change(index)
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(SerializationError, match=message):
        open_expanded_bootstrapping(saved, keys.params)


def test_an_index_with_a_key_too_many_is_refused(keys: BootstrappingKeys, saved: Path) -> None:
    index = json.loads((saved / INDEX).read_text())
    index["keys"].append({**index["keys"][-1], "rotation": 511})
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="its index describes"):
        open_expanded_bootstrapping(saved, keys.params)
