"""The client: makes and keeps the secret key, encrypts, decrypts.

Its directory holds the secret key and is never sent; the bundle that it writes for the server does
not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.files import PRIVATE
from aegis_dask.ckks.keys import KeyGenerator, SecretKey
from aegis_dask.ckks.serialization import load_secret_key, save, save_secret_key
from aegis_dask.ckks.sharing import Sharing
from aegis_dask.errors import ProgramError
from aegis_dask.models.checkpoint import BertModel
from aegis_dask.models.graphs import Graph
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.service.files import make_directory, read_json, reading, write_json, writing
from aegis_dask.service.job import Job, read_job
from aegis_dask.service.keys import AnyKeys, make_keys
from aegis_dask.service.messages import Message

Float = NDArray[np.float64]
SECRET, JOB, KEYS = "secret.aegis", "job.json", "keys.aegis"
"""Files of the client's directory (the first two) and of the bundle (the last two)."""


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

    def evaluation_keys(self) -> AnyKeys:
        """Make the evaluation keys that the job uses, each for the levels at which it does."""
        return make_keys(self.job.analysis, self.job.keys, self._secret_key)

    def encrypt(self, x: Float) -> CipherArray:
        """Encrypt hidden states ``[length, features]`` at the level that the program needs.

        Raises
        ------
        TextError
            If there are more rows than the job has positions.
        ProgramError
            If the number of features is another, or a value is not finite.
        """
        job = self.job.for_length(len(x))
        slots = job.packing.pack(x, job.layout)
        analysis = job.analysis
        encryptor = Encryptor(analysis.params, self._secret_key)
        batch = encryptor.encrypt(slots.reshape(-1, job.packing.slots), level=analysis.top_level)
        return CipherArray(batch, job.layout.shape)

    def decrypt(
        self, y: CipherArray, length: int | None = None, share: Sharing | None = None
    ) -> Float:
        """Decrypt hidden states ``[length, features]``; by default as long as the job's text.

        Parameters
        ----------
        y
            The result.
        length
            Tokens of the text.
        share
            Flood the hidden states with noise, for results that others get (`ckks.sharing`).

        Raises
        ------
        ProgramError
            If the shape is not that of the job's result.
        ParameterError
            If flooding would leave less precision than `share` asks for.
        """
        job = self.job if length is None else self.job.for_length(length)
        if y.shape != job.layout.shape:
            raise ProgramError(
                f"a result of {y.shape} ciphertexts was given, the job's has {job.layout.shape}"
            )
        slots = Decryptor(job.analysis.params, self._secret_key).decrypt(y.batch)
        values = job.packing.unpack(np.asarray(slots), job.layout)
        return values if share is None else share.flood(values)

    # -- requests and responses --------------------------------------------------------------

    def request(self, x: Float, directory: Path) -> Message:
        """Encrypt hidden states into a new directory, to be sent to the server.

        Raises
        ------
        SerializationError
            If the directory exists.
        """
        message = Message(self.job.fingerprint, len(x), self.encrypt(x))
        message.save(directory)
        return message

    def read_response(self, directory: Path, share: Sharing | None = None) -> Float:
        """Decrypt a response; `share` as for `decrypt`.

        Raises
        ------
        SerializationError
            If it is damaged, or of another job.
        ParameterError
            If flooding would leave less precision than `share` asks for.
        """
        message = Message.load(directory, self.job)
        return self.decrypt(message.values, message.length, share)

    # -- files -------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write secret key and job into a new directory that only its owner may read.

        Raises
        ------
        SerializationError
            If the directory exists.
        """
        make_directory(directory)
        with writing(directory / SECRET):
            save_secret_key(self._secret_key, directory / SECRET, unencrypted=True)
        write_json(directory / JOB, self.job.to_dict())

    @classmethod
    def open(cls, directory: Path, model: BertModel, graph: Graph) -> Client:
        """Read what `save` wrote.

        Raises
        ------
        SerializationError
            If a file is missing or damaged, or others can read the secret key.
        ParameterError
            If the job is for another model or graph.
        """
        # What they are was accepted when the keys were made.
        job = read_job(read_json(directory / JOB), model, graph, allow_insecure=True)
        with reading(directory / SECRET):
            return cls(job, load_secret_key(directory / SECRET, job.analysis.params))

    def save_bundle(self, directory: Path) -> AnyKeys:
        """Write into a new directory what the server gets: the job and the evaluation keys.

        Raises
        ------
        SerializationError
            If the directory exists.
        """
        make_directory(directory)
        keys = self.evaluation_keys()
        with writing(directory / KEYS):
            save(keys, directory / KEYS, mode=PRIVATE)
        write_json(directory / JOB, self.job.to_dict())
        return keys
