"""How ciphertexts travel between Dask workers: residues as one frame, which is not copied.

Dask's fallback is pickle. Its `sizeof` does not see what a dataclass holds, and everything that it
decides or shows about memory and transfers follows from that number, so both are registered here.
Importing this module registers, in every process: the client and the plugin do.

A sum of the residues goes along, for links and disks (where Dask spills to) that damage them: a
wrong bit would make a wrong result that nobody could tell. What stays on GPUs has none.

The channel is that between the processes of one cluster, which run each other's code anyway;
nothing here checks data from strangers (`aegis_dask.ckks.serialization` does).
"""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash
from dask.sizeof import sizeof
from distributed.protocol import dask_deserialize, dask_serialize
from distributed.protocol.cuda import cuda_deserialize, cuda_serialize
from numpy.typing import NDArray

from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters, ParametersLiteral
from aegis_dask.ckks.scale import Scale
from aegis_dask.errors import InsecureParametersWarning, IntegrityError
from aegis_dask.placement.limbs.shard import State
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.ring.backend import contiguous

Header = dict[str, Any]
OVERHEAD = 512
"""Size of the objects around the residues, roughly."""


class Results(tuple[Any, ...]):
    """The results of a task that has several."""

    __slots__ = ()


@dataclass(frozen=True)
class Damaged:
    """Stands for ciphertexts that have not arrived as they were sent (see `check_intact`).

    An exception while Dask reads a message would leave the tasks that wait for it waiting for ever.
    """


def check_intact(value: Any) -> None:
    """Check that a value has arrived as it was sent.

    Raises
    ------
    IntegrityError
        If it has not.
    """
    if isinstance(value, Damaged):
        raise IntegrityError(
            "ciphertexts were damaged on their way between two processes, or on the disk that Dask "
            "spills to; run again, and check network and memory of the hosts"
        )
    if isinstance(value, Results):
        for part in value:
            check_intact(part)


@lru_cache(maxsize=64)
def _literal_text(literal: ParametersLiteral) -> str:
    return json.dumps(asdict(literal))


@lru_cache(maxsize=64)
def _parameters(text: str) -> Parameters:
    fields = json.loads(text)
    literal = ParametersLiteral(**{**fields, "level_bits": tuple(fields["level_bits"])})
    with warnings.catch_warnings():  # the client has been warned
        warnings.simplefilter("ignore", InsecureParametersWarning)
        return Parameters.from_literal(literal)


@lru_cache(maxsize=4096)
def _scale_text(scale: Scale) -> str:
    # As text: the bases may exceed the 64 bits that a header can hold.
    return " ".join(f"{base}^{exponent}" for base, exponent in scale.factors)


@lru_cache(maxsize=4096)
def _scale(text: str) -> Scale:
    factors = (word.split("^") for word in text.split())
    return Scale({int(base): Fraction(exponent) for base, exponent in factors})


