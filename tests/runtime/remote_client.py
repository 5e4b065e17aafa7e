"""The client of the tests with two hosts: a program of its own, since it runs on one of them.

``python -m tests.runtime.remote_client ADDRESS CERTIFICATES RESULT SECONDS``: encrypts, runs a
small program on the cluster, and writes whether the residues are those of a run in this process.
With seconds other than 0 nothing is encrypted, and every rotation takes as long.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from aegis_dask.errors import AegisError
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.security import load_security
from tests.runtime.programs import SLOTS, SlowFactory, chain, model, someone

WORKERS = 2
PLAIN = "none"
"""For CERTIFICATES: connect without."""


def encrypted(executor: Executor) -> dict[str, Any]:
    """Run a program with everything that cutting must handle."""
    program, store = model()
    client = someone()
    expected = client.expected()
    executor.prepare(client.params, client.keys, store)
    result = executor.run(program, client.inputs, stage_work=[1.0] * len(program.stages))
    same = [
        np.array_equal(result.outputs[n].batch.data, expected[n].batch.data) for n in ("y", "sum")
    ]
    return {"equal": all(same), "resumed": result.resumed, "workers": len(result.workers)}


def slow(executor: Executor, log: Path, seconds: float) -> dict[str, Any]:
    """Run a chain of slow stages, of integers."""
    program = chain(16)
    x = np.random.default_rng().integers(-9, 9, (4, SLOTS)) + 0j
    expected = run(program, Simulated(), {"x": x}, {})
    executor.prepare()
    result = executor.run(
        program,
        {"x": x},
        interpreter=SlowFactory(log, seconds),
        stage_work=[1.0] * len(program.stages),
    )
    return {
        "equal": np.array_equal(result.outputs["y"], expected["y"]),
        "resumed": result.resumed,
        "workers": len(result.workers),
    }


def main(address: str, certificates: str, out: str, seconds: str) -> None:
    file = Path(out)
    try:
        plain = certificates == PLAIN
        with Executor.connect(
            address,
            WORKERS,
            timeout=20,
            security=None if plain else load_security(certificates),
            ship=True,  # namespaces share a file system, which hosts do not
            insecure_transport=plain,
        ) as e:
            if float(seconds):
                found = slow(e, file.with_suffix(".log"), float(seconds))
            else:
                found = encrypted(e)
    except AegisError as error:
        found = {"error": str(error)}
    except BaseException:
        found = {"crash": traceback.format_exc()}
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
