"""Small programs for runtime tests, and interpreters that misbehave on the workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.circuits import linear
from aegis_dask.circuits.packing import feature_layout
from aegis_dask.ckks.encryptor import Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import DeviceFailedError, LevelError
from aegis_dask.program.encrypted import CipherArray, Encrypted
from aegis_dask.program.graph import Capture, Program, capture, total
from aegis_dask.program.interpreter import run
from aegis_dask.program.simulated import Simulated
from aegis_dask.program.symbolic import analyse
from aegis_dask.runtime.context import Context

SLOTS = 512
TOKENS = 32
FEATURES = 64  # in two pairs of ciphertexts


def model(giants: int = 6) -> tuple[Program, dict[str, NDArray[np.float64]]]:
    """A program with everything that cutting must handle, and its weights.

    Split stages, whole arguments, sibling stages that are added, a reducing operation, stages with
    several results, numbers of rows that workers do not divide. Weights are integers: in the
    simulated interpreter sums are exact in any order.
    """
    source = feature_layout(FEATURES, SLOTS // TOKENS)
    target = feature_layout(3 * FEATURES // 2, SLOTS // TOKENS)  # three pairs
    babies = linear.choose_babies(source, [target])
    matrix = linear.BlockMatrix(("w",), source, target, babies)

    def build(c: Capture) -> None:
        x = c.input("x", source.shape)
        with c.scope("layer0"):
            with c.stage("attention/rotate", over=2):
                z = linear.rotated_inputs(x, babies)
            with c.stage("attention/matrix", over=3):
                y = linear.real_part(linear.apply(z, matrix))
            terms = []
            for g in range(giants):
                with c.stage(f"attention/giant{g}"):
                    terms.append(y.rotate(g + 1) * 2)
            s = total(terms)
        with c.scope("layer1"):
            with c.stage("norm/square", over=3):
                t = s + y
                q = t.sum_of_squares()
            with c.stage("norm/scale"):
                r = q.relinearise()
                both = t.sum() * 3
            with c.stage("norm/apply", over=3):
                out = t + r
        c.output("y", out)
        c.output("sum", both)
        c.output("same", x)

    rng = np.random.default_rng(7)
    return capture(SLOTS, build), {"w": rng.integers(-2, 3, (96, FEATURES)).astype(float)}


def integers(program: Program) -> NDArray[np.complex128]:
    """Slots of small integers for the input of `model`."""
    shape = program.nodes[program.inputs["x"]].shape
    return np.random.default_rng(8).integers(-3, 4, (*shape, SLOTS)) + 0j


@dataclass(frozen=True)
class Someone:
    """A client of `model`: parameters, fresh evaluation keys and an encrypted input."""

    params: Parameters
    keys: EvaluationKeys
    x: CipherArray

    @property
    def inputs(self) -> dict[str, CipherArray]:
        """For a run."""
        return {"x": self.x}

    def expected(self) -> dict[str, CipherArray]:
        """The outputs, computed in this process."""
        program, store = model()
        return run(program, Encrypted(Evaluator(self.params, self.keys)), self.inputs, store)


def someone() -> Someone:
    """Make a client."""
    program, _ = model()
    params = Parameters.preset("insecure-n10-d40")
    needed = analyse(program, params).keys
    generator = KeyGenerator(params)
    secret = generator.secret_key()
    keys = generator.evaluation_keys(
        secret, rotations=list(needed.rotations), conjugation=needed.conjugation is not None
    )
    slots = integers(program) * 0.01
    batch = Encryptor(params, secret).encrypt(slots.reshape(-1, SLOTS))
    return Someone(params, keys, CipherArray(batch, slots.shape[:-1]))


def chain(length: int, rows: int = 4) -> Program:
    """Stages that follow each other, each a task."""

    def build(c: Capture) -> None:
        x = c.input("x", (rows,))
        for i in range(length):
            with c.scope(f"layer{i // 4}"), c.stage(f"step{i}", over=rows):
                x = x.rotate(1)
        c.output("y", x)

    return capture(SLOTS, build)


class Failing(Simulated):
    """Raises in the first sum of squares."""

    def sum_of_squares(self, x: Any) -> Any:
        raise LevelError("no level is left; use parameters with more")


def failing(context: Context) -> Failing:
    return Failing()


started = threading.Event()
"""An operation of `Blocking` runs."""
proceed = threading.Event()
"""It may go on."""


class Blocking(Simulated):
    """Waits in every rotation, in clusters whose workers are threads of the test."""

    def rotate(self, x: Any, step: int) -> Any:
        started.set()
        assert proceed.wait(30)
        return super().rotate(x, step)


def blocking(context: Context) -> Blocking:
    return Blocking()


class Dying(Simulated):
    """Kills its process in a rotation, fills its memory, or loses a GPU, as a file asks for."""

    def __init__(self, order: Path) -> None:
        super().__init__()
        self.order = order

    def rotate(self, x: Any, step: int) -> Any:
        mine = self.order.with_name(str(os.getpid()))
        if step == 3:
            with suppress(FileNotFoundError):  # only one worker can take the order
                self.order.rename(mine)
        if mine.exists():
            how = mine.read_text()
            mine.unlink()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "device":
                raise DeviceFailedError("a kernel failed on the GPU: cudaErrorIllegalAddress")
            held = []
            while True:  # until the nanny ends the process
                held.append(np.ones(1 << 22))
        return super().rotate(x, step)


class DyingFactory:
    """Makes `Dying`; picklable."""

    def __init__(self, order: Path) -> None:
        self.order = order

    def __call__(self, context: Context) -> Dying:
        return Dying(self.order)


class Slow(Simulated):
    """Takes its time for every rotation, and says which it does."""

    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__()
        self.log, self.seconds = log, seconds

    def rotate(self, x: Any, step: int) -> Any:
        time.sleep(self.seconds)
        with self.log.open("a") as file:  # lines this short are written at once
            file.write(f"{os.getpid()}\n")
        return super().rotate(x, step)


class SlowFactory:
    """Makes `Slow`; picklable."""

    def __init__(self, log: Path, seconds: float) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, context: Context) -> Slow:
        return Slow(self.log, self.seconds)
