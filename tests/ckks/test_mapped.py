"""Expanded keys in a directory that processes share."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis_dask.ckks import mapped
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys
from aegis_dask.ckks.mapped import ALIGNMENT, DATA, INDEX, open_expanded, save_expanded
from aegis_dask.errors import IncompatibleError, IntegrityError, SerializationError
from tests.arrays import host, same
from tests.schemes import Scheme

TINY = "insecure-n10-d40"
Schemes = Callable[[str], Scheme]
POSIX = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")


@pytest.fixture
def scheme(schemes: Schemes) -> Scheme:
    return schemes(TINY)


@pytest.fixture
def keys(scheme: Scheme) -> EvaluationKeys:
    """Keys of several levels, none of them expanded."""
    assert scheme.keys.relinearisation is not None
    levels = dict(zip(scheme.keys.galois, (6, 2, 3, 0, 6, 1), strict=True))
    fresh = {g: replace(k.truncated(levels[g])) for g, k in scheme.keys.galois.items()}
    return EvaluationKeys(scheme.params, replace(scheme.keys.relinearisation), fresh)


def everything(keys: EvaluationKeys) -> list[EvaluationKey]:
    assert keys.relinearisation is not None
    return [keys.relinearisation, *keys.galois.values()]


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index)
    (directory / INDEX).write_text(json.dumps(index))


def test_opened_keys_are_maps_of_the_file(keys: EvaluationKeys, tmp_path: Path) -> None:
    save_expanded(keys, tmp_path / "keys")
    assert not any("a" in vars(key) for key in everything(keys))  # not kept in memory
    opened = open_expanded(tmp_path / "keys", keys.params, verify=True)
    assert opened.galois.keys() == keys.galois.keys()
    assert opened.nbytes == keys.nbytes
    addresses = []
    for got, want in zip(everything(opened), everything(keys), strict=True):
        assert (got.level, got.seed) == (want.level, want.seed)
        for half, expected in ((host(got.b), want.b), (host(got.a), want.expand())):
            assert isinstance(half, np.memmap)
            assert not half.flags.writeable
            assert half.flags.c_contiguous
            assert half.ctypes.data % ALIGNMENT == 0
            assert same(half, expected)
            addresses.append(half.ctypes.data)
    size = (tmp_path / "keys" / DATA).stat().st_size
    assert max(addresses) - min(addresses) < size < keys.nbytes + len(addresses) * ALIGNMENT
    assert os.listdir(tmp_path) == ["keys"]


def test_results_are_those_of_the_keys_written(
    scheme: Scheme, keys: EvaluationKeys, tmp_path: Path, rng: np.random.Generator
) -> None:
    save_expanded(scheme.keys, tmp_path / "keys")
    ev = Evaluator(scheme.params, open_expanded(tmp_path / "keys", scheme.params))
    for level in (1, 4, 6):
        x = scheme.encryptor.encrypt(scheme.slots(rng, 2), level)
        for operation in (
            lambda e, x: e.rotate(x, 3),
            lambda e, x: e.rotate_many(x, [1, 8])[8],
            lambda e, x: e.conjugate(x),
            lambda e, x: e.square(x),
        ):
            got, expected = operation(ev, x), operation(scheme.evaluator, x)
            assert same(got.data, expected.data)
    low = open_expanded(tmp_path / "keys", scheme.params).galois[5].truncated(1)
    assert same(low.b, scheme.keys.galois[5].truncated(1).b)
    assert same(low.a, scheme.keys.galois[5].truncated(1).a)


def test_opened_keys_can_be_written_again(keys: EvaluationKeys, tmp_path: Path) -> None:
    save_expanded(keys, tmp_path / "first")
    save_expanded(open_expanded(tmp_path / "first", keys.params), tmp_path / "second")
    for name in (INDEX, DATA):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_an_empty_set_comes_back(scheme: Scheme, tmp_path: Path) -> None:
    save_expanded(EvaluationKeys(scheme.params), tmp_path / "keys")
    opened = open_expanded(tmp_path / "keys", scheme.params, verify=True)
    assert (opened.relinearisation, opened.galois) == (None, {})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_processes_share_the_pages(keys: EvaluationKeys, tmp_path: Path) -> None:
    save_expanded(keys, tmp_path / "keys")
    # Two processes touch every page; the second finds them shared, none private.
    code = f"""
