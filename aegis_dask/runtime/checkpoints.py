"""Checkpoints: what a run has finished, on disk, for another process to take up.

A directory holds ``index.json``, which is replaced as a whole, and a file of each value that later
layers need: at most those of two layers at a time. The index says of what run they are: program,
plan and inputs. Sums are compared before a value is used; a checkpoint that is damaged, or of
something else, is not used, and the run begins at the beginning.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aegis_dask.ckks.files import PRIVATE, write_atomically
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.serialization import dumps, loads
from aegis_dask.errors import AegisError
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Program
from aegis_dask.runtime.serialization import Results

logger = logging.getLogger(__name__)

INDEX = "index.json"
_VERSION = 1


@dataclass
class Snapshot:
    """What a run has finished: results of its groups that later ones need, fetched by the client.

    Attributes
    ----------
    groups
        How many groups are finished, from the first.
    values
        Task -> what it gave.
    """

    groups: int = 0
    values: dict[int, Any] = field(default_factory=dict)

    def update(self, groups: int, values: dict[int, Any]) -> None:
        """Take note of more."""
        self.groups, self.values = groups, values


@dataclass
class Checkpoint(Snapshot):
    """A snapshot that is kept in a directory too.

    Attributes
    ----------
    directory
        Where; made if it is missing. For one run at a time.
    run
        What identifies the run (see `identity`).
    """

    directory: Path = Path()
    run: str = ""

    @classmethod
    def open(cls, directory: Path, run: str, params: Parameters | None) -> Checkpoint:
        """Return what there is in a directory of this run, or an empty checkpoint.

        Raises
        ------
        OSError
            If the directory cannot be made.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cls(directory=directory, run=run)
        path = directory / INDEX
        if not path.exists():
            return found
        try:
            index = json.loads(path.read_bytes())
            if index["version"] != _VERSION or index["run"] != run:
                raise ValueError("it is of another run, plan or version")
            values = {
                int(task): _read(about, directory, params)
                for task, about in index["values"].items()
            }
            found.groups, found.values = int(index["groups"]), values
        except (AegisError, OSError, ValueError, KeyError, TypeError) as e:
            logger.warning("the checkpoint in %s is not used: %s", directory, e)
        return found

    def update(self, groups: int, values: dict[int, Any]) -> None:
        """Take note of more, here and on disk; a full disk only ends the writing."""
        super().update(groups, values)
        try:
            written = {str(task): _write(v, self.directory) for task, v in values.items()}
            index = {"version": _VERSION, "run": self.run, "groups": groups, "values": written}
            write_atomically(self.directory / INDEX, [json.dumps(index).encode()], mode=PRIVATE)
        except OSError as e:
            logger.warning(
                "the run goes on, but its checkpoint in %s stays as it was: %s", self.directory, e
            )
            return
        used = {INDEX, *(leaf["file"] for v in written.values() for leaf in v["leaves"])}
        for file in self.directory.iterdir():
            if file.name not in used:
                with suppress(OSError):
                    file.unlink()


def identity(program: Program, plan: Plan, inputs: Mapping[str, Any], extra: str = "") -> str:
    """Return what a checkpoint must agree on: program, plan and inputs, as a SHA-256 sum.

    Parameters
    ----------
    program, plan, inputs
        What runs.
    extra
        More that results depend on, such as a name of the weights.
    """
    digest = hashlib.sha256(extra.encode())
    for node in program.nodes:
        digest.update(f"{node.op.name} {node.inputs} {node.shape} {node.depth}\n".encode())
    for task in plan.tasks:
        digest.update(f"{task}\n".encode())
    digest.update(f"{plan.outputs} {plan.kept}".encode())
    for name in sorted(inputs):
        digest.update(name.encode())
        digest.update(hashlib.sha256(_bytes_of(_leaf_of(inputs[name]))).digest())
    return digest.hexdigest()


def _leaf_of(value: Any) -> Any:
    return value.batch if isinstance(value, CipherArray) else value


def _bytes_of(leaf: Any) -> bytes:
    if isinstance(leaf, Ciphertext):
        return dumps(leaf)
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(leaf), allow_pickle=False)
    return out.getvalue()


def _write(value: Any, directory: Path) -> dict[str, Any]:
    """Write what a task gave, unless it is there; return how to read it."""
    several = isinstance(value, Results)
    leaves = []
    for part in value if several else [value]:
        data = _bytes_of(_leaf_of(part))
        digest = hashlib.sha256(data).hexdigest()
        path = directory / f"{digest}.value"
        if not path.exists():
            write_atomically(path, [data], mode=PRIVATE)
        shape = list(part.shape) if isinstance(part, CipherArray) else None
        leaves.append({"file": path.name, "sha256": digest, "shape": shape})
    return {"several": several, "leaves": leaves}


def _read(about: dict[str, Any], directory: Path, params: Parameters | None) -> Any:
    parts = []
    for leaf in about["leaves"]:
        path = directory / Path(leaf["file"]).name
        data = bytearray(path.read_bytes())
        if hashlib.sha256(data).hexdigest() != leaf["sha256"]:
            raise ValueError(f"{path} is damaged: its SHA-256 is another")
        if leaf["shape"] is None:
            parts.append(np.load(io.BytesIO(data), allow_pickle=False))
        else:
            batch = loads(data, params, expect=Ciphertext)
            parts.append(CipherArray(batch, tuple(leaf["shape"])))
    return Results(parts) if about["several"] else parts[0]
