"""Written objects: complete, checked when read, and without the secret."""

import hashlib
import json
import mmap
import os
import pickle
import stat
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis_dask.ckks import sampling
from aegis_dask.ckks.encoder import Encoder
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.galois import rotation_element
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, KeyGenerator, PublicKey, SecretKey
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import PRESETS, Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.ckks.serialization import (
    dumps,
    load,
    load_evaluation_key,
    load_secret_key,
    loads,
    save,
    save_secret_key,
)
from aegis_dask.errors import (
    AegisError,
    IncompatibleError,
    InsecureParametersError,
    IntegrityError,
    MissingKeyError,
    SerializationError,
)
from tests.arrays import host, same

pytestmark = pytest.mark.filterwarnings("ignore::aegis_dask.errors.InsecureParametersWarning")

PRESET, OTHER_PRESET = "insecure-n10-d40", "insecure-n10-d54"
POSIX = pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
KINDS = (
    "parameters",
    "plaintext",
    "periodic plaintext",
    "fresh ciphertext",
    "public-key ciphertext",
    "product",
    "public key",
    "evaluation key",
    "truncated evaluation key",
    "evaluation keys",
)
UNPICKLED = pickle.loads  # the name `loads` is ours here


@pytest.fixture(scope="module")
def s() -> SimpleNamespace:
    """One object of each kind, with the keys they belong to."""
    params = Parameters.preset(PRESET)
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    public = generator.public_key(secret)
    rotations = {1: params.max_level, 4: 2, 8: params.max_level}
    keys = generator.evaluation_keys(secret, rotations=rotations, conjugation=True)
    encoder, fresh = Encoder(params), Encryptor(params, secret)
    values = np.random.default_rng(1).uniform(-1, 1, (3, params.slots))
    ciphertext = fresh.encrypt(values)
    product = Evaluator(params, keys).multiply(ciphertext, ciphertext, relinearise=False)
    objects = {
        "parameters": params,
        "plaintext": encoder.encode(values[0], level=2),
        "periodic plaintext": encoder.encode([1, 2, 3, 4], level=3, periodic=True),
        "fresh ciphertext": ciphertext,
        "public-key ciphertext": Encryptor(params, public).encrypt(values[0], level=1),
        "product": product,
        "public key": public,
        "evaluation key": keys.relinearisation,
        "truncated evaluation key": keys.galois[rotation_element(4, params.ring_degree)],
        "evaluation keys": keys,
    }
    return SimpleNamespace(
        params=params,
        secret=secret,
        keys=keys,
        encoder=encoder,
        encryptor=fresh,
        decryptor=Decryptor(params, secret),
        values=values,
        objects=objects,
        written={name: dumps(obj) for name, obj in objects.items()},
    )


# -- a second, independent reading of the format --------------------------------------------


def split(data: bytes) -> tuple[dict, bytes]:
    header_size, payload_size = struct.unpack_from("<QQ", data, 16)
    assert len(data) == 64 + header_size + payload_size
    return json.loads(data[64 : 64 + header_size]), data[64 + header_size :]


def seal(header: dict | bytes, payload: bytes, version: int = 2) -> bytes:
    """A container with right checksums, as an attacker would make it."""
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    header += b" " * (-len(header) % 64)
    fixed = b"\x89AEGIS\r\n" + struct.pack("<QQQ", version, len(header), len(payload))
    return fixed + hashlib.sha256(fixed + header).digest() + header + payload


def reseal(header: dict, payload: bytes) -> bytes:
    """Also correct the checksums of the tensors, where they can be found."""
    header = deepcopy(header)
    for entry in header["tensors"].values():
        begin, end = entry["offsets"]
        entry["sha256"] = hashlib.sha256(payload[begin:end]).hexdigest()
    return seal(header, payload)


def residues(obj: object) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """All residues of an object, with the primes of their limbs."""
    if isinstance(obj, (Plaintext, Ciphertext)):
        primes = obj.params.chain.primes
        yield host(obj.data), tuple(primes[i] for i in obj.params.limbs(obj.level))
    elif isinstance(obj, PublicKey):
        yield host(obj.b), obj.params.chain.all_primes
    elif isinstance(obj, EvaluationKey):
        primes = obj.params.chain.all_primes
        yield host(obj.b), tuple(primes[i] for i in obj.params.key_limbs(obj.level))
    elif isinstance(obj, EvaluationKeys):
        galois = [obj.galois[g] for g in sorted(obj.galois)]
        for key in filter(None, [obj.relinearisation, *galois]):
            yield from residues(key)