import sys
import numpy as np
from aegis_dask.ckks.mapped import open_expanded
from aegis_dask.ckks.parameters import Parameters
from tests.arrays import host, same
keys = open_expanded(sys.argv[1], Parameters.preset({TINY!r}))
total = sum(int(host(h).sum()) for k in keys.galois.values() for h in (k.a, k.b))
print(total, flush=True)
sys.stdin.read()
"""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "keys")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    first, second = start(), start()
    try:
        sums = []
        for process in (first, second):
            assert process.stdout is not None
            sums.append(process.stdout.readline())
        assert sums[0] == sums[1] != ""
        # The fields of the mapping in smaps: its pages are clean and shared.
        text = Path(f"/proc/{second.pid}/smaps").read_text()
        block = text[text.index(DATA) :].split("VmFlags")[0]
        fields = {
            name: int(rest.split()[0])
            for name, _, rest in (line.partition(":") for line in block.splitlines()[1:])
            if rest.strip().endswith("kB")
        }
        assert fields["Shared_Clean"] + fields["Shared_Dirty"] > 0
        assert fields["Private_Dirty"] == 0
        assert fields["Anonymous"] == 0
    finally:
        for process in (first, second):
            process.communicate(timeout=60)


@POSIX
def test_only_the_owner_can_read_the_files(keys: EvaluationKeys, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save_expanded(keys, tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for name in (INDEX, DATA):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600


# -- what is refused ----------------------------------------------------------------------------


def test_an_existing_directory_is_not_touched(keys: EvaluationKeys, tmp_path: Path) -> None:
    save_expanded(keys, tmp_path / "keys")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("keys", "empty", "file"):
        with pytest.raises(SerializationError, match=f"{name} exists; open it with open_expanded"):
            save_expanded(keys, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "keys"]
    open_expanded(tmp_path / "keys", keys.params, verify=True)


def test_a_slower_process_leaves_the_result_of_the_faster(
    keys: EvaluationKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def late(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        save_expanded(keys, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(SerializationError, match="exists"):
        save_expanded(keys, tmp_path / "keys")
    assert os.listdir(tmp_path) == ["keys"]
    open_expanded(tmp_path / "keys", keys.params, verify=True)


def test_a_failed_write_leaves_nothing(
    keys: EvaluationKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped, "_finish", full)
    with pytest.raises(OSError, match="No space"):
        save_expanded(keys, tmp_path / "keys")
    assert os.listdir(tmp_path) == []


def test_keys_of_other_parameters_are_refused(
    scheme: Scheme, keys: EvaluationKeys, schemes: Schemes, tmp_path: Path
) -> None:
    save_expanded(keys, tmp_path / "keys")
    other = schemes("insecure-n10-d54")
    with pytest.raises(IncompatibleError, match=r"insecure-n10-d40.*insecure-n10-d54"):
        open_expanded(tmp_path / "keys", other.params)
    mixed = EvaluationKeys(scheme.params, other.keys.relinearisation)
    with pytest.raises(IncompatibleError):
        save_expanded(mixed, tmp_path / "mixed")
    assert os.listdir(tmp_path) == ["keys"]


def test_a_missing_directory_is_an_os_error(scheme: Scheme, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_expanded(tmp_path / "none", scheme.params)


@pytest.mark.parametrize("change", [-4, -4096, 4, 4096])
def test_a_file_of_another_size_is_refused(
    keys: EvaluationKeys, tmp_path: Path, change: int
) -> None:
    save_expanded(keys, tmp_path / "keys")
    data = tmp_path / "keys" / DATA
    size = data.stat().st_size
    with open(data, "r+b") as file:
        file.truncate(size + change)
    with pytest.raises(IntegrityError, match=f"has {size + change} bytes, its index describes"):
        open_expanded(tmp_path / "keys", keys.params)


def test_damage_is_found_on_request(keys: EvaluationKeys, tmp_path: Path) -> None:
    save_expanded(keys, tmp_path / "keys")
    data = tmp_path / "keys" / DATA
    content = bytearray(data.read_bytes())
    content[-5] ^= 1
    data.write_bytes(content)
    open_expanded(tmp_path / "keys", keys.params)
    last = max(keys.galois)
    with pytest.raises(IntegrityError, match=f"half a of the Galois key {last} .* is damaged"):
        open_expanded(tmp_path / "keys", keys.params, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.update(format="other"), "no index of expanded keys"),
        (lambda i: i.update(version=2), "version 2, this library reads version 1"),
        (lambda i: i.update(more=1), "unknown .'more'"),
        (lambda i: i.pop("parameters"), "missing .'parameters'"),
        (lambda i: i.update(keys={}), "not a list"),
        (lambda i: i["keys"].append(3), "not an object"),
        (lambda i: i["keys"][0].pop("seed"), "missing .'seed'"),
        (lambda i: i["keys"][0].update(level=7), "level of a key is 7"),
        (lambda i: i["keys"][0].update(level=True), "level of a key is True"),
        (lambda i: i["keys"][0].update(seed="00"), "64 hexadecimal digits"),
        (lambda i: i["keys"][0].update(sha256=["00", "11"]), "two are needed"),
        (lambda i: i["keys"][1].update(element=7), "not the Galois element"),
        (lambda i: i["keys"][1].update(element="5.0"), "not the Galois element"),
        (lambda i: i["keys"].append(i["keys"][1]), "twice or not in order"),
        (lambda i: i["keys"].insert(0, i["keys"][0]), "twice or not in order"),
    ],
)
def test_a_wrong_index_is_refused(
    keys: EvaluationKeys, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    save_expanded(keys, tmp_path / "keys")
    edit(tmp_path / "keys", change)
    with pytest.raises(SerializationError, match=message):
        open_expanded(tmp_path / "keys", keys.params)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_an_index_that_is_none_is_refused(
    keys: EvaluationKeys, tmp_path: Path, text: bytes
) -> None:
    save_expanded(keys, tmp_path / "keys")
    (tmp_path / "keys" / INDEX).write_bytes(text)
    with pytest.raises(SerializationError, match=r"not JSON|not a JSON object|nested|no index"):
        open_expanded(tmp_path / "keys", keys.params)
