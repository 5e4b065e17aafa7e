"""How each class is laid out in a container: header fields and tensors, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks import sampling
from aegis_dask.ckks.header import (
    check_keys,
    read_galois_element,
    read_integer,
    read_scale,
    read_seeds,
    write_scale,
)
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, PublicKey
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import Parameters, check_same
from aegis_dask.ckks.wire import Container
from aegis_dask.errors import IntegrityError, SerializationError

if TYPE_CHECKING:
    from aegis_dask.ring.backend import Ring

Fields = dict[str, Any]
Tensors = dict[str, NDArray[Any]]
Shape = Sequence[int | None]
"""Expected shape; None stands for any length from 1."""


@dataclass(frozen=True)
class Format:
    """How one class is written.

    Attributes
    ----------
    keys
        Names of its header fields, besides the ones that every class has.
    added
        Names that format version 2 added.
    pack
        Returns its header fields and tensors.
    unpack
        Makes the object of a container with exactly these fields, all checked, and of its
        parameters.
    """

    keys: frozenset[str]
    pack: Callable[[Any], tuple[Fields, Tensors]]
    unpack: Callable[[Container, Any], Any]
    added: frozenset[str] = frozenset()

    def keys_of(self, version: int) -> frozenset[str]:
        """Return the names of the header fields in a format version."""
        return self.keys | self.added if version >= 2 else self.keys


# -- parameters and plaintexts --------------------------------------------------------------


def _pack_parameters(_: Parameters) -> tuple[Fields, Tensors]:
    return {}, {}  # every header has them


def _unpack_parameters(container: Container, params: Parameters) -> Parameters:
    check_keys("the tensors of parameters", container.entries, ())
    return params


def _pack_plaintext(plaintext: Plaintext) -> tuple[Fields, Tensors]:
    params, period = plaintext.params, _period(plaintext.period, plaintext.params)
    level, scale = _pack_level_and_scale(plaintext)
    shape = (len(params.window(level)), 2 * period)
    # One that repeats is on the host already.
    data = plaintext.data if plaintext.is_periodic else params.ring.to_host(plaintext.data)
    data = _checked_residues("the plaintext", data, shape)
    return {"level": level, "scale": scale, "period": period}, {"data": data}


def _unpack_plaintext(container: Container, params: Parameters) -> Plaintext:
    check_keys("the tensors of a plaintext", container.entries, {"data"})
    fields = container.fields
    level = read_integer("the level", fields["level"], 0, params.max_level)
    scale, period = read_scale(fields["scale"], params), _period(fields["period"], params)
    primes = _primes(params, level)
    data = read_residues(container, "data", (len(primes), 2 * period), primes)
    if period == params.slots:
        data = params.ring.from_host(data)
    return Plaintext(params, data, level, scale, period)


def _period(value: Any, params: Parameters) -> int:
    period = read_integer("the period", value, 1, params.slots)
    if period & (period - 1):
        raise SerializationError(f"the period is {period}; a power of two is needed")
    return period


def _pack_level_and_scale(obj: Plaintext | Ciphertext) -> tuple[int, list[list[int]]]:
    scale = write_scale(obj.scale)
    read_scale(scale, obj.params)  # what cannot be read back is not written
    return read_integer("the level", int(obj.level), 0, obj.params.max_level), scale


# -- ciphertexts ----------------------------------------------------------------------------


def _pack_ciphertext(ct: Ciphertext) -> tuple[Fields, Tensors]:
    params = ct.params
    level, scale = _pack_level_and_scale(ct)
    polynomial = (len(params.window(level)), params.ring_degree)
    if ct.seed is None:
        data = host_residues(params.ring, "the ciphertext", ct.data, (None, None, *polynomial))
        _check_components(data.shape[1])
        return {"level": level, "scale": scale, "seeds": None}, {"data": data}
    _check_seed(ct)
    body = host_residues(params.ring, "component 0", ct.data[:, 0], (None, *polynomial))
    return {"level": level, "scale": scale, "seeds": ct.seed.hex()}, {"c0": body}


def _unpack_ciphertext(container: Container, params: Parameters) -> Ciphertext:
    fields = container.fields
    seeded = fields["seeds"] is not None
    name = "c0" if seeded else "data"
    check_keys("the tensors of a ciphertext", container.entries, {name})
    level = read_integer("the level", fields["level"], 0, params.max_level)
    scale, primes = read_scale(fields["scale"], params), _primes(params, level)
    polynomial = (len(primes), params.ring_degree)
    if not seeded:
        data = read_residues(container, name, (None, None, *polynomial), primes)
        _check_components(data.shape[1])
        return Ciphertext(params, params.ring.from_host(data), level, scale)
    seed = read_seeds("the ciphertext", fields["seeds"], container.entries[name].shape[0])
    body = read_residues(container, name, (None, *polynomial), primes)
    out = params.ring.empty((len(body), 2, *polynomial))
    out[:, 0] = params.ring.from_host(body)
    for b in range(len(body)):
        out[b, 1] = _mask(params, seed, b, params.limbs(level))
    return Ciphertext(params, out, level, scale, seed)


def _mask(params: Parameters, seed: bytes, index: int, limbs: list[int]) -> Any:
    """Return component 1 of a fresh secret-key ciphertext, as the encryptor made it."""
    own = seed[index * sampling.SEED_BYTES : (index + 1) * sampling.SEED_BYTES]
    return params.ring.uniform(own, sampling.DOMAIN_CIPHERTEXT, [0], limbs)[0]


def _check_components(count: int) -> None:
    if count not in (2, 3):
        raise SerializationError(f"the ciphertext has {count} components; 2 or 3 are possible")


def _check_seed(ct: Ciphertext) -> None:
    """Check that leaving component 1 out loses nothing, by its first limb."""
    seed, limb, host = ct.seed or b"", ct.params.limbs(ct.level)[:1], ct.params.ring.to_host
    if (
        ct.components != 2
        or len(seed) != ct.batch * sampling.SEED_BYTES
        or not all(
            np.array_equal(host(ct.data[b, 1, :1]), host(_mask(ct.params, seed, b, limb)))
            for b in range(ct.batch)
        )
    ):
        raise SerializationError(
            "the seed of the ciphertext is not that of its component 1; objects with other "
            "residues are made with Ciphertext.with_data, which drops the seed"
        )


# -- keys -----------------------------------------------------------------------------------


def _pack_public_key(key: PublicKey) -> tuple[Fields, Tensors]:
    shape = (len(key.params.chain.all_primes), key.params.ring_degree)
    b = host_residues(key.params.ring, "the public key", key.b, shape)
    return {"seed": write_seed(key.seed)}, {"b": b}


def _unpack_public_key(container: Container, params: Parameters) -> PublicKey:
    check_keys("the tensors of a public key", container.entries, {"b"})
    seed = read_seeds("the public key", container.fields["seed"], 1)
    primes = params.chain.all_primes
    b = read_residues(container, "b", (len(primes), params.ring_degree), primes)
    return PublicKey(params, params.ring.from_host(b), seed)


def _pack_evaluation_key(key: EvaluationKey) -> tuple[Fields, Tensors]:
    return {"seed": write_seed(key.seed), "level": key.level}, {"b": _pack_key(key)}


def _unpack_evaluation_key(container: Container, params: Parameters) -> EvaluationKey:
    check_keys("the tensors of an evaluation key", container.entries, {"b"})
    fields, level = container.fields, params.max_level
    if container.version >= 2:
        level = read_integer("the level of the key", fields["level"], 0, params.max_level)
    seed = read_seeds("the key", fields["seed"], 1)
    return read_key(container, params, "b", KeyEntry(seed, level))


def pack_evaluation_keys(keys: EvaluationKeys) -> tuple[Fields, Tensors]:
    """Return header fields and tensors of keys of any levels."""
    everything: dict[int | None, EvaluationKey] = dict(sorted(keys.galois.items()))
    for element in everything:
        read_galois_element(str(element), keys.params.ring_degree)
    if keys.relinearisation is not None:
        everything = {None: keys.relinearisation, **everything}
    for key in everything.values():
        check_same(keys, key)
    fields = {
        "relinearisation": None if None not in everything else write_seed(everything[None].seed),
        "galois": {str(g): write_seed(key.seed) for g, key in everything.items() if g is not None},
        "levels": {key_name(g): key.level for g, key in everything.items()},
    }
    return fields, {key_name(g): _pack_key(key) for g, key in everything.items()}


def unpack_evaluation_keys(
    container: Container, params: Parameters, others: Collection[str] = ()
) -> EvaluationKeys:
    """Return the keys of a container that holds the tensors `others` as well."""
    keys = {
        element: read_key(container, params, key_name(element), entry)
        for element, entry in read_key_entries(container, params, others).items()
    }
    galois = {element: key for element, key in keys.items() if element is not None}
    return EvaluationKeys(params, keys.get(None), galois)


@dataclass(frozen=True)
class KeyEntry:
    """What a header says about an evaluation key, checked."""

    seed: bytes
    level: int


def key_name(galois_element: int | None) -> str:
    """Return the name of a key's tensor: of a Galois element, or None for relinearisation."""
    return "relinearisation" if galois_element is None else f"galois/{galois_element}"


