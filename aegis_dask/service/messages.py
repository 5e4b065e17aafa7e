"""Requests and responses as directories: one file of ciphertexts and what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.serialization import load, save
from aegis_dask.errors import SerializationError
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.program.operations import Shape
from aegis_dask.service.client import make_directory, read_json, write_json

MESSAGE, DATA = "message.json", "ciphertexts.aegis"


@dataclass(frozen=True)
class Message:
    """Encrypted hidden states on their way.

    Attributes
    ----------
    fingerprint
        Of the job.
    length
        Tokens of the text.
    values
        The ciphertexts.
    """

    fingerprint: str
    length: int
    values: CipherArray

    def save(self, directory: Path) -> None:
        """Write into a new directory."""
        make_directory(directory)
        save(self.values.batch, directory / DATA)
        write_json(
            directory / MESSAGE,
            {"fingerprint": self.fingerprint, "length": self.length, "shape": self.values.shape},
        )

    @classmethod
    def load(cls, directory: Path, params: Parameters, fingerprint: str, shape: Shape) -> Message:
        """Read what `save` wrote, and check that it belongs to a job.

        Raises
        ------
        SerializationError
            If it is damaged, or of another job.
        """
        about: dict[str, Any] = read_json(directory / MESSAGE)
        if about.get("fingerprint") != fingerprint:
            raise SerializationError(
                f"{directory} belongs to another job than these keys; encrypt again with them"
            )
        length = about.get("length")
        if not isinstance(length, int) or tuple(about.get("shape", ())) != shape:
            raise SerializationError(f"{directory / MESSAGE} is malformed")
        batch = load(directory / DATA, params, expect=Ciphertext)
        rows = 1
        for n in shape:
            rows *= n
        if batch.batch != rows:
            raise SerializationError(
                f"{directory / DATA} holds {batch.batch} ciphertexts, {rows} are expected"
            )
        return cls(fingerprint, length, CipherArray(batch, shape))