def assert_valid(obj: object) -> None:
    for data, primes in residues(obj):
        assert data.dtype == np.uint32
        assert data.shape[-2] == len(primes)
        assert (data < np.array(primes, np.uint32)[:, None]).all()
    if isinstance(obj, Ciphertext):
        assert obj.components in (2, 3)
        assert obj.data.shape[-1] == obj.params.ring_degree
        assert obj.seed is None or len(obj.seed) == 32 * obj.batch
    if isinstance(obj, Plaintext):
        assert obj.data.shape[-1] == 2 * obj.period <= obj.params.ring_degree
    if isinstance(obj, (Ciphertext, Plaintext)):
        assert 0 <= obj.level <= obj.params.max_level
        assert np.isfinite(float(obj.scale))
    if isinstance(obj, EvaluationKeys):
        assert all(g % 2 == 1 and g < 2 * obj.params.ring_degree for g in obj.galois)
        assert all(0 < step < obj.params.slots for step in obj.steps)


def assert_equal(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, Parameters):
        assert a == b
        assert a.literal == b.literal
        return
    assert a.params == b.params
    for (x, _), (y, _) in zip(residues(a), residues(b), strict=True):
        np.testing.assert_array_equal(x, y)
    for name in ("level", "scale", "seed", "period"):
        assert getattr(a, name, None) == getattr(b, name, None)
    if isinstance(a, (PublicKey, EvaluationKey)):
        assert same(a.a, b.a)
    if isinstance(a, EvaluationKeys):
        assert a.galois.keys() == b.galois.keys()
        assert (a.relinearisation is None) == (b.relinearisation is None)
        for g in a.galois:
            assert a.galois[g].seed == b.galois[g].seed
            assert a.galois[g].level == b.galois[g].level


# -- round trips ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given_params", [True, False])
def test_an_object_comes_back_equal(s: SimpleNamespace, kind: str, given_params: bool) -> None:
    obj = s.objects[kind]
    params = s.params if given_params else None
    again = loads(s.written[kind], params, expect=type(obj), allow_insecure=not given_params)
    assert_equal(obj, again)
    assert_valid(again)
    assert dumps(again) == s.written[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_mmap", [True, False])
def test_a_file_holds_what_dumps_returns(
    s: SimpleNamespace, tmp_path: Path, kind: str, use_mmap: bool
) -> None:
    path = tmp_path / "object.aegis"
    save(s.objects[kind], path)
    assert path.read_bytes() == s.written[kind]
    assert_equal(s.objects[kind], load(path, s.params, mmap=use_mmap))


@pytest.mark.parametrize("level", range(7))
def test_fresh_ciphertexts_come_back_at_every_level(s: SimpleNamespace, level: int) -> None:
    ciphertext = s.encryptor.encrypt(s.values, level=level)
    again = loads(dumps(ciphertext), s.params, expect=Ciphertext)
    assert_equal(ciphertext, again)
    assert again.is_canonical
    np.testing.assert_allclose(s.decryptor.decrypt(again), s.values, atol=2**-25)


@pytest.mark.parametrize("period", [1, 2, 64, 256, 512])
def test_periodic_plaintexts_come_back(s: SimpleNamespace, period: int) -> None:
    plaintext = s.encoder.encode(np.linspace(0, 1, period), level=0, periodic=True)
    assert_equal(plaintext, loads(dumps(plaintext), s.params))


@pytest.mark.parametrize("scale", [1, 2**30, 3**20, 2**64 - 59])
def test_a_scale_is_exact(s: SimpleNamespace, scale: int) -> None:
    exact = (Scale.from_int(scale) * s.params.scales[6]).sqrt().sqrt()
    ciphertext = s.objects["product"].with_data(s.objects["product"].data, scale=exact)
    assert loads(dumps(ciphertext), s.params, expect=Ciphertext).scale == exact


def test_a_selection_and_a_sum_are_written_without_seed(s: SimpleNamespace) -> None:
    for changed in (s.objects["fresh ciphertext"][1], s.objects["fresh ciphertext"][:2]):
        assert_equal(changed, loads(dumps(changed), s.params))


def test_empty_key_sets_come_back(s: SimpleNamespace) -> None:
    assert_equal(EvaluationKeys(s.params), loads(dumps(EvaluationKeys(s.params)), s.params))


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.log_n <= 13])
def test_parameters_come_back_with_their_name(name: str) -> None:
    params = Parameters.preset(name)
    again = loads(dumps(params), expect=Parameters, allow_insecure=params.literal.insecure)
    assert again.literal == params.literal


def test_loaded_keys_and_ciphertexts_compute(s: SimpleNamespace, tmp_path: Path) -> None:
    save(s.keys, tmp_path / "keys")
    keys = load(tmp_path / "keys", s.params, expect=EvaluationKeys, mmap=True)
    ciphertext = loads(s.written["fresh ciphertext"], s.params, expect=Ciphertext)
    evaluator = Evaluator(s.params, keys)
    result = evaluator.rotate(evaluator.multiply(ciphertext, ciphertext), 8)
    np.testing.assert_allclose(
        s.decryptor.decrypt(result), np.roll(s.values**2, -8, axis=-1), atol=2**-18
    )