def serialize_ciphertext(x: Ciphertext, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and frame of a ciphertext."""
    data = np.ascontiguousarray(x.params.ring.to_host(x.data))
    return {**_header(x), "shape": list(data.shape), "sum": _sum(data)}, [data.data]


def _sum(data: NDArray[Any]) -> int:
    # At the speed of memory. It finds damage; against people there is TLS.
    return int(xxhash.xxh3_64_intdigest(data.data))


def _header(x: Ciphertext) -> Header:
    return {
        "params": _literal_text(x.params.literal),
        "level": x.level,
        "scale": _scale_text(x.scale),
        "seed": x.seed,
    }


def deserialize_ciphertext(header: Header, frames: list[Any]) -> Ciphertext | Damaged:
    """Return the ciphertext over the memory of the frame; on a GPU, over a copy.

    Residues that are not those that were sent give `Damaged`.
    """
    data = np.frombuffer(memoryview(frames[0]).cast("B"), np.uint8)
    if _sum(data) != header["sum"]:
        return Damaged()
    if not data.flags.writeable or data.ctypes.data % 4:
        data = data.copy()  # kernels are compiled for aligned, writable arrays
    words = data.view(np.uint32).reshape(header["shape"])
    return _ciphertext(header, _parameters(header["params"]).ring.from_host(words))


def _ciphertext(header: Header, data: Any) -> Ciphertext:
    params, scale = _parameters(header["params"]), _scale(header["scale"])
    return Ciphertext(params, data, header["level"], scale, header["seed"])


def serialize_array(x: CipherArray, context: Any = None) -> tuple[Header, list[Any]]:
    """Return header and frame of an array of ciphertexts."""
    header, frames = serialize_ciphertext(x.batch)
    return {**header, "array": list(x.shape)}, frames


def deserialize_array(header: Header, frames: list[Any]) -> CipherArray | Damaged:
    """Return the array over the memory of the frame."""
    batch = deserialize_ciphertext(header, frames)
    return batch if isinstance(batch, Damaged) else CipherArray(batch, tuple(header["array"]))


def serialize_on_device(x: Ciphertext) -> tuple[Header, list[Any]]:
    """Return header and frame of a ciphertext, the frame on the device, where it stays.

    Raises
    ------
    NotImplementedError
        If it is not on a device: Dask then takes the next family.
    """
    try:
        serialize = cuda_serialize.dispatch(type(x.data))
    except TypeError as e:
        raise NotImplementedError(f"{x!r} is on the host") from e
    data = contiguous(x.params.ring, x.data)
    inner, frames = serialize(data)
    return {**_header(x), "residues": inner, "type": pickle.dumps(type(data))}, frames


def deserialize_on_device(header: Header, frames: list[Any]) -> Ciphertext:
    """Return the ciphertext over the memory of a frame on the device."""
    load = cuda_deserialize.dispatch(pickle.loads(header["type"]))
    return _ciphertext(header, load(header["residues"], frames))


def serialize_array_on_device(x: CipherArray) -> tuple[Header, list[Any]]:
    """Return header and frame of an array of ciphertexts, the frame on the device."""
    header, frames = serialize_on_device(x.batch)
    return {**header, "array": list(x.shape)}, frames


def deserialize_array_on_device(header: Header, frames: list[Any]) -> CipherArray:
    """Return the array over the memory of a frame on the device."""
    return CipherArray(deserialize_on_device(header, frames), tuple(header["array"]))


def _is_on_device(x: Any) -> bool:
    if isinstance(x, Results):
        return any(_is_on_device(v) for v in x)
    data = x.batch.data if isinstance(x, CipherArray) else getattr(x, "data", None)
    return hasattr(data, "__cuda_array_interface__")


def payload_bytes(value: Any) -> int:
    """Return the bytes of residues (or slots) of a value, without anything around them."""
    if isinstance(value, Results):
        return sum(payload_bytes(v) for v in value)
    return int(getattr(value, "nbytes", 0))


def register() -> None:
    """Register with Dask; importing this module has done it."""
    dask_serialize.register(Ciphertext)(serialize_ciphertext)
    dask_deserialize.register(Ciphertext)(deserialize_ciphertext)
    dask_serialize.register(CipherArray)(serialize_array)
    dask_deserialize.register(CipherArray)(deserialize_array)
    sizeof.register((Ciphertext, CipherArray))(lambda x: payload_bytes(x) + OVERHEAD)
    sizeof.register(State)(lambda x: OVERHEAD + x.nbytes)
    sizeof.register(Results)(lambda x: OVERHEAD + sum(sizeof(v) for v in x))
    # Dask takes this family where the transport can (UCX); see `serialize_on_device`.
    cuda_serialize.register(Ciphertext)(serialize_on_device)
    cuda_deserialize.register(Ciphertext)(deserialize_on_device)
    cuda_serialize.register(CipherArray)(serialize_array_on_device)
    cuda_deserialize.register(CipherArray)(deserialize_array_on_device)
    if "dask_cuda" in sys.modules:  # a worker of dask-cuda: it spills what is on the device
        from dask_cuda.is_device_object import is_device_object

        is_device_object.register((Ciphertext, CipherArray, Results))(_is_on_device)


register()