def read_key_entries(
    container: Container, params: Parameters, others: Collection[str] = ()
) -> dict[int | None, KeyEntry]:
    """Return seeds and levels of all keys in a container.

    Each has a tensor, and there are no further ones than `others`.
    """
    relinearisation, galois = container.fields["relinearisation"], container.fields["galois"]
    if not isinstance(galois, dict):
        raise SerializationError("the Galois keys are not an object of Galois element -> seed")
    seeds: dict[int | None, bytes] = {}
    if relinearisation is not None:
        seeds[None] = read_seeds("the relinearisation key", relinearisation, 1)
    for text, seed in galois.items():
        element = read_galois_element(text, params.ring_degree)
        seeds[element] = read_seeds(f"Galois key {element}", seed, 1)
    names = {g: key_name(g) for g in seeds}
    check_keys("the tensors of keys", container.entries, {*names.values(), *others})
    if container.version < 2:  # every key served all levels
        return {g: KeyEntry(seed, params.max_level) for g, seed in seeds.items()}
    levels = container.fields["levels"]
    if not isinstance(levels, dict):
        raise SerializationError("the levels of the keys are not an object of name -> level")
    check_keys("the levels of keys", levels, names.values())
    return {
        g: KeyEntry(
            seed, read_integer(f"the level of {names[g]}", levels[names[g]], 0, params.max_level)
        )
        for g, seed in seeds.items()
    }


