"""Written bootstrapping keys: complete, checked when read, and half their size."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.serialization import dumps, load, load_evaluation_key, loads, save
from aegis_dask.errors import (
    AegisError,
    IncompatibleError,
    InsecureParametersError,
    IntegrityError,
    SerializationError,
)
from tests.arrays import host, same
from tests.ckks.bootstrapping.written import (
    NAMES,
    assert_same,
    assert_valid,
    few_keys,
    refreshing,
)
from tests.ckks.test_serialization import FUZZ, edited, reseal, seal, secret_finder, split

DELETE = object()


@pytest.fixture(scope="module")
def keys() -> BootstrappingKeys:
    return few_keys()


@pytest.fixture(scope="module")
def written(keys: BootstrappingKeys) -> bytes:
    return dumps(keys)


def changed(header: dict[str, Any], path: list[str], value: object) -> None:
    *way, last = path
    place = header
    for step in way:
        place = place[step]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value


# -- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "use_mmap"), list(zip(NAMES, (False, True), strict=True)))
def test_keys_of_a_file_refresh_as_those_written(name: str, use_mmap: bool, tmp_path: Path) -> None:
    made = refreshing(name)
    save(made.keys, tmp_path / "keys")
    again = load(tmp_path / "keys", made.params, expect=BootstrappingKeys, mmap=use_mmap)
    assert again.params is made.params
    assert_same(again, made.keys)
    assert same(made.refresh(again).data, made.refreshed.data)


@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_file_holds_what_dumps_returns(
    keys: BootstrappingKeys, written: bytes, tmp_path: Path, use_mmap: bool
) -> None:
    save(keys, tmp_path / "keys")
    assert (tmp_path / "keys").read_bytes() == written
    assert_same(load(tmp_path / "keys", keys.params, expect=BootstrappingKeys, mmap=use_mmap), keys)


def test_equal_keys_give_equal_bytes(keys: BootstrappingKeys, written: bytes) -> None:
    backwards = replace(keys, raised=dict(reversed(keys.raised.items())))
    assert dumps(backwards) == written
    assert dumps(loads(written, keys.params, expect=BootstrappingKeys)) == written


def test_a_set_without_optional_keys_comes_back(keys: BootstrappingKeys) -> None:
    bare = BootstrappingKeys(keys.params, EvaluationKeys(keys.params.params), keys.to_sparse, {})
    assert_same(loads(dumps(bare), keys.params, expect=BootstrappingKeys), bare)


def test_only_one_half_and_the_seed_are_written(keys: BootstrappingKeys, written: bytes) -> None:
    header, payload = split(written)
    assert 2 * len(payload) == keys.nbytes
    assert header["to_sparse"] == keys.to_sparse.seed.hex()
    assert header["raised"] == {str(r): k.seed.hex() for r, k in keys.raised.items()}


def test_the_secret_is_not_in_the_bytes(written: bytes) -> None:
    assert not secret_finder(refreshing(NAMES[0]).secret_key)(written)


# -- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: BootstrappingParameters.preset(NAMES[1]), f"{NAMES[0]}.*{NAMES[1]}"),
        (lambda p: changed_params(p, sparse_weight=17), "'weight': 16.*'weight': 17"),
        (lambda p: changed_params(p, sparse_special_primes=2), "special_primes"),
        (lambda p: changed_params(p, digits=5), "fingerprint"),
    ],
)
def test_keys_of_other_parameters_are_refused(
    keys: BootstrappingKeys,
    written: bytes,
    change: Callable[[BootstrappingParameters], BootstrappingParameters],
    message: str,
) -> None:
    with pytest.raises(IncompatibleError, match=message):
        loads(written, change(keys.params))


def changed_params(params: BootstrappingParameters, **fields: Any) -> BootstrappingParameters:
    return BootstrappingParameters.from_literal(replace(params.literal, **fields))


def test_keys_serve_parameters_that_differ_in_what_keys_do_not_depend_on(
    keys: BootstrappingKeys, written: bytes
) -> None:
    other = changed_params(keys.params, max_magnitude=1.0, sine_bound=15, name="")
    assert loads(written, other, expect=BootstrappingKeys).params is other


def test_the_parameters_of_bootstrapping_must_be_given(
    keys: BootstrappingKeys, written: bytes
) -> None:
    for params in (None, keys.params.params):
        with pytest.raises(SerializationError, match="with the BootstrappingParameters"):
            loads(written, params, allow_insecure=True)
    with pytest.raises(InsecureParametersError):
        loads(written)


def test_parameters_of_bootstrapping_stand_for_those_of_their_scheme(
    keys: BootstrappingKeys, tmp_path: Path
) -> None:
    made = refreshing(NAMES[0])
    again = loads(dumps(made.ciphertext), keys.params, expect=Ciphertext)
    assert again.params is keys.params.params
    assert same(again.data, made.ciphertext.data)
    save(keys.evaluation, tmp_path / "keys")
    assert load(tmp_path / "keys", keys.params, expect=EvaluationKeys).params is again.params
    assert load_evaluation_key(tmp_path / "keys", None, keys.params).level == 0
    with pytest.raises(IncompatibleError):
        loads(dumps(made.ciphertext), BootstrappingParameters.preset(NAMES[1]))


# -- wrong data ---------------------------------------------------------------------------------


def test_another_kind_is_refused(keys: BootstrappingKeys, written: bytes, tmp_path: Path) -> None:
    with pytest.raises(SerializationError, match="'EvaluationKeys', BootstrappingKeys was expec"):
        loads(dumps(keys.evaluation), keys.params, expect=BootstrappingKeys)
    with pytest.raises(SerializationError, match="'BootstrappingKeys', EvaluationKeys was expect"):
        loads(written, keys.params, expect=EvaluationKeys)
    save(keys, tmp_path / "keys")
    with pytest.raises(SerializationError, match="'BootstrappingKeys', EvaluationKeys was expect"):
        load_evaluation_key(tmp_path / "keys", None, keys.params)


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("end", [0, 7, 63, 1000, -4096, -1])
def test_a_truncated_file_is_refused(
    keys: BootstrappingKeys, written: bytes, tmp_path: Path, end: int, use_mmap: bool
) -> None:
    (tmp_path / "keys").write_bytes(written[:end])
    with pytest.raises(IntegrityError, match="truncated"):
        load(tmp_path / "keys", keys.params, mmap=use_mmap)


def test_damage_in_any_tensor_is_found(keys: BootstrappingKeys, written: bytes) -> None:
    header, payload = split(written)
    for name, entry in header["tensors"].items():
        damaged = bytearray(written)
        damaged[len(written) - len(payload) + entry["offsets"][0] + 5] ^= 1
        with pytest.raises(IntegrityError, match=f"'{name}' is damaged"):
            loads(damaged, keys.params)


@pytest.mark.parametrize("name", ["to_sparse", "raised/0", "relinearisation"])
def test_a_residue_as_large_as_its_prime_is_refused(
    keys: BootstrappingKeys, written: bytes, name: str
) -> None:
    header, payload = split(written)
    entry, words = header["tensors"][name], np.frombuffer(payload, "<u4").copy()
    place = entry["offsets"][1] // 4 - 1  # of the last limb, a special prime
    chain = keys.params.sparse_chain if name == "to_sparse" else keys.params.params.chain
    prime = chain.all_primes[-1]
    words[place] = prime - 1
    assert_valid(loads(reseal(header, words.tobytes()), keys.params, expect=BootstrappingKeys))
    words[place] = prime
    with pytest.raises(IntegrityError, match=f"'{name}' has the .* below the prime {prime}"):
        loads(reseal(header, words.tobytes()), keys.params)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["extra"], 1, "unknown .'extra'"),
        (["ephemeral_secret"], DELETE, "missing .'ephemeral_secret'"),
        (["levels"], DELETE, "missing .'levels'"),
        (["levels", "relinearisation"], 99, "level of relinearisation is 99"),
        (["levels", "relinearisation"], 9, "tensor 'relinearisation' is uint32"),
        (["levels", "to_sparse"], 1, "unknown .'to_sparse'"),
        (["relinearisation"], None, "unknown .'relinearisation'"),
        (["galois"], {}, "unknown .'galois/"),
        (["galois", "7"], "00" * 32, "'7' is not the Galois element"),
        (["to_sparse"], "", "64 hexadecimal digits"),
        (["to_sparse"], None, "64 hexadecimal digits"),
        (["raised"], [], "no object of rotation -> seed"),
        (["raised", "0"], DELETE, "unknown .'raised/0'"),
        (["raised", "0"], "00" * 31, "64 hexadecimal digits"),
        (["raised", "3"], "00" * 32, "missing .'raised/3'"),
        (["raised", "512"], "00" * 32, "'512' is not a rotation from 0 to 511"),
        (["raised", "-1"], "00" * 32, "'-1' is not a rotation"),
        (["raised", "00"], "00" * 32, "'00' is not a rotation"),
        (["raised", "1.0"], "00" * 32, "'1.0' is not a rotation"),
        (["raised", "9" * 5000], "00" * 32, "is not a rotation"),
        (["raised", "\u0661"], "00" * 32, "is not a rotation"),  # a digit, but no ASCII
        (["tensors", "to_sparse"], DELETE, "no gaps|payload has"),
        (["tensors", "to_sparse", "shape"], [3, 2, 1024], r"expected uint32\[2, 3, 1024\]"),
        (["tensors", "to_sparse", "shape"], [6, 1024], r"expected uint32\[2, 3, 1024\]"),
        (["tensors", "to_sparse", "shape"], [1 << 62, 1 << 62], "its offsets"),
        (["tensors", "raised/0", "shape"], [1, 1 << 40, 1024], "its offsets"),
        (["tensors", "raised/0", "offsets"], [0, 1 << 62], "its offsets"),
        (["tensors", "raised/0", "dtype"], "int8", "its offsets"),
        (["parameters", "level_bits"], [30] * 257, "at most 256"),
    ],
)
def test_a_wrong_header_with_right_checksums_is_refused(
    keys: BootstrappingKeys, written: bytes, path: list[str], value: object, message: str
) -> None:
    header, payload = split(written)
    changed(header, path, value)
    with pytest.raises(SerializationError, match=message):
        loads(seal(header, payload), keys.params)


@pytest.mark.parametrize("value", [None, [], {}, {"weight": 16}, "16"])
def test_another_ephemeral_secret_is_refused(
    keys: BootstrappingKeys, written: bytes, value: object
) -> None:
    header, payload = split(written)
    header["ephemeral_secret"] = value
    with pytest.raises(IncompatibleError, match="ephemeral secret with"):
        loads(seal(header, payload), keys.params)


@pytest.mark.parametrize("sizes", [(1 << 40, 64), (4 << 20, 1 << 62), (64, 1 << 40), (0, 0)])
@pytest.mark.parametrize("use_mmap", [True, False])
def test_sizes_that_the_file_has_not_allocate_nothing(
    keys: BootstrappingKeys, written: bytes, tmp_path: Path, sizes: tuple[int, int], use_mmap: bool
) -> None:
    content = bytearray(written)
    struct.pack_into("<QQ", content, 16, *sizes)
    (tmp_path / "keys").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            load(tmp_path / "keys", keys.params, mmap=use_mmap)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


def test_the_first_format_had_no_such_keys(keys: BootstrappingKeys, written: bytes) -> None:
    header, payload = split(written)
    with pytest.raises(SerializationError, match=r"unknown .'levels'"):
        loads(seal(header, payload, version=1), keys.params)
    del header["levels"]  # then every key served all levels, which these do not
    with pytest.raises(SerializationError, match="expected uint32"):
        loads(seal(header, payload, version=1), keys.params)


def test_keys_that_contradict_their_parameters_are_not_written(
    keys: BootstrappingKeys, tmp_path: Path
) -> None:
    raised, sparse = keys.raised[0], keys.to_sparse
    wide = raised.ring.from_host(host(raised.b).astype(np.int64))
    other = changed_params(keys.params, sparse_special_primes=2)
    for wrong in (
        replace(keys, to_sparse=raised),
        replace(keys, params=other),
        replace(keys, raised={0: sparse}),
        replace(keys, raised={512: raised}),
        replace(keys, raised={-1: raised}),
        replace(keys, raised={True: raised}),
        replace(keys, raised={0: replace(raised, limbs=raised.limbs[::-1])}),
        replace(keys, raised={0: replace(raised, b=raised.b[:, :-1])}),
        replace(keys, raised={0: replace(raised, b=wide)}),
        replace(keys, raised={0: replace(raised, seed=b"short")}),
        replace(keys, to_sparse=replace(sparse, seed=b"")),
    ):
        with pytest.raises(SerializationError):
            save(wrong, tmp_path / "keys")
    with pytest.raises(IncompatibleError, match="the evaluation keys"):
        save(replace(keys, params=BootstrappingParameters.preset(NAMES[1])), tmp_path / "keys")
    assert os.listdir(tmp_path) == []


# -- properties ---------------------------------------------------------------------------------


@FUZZ
@given(data=st.data())
def test_any_changed_byte_is_found(
    keys: BootstrappingKeys, written: bytes, data: st.DataObject
) -> None:
    content = bytearray(written)
    places = st.integers(0, len(content) - 1) | st.integers(0, 4095)
    for place in data.draw(st.sets(places, min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SerializationError):
        loads(content, keys.params)


@FUZZ
@given(data=st.data())
def test_any_edited_header_gives_our_error_or_valid_keys(
    keys: BootstrappingKeys, written: bytes, data: st.DataObject
) -> None:
    header, payload = split(written)
    params = data.draw(st.sampled_from([keys.params, keys.params, keys.params.params, None]))
    try:
        again = loads(seal(edited(header, data), payload), params, allow_insecure=True)
    except AegisError:
        return
    assert isinstance(again, BootstrappingKeys)
    assert_valid(again)


@FUZZ
@given(data=st.data())
def test_any_edited_payload_gives_our_error_or_valid_keys(
    keys: BootstrappingKeys, written: bytes, data: st.DataObject
) -> None:
    header, payload = split(written)
    words = np.frombuffer(payload, "<u4").copy()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(st.integers(0, 2**25) | st.integers(2**25, 2**32 - 1))
    try:
        again = loads(reseal(header, words.tobytes()), keys.params, expect=BootstrappingKeys)
    except IntegrityError:
        return
    assert_valid(again)
