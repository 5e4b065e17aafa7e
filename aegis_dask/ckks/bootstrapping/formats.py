"""How bootstrapping keys are laid out in a container, and what their parts must look like.

Beside the fields and tensors of the evaluation keys:

====================  ==================================================================
``ephemeral_secret``  weight and primes of the ephemeral secret, which are no part of the scheme
``to_sparse``         seed of the key to it; tensor ``to_sparse``, ``[digit, limb, N]``
``raised``            rotation -> seed of the key from it; tensors ``raised/<rotation>``
====================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, SeededKey
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.formats import (
    FORMATS,
    Fields,
    Format,
    Tensors,
    host_residues,
    pack_evaluation_keys,
    read_residues,
    unpack_evaluation_keys,
    write_seed,
)
from aegis_dask.ckks.header import read_integer, read_rotation, read_seeds
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.parameters import check_same
from aegis_dask.ckks.wire import Container
from aegis_dask.errors import IncompatibleError, SerializationError
from aegis_dask.ring.chain import ModulusChain
from aegis_dask.ring.registry import get_ring

# -- the keys to and from the ephemeral secret ----------------------------------------------


@dataclass(frozen=True)
class KeyLayout:
    """What a key to or from the ephemeral secret looks like.

    Attributes
    ----------
    chain
        Chain of its ring.
    limbs
        Indices of its primes.
    digits
        Number of digits.
    """

    chain: ModulusChain
    limbs: tuple[int, ...]
    digits: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of each half, ``[digit, limb, N]``."""
        return self.digits, len(self.limbs), self.chain.ring_degree

    @property
    def primes(self) -> list[int]:
        """Primes of the limbs."""
        return [self.chain.all_primes[i] for i in self.limbs]

    def key(self, b: NDArray[np.uint32], seed: bytes) -> SeededKey:
        """Return the key of a half of this shape."""
        ring = get_ring(self.chain)
        return SeededKey(ring, self.limbs, ring.from_host(b), seed)


def key_layout(params: BootstrappingParameters, rotation: int | None) -> KeyLayout:
    """Return the layout of the key of a raised ciphertext's rotation.

    None stands for the key to the ephemeral secret.
    """
    if rotation is None:
        chain = params.sparse_chain
        return KeyLayout(chain, tuple(range(len(chain.all_primes))), len(chain.primes))
    scheme = params.params
    return KeyLayout(scheme.chain, tuple(scheme.extended_limbs(scheme.max_level)), 1)


def tensor_name(rotation: int | None) -> str:
    """Return the name of a key's tensor."""
    return "to_sparse" if rotation is None else f"raised/{rotation}"


def own_keys(keys: BootstrappingKeys) -> dict[int | None, SeededKey]:
    """Return the key to the ephemeral secret, as None, and those of rotations in their order.

    Raises
    ------
    SerializationError
        If one has not the layout that the parameters give it, or no seed, or there is no such
        rotation.
    IncompatibleError
        If the evaluation keys belong to other parameters.
    """
    names = ("the bootstrapping parameters", "the evaluation keys")
    check_same(keys.params, keys.evaluation, names=names)
    own: dict[int | None, SeededKey] = {None: keys.to_sparse, **dict(sorted(keys.raised.items()))}
    for rotation, key in own.items():
        if rotation is not None:
            read_integer("the rotation of a key", rotation, 0, keys.params.params.slots - 1)
        write_seed(key.seed)  # what cannot be read back is not written
        layout = key_layout(keys.params, rotation)
        if (key.ring.chain, key.limbs, key.b.shape) != (layout.chain, layout.limbs, layout.shape):
            raise SerializationError(
                f"key {tensor_name(rotation)} has the shape {list(key.b.shape)}, {keys.params!r} "
                f"gives it {list(layout.shape)}, or it is over other primes; make keys with "
                "bootstrapping_keys"
            )
    return own


def from_own_keys(
    params: BootstrappingParameters,
    evaluation: EvaluationKeys,
    own: Mapping[int | None, SeededKey],
) -> BootstrappingKeys:
    """Return keys of what `own_keys` returns."""
    raised = {rotation: key for rotation, key in own.items() if rotation is not None}
    return BootstrappingKeys(params, evaluation, own[None], raised)


def ephemeral_secret(params: BootstrappingParameters) -> dict[str, Any]:
    """Return what keys depend on besides the scheme, JSON-ready.

    The rest of the literal says how keys are used, and a key that this needs and that is not there
    is a `MissingKeyError`.
    """
    chain = params.sparse_chain
    return {
        "weight": params.literal.sparse_weight,
        "primes": list(chain.primes),
        "special_primes": list(chain.special_primes),
    }


def check_ephemeral_secret(found: Any, params: BootstrappingParameters) -> None:
    """Raise `IncompatibleError` unless `found` is the `ephemeral_secret` of the parameters."""
    expected = ephemeral_secret(params)
    if found != expected:
        raise IncompatibleError(
            f"the keys belong to an ephemeral secret with {shorten(found)}, {params!r} was "
            f"expected with {expected}"
        )


# -- in a container -------------------------------------------------------------------------


def _pack(keys: BootstrappingKeys) -> tuple[Fields, Tensors]:
    own = own_keys(keys)
    fields, tensors = pack_evaluation_keys(keys.evaluation)
    for rotation, key in own.items():
        name, shape = tensor_name(rotation), key_layout(keys.params, rotation).shape
        tensors[name] = host_residues(key.ring, f"key {name}", key.b, shape)
    seeds = {str(rotation): write_seed(keys.raised[rotation].seed) for rotation in keys.raised}
    return {
        **fields,
        "ephemeral_secret": ephemeral_secret(keys.params),
        "to_sparse": write_seed(keys.to_sparse.seed),
        "raised": seeds,
    }, tensors


def _unpack(container: Container, params: Any) -> BootstrappingKeys:
    if not isinstance(params, BootstrappingParameters):
        raise SerializationError(
            "bootstrapping keys are read with the BootstrappingParameters that they belong to; "
            f"{params!r} was given"
        )
    scheme, fields = params.params, container.fields
    check_ephemeral_secret(fields["ephemeral_secret"], params)
    seeds: dict[int | None, bytes] = {
        None: read_seeds("the key to the ephemeral secret", fields["to_sparse"], 1)
    }
    if not isinstance(fields["raised"], dict):
        raise SerializationError("the keys of raised ciphertexts are no object of rotation -> seed")
    for text, seed in fields["raised"].items():
        rotation = read_rotation(text, scheme.slots)
        seeds[rotation] = read_seeds(f"key {tensor_name(rotation)}", seed, 1)
    names = {rotation: tensor_name(rotation) for rotation in seeds}
    evaluation = unpack_evaluation_keys(container, scheme, names.values())
    keys = {}
    for own, name in names.items():
        layout = key_layout(params, own)
        b = read_residues(container, name, layout.shape, layout.primes)
        keys[own] = layout.key(b, seeds[own])
    return from_own_keys(params, evaluation, keys)


BOOTSTRAPPING_KEYS = Format(
    FORMATS[EvaluationKeys].keys | {"ephemeral_secret", "to_sparse", "raised"},
    _pack,
    _unpack,
    FORMATS[EvaluationKeys].added,
)
