"""The client: makes and keeps the secret key, encrypts, decrypts. Nothing of it is ever sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator, SecretKey
from aegis_dask.ckks.serialization import load_secret_key, save, save_secret_key
from aegis_dask.errors import ProgramError, SerializationError
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.service.job import Job, read_job

Float = NDArray[np.float64]
SECRET, JOB, KEYS = "secret.aegis", "job.json", "keys.aegis"


class Client:
    """Holds the secret key of one job.

    Parameters
    ----------
    job
        What will run.
    secret_key
        From `create`, or read by `open`.
    """

    def __init__(self, job: Job, secret_key: SecretKey) -> None:
        self.job, self._secret_key = job, secret_key

    @classmethod
    def create(cls, job: Job) -> Client:
        """Make a secret key."""
        return cls(job, KeyGenerator(job.analysis.params).secret_key())

    def evaluation_keys(self) -> EvaluationKeys:
        """Make the evaluation keys that the job uses, each for the levels at which it does."""
        keys = self.job.analysis.keys
        return KeyGenerator(self.job.analysis.params).evaluation_keys(
            self._secret_key,
            rotations=keys.rotations,
            conjugation=keys.conjugation is not None,
            relinearisation=keys.relinearisation is not None,
            level=max(keys.conjugation or 0, keys.relinearisation or 0),
        )

    def encrypt(self, x: Float) -> CipherArray:
        """Encrypt hidden states ``[length, features]`` at the level that the program needs."""
        job = self.job.for_length(len(x))
        slots = job.packing.pack(x, job.layout)
        analysis = job.analysis
        encryptor = Encryptor(analysis.params, self._secret_key)
        batch = encryptor.encrypt(slots.reshape(-1, job.packing.slots), level=analysis.top_level)
        return CipherArray(batch, job.layout.shape)

    def decrypt(self, y: CipherArray, length: int | None = None) -> Float:
        """Decrypt hidden states ``[length, features]``."""
        job = self.job if length is None else self.job.for_length(length)
        if y.shape != job.layout.shape:
            raise ProgramError(
                f"a result of {y.shape} ciphertexts was given, the job's has {job.layout.shape}"
            )
        slots = Decryptor(job.analysis.params, self._secret_key).decrypt(y.batch)
        return job.packing.unpack(np.asarray(slots), job.layout)

    # -- files -------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write secret key and job into a new directory that only its owner may read.

        Raises
        ------
        SerializationError
            If the directory exists.
        """
        make_directory(directory)
        save_secret_key(self._secret_key, directory / SECRET)
        write_json(directory / JOB, self.job.to_dict())

    @classmethod
    def open(cls, directory: Path, model: BertModel, graph: Graph) -> Client:
        """Read what `save` wrote."""
        job = read_job(read_json(directory / JOB), model, graph)
        return cls(job, load_secret_key(directory / SECRET, job.analysis.params))

    def save_bundle(self, directory: Path) -> EvaluationKeys:
        """Write into a new directory what the server gets: the job and the evaluation keys."""
        make_directory(directory)
        keys = self.evaluation_keys()
        save(keys, directory / KEYS)
        write_json(directory / JOB, self.job.to_dict())
        return keys


def make_directory(directory: Path) -> None:
    """Make a directory for its owner only.

    Raises
    ------
    SerializationError
        If it exists.
    """
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise SerializationError(
            f"{directory} exists; keys are never overwritten, give another directory"
        ) from None


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write JSON for its owner only."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(data, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    SerializationError
        If there is none.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise SerializationError(f"{path} cannot be read: {e}") from None
    if not isinstance(data, dict):
        raise SerializationError(f"{path} does not hold a JSON object")
    return data