@pytest.mark.parametrize("use_mmap", [True, False])
def test_one_key_is_loaded_alone(s: SimpleNamespace, tmp_path: Path, use_mmap: bool) -> None:
    path = tmp_path / "keys"
    save(s.keys, path)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1  # in the last key, which the others need not know
    path.write_bytes(damaged)
    *others, last = sorted(s.keys.galois)
    for g in others:
        assert_equal(s.keys.galois[g], load_evaluation_key(path, g, s.params, mmap=use_mmap))
    relinearisation = load_evaluation_key(path, None, s.params, mmap=use_mmap)
    assert_equal(s.keys.relinearisation, relinearisation)
    with pytest.raises(IntegrityError, match=f"galois/{last}"):
        load_evaluation_key(path, last, s.params, mmap=use_mmap)
    missing = rotation_element(3, s.params.ring_degree)
    with pytest.raises(MissingKeyError, match="it holds relinearisation, "):
        load_evaluation_key(path, missing, s.params)


# -- sizes and memory -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["evaluation key", "evaluation keys"])
def test_a_written_key_is_half_as_large(s: SimpleNamespace, kind: str) -> None:
    assert len(s.written[kind]) <= 0.51 * s.objects[kind].nbytes


def test_a_fresh_ciphertext_is_written_at_half_its_size(s: SimpleNamespace) -> None:
    ciphertext = s.objects["fresh ciphertext"]
    header = 2048 + 64 * ciphertext.batch
    assert len(s.written["fresh ciphertext"]) <= ciphertext.nbytes / 2 + header
    # With a public key there is no seed, and nothing to leave out.
    assert len(s.written["public-key ciphertext"]) >= s.objects["public-key ciphertext"].nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_payload_is_raw_aligned_tensors(s: SimpleNamespace, kind: str) -> None:
    header, payload = split(s.written[kind])
    assert (len(s.written[kind]) - len(payload)) % 64 == 0
    for name, entry in header["tensors"].items():
        begin, end = entry["offsets"]
        assert begin % 64 == 0
        assert hashlib.sha256(payload[begin:end]).hexdigest() == entry["sha256"]
        tensor = np.frombuffer(payload[begin:end], "<u4").reshape(entry["shape"])
        if name == "data":
            assert same(tensor, s.objects[kind].data)


@pytest.mark.usefixtures("arrays_of_numpy")
def test_mapped_residues_are_the_file(s: SimpleNamespace, tmp_path: Path) -> None:
    save(s.keys, tmp_path / "keys")
    save(s.objects["product"], tmp_path / "product")
    keys = load(tmp_path / "keys", s.params, expect=EvaluationKeys, mmap=True)
    product = load(tmp_path / "product", s.params, expect=Ciphertext, mmap=True)
    for array in (*(key.b for key in keys.galois.values()), product.data):
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
        assert array.ctypes.data % 64 == 0
    before = (tmp_path / "product").read_bytes()
    product.data[:] = 0  # writable as kernels expect, and the file stays as it is
    assert (tmp_path / "product").read_bytes() == before


@pytest.mark.usefixtures("arrays_of_numpy")
def test_a_writable_buffer_is_shared_and_a_read_only_one_copied(s: SimpleNamespace) -> None:
    buffer = bytearray(s.written["product"])
    shared = loads(buffer, s.params, expect=Ciphertext)
    assert np.shares_memory(shared.data, np.frombuffer(buffer, np.uint8))
    data = s.written["product"]
    copied = loads(data, s.params, expect=Ciphertext)
    assert not np.shares_memory(copied.data, np.frombuffer(data, np.uint8))
    assert copied.data.flags.writeable
    unaligned = bytearray(b"x" + data)
    again = loads(memoryview(unaligned)[1:], s.params, expect=Ciphertext)
    assert_equal(copied, again)
    assert again.data.flags.aligned


# -- wrong data -----------------------------------------------------------------------------


def test_data_of_other_parameters_are_refused(s: SimpleNamespace) -> None:
    other = Parameters.preset(OTHER_PRESET)
    for data in s.written.values():
        with pytest.raises(IncompatibleError, match=PRESET):
            loads(data, other)


def test_insecure_parameters_need_permission(s: SimpleNamespace, tmp_path: Path) -> None:
    for data in s.written.values():
        with pytest.raises(InsecureParametersError, match="allow_insecure=True"):
            loads(data)
    save(s.keys, tmp_path / "keys")
    with pytest.raises(InsecureParametersError):
        load_evaluation_key(tmp_path / "keys", None)


def test_parameters_that_only_claim_to_be_secure_are_refused(s: SimpleNamespace) -> None:
    header, payload = split(s.written["parameters"])
    header["parameters"]["insecure"] = False
    with pytest.raises(InsecureParametersError, match="128-bit"):
        loads(seal(header, payload), allow_insecure=True)


