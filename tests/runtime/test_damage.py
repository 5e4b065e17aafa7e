"""A wrong bit on the way between two workers ends the run with a word on it, never a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from distributed.protocol import dask_serialize

from aegis_dask.errors import ClusterError, IntegrityError
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.serialization import serialize_array
from tests.runtime.programs import model, someone

PROGRAM, STORE = model()


def damage(dask_worker: Any) -> None:
    """Let a worker send every array of ciphertexts with a wrong bit."""

    def damaged(x: CipherArray) -> tuple[dict[str, Any], list[Any]]:
        header, frames = serialize_array(x)
        frame = bytearray(frames[0])
        frame[len(frame) // 2] ^= 1
        return header, [frame]

    dask_serialize.register(CipherArray)(damaged)


def mend(dask_worker: Any) -> None:
    dask_serialize.register(CipherArray)(serialize_array)


def test_damage_between_workers_ends_a_run() -> None:
    person = someone()
    with Executor.local(workers=2, threads_per_worker=1) as executor:
        loaded = executor.load(person.params, person.keys, STORE)
        executor.client.run(damage, workers=executor.addresses[:1])
        work = [1.0] * len(PROGRAM.stages)
        with pytest.raises(ClusterError, match="were damaged on their way") as caught:
            executor.run(PROGRAM, person.inputs, loaded=loaded, stage_work=work)
        assert isinstance(caught.value.__cause__, IntegrityError)
        executor.client.run(mend, workers=executor.addresses[:1])
        result = executor.run(PROGRAM, person.inputs, loaded=loaded, stage_work=work)
        assert np.array_equal(result.outputs["y"].batch.data, person.expected()["y"].batch.data)
