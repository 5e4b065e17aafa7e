"""What travels: keys as a file; requests and responses as directories, or their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from reprlib import repr as shorten

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.files import PRIVATE
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.serialization import load, save
from aegis_dask.ckks.wire import MOST_OVERHEAD, RESIDUE_BYTES
from aegis_dask.errors import SerializationError
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.service.files import (
    check_size,
    make_directory,
    read_json,
    reading,
    write_json,
    writing,
)
from aegis_dask.service.job import Job
from aegis_dask.service.keys import AnyKeys

MESSAGE, DATA = "message.json", "ciphertexts.aegis"
MAX_MESSAGE = 1 << 16
"""Bytes of ``message.json``."""
SPARSE_KEY = 16 << 20
"""Bytes that the key to the ephemeral secret may take, which the list of keys leaves out."""


@dataclass(frozen=True)
class Message:
    """Encrypted hidden states on their way.

    Attributes
    ----------
    fingerprint
        Of the job.
    length
        Tokens of the text. It is not secret: the server needs it to weigh the positions.
    values
        The ciphertexts.
    """

    fingerprint: str
    length: int
    values: CipherArray

    def save(self, directory: Path) -> None:
        """Write into a new directory.

        Raises
        ------
        SerializationError
            If the directory exists.
        """
        make_directory(directory)
        with writing(directory / DATA):
            save(self.values.batch, directory / DATA, mode=PRIVATE)
        write_json(
            directory / MESSAGE,  # last, so that a message with it is complete
            {"fingerprint": self.fingerprint, "length": self.length, "shape": self.values.shape},
        )

    @classmethod
    def load(cls, directory: Path, job: Job, level: int | None = None) -> Message:
        """Read what `save` wrote, and check that it belongs to a job.

        Parameters
        ----------
        directory
            The message.
        job
            The job it must belong to. Inputs and outputs have the same layout.
        level
            The level that the ciphertexts must have, if given.

        Raises
        ------
        SerializationError
            If it is damaged, or of another job.
        IncompatibleError
            If the ciphertexts belong to other parameters.
        """
        about = read_json(directory / MESSAGE, MAX_MESSAGE)
        if about.get("fingerprint") != job.fingerprint:
            raise SerializationError(
                f"{directory} belongs to another job than these keys; encrypt again with them"
            )
        length, shape, tokens = about.get("length"), job.layout.shape, job.packing.tokens
        if type(length) is not int or not 1 <= length <= tokens:
            raise SerializationError(
                f"{directory / MESSAGE} gives the length {shorten(length)}; it must be 1 to "
                f"{tokens}"
            )
        if about.get("shape") != list(shape):
            raise SerializationError(
                f"{directory / MESSAGE} gives the shape {shorten(about.get('shape'))}; it must "
                f"be {list(shape)}"
            )
        check_size(directory / DATA, most_bytes(job))
        with reading(directory / DATA):
            batch = load(directory / DATA, job.params, expect=Ciphertext)
        check_batch(batch, shape, level, str(directory / DATA))
        return cls(job.fingerprint, length, CipherArray(batch, shape))


def read_keys(path: Path, job: Job) -> AnyKeys:
    """Read and check the evaluation keys of a job, a file of at most `most_keys_bytes`.

    Raises
    ------
    SerializationError
        If the file is damaged, or holds something else.
    IncompatibleError
        If the keys belong to other parameters.
    OSError
        If it cannot be read.
    """
    if job.bootstrapping is not None:
        return load(path, job.bootstrapping, expect=BootstrappingKeys)
    return load(path, job.params, expect=EvaluationKeys)


def most_keys_bytes(job: Job) -> int:
    """Return the largest size of a file with the evaluation keys of a job.

    Only one half of each key is written, so this is about twice what the file should have.
    """
    return MOST_OVERHEAD + job.keys.nbytes + SPARSE_KEY


def most_bytes(job: Job) -> int:
    """Return the largest size of a file with the inputs, or the outputs, of a job."""
    params, count = job.analysis.params, prod(job.layout.shape)
    limbs = max(len(params.window(level)) for level in range(params.max_level + 1))
    return MOST_OVERHEAD + count * 2 * limbs * params.ring_degree * RESIDUE_BYTES


def check_batch(batch: Ciphertext, shape: Sequence[int], level: int | None, what: str) -> None:
    """Check that ciphertexts from elsewhere have the layout, and perhaps the level, of a job.

    Raises
    ------
    SerializationError
        If they have not; `what` names them.
    """
    count = prod(shape)
    if batch.batch != count or batch.components != 2:
        raise SerializationError(
            f"{what} holds {batch.batch} ciphertexts of {batch.components} components, {count} of "
            "2 are expected"
        )
    if level is not None and (batch.level != level or not batch.is_canonical):
        raise SerializationError(
            f"{what} holds ciphertexts at level {batch.level} with scale 2^{batch.scale.log2:.2f}, "
            f"the job takes level {level} with its own scale; encrypt again"
        )