def test_the_name_of_a_preset_is_not_given_to_other_parameters() -> None:
    literal = replace(PRESETS[OTHER_PRESET], name="n13-d30")
    data = dumps(Parameters(literal))
    assert loads(data, expect=Parameters, allow_insecure=True).name == "n10-custom"


def test_a_literal_must_have_the_fingerprint_of_the_header(s: SimpleNamespace) -> None:
    header, payload = split(s.written["product"])
    header["parameters"] = {**asdict(PRESETS[OTHER_PRESET])}
    with pytest.raises(IntegrityError, match="fingerprint"):
        loads(seal(header, payload), allow_insecure=True)


def test_an_object_of_another_class_is_refused(s: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(SerializationError, match="'Plaintext', Ciphertext was expected"):
        loads(s.written["plaintext"], s.params, expect=Ciphertext)
    save(s.objects["evaluation key"], tmp_path / "key")
    with pytest.raises(SerializationError, match="'EvaluationKey', EvaluationKeys was expected"):
        load_evaluation_key(tmp_path / "key", None, s.params)


def test_a_later_format_says_so(s: SimpleNamespace) -> None:
    for version in (0, 3):
        message = f"format version {version}, this library reads versions 1 to 2"
        with pytest.raises(SerializationError, match=message):
            loads(seal(*split(s.written["product"]), version=version), s.params)


def as_version_1(data: bytes) -> bytes:
    """What version 1 wrote: keys have no level."""
    header, payload = split(data)
    for name in ("level", "levels"):
        if header["type"].startswith("EvaluationKey"):
            header.pop(name, None)
    return seal(header, payload, version=1)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("truncated")])
def test_the_first_format_is_read(s: SimpleNamespace, kind: str) -> None:
    obj = s.objects[kind]
    if kind == "evaluation keys":  # all for the top level then
        galois = {g: k for g, k in s.keys.galois.items() if k.level == s.params.max_level}
        obj = replace(s.keys, galois=galois)
    assert_equal(obj, loads(as_version_1(dumps(obj)), s.params))


def test_truncated_keys_are_not_of_the_first_format(s: SimpleNamespace) -> None:
    for kind in ("truncated evaluation key", "evaluation keys"):
        with pytest.raises(SerializationError, match="expected uint32"):
            loads(as_version_1(s.written[kind]), s.params)
        with pytest.raises(SerializationError, match=r"unknown .'level"):
            loads(seal(*split(s.written[kind]), version=1), s.params)


@pytest.mark.parametrize("data", [b"", b"\x89", b"PK\x03\x04", b"\x80\x05pickle", bytes(4096)])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SerializationError, match=r"not data of aegis_dask|truncated"):
        loads(data)


@pytest.mark.parametrize("data", ["text", 7, None, np.zeros((4, 4))[:, ::2]])
def test_what_is_not_bytes_is_refused(data: object) -> None:
    with pytest.raises(SerializationError, match="bytes-like"):
        loads(data)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for use_mmap in (True, False):
        with pytest.raises(IntegrityError, match="truncated"):
            load(tmp_path / "empty", mmap=use_mmap)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


@pytest.mark.parametrize("kind", ["plaintext", "fresh ciphertext", "product", "evaluation keys"])
def test_a_residue_as_large_as_its_prime_is_refused(s: SimpleNamespace, kind: str) -> None:
    header, payload = split(s.written[kind])
    primes = next(residues(s.objects[kind]))[1]
    words = np.frombuffer(payload, "<u4").copy()
    limb = len(primes) - 1
    words[limb * s.params.ring_degree + 5] = primes[limb] - 1
    assert_valid(loads(reseal(header, words.tobytes()), s.params))
    words[limb * s.params.ring_degree + 5] = primes[limb]
    with pytest.raises(IntegrityError, match=f"below the prime {primes[limb]}"):
        loads(reseal(header, words.tobytes()), s.params)


