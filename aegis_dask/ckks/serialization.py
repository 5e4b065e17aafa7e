"""Writing and reading parameters, plaintexts, ciphertexts and keys.

Data from elsewhere are checked before an object is made of them: type, version, fingerprint of the
parameters, checksums, shapes, and every residue against its prime. The uniform halves of keys and
of fresh secret-key ciphertexts are written as their seeds. The container is that of `wire`.

What the checks cannot tell is who wrote the data: that is for the channel or a signature.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import metadata
from reprlib import repr as shorten
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks import formats, wire
from aegis_dask.ckks.bootstrapping.formats import BOOTSTRAPPING_KEYS
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.parameters import (
    AnyParameters,
    scheme_of,
)
from aegis_dask.ckks.files import PRIVATE, require_private, write_atomically
from aegis_dask.ckks.formats import key_name, read_key, read_key_entries
from aegis_dask.ckks.header import check_keys, read_parameters, write_parameters
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, PublicKey, SecretKey
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import IntegrityError, MissingKeyError, SerializationError

Serializable = (
    Parameters
    | Plaintext
    | Ciphertext
    | PublicKey
    | EvaluationKey
    | EvaluationKeys
    | BootstrappingKeys
)
"""What can be written; a secret key only by `save_secret_key`."""

"""With those of bootstrapping, the parameters of their scheme are meant where no more is needed."""

FORMATS = {**formats.FORMATS, BootstrappingKeys: BOOTSTRAPPING_KEYS}

T = TypeVar("T", bound=Serializable)
Path = str | os.PathLike[str]

_COMMON_KEYS = frozenset({"type", "library", "parameters", "fingerprint"})
_SECRET = "SecretKey"


# -- the public functions -------------------------------------------------------------------


def dumps(obj: Serializable) -> bytes:
    """Return an object as bytes; equal objects give equal bytes.

    Raises
    ------
    SerializationError
        If the object is a secret key, cannot be written, or contradicts its own parameters.
    """
    return b"".join(_frame(obj))


def save(obj: Serializable, path: Path, *, mode: int = 0o666) -> None:
    """Write an object to a file, completely or not at all; an existing file is replaced.

    Parameters
    ----------
    obj
        The object.
    path
        The file.
    mode
        Permissions from the moment the file exists, less the umask.

    Raises
    ------
    SerializationError
        As for `dumps`.
    OSError
        If the file cannot be written.
    """
    write_atomically(path, _frame(obj), mode=mode)


@overload
def loads(
    data: wire.Buffer,
    params: AnyParameters | None = ...,
    *,
    expect: None = ...,
    allow_insecure: bool = ...,
) -> Serializable: ...
@overload
def loads(
    data: wire.Buffer,
    params: AnyParameters | None = ...,
    *,
    expect: type[T],
    allow_insecure: bool = ...,
) -> T: ...
def loads(
    data: wire.Buffer,
    params: AnyParameters | None = None,
    *,
    expect: type[Any] | None = None,
    allow_insecure: bool = False,
) -> Any:
    """Return the object that `dumps` wrote.

    Parameters
    ----------
    data
        Bytes. The residues stay in a writable buffer, which the object then shares.
    params
        The parameters the object must belong to; without them those of the data are rebuilt.
        `BootstrappingKeys` are read with their `BootstrappingParameters` only.
    expect
        The class the object must have.
    allow_insecure
        Accept rebuilt parameters without 128-bit security. Never for real data.

    Raises
    ------
    SerializationError
        If the data are not such an object, or of another version.
    IntegrityError
        If they are damaged or incomplete, or a residue is not below its prime.
    IncompatibleError
        If they belong to other parameters than `params`.
    InsecureParametersError
        If their parameters are insecure and that is not allowed.
    """
    return _unpack(wire.open_buffer(data), params, expect, allow_insecure)


@overload
def load(
    path: Path,
    params: AnyParameters | None = ...,
    *,
    expect: None = ...,
    mmap: bool = ...,
    allow_insecure: bool = ...,
) -> Serializable: ...
@overload
def load(
    path: Path,
    params: AnyParameters | None = ...,
    *,
    expect: type[T],
    mmap: bool = ...,
    allow_insecure: bool = ...,
) -> T: ...
def load(
    path: Path,
    params: AnyParameters | None = None,
    *,
    expect: type[Any] | None = None,
    mmap: bool = False,
    allow_insecure: bool = False,
) -> Any:
    """Return the object in a file.

    Parameters
    ----------
    path
        The file.
    params, expect, allow_insecure
        As for `loads`.
    mmap
        Map the file instead of reading it, so that processes of a machine share its memory. Then it
        must not be changed in place (`save` replaces it, which is safe).

    Raises
    ------
    SerializationError, IntegrityError, IncompatibleError, InsecureParametersError
        As for `loads`.
    OSError
        If the file cannot be read.
    """
    with wire.open_file(path, use_mmap=mmap) as container:
        return _unpack(container, params, expect, allow_insecure)


def load_evaluation_key(
    path: Path,
    galois_element: int | None,
    params: AnyParameters | None = None,
    *,
    mmap: bool = False,
    allow_insecure: bool = False,
) -> EvaluationKey:
    """Return one key of a file of `EvaluationKeys` without reading the others.

    Parameters
    ----------
    path
        The file.
    galois_element
        Galois element of the key, or None for the relinearisation key.
    params, mmap, allow_insecure
        As for `load`.

    Raises
    ------
    MissingKeyError
        If the file does not hold that key.
    SerializationError, IntegrityError, IncompatibleError, InsecureParametersError
        As for `loads`.
    OSError
        If the file cannot be read.
    """
    with wire.open_file(path, use_mmap=mmap) as container:
        own = _check_header(container, EvaluationKeys, params, allow_insecure)
        entries = read_key_entries(container, own)
        if galois_element not in entries:
            held = ", ".join("relinearisation" if g is None else str(g) for g in entries)
            raise MissingKeyError(
                f"{os.fspath(path)} holds no key of "
                f"{'relinearisation' if galois_element is None else galois_element}; it holds "
                f"{held or 'none'}"
            )
        return read_key(container, own, key_name(galois_element), entries[galois_element])


def save_secret_key(
    key: SecretKey, path: Path, *, unencrypted: bool = False, overwrite: bool = False
) -> None:
    """Write a secret key, unencrypted, to a file that only its owner can read.

    Parameters
    ----------
    key
        The secret key.
    path
        The file, of mode 0600 from the start.
    unencrypted
        Must be True: whoever reads the file can decrypt everything.
    overwrite
        Whether an existing file may be replaced; its key would be lost.

    Raises
    ------
    SerializationError
        If `unencrypted` is not True, or the file exists and `overwrite` is not set.
    OSError
        If the file cannot be written.
    """
    if not isinstance(key, SecretKey):
        raise SerializationError(f"a SecretKey was expected, {type(key).__name__} was given")
    if unencrypted is not True:
        raise SerializationError(
            "the file would hold the secret key unencrypted, and whoever reads it can decrypt "
            "everything; pass unencrypted=True if that is what you want"
        )
    _check_ternary(key._coefficients, key.params)
    coefficients = np.ascontiguousarray(key._coefficients, np.int8)
    fields = {"type": _SECRET, "library": _library_version(), **write_parameters(key.params)}
    pieces = wire.frame(fields, {"coefficients": coefficients})
    write_atomically(path, pieces, mode=PRIVATE, overwrite=overwrite)


def load_secret_key(path: Path, params: Parameters) -> SecretKey:
    """Return the secret key in a file that `save_secret_key` wrote.

    Raises
    ------
    SerializationError
        If others than the owner have access to the file, or it is not a secret key.
    IntegrityError
        If it is damaged or incomplete, or a coefficient is not -1, 0 or 1.
    IncompatibleError
        If it belongs to other parameters than `params`.
    OSError
        If the file cannot be read.
    """
    require_private(path)
    with wire.open_file(path) as container:
        kind = container.fields.get("type")
        if kind != _SECRET:
            raise SerializationError(f"the file holds {shorten(kind)}, not a secret key")
        check_keys("the header of a secret key", container.fields, _COMMON_KEYS)
        read_parameters(container.fields, params, False)
        check_keys("the tensors of a secret key", container.entries, {"coefficients"})
        entry = container.entries["coefficients"]
        if (entry.dtype, entry.shape) != ("int8", (params.ring_degree,)):
            raise SerializationError(
                f"the secret key is {entry.dtype}{list(entry.shape)}, "
                f"int8[{params.ring_degree}] was expected"
            )
        coefficients = container.tensor("coefficients")
        _check_ternary(coefficients, params)
        return SecretKey(params, coefficients.astype(np.int64))


# -- the container of an object -------------------------------------------------------------


@cache
def _library_version() -> str:
    try:
        return metadata.version("aegis-dask")
    except metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _frame(obj: Serializable) -> list[wire.Buffer]:
    form = FORMATS.get(type(obj))
    if isinstance(obj, SecretKey):
        raise SerializationError(
            "a secret key is written by save_secret_key only, when you ask for it explicitly"
        )
    if form is None:
        raise SerializationError(
            f"a {type(obj).__name__} cannot be written; there are "
            f"{', '.join(c.__name__ for c in FORMATS)}"
        )
    own, tensors = form.pack(obj)
    scheme = scheme_of(obj if isinstance(obj, Parameters) else obj.params)
    common = {"type": type(obj).__name__, "library": _library_version(), **write_parameters(scheme)}
    return wire.frame({**common, **own}, tensors)


def _unpack(
    container: wire.Container,
    params: AnyParameters | None,
    expect: type[Any] | None,
    allow_insecure: bool,
) -> Any:
    kind = container.fields.get("type")
    if kind == _SECRET:
        raise SerializationError("the data hold a secret key; read it with load_secret_key")
    found = next((c for c in FORMATS if c.__name__ == kind), None)
    if found is None:
        raise SerializationError(
            f"the data hold an object of type {shorten(kind)}; this version reads "
            f"{', '.join(c.__name__ for c in FORMATS)}"
        )
    own = _check_header(container, found if expect is None else expect, params, allow_insecure)
    # Parameters of bootstrapping are not rebuilt: keys to the ephemeral secret need those given.
    return FORMATS[found].unpack(container, params if found is BootstrappingKeys else own)


def _check_header(
    container: wire.Container,
    expect: type[Any],
    params: AnyParameters | None,
    allow_insecure: bool,
) -> Parameters:
    """Check type and field names; return the parameters of the scheme."""
    kind = container.fields.get("type")
    if kind != expect.__name__ or expect not in FORMATS:
        raise SerializationError(
            f"the data hold an object of type {shorten(kind)}, {expect.__name__} was expected"
        )
    keys = _COMMON_KEYS | FORMATS[expect].keys_of(container.version)
    check_keys(f"the header of {kind}", container.fields, keys)
    scheme = None if params is None else scheme_of(params)
    return read_parameters(container.fields, scheme, allow_insecure)


def _check_ternary(coefficients: NDArray[Any], params: Parameters) -> None:
    outside = (coefficients < -1) | (coefficients > 1)
    if coefficients.shape != (params.ring_degree,) or outside.any():
        raise IntegrityError(
            f"a secret key has {params.ring_degree} coefficients -1, 0 or 1; these are "
            f"{coefficients.size}, {int(outside.sum())} of them others"
        )