def read_key(container: Container, params: Parameters, name: str, entry: KeyEntry) -> EvaluationKey:
    """Return the evaluation key of a tensor ``[digit, prime, N]`` and its entry."""
    primes = [params.chain.all_primes[i] for i in params.key_limbs(entry.level)]
    shape = (len(params.key_digits(entry.level)), len(primes), params.ring_degree)
    b = read_residues(container, name, shape, primes)
    return EvaluationKey(params, params.ring.from_host(b), entry.seed, entry.level)


def _pack_key(key: EvaluationKey) -> NDArray[Any]:
    params = key.params
    limbs, digits = params.key_limbs(key.level), params.key_digits(key.level)
    shape = (len(digits), len(limbs), params.ring_degree)
    return host_residues(params.ring, "the key", key.b, shape)


def write_seed(seed: bytes) -> str:
    """Return the seed of a key as hexadecimal text."""
    read_seeds("the key", seed.hex(), 1)  # what cannot be read back is not written
    return seed.hex()


# -- residues -------------------------------------------------------------------------------


def _primes(params: Parameters, level: int) -> tuple[int, ...]:
    window = params.window(level)
    return params.chain.primes[window.start : window.stop]


def host_residues(ring: Ring, what: str, data: Any, shape: Shape) -> NDArray[Any]:
    """Return residues of the expected shape as a contiguous host array."""
    return _checked_residues(what, ring.to_host(data), shape)


def _checked_residues(what: str, data: NDArray[Any], shape: Shape) -> NDArray[Any]:
    array = np.ascontiguousarray(data)
    _check_tensor(what, array.dtype.name, array.shape, shape)
    return array


def read_residues(
    container: Container, name: str, shape: Shape, primes: Sequence[int]
) -> NDArray[np.uint32]:
    """Return a tensor ``[..., limb, n]`` of the expected shape, every residue below its prime."""
    entry = container.entries[name]
    _check_tensor(f"tensor {name!r}", entry.dtype, entry.shape, shape)
    residues: NDArray[np.uint32] = container.tensor(name)
    largest = residues.max(axis=-1)
    bad = largest >= np.array(primes, np.uint32)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise IntegrityError(
            f"tensor {name!r} has the residue {largest[where]} in row {list(where)}; it must be "
            f"below the prime {primes[where[-1]]}"
        )
    return residues


def _check_tensor(what: str, dtype: str, shape: Sequence[int], expected: Shape) -> None:
    fits = len(shape) == len(expected) and all(
        s > 0 if e is None else s == e for s, e in zip(shape, expected, strict=True)
    )
    if dtype != "uint32" or not fits:
        axes = ", ".join("any" if e is None else str(e) for e in expected)
        raise SerializationError(f"{what} is {dtype}{list(shape)}, expected uint32[{axes}]")


FORMATS: dict[type[Any], Format] = {
    Parameters: Format(frozenset(), _pack_parameters, _unpack_parameters),
    Plaintext: Format(frozenset({"level", "scale", "period"}), _pack_plaintext, _unpack_plaintext),
    Ciphertext: Format(
        frozenset({"level", "scale", "seeds"}), _pack_ciphertext, _unpack_ciphertext
    ),
    PublicKey: Format(frozenset({"seed"}), _pack_public_key, _unpack_public_key),
    EvaluationKey: Format(
        frozenset({"seed"}), _pack_evaluation_key, _unpack_evaluation_key, frozenset({"level"})
    ),
    EvaluationKeys: Format(
        frozenset({"relinearisation", "galois"}),
        pack_evaluation_keys,
        unpack_evaluation_keys,
        frozenset({"levels"}),
    ),
}