DELETE = object()


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("product", ["type"], "Product", "'Product'"),
        ("product", ["type"], ["Ciphertext"], "'Ciphertext'"),
        ("product", ["type"], "SecretKey", "load_secret_key"),
        ("product", ["extra"], 1, "unknown .'extra'"),
        ("product", ["level"], DELETE, "missing .'level'"),
        ("product", ["level"], 7, "level is 7"),
        ("product", ["level"], -1, "level is -1"),
        ("product", ["level"], True, "level is True"),
        ("product", ["level"], 3, "tensor 'data' is uint32"),
        ("product", ["seeds"], "00" * 96, "missing .'c0'"),
        ("product", ["fingerprint"], "0", "fingerprint"),
        ("product", ["parameters"], None, "parameters are None"),
        ("product", ["parameters", "log_n"], 10.0, "every number in it is an integer"),
        ("product", ["parameters", "log_n"], float("nan"), "every number in it is an integer"),
        ("product", ["parameters", "log_n"], 40, "log_n is 40"),
        ("product", ["parameters", "base_bits"], 10**9, "base_bits is 1000000000"),
        ("product", ["parameters", "level_bits"], [30] * 257, "at most 256"),
        ("product", ["parameters", "insecure"], 0, "true or false"),
        ("product", ["parameters", "name"], "\x1b[31m", "printable"),
        ("product", ["parameters", "name"], "\ud800", "surrogates not allowed"),
        ("product", ["parameters", "digits"], DELETE, "missing .'digits'"),
        ("product", ["scale"], 2, "scale is 2"),
        ("product", ["scale"], [[2, 1]], "factor of the scale"),
        ("product", ["scale"], [[1, 1, 1]], "factor of the scale"),
        ("product", ["scale"], [[2, 0, 1]], "factor of the scale"),
        ("product", ["scale"], [[2, 2, 4]], "lowest terms"),
        ("product", ["scale"], [[2, 1, 3]], "power of two"),
        ("product", ["scale"], [[2, 4097, 1]], "at most 4096"),
        ("product", ["scale"], [[2, 431, 1]], r"2\^431"),
        ("product", ["scale"], [[2, -2, 1]], r"2\^-2"),
        ("product", ["scale"], [[2**64, 1, 1]], "factor of the scale"),
        ("product", ["scale"], [[2, 1, 1], [2, 1, 1]], "ascending"),
        ("product", ["scale"], [[2, 10**40, 1]], "41 digits"),
        ("product", ["tensors"], [], "'tensors'"),
        ("product", ["tensors", "data", "shape"], [3, 3, 10, 1024], "offsets"),
        ("product", ["tensors", "data", "shape"], [9, 1, 9, 1024], "1 components"),
        ("product", ["tensors", "data", "shape"], [3, 27, 1024], "expected uint32"),
        ("product", ["tensors", "data", "shape"], [0], "from 1"),
        ("product", ["tensors", "data", "shape"], [1 << 62, 1 << 62], "its offsets"),
        ("product", ["tensors", "data", "dtype"], "float64", "dtype"),
        ("product", ["tensors", "data", "dtype"], "object", "dtype"),
        ("product", ["tensors", "data", "offsets"], [64, 0], "its offsets"),
        ("product", ["tensors", "data", "sha256"], "0" * 64, "damaged"),
        ("product", ["tensors", "data", "sha256"], None, "SHA-256"),
        ("product", ["tensors", "data", "more"], 1, "expected exactly"),
        ("product", ["tensors", "../data"], {}, "no name of a tensor"),
        ("fresh ciphertext", ["seeds"], "00" * 95, "192 hexadecimal digits"),
        ("fresh ciphertext", ["seeds"], "00" * 95 + " 0", "hexadecimal"),
        ("fresh ciphertext", ["seeds"], None, "missing .'data'"),
        ("periodic plaintext", ["period"], 3, "power of two"),
        ("periodic plaintext", ["period"], 8, "tensor 'data' is uint32"),
        ("periodic plaintext", ["period"], 1024, "period is 1024"),
        ("public key", ["seed"], "", "64 hexadecimal digits"),
        ("evaluation keys", ["galois"], [], "Galois element -> seed"),
        ("evaluation keys", ["galois", "4"], "00" * 32, "'4' is not the Galois element"),
        ("evaluation keys", ["galois", "7"], "00" * 32, "'7' is not the Galois element"),
        ("evaluation keys", ["galois", "1"], "00" * 32, "'1' is not the Galois element"),
        ("evaluation keys", ["galois", "05"], "00" * 32, "'05' is not the Galois element"),
        ("evaluation keys", ["galois", "2049"], "00" * 32, "'2049' is not the Galois element"),
        ("evaluation keys", ["galois", "5"], DELETE, "unknown .'galois/5'"),
        ("evaluation keys", ["galois", "25"], "00" * 32, "missing .'galois/25'"),
        ("evaluation key", ["level"], DELETE, "missing .'level'"),
        ("evaluation key", ["level"], 7, "level of the key is 7"),
        ("evaluation key", ["level"], 2, "tensor 'b' is uint32"),
        ("truncated evaluation key", ["level"], 3, "tensor 'b' is uint32"),
        ("truncated evaluation key", ["level"], True, "level of the key is True"),
        ("evaluation keys", ["levels"], 2, "not an object of name -> level"),
        ("evaluation keys", ["levels"], DELETE, "missing .'levels'"),
        ("evaluation keys", ["levels", "galois/5"], DELETE, "missing .'galois/5'"),
        ("evaluation keys", ["levels", "galois/25"], 1, "unknown .'galois/25'"),
        ("evaluation keys", ["levels", "galois/625"], 6, "tensor 'galois/625' is uint32"),
        ("evaluation keys", ["levels", "galois/625"], -1, "level of galois/625 is -1"),
        ("evaluation keys", ["tensors", "galois/5", "offsets"], [0, 245760], "no gaps"),
    ],
)
def test_a_wrong_header_with_right_checksums_is_refused(
    s: SimpleNamespace, kind: str, path: list[str], value: object, message: str
) -> None:
    header, payload = split(s.written[kind])
    *way, last = path
    place = header
    for step in way:
        place = place[step]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(SerializationError, match=message):
        loads(seal(header, payload), s.params)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff{}", "not JSON"),
        (b'{"type": NaN}', "integer"),
        (b'{"type": 1e3}', "integer"),
        (b'{"type": 1, "type": 2}', "two keys of the same name"),
        (b'{"tensors": {"b": 1, "b": 2}}', "two keys of the same name"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b'{"a": "]]]]]]]]]]]]", "b": ' + b"[" * 12 + b"]" * 12 + b"}", "nested"),
        (b'{"a": "\\"]]]]]]]]]]", "b": ' + b"[" * 12 + b"]" * 12 + b"}", "nested"),
        (b"9" * 5000, "5000 digits"),
        (b'"' + b'\\"' * 2_000_000, "not JSON"),  # seconds, if strings were searched again
        (b'"' + b'\\"' * 2_000_000 + b"\\", "not JSON"),
        (b" " * (4 << 20), "not JSON"),
        (b" " * (5 << 20), "at most 4194304"),
        (b"{}", "'tensors'"),
        (b'{"tensors": {}}', "type None"),
    ],
)
def test_a_malformed_header_is_refused(header: bytes, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        loads(seal(header, b""))


def test_a_payload_without_a_tensor_is_refused(s: SimpleNamespace) -> None:
    header, payload = split(s.written["parameters"])
    with pytest.raises(SerializationError, match="payload has 64"):
        loads(seal(header, payload + bytes(64)), s.params)


# -- properties -----------------------------------------------------------------------------

FUZZ = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FUZZ
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_any_changed_byte_is_found(s: SimpleNamespace, kind: str, data: st.DataObject) -> None:
    content = bytearray(s.written[kind])
    # Half of the flips in the first kilobyte or two, where the structure is.
    places = st.integers(0, len(content) - 1) | st.integers(0, min(len(content), 2048) - 1)
    for place in data.draw(st.sets(places, min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SerializationError):
        loads(content, data.draw(st.sampled_from([s.params, None])), allow_insecure=True)


@FUZZ
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_any_other_length_is_found(s: SimpleNamespace, kind: str, data: st.DataObject) -> None:
    content = s.written[kind]
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content += data.draw(st.binary(min_size=1, max_size=100))
    with pytest.raises(SerializationError):
        loads(content, s.params)


NUMBERS = st.integers(-2, 70) | st.integers(-(2**70), 2**70) | st.floats() | st.booleans()
JSON = st.recursive(
    st.none() | NUMBERS | st.text(max_size=8) | st.text("0123456789abcdef", max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def edited(header: dict, data: st.DataObject) -> dict:
    """The header with one value replaced, deleted or added somewhere."""
    header = deepcopy(header)
    place: dict | list = header
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return header
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or data.draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    action = data.draw(st.sampled_from(["replace", "nudge", "delete", "add", "duplicate"]))
    if action == "delete":
        del place[key]
    elif action == "nudge" and type(place[key]) is int:
        place[key] += data.draw(st.sampled_from([-64, -2, -1, 1, 2, 64]))
    elif action == "duplicate" and isinstance(place, list):
        place.append(place[key])
    elif action == "add" and isinstance(place, dict):
        place[data.draw(st.text(max_size=8))] = data.draw(JSON)
    else:
        place[key] = data.draw(JSON)
    return header


@FUZZ
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_any_edited_header_gives_our_error_or_a_valid_object(
    s: SimpleNamespace, kind: str, data: st.DataObject
) -> None:
    header, payload = split(s.written[kind])
    params = data.draw(st.sampled_from([s.params, None]))
    try:
        obj = loads(seal(edited(header, data), payload), params, allow_insecure=True)
    except AegisError:
        return
    assert_valid(obj)


@FUZZ
@given(kind=st.sampled_from(KINDS[1:]), data=st.data())
def test_any_edited_payload_gives_our_error_or_a_valid_object(
    s: SimpleNamespace, kind: str, data: st.DataObject
) -> None:
    header, payload = split(s.written[kind])
    words = np.frombuffer(payload, "<u4").copy()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(words) - 1))
        words[place] = data.draw(st.integers(0, 2**25) | st.integers(2**25, 2**32 - 1))
    try:
        obj = loads(reseal(header, words.tobytes()), s.params)
    except IntegrityError:
        return
    assert_valid(obj)


@FUZZ
@given(header=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_as_a_header_give_our_error(header: bytes) -> None:
    with pytest.raises(SerializationError):
        loads(seal(header, b""))


# -- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    s: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "object"
    save(s.objects["plaintext"], path)

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match="the disk is full"):
            save(s.keys, path)
    assert path.read_bytes() == s.written["plaintext"]
    assert os.listdir(tmp_path) == ["object"]
    save(s.keys, path)
    assert path.read_bytes() == s.written["evaluation keys"]
    assert os.listdir(tmp_path) == ["object"]


def test_nothing_is_written_of_what_cannot_be(s: SimpleNamespace, tmp_path: Path) -> None:
    fresh = s.objects["fresh ciphertext"]
    for wrong in (
        replace(fresh, level=3),
        replace(fresh, level=-1),
        replace(fresh, data=fresh.data[:, ::-1]),  # the seed is of the other component
        replace(fresh, seed=fresh.seed[:32]),
        replace(s.objects["product"], seed=fresh.seed),
        replace(
            s.objects["product"],
            data=s.params.ring.from_host(host(s.objects["product"].data).astype(np.int64)),
        ),
        replace(s.objects["product"], data=s.objects["product"].data[:, :1]),
        replace(s.objects["product"], data=s.objects["product"].data[:0]),
        replace(s.objects["product"], scale=Scale({2: 1000})),
        replace(s.objects["plaintext"], period=3),
        EvaluationKeys(s.params, None, {7: s.keys.relinearisation}),
        replace(s.keys.relinearisation, seed=b"short"),
        {"a": "dictionary"},
    ):
        with pytest.raises(SerializationError):
            save(wrong, tmp_path / "object")
    assert os.listdir(tmp_path) == []


# -- the secret key -------------------------------------------------------------------------


def test_a_secret_key_comes_back(s: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    save_secret_key(s.secret, path, unencrypted=True)
    again = load_secret_key(path, s.params)
    decrypted = Decryptor(s.params, again).decrypt(s.objects["fresh ciphertext"])
    np.testing.assert_array_equal(decrypted, s.decryptor.decrypt(s.objects["fresh ciphertext"]))
    assert path.stat().st_size < s.params.ring_degree + 2048


def test_a_secret_key_is_written_only_when_asked_for(s: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    public = s.objects["public key"]
    for write, message in (
        (lambda: dumps(s.secret), "save_secret_key only"),
        (lambda: save(s.secret, path), "save_secret_key only"),
        (lambda: save_secret_key(s.secret, path), "unencrypted=True"),
        (lambda: save_secret_key(s.secret, path, unencrypted="yes"), "unencrypted=True"),
        (lambda: save_secret_key(public, path, unencrypted=True), "PublicKey was given"),
    ):
        with pytest.raises(SerializationError, match=message):
            write()
    assert os.listdir(tmp_path) == []


def test_a_secret_key_is_not_overwritten(s: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    save_secret_key(s.secret, path, unencrypted=True)
    before, other = path.read_bytes(), KeyGenerator(s.params).secret_key()
    with pytest.raises(SerializationError, match="overwrite=True"):
        save_secret_key(other, path, unencrypted=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["secret"]
    save_secret_key(other, path, unencrypted=True, overwrite=True)
    assert path.read_bytes() != before


def test_a_secret_key_is_not_overwritten_without_hard_links(
    s: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    save_secret_key(s.secret, tmp_path / "secret", unencrypted=True)
    with pytest.raises(SerializationError, match="overwrite=True"):
        save_secret_key(s.secret, tmp_path / "secret", unencrypted=True)
    assert os.listdir(tmp_path) == ["secret"]


@POSIX
def test_only_the_owner_can_read_a_secret_key_from_its_first_byte(
    s: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    opening = os.open

    def watched(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        descriptor = opening(path, flags, mode, **more)
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL  # so that nobody can have prepared the file
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    umask = os.umask(0)  # the most permissive: nothing is taken from the mode that was asked for
    try:
        save_secret_key(s.secret, tmp_path / "secret", unencrypted=True)
        save(s.params, tmp_path / "public")
    finally:
        os.umask(umask)
    assert modes == [0o600, 0o666]
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@POSIX
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_secret_key_that_others_can_reach_is_refused(
    s: SimpleNamespace, tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "secret"
    save_secret_key(s.secret, path, unencrypted=True)
    path.chmod(mode)
    with pytest.raises(SerializationError, match=f"mode 0{mode:o}"):
        load_secret_key(path, s.params)


def private_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_wrong_secret_key_files_are_refused(s: SimpleNamespace, tmp_path: Path) -> None:
    save_secret_key(s.secret, tmp_path / "secret", unencrypted=True)
    data = (tmp_path / "secret").read_bytes()
    with pytest.raises(SerializationError, match="load_secret_key"):
        load(tmp_path / "secret", s.params)
    with pytest.raises(IncompatibleError):
        load_secret_key(tmp_path / "secret", Parameters.preset(OTHER_PRESET))
    with pytest.raises(SerializationError, match="not a secret key"):
        load_secret_key(private_file(tmp_path / "public", s.written["public key"]), s.params)
    with pytest.raises(IntegrityError, match="truncated"):
        load_secret_key(private_file(tmp_path / "short", data[:-1]), s.params)
    header, payload = split(data)
    for value in (2, -2, 127, -128):
        wrong = np.frombuffer(payload, np.int8).copy()
        wrong[7] = value
        with pytest.raises(IntegrityError, match="1 of them others"):
            load_secret_key(
                private_file(tmp_path / "wrong", reseal(header, wrong.tobytes())), s.params
            )
    header["tensors"]["coefficients"]["shape"] = [2, 512]
    with pytest.raises(SerializationError, match=r"int8\[1024\]"):
        load_secret_key(private_file(tmp_path / "wrong", seal(header, payload)), s.params)


WINDOW = 16
"""Consecutive values that give a secret away: 3^16 is beyond a coincidence in these few bytes."""


def secret_finder(secret: SecretKey) -> Callable[[bytes], bool]:
    """A search for 16 consecutive values of the secret, in any form it is computed with."""
    params = secret.params
    ring, primes = params.ring, params.chain.primes + params.chain.special_primes
    limbs = list(range(len(primes)))
    coefficients = secret._coefficients
    starts = range(0, len(coefficients) - WINDOW + 1, WINDOW // 2)
    needles = {
        coefficients[i : i + WINDOW].astype(dtype).tobytes()
        for dtype in ("i1", "u1", "<i2", "<i4", "<i8", "<f4", "<f8")
        for i in starts
    }
    plain = ring.from_signed(coefficients, limbs)
    transformed = ring.ntt(plain, limbs)
    forms = [host(x) for x in (plain, transformed, ring.to_montgomery(transformed, limbs))]
    # Pairs of residues are 60-bit numbers, so they are looked up as such: quicker than substrings.
    # The residues of ternary coefficients take three values, their pairs are no evidence.
    pairs = np.concatenate([np.ascontiguousarray(f).view("<u8").reshape(-1) for f in forms[1:]])
    pairs = np.unique(pairs)
    needles |= {forms[0][l, i : i + WINDOW].tobytes() for l in limbs for i in starts}

    def found(data: bytes) -> bool:
        for skip in range(8):
            words = np.frombuffer(data, "<u8", (len(data) - skip) // 8, skip)
            place = np.searchsorted(pairs, words)
            if (pairs[np.minimum(place, len(pairs) - 1)] == words).any():
                return True
        return any(needle in data for needle in needles)

    return found


def test_the_secret_is_in_no_public_object(s: SimpleNamespace, tmp_path: Path) -> None:
    found = secret_finder(s.secret)
    for kind, obj in s.objects.items():
        assert not found(s.written[kind]), kind
        assert not found(pickle.dumps(obj)), kind


def test_the_search_finds_a_secret_that_is_there(s: SimpleNamespace, tmp_path: Path) -> None:
    found = secret_finder(s.secret)
    save_secret_key(s.secret, tmp_path / "secret", unencrypted=True)
    assert found((tmp_path / "secret").read_bytes())
    part = s.secret._coefficients[100:124]
    for dtype in (np.int8, np.int16, np.int64, np.float64):
        assert found(b"x" * 1001 + part.astype(dtype).tobytes() + b"y" * 99)
    limbs, data = s.params.limbs(s.objects["product"].level), host(s.objects["product"].data).copy()
    data[1, 1] = host(s.secret._residues)[limbs[0] : limbs[-1] + 1]
    leaked = replace(s.objects["product"], data=s.params.ring.from_host(data))
    assert found(dumps(leaked))
    assert found(pickle.dumps(leaked))


def test_public_objects_can_be_pickled(s: SimpleNamespace) -> None:
    for obj in s.objects.values():
        assert_equal(obj, UNPICKLED(pickle.dumps(obj)))


def test_masks_are_those_of_the_encryptor(s: SimpleNamespace) -> None:
    """The written seed alone gives component 1, in its own stream for each of the batch."""
    header, _ = split(s.written["fresh ciphertext"])
    seeds = bytes.fromhex(header["seeds"])
    ciphertext, limbs = s.objects["fresh ciphertext"], s.params.limbs(6)
    for b in range(3):
        seed = seeds[32 * b : 32 * b + 32]
        mask = s.params.ring.uniform(seed, sampling.DOMAIN_CIPHERTEXT, [0], limbs)[0]
        assert same(ciphertext.data[b, 1], mask)
