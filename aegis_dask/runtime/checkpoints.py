"""Checkpoints: what a run has finished, on disk, for another process to take up.

A directory holds ``index.json``, which is replaced as a whole, the plan, and a file of each value
that later layers need: at most those of two layers at a time. The index says of what run they are:
program and inputs. Sums are compared before anything is used; a checkpoint that is damaged, or of
something else, is not used, and the run begins at the beginning. Another number of workers goes on
with a plan for the rest (`placement.rest`). Other files in the directory are left alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
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
from aegis_dask.placement.files import fingerprint, plan_from_dict, plan_to_dict
from aegis_dask.placement.rest import finished_stages, live_nodes, pieces_of
from aegis_dask.placement.tasks import Piece, Plan
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.graph import Program
from aegis_dask.runtime.graph import make_groups
from aegis_dask.runtime.serialization import Results
from aegis_dask.runtime.values import join_rows

logger = logging.getLogger(__name__)

INDEX = "index.json"
_VERSION = 2
# A SHA-256 and what it is of, or what a crash has left of `write_atomically`.
_OURS = re.compile(r"index\.json|[0-9a-f]{64}\.(value|plan)|\.[0-9a-f]{16}\.aegis\.tmp")


@dataclass
class Snapshot:
    """What a run has finished: results of its groups that later ones need, fetched by the client.

    Attributes
    ----------
    plan
        The plan that runs: of the whole program, or of the rest when an earlier one had to end.
    known
        Node -> value, of what earlier plans gave that is still needed.
    groups
        How many groups of the plan are finished, from the first.
    values
        Task of the plan -> what it gave.
    share
        Of the work of the program, what earlier plans have done, from 0 to 1.
    """

    plan: Plan | None = None
    known: dict[int, Any] = field(default_factory=dict)
    groups: int = 0
    values: dict[int, Any] = field(default_factory=dict)
    share: float = 0.0

    def begin(self, plan: Plan, known: dict[int, Any] | None = None, share: float = 0.0) -> None:
        """Take note of a plan that is to run, and of what it takes beside the inputs."""
        self.plan, self.known, self.share = plan, known or {}, share
        self.groups, self.values = 0, {}

    def update(self, groups: int, values: dict[int, Any]) -> None:
        """Take note of more."""
        self.groups, self.values = groups, values

    def finished(self, program: Program) -> tuple[set[int], dict[int, Any]]:
        """Return the stages that need not run again, and the values that the rest takes of them.

        If the plan has no clear cut where the run has got to, what this plan did is lost.
        """
        assert self.plan is not None
        groups = make_groups(program, self.plan)
        firsts = (groups[self.groups].tasks[0], 0) if self.groups < len(groups) else (0,)
        for first in firsts:
            stages = finished_stages(program, self.plan, first)
            if stages is None:
                continue
            nodes = [i for i in live_nodes(program, stages) if i not in program.inputs.values()]
            new = [i for i in nodes if i not in self.known]
            pieces = pieces_of(program, self.plan, first, new)
            if pieces is not None:
                found = {i: join_rows([self._piece(p) for p in ps]) for i, ps in pieces.items()}
                known = self.known | found
                return stages, {i: known[i] for i in nodes}
        raise AssertionError("a plan can be begun where it begins")

    def _piece(self, piece: Piece) -> Any:
        value = self.values[piece.task]
        return value if piece.slot is None else value[piece.slot]


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
    _begun: dict[str, Any] | None = field(default=None, init=False)
    """What the index says of the plan and of what it takes, once they are written."""

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
                raise ValueError("it is of another run or version")
            known, values = (
                {int(number): _read(about, directory, params) for number, about in part.items()}
                for part in (index["known"], index["values"])
            )
            plan = plan_from_dict(json.loads(_read_file(index["plan"], directory)))
            found.begin(plan, known, float(index["share"]))
            found.groups, found.values = int(index["groups"]), values
        except (AegisError, OSError, ValueError, KeyError, TypeError) as e:
            logger.warning("the checkpoint in %s is not used: %s", directory, e)
        return found

    def begin(self, plan: Plan, known: dict[int, Any] | None = None, share: float = 0.0) -> None:
        """See `Snapshot.begin`."""
        super().begin(plan, known, share)
        self._begun = None

    def update(self, groups: int, values: dict[int, Any]) -> None:
        """Take note of more, here and on disk; a full disk only ends the writing."""
        super().update(groups, values)
        assert self.plan is not None
        try:
            if self._begun is None:
                text = json.dumps(plan_to_dict(self.plan)).encode()
                self._begun = {
                    "plan": _write_file(text, self.directory, "plan"),
                    "known": self._written(self.known),
                }
            index = {
                "version": _VERSION,
                "run": self.run,
                **self._begun,
                "share": self.share,
                "groups": groups,
                "values": self._written(values),
            }
            write_atomically(self.directory / INDEX, [json.dumps(index).encode()], mode=PRIVATE)
        except OSError as e:
            logger.warning(
                "the run goes on, but its checkpoint in %s stays as it was: %s", self.directory, e
            )
            return
        parts = (*index["known"].values(), *index["values"].values())
        leaves = [leaf for part in parts for leaf in part["leaves"]]
        self._remove_but({INDEX, index["plan"]["file"], *(leaf["file"] for leaf in leaves)})

    def delete(self) -> None:
        """Delete it, and the directory if nothing else is there."""
        self._remove_but(set())
        with suppress(OSError):
            self.directory.rmdir()

    def _remove_but(self, used: set[str]) -> None:
        with suppress(OSError):
            for file in list(self.directory.iterdir()):
                if _OURS.fullmatch(file.name) and file.name not in used:
                    with suppress(OSError):
                        file.unlink()

    def _written(self, values: dict[int, Any]) -> dict[str, Any]:
        return {str(number): _write(v, self.directory) for number, v in values.items()}


def identity(program: Program, inputs: Mapping[str, Any], extra: str = "") -> str:
    """Return what a checkpoint must agree on: program and inputs, as a SHA-256 sum.

    Parameters
    ----------
    program, inputs
        What runs.
    extra
        More that results depend on, such as a name of the weights.
    """
    digest = hashlib.sha256(f"{fingerprint(program)} {extra}".encode())
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
        shape = list(part.shape) if isinstance(part, CipherArray) else None
        leaves.append({**_write_file(data, directory, "value"), "shape": shape})
    return {"several": several, "leaves": leaves}


def _write_file(data: bytes, directory: Path, kind: str) -> dict[str, Any]:
    """Write a file, unless it is there; return its name and sum."""
    digest = hashlib.sha256(data).hexdigest()
    path = directory / f"{digest}.{kind}"
    if not path.exists():
        write_atomically(path, [data], mode=PRIVATE)
    return {"file": path.name, "sha256": digest}


def _read_file(about: dict[str, Any], directory: Path) -> bytearray:
    path = directory / Path(about["file"]).name
    data = bytearray(path.read_bytes())
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise ValueError(f"{path} is damaged: its SHA-256 is another")
    return data


def _read(about: dict[str, Any], directory: Path, params: Parameters | None) -> Any:
    parts = []
    for leaf in about["leaves"]:
        data = _read_file(leaf, directory)
        if leaf["shape"] is None:
            parts.append(np.load(io.BytesIO(data), allow_pickle=False))
        else:
            batch = loads(data, params, expect=Ciphertext)
            parts.append(CipherArray(batch, tuple(leaf["shape"])))
    return Results(parts) if about["several"] else parts[0]
