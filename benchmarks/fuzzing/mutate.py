"""Inputs made of valid examples: bytes, JSON trees, and containers whose checksums are right."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from math import prod
from random import Random
from typing import Any

from benchmarks.fuzzing import Generate, Kind

MAGIC = b"\x89AEGIS\r\n"
MOST = 1 << 20
"""Bytes of an input, beyond those of its example."""

INTEGERS = (
    *(-1, 0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 63, 64, 255, 256, 1023, 1024, 4096, 65535, 65536),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**31),
    *(10**32, -(2**31), -(2**63), -(10**33)),
)
STRINGS = (
    *("", " ", "0", "-1", "1e9", "null", "a", "A" * 64, "0" * 64, "f" * 64, "g" * 64, "0" * 65),
    *("relinearisation", "data", "galois/5", "raised/1", "../../etc/passwd", "\x00", "\x1b[31m"),
    *("\ud800", "\U0001f600", "\u202e", "é" * 40, "1", "١", "x" * 5000),  # noqa: RUF001
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [{}], {"": 0}, [0] * 300, [None, 1, "a"], 0.5, -0.0, 1e308),
    *(1e-320, 1.5e300, {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}}),
)
TEXTS = (
    *(b"", b"{", b"}", b"[", b'"', b"\\", b"\xff", b"\xef\xbb\xbf{}", b"NaN", b"Infinity"),
    *(b"-", b"1e999", b"-0", b"01", b"1.0", b"1" * 33, b"9" * 5000, b'"\\ud800"', b'"\\u0000"'),
    *(b"[" * 9, b"[" * 3000, b'{"a":' * 3000, b"[]," * 2000, b'{"a":1,"a":2}', b"\x00", b"\\"),
    *(b'"' + b'\\"' * 500, b"\xed\xa0\x80", b"/**/", b"'", b"True", b"\xc0\x80"),
)


def mutate(rng: Random, kind: Kind | Generate, examples: Sequence[bytes]) -> bytes:
    """Return an input."""
    if callable(kind):
        return kind(rng, examples)
    if kind == "numbers":
        return mutate_numbers(rng, rng.choice(examples))
    where = rng.random()
    if where < 0.04:
        return rng.randbytes(rng.choice((0, 1, 8, 32, 63, 64, 65, 200, 1000, 5000)))
    example = examples[rng.randrange(len(examples))]
    if where < 0.14 or kind == "bytes":
        return mutate_bytes(rng, example, examples)
    if kind == "json":
        return mutate_json_text(rng, example, examples)
    return mutate_container(rng, example, examples)


# -- bytes ----------------------------------------------------------------------------------


def mutate_bytes(rng: Random, example: bytes, examples: Sequence[bytes]) -> bytes:
    """Flip, cut, repeat and splice."""
    data = bytearray(example)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        data = _BYTE_STEPS[rng.randrange(len(_BYTE_STEPS))](rng, data, examples)
    return bytes(data)


def _place(rng: Random, data: bytearray) -> int:
    """Mostly near the beginning, where the structure is."""
    end = len(data) if rng.random() < 0.3 else min(len(data), 2048)
    return rng.randrange(end) if end else 0


def _flip(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    if data:
        data[_place(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _set(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    if data:
        data[_place(rng, data)] = rng.randrange(256)
    return data


def _word(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at = _place(rng, data) & ~7
    value = rng.choice(INTEGERS) & (2**64 - 1)
    data[at : at + 8] = value.to_bytes(8, "little")
    return data


def _cut(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _delete(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at = _place(rng, data)
    del data[at : at + rng.choice((1, 2, 8, 64, 1000))]
    return data


def _insert(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at = _place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64, 1000)))
    return data


def _repeat(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at, size = _place(rng, data), rng.choice((1, 8, 64, 512))
    if len(data) < MOST:
        data[at:at] = data[at : at + size] * rng.choice((1, 2, 16))
    return data


def _splice(rng: Random, data: bytearray, examples: Sequence[bytes]) -> bytearray:
    other = examples[rng.randrange(len(examples))]
    return data[: _place(rng, data)] + other[rng.randrange(len(other) + 1) :]


def _text(rng: Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    at = _place(rng, data)
    data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(TEXTS)
    return data


ByteStep = Callable[[Random, bytearray, Sequence[bytes]], bytearray]
_BYTE_STEPS: tuple[ByteStep, ...] = (
    *(_flip, _set, _word, _cut, _delete, _insert, _repeat, _splice, _text),
)

# -- JSON -----------------------------------------------------------------------------------


def mutate_json_text(rng: Random, example: bytes, examples: Sequence[bytes]) -> bytes:
    """Return the JSON text of a mutated tree; sometimes the text is mutated too."""
    tree = mutate_tree(rng, json.loads(example), examples)
    text = _dump(rng, tree)
    if rng.random() < 0.1:
        return mutate_bytes(rng, text, examples)
    return text


def _dump(rng: Random, tree: Any) -> bytes:
    if rng.random() < 0.02:
        try:
            return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except UnicodeEncodeError:
            pass
    return json.dumps(tree, separators=(",", ":")).encode()


def mutate_numbers(rng: Random, example: bytes) -> bytes:
    """Return JSON text of the same form with some other numbers, so that more is made of it."""
    tree = json.loads(example)
    places = list(_numbers(tree))
    for _ in range(rng.choice((1, 1, 2, 5))):
        parent, key = rng.choice(places)
        old = parent[key]
        factor = rng.choice((-1, 0, 1e-9, 1e-3, 0.1, 0.5, 0.99, 1.01, 2, 3, 10, 1e3, 1e6))
        parent[key] = int(old * factor) if isinstance(old, int) else old * factor
    return json.dumps(tree).encode()


def _numbers(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if type(value) in (int, float):
            yield tree, key
        elif isinstance(value, dict | list):
            yield from _numbers(value)


def mutate_tree(rng: Random, tree: Any, examples: Sequence[bytes] = ()) -> Any:
    """Change some nodes of a JSON tree, in place where it can be."""
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3, 6))):
        parent, key = _pick(rng, tree)
        if parent is None:
            tree = _other(rng, tree)
            continue
        step = rng.random()
        if step < 0.10:
            del parent[key]
        elif step < 0.18 and isinstance(parent, dict):
            parent[rng.choice(STRINGS)] = parent[key]
        elif step < 0.22 and isinstance(parent, dict):
            parent[_string(rng, key)] = parent.pop(key)
        elif step < 0.30 and isinstance(parent, list):
            parent[key:key] = [parent[key]] * rng.choice((1, 1, 2, 40))
        elif step < 0.34 and isinstance(parent, list):
            rng.shuffle(parent)
        elif step < 0.42:  # a node of elsewhere in the tree
            other, name = _pick(rng, tree)
            if other is not None:
                parent[key] = _copy(other[name])
        else:
            parent[key] = _other(rng, parent[key])
    return tree


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) else value


def _pick(rng: Random, tree: Any) -> tuple[Any, Any]:
    """Return a node as its parent and its key; no parent for the whole tree."""
    parent, key, node = None, None, tree
    while isinstance(node, dict | list) and node and (parent is None or rng.random() < 0.8):
        if parent is None and rng.random() < 0.01:
            break
        parent = node
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
    return parent, key


def _other(rng: Random, value: Any) -> Any:
    """Return another value, often one of the same type."""
    if rng.random() < 0.2:
        return rng.choice((*INTEGERS, *STRINGS)) if rng.random() < 0.6 else _copy_other(rng)
    if isinstance(value, bool) or value is None:
        return rng.choice((None, True, False, 0, "a" * 64))
    if isinstance(value, int):
        step = rng.randrange(6)
        return (
            value + rng.choice((-64, -1, 1, 64)),
            -value,
            2 * value,
            value // 2,
            value ^ (1 << rng.randrange(40)),
            rng.choice(INTEGERS),
        )[step]
    if isinstance(value, float):
        return rng.choice((-value, 0.0, value * 1e3, value * 1e-3, value * 1e9, value + 1, 1e300))
    if isinstance(value, str):
        return _string(rng, value)
    if isinstance(value, list):
        return rng.choice(([], value * 2, value[::-1], value[:-1], [value], value * 40))
    return rng.choice(({}, [value], list(value), {**value, "": 0}))


def _copy_other(rng: Random) -> Any:
    return _copy(rng.choice(OTHERS))


def _string(rng: Random, value: str) -> str:
    step = rng.randrange(6)
    if step == 0 or not value:
        return rng.choice(STRINGS)
    at = rng.randrange(len(value))
    if step == 1:
        return value[:at]
    if step == 2:
        return value + value[at:]
    if step == 3:
        return value.upper()
    return value[:at] + rng.choice("0123456789abcdef/_- \x00\xe9\n") + value[at + 1 :]


# -- containers -----------------------------------------------------------------------------


def split(data: bytes) -> tuple[int, bytes, bytes]:
    """Return version, header text and payload of a valid container."""
    version, size = struct.unpack_from("<QQ", data, 8)
    return version, data[64 : 64 + size], data[64 + size :]


def seal(header: bytes, payload: bytes, version: int = 2) -> bytes:
    """Return a container whose checksum of the header is right."""
    header += b" " * (-len(header) % 64)
    fixed = MAGIC + struct.pack("<QQQ", version, len(header), len(payload))
    return b"".join((fixed, hashlib.sha256(fixed + header).digest(), header, payload))


def mutate_container(rng: Random, example: bytes, examples: Sequence[bytes]) -> bytes:
    """Return a container with other fields, tensors or residues, its checksums mostly right."""
    version, text, payload = split(example)
    step = rng.random()
    if step < 0.05:
        return _mutate_preamble(rng, example)
    if step < 0.10:  # the header of one, the payload of another
        _, _, payload = split(examples[rng.randrange(len(examples))])
        return seal(text, payload, version)
    header = json.loads(text)
    if step < 0.20:
        payload = _mutate_payload(rng, payload)
        _sum_up(header, payload)
    elif step < 0.35:
        payload = _reshape(rng, header, payload)
    else:
        header = mutate_tree(rng, header, examples)
        if rng.random() < 0.2:
            payload = _mutate_payload(rng, payload)
        if rng.random() < 0.3:
            _sum_up(header, payload)
    if rng.random() < 0.02:
        version = rng.choice((0, 1, 3, 2**63))
    text = _dump(rng, header)
    if rng.random() < 0.05:
        text = mutate_bytes(rng, text, examples)
    return seal(text, payload, version)


def _mutate_preamble(rng: Random, example: bytes) -> bytes:
    data = bytearray(example)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.choice((0, 8, 16, 16, 24, 24, 32))
        (old,) = struct.unpack_from("<Q", data, at)
        new = rng.choice((old + 64, old - 64, old * 2, old + 1, *INTEGERS)) & (2**64 - 1)
        struct.pack_into("<Q", data, at, new)
    if rng.random() < 0.8:  # as an attacker would
        _, size = struct.unpack_from("<QQ", data, 8)
        covered = bytes(data[:32]) + bytes(data[64 : 64 + min(size, len(data))])
        data[32:64] = hashlib.sha256(covered).digest()
    return bytes(data)


def _mutate_payload(rng: Random, payload: bytes) -> bytes:
    data = bytearray(payload)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if len(data) < 4:
            break
        at = rng.randrange(len(data) // 4) * 4
        value = rng.choice((0, 1, 2**25, 2**30 - 1, 2**30, 2**31, 2**32 - 1, rng.getrandbits(32)))
        data[at : at + 4] = value.to_bytes(4, "little")
    step = rng.random()
    if step < 0.05:
        del data[rng.randrange(len(data) + 1) :]
    elif step < 0.10:
        data += bytes(rng.choice((1, 64, 4096)))
    return bytes(data)


def _entries(header: Any) -> dict[str, Any]:
    tensors = header.get("tensors") if isinstance(header, dict) else None
    return tensors if isinstance(tensors, dict) else {}


def _sum_up(header: Any, payload: bytes) -> None:
    """Correct the checksums of the tensors that can be found."""
    for entry in _entries(header).values():
        try:
            begin, end = entry["offsets"]
            if 0 <= begin <= end <= len(payload):
                entry["sha256"] = hashlib.sha256(payload[begin:end]).hexdigest()
        except (TypeError, ValueError, KeyError):
            continue


def _reshape(rng: Random, header: dict[str, Any], payload: bytes) -> bytes:
    """Change shapes and number of tensors, and lay them out anew: all is consistent but them."""
    tensors = header["tensors"]
    old = {name: payload[slice(*entry["offsets"])] for name, entry in tensors.items()}
    for _ in range(rng.choice((1, 1, 2))):
        if not tensors:
            break
        name = rng.choice(list(tensors))
        entry, step = tensors[name], rng.randrange(7)
        shape = entry["shape"]
        axis = rng.randrange(len(shape)) if shape else 0
        if step == 0:
            shape[axis] = rng.choice((1, 2, 3, shape[axis] * 2, shape[axis] + 1, 1024, 64))
        elif step == 1:
            shape.insert(axis, rng.choice((1, 2)))
        elif step == 2 and len(shape) > 1:
            shape[axis - 1] *= shape.pop(axis)
        elif step == 3:
            del tensors[name]
        elif step == 4:
            copy = rng.choice(("data", "b", "more", "galois/25", "raised/3"))
            tensors[copy], old[copy] = _copy(entry), old[name]
        elif step == 5:
            entry["dtype"] = rng.choice(("int8", "uint32"))
        else:
            shape.reverse()
    pieces, begin = [], 0
    for name, entry in tensors.items():
        size = prod(entry["shape"]) * (1 if entry["dtype"] == "int8" else 4)
        if size > MOST:  # claimed only: as of more bytes than there are
            entry["offsets"] = [begin, begin + size]
            continue
        piece = (old[name] * (size // max(1, len(old[name])) + 1))[:size].ljust(size, b"\0")
        entry["offsets"] = [begin, begin + size]
        entry["sha256"] = hashlib.sha256(piece).hexdigest()
        begin += size
        pieces.append(piece)
    return b"".join(pieces)
