"""Expanded bootstrapping keys in a directory that the processes of a host map into memory.

As in `ckks.mapped`: working storage for one machine, whose pages the processes share. The folder
`EVALUATION` holds the evaluation keys. Beside it ``index.json`` names the key to the ephemeral
secret and those of raised ciphertexts, and ``keys.bin`` holds both halves of each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shorten
from typing import Any, BinaryIO

from aegis_dask.ckks.bootstrapping.formats import (
    KeyLayout,
    check_ephemeral_secret,
    ephemeral_secret,
    from_own_keys,
    key_layout,
    own_keys,
    tensor_name,
)
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, SeededKey
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.header import check_keys, read_rotation, read_seeds
from aegis_dask.ckks.mapped import (
    DATA,
    INDEX,
    check_order,
    map_halves,
    new_directory,
    new_file,
    open_expanded,
    read_digests,
    read_index,
    save_expanded,
    verify_halves,
    write_halves,
    write_index,
)
from aegis_dask.errors import SerializationError
from aegis_dask.ring.registry import get_ring

EVALUATION = "evaluation"

_KIND = "expanded bootstrapping keys"
_KEY_KEYS = {"rotation", "seed", "sha256"}


@dataclass(frozen=True)
class _Entry:
    """A key of the index, checked; `rotation` is None for the key to the ephemeral secret."""

    rotation: int | None
    layout: KeyLayout
    seed: bytes
    sha256: tuple[str, str]


def save_expanded_bootstrapping(keys: BootstrappingKeys, directory: str | os.PathLike[str]) -> None:
    """Write both halves of all keys to a new directory, completely or not at all.

    The directory and its files are for their owner only. Halves that have not been expanded yet are
    made one at a time and are not kept in `keys`.

    Parameters
    ----------
    keys
        Bootstrapping keys, with evaluation keys of any levels.
    directory
        Where to write; it must not exist.

    Raises
    ------
    SerializationError
        If the directory exists, also when another process was faster, or a key contradicts the
        parameters.
    IncompatibleError
        If the evaluation keys belong to other parameters.
    OSError
        If it cannot be written; nothing is left behind.
    """
    own = own_keys(keys)
    with new_directory(directory, "open_expanded_bootstrapping") as temporary:
        save_expanded(keys.evaluation, temporary / EVALUATION)
        with new_file(temporary / DATA) as file:
            entries = [_write_key(file, *item) for item in own.items()]
        secret = ephemeral_secret(keys.params)
        write_index(temporary, _KIND, keys.params.params, entries, ephemeral_secret=secret)


def _write_key(file: BinaryIO, rotation: int | None, key: SeededKey) -> dict[str, Any]:
    # What has been expanded is there already; otherwise it stays with a copy that is dropped.
    half = vars(key)["a"] if "a" in vars(key) else replace(key).a
    digests = write_halves(file, key.ring, key.b, half)
    return {"rotation": rotation, "seed": key.seed.hex(), "sha256": digests}


def open_expanded_bootstrapping(
    directory: str | os.PathLike[str], params: BootstrappingParameters, *, verify: bool = False
) -> BootstrappingKeys:
    """Map the keys that `save_expanded_bootstrapping` wrote, read-only.

    Parameters
    ----------
    directory
        The directory. It may be removed while keys are mapped, but not changed.
    params
        The parameters that the keys must belong to.
    verify
        Read everything and compare checksums. Without it sizes are checked, residues are not: open
        what your own processes have written.

    Returns
    -------
    BootstrappingKeys
        Keys whose halves are `numpy.memmap`.

    Raises
    ------
    SerializationError
        If the directory does not hold such keys, or is of another version.
    IntegrityError
        If the data are damaged or incomplete.
    IncompatibleError
        If they belong to other parameters.
    OSError
        If they cannot be read.
    """
    path = Path(directory)
    entries = _read_entries(path / INDEX, params)
    evaluation = open_expanded(path / EVALUATION, params.params, verify=verify)
    own: dict[int | None, SeededKey] = {}
    halves = map_halves(path / DATA, [e.layout.shape for e in entries])
    for entry, (b, a) in zip(entries, halves, strict=True):
        if verify:
            verify_halves(path / DATA, tensor_name(entry.rotation), (b, a), entry.sha256)
        ring = get_ring(entry.layout.chain)
        key = SeededKey(ring, entry.layout.limbs, ring.keep(b), entry.seed)
        vars(key)["a"] = key.ring.keep(a)  # where cached_property keeps it
        own[entry.rotation] = key
    return from_own_keys(params, evaluation, own)


def _read_entries(path: Path, params: BootstrappingParameters) -> list[_Entry]:
    index = read_index(path, _KIND, params.params, {"ephemeral_secret"})
    check_ephemeral_secret(index["ephemeral_secret"], params)
    entries = [_read_entry(entry, params) for entry in index["keys"]]
    check_order(path, [e.rotation for e in entries])
    if not entries or entries[0].rotation is not None:
        raise SerializationError(f"{path} names no key to the ephemeral secret")
    return entries


def _read_entry(entry: Any, params: BootstrappingParameters) -> _Entry:
    if not isinstance(entry, dict):
        raise SerializationError(f"a key of the index is {shorten(entry)}, not an object")
    check_keys("a key of the index", entry, _KEY_KEYS)
    rotation = entry["rotation"]
    if rotation is not None:
        rotation = read_rotation(str(rotation), params.params.slots)
    return _Entry(
        rotation,
        key_layout(params, rotation),
        read_seeds("a key", entry["seed"], 1),
        read_digests(entry["sha256"]),
    )
