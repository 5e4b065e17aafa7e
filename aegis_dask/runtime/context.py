"""What every worker holds: parameters, evaluation keys and weights, in files that it maps.

The workers of a host map the same files, so keys and weights are in memory once. A secret key is
never among them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.bootstrapper import FEW_BABY_STEPS, Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.bootstrapping.mapped import (
    open_expanded_bootstrapping,
    save_expanded_bootstrapping,
)
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters, parameters_from_dict
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.mapped import new_directory, open_expanded, save_expanded
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.errors import ClusterError, InsecureParametersWarning, MissingKeyError
from aegis_dask.program.encrypted import Encrypted
from aegis_dask.program.simulated import Simulated

InterpreterFactory = Callable[["Context"], Any]
"""Makes an interpreter on a worker; it is pickled, and called once for each run."""

INDEX = "index.json"
SHARED: dict[str, Context] = {}
"""Contexts of this process by identifier: workers that are its threads share them."""


class Weights(Mapping[str, NDArray[Any]]):
    """Arrays in ``.npy`` files, mapped when they are used.

    Python keeps a file open for each map, so the contexts of a process share them (`weights_in`).
    """

    def __init__(self, directory: Path, files: Mapping[str, str]) -> None:
        self.directory, self.files = directory, dict(files)
        self._open: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._open:
            path = self.directory / self.files[name]
            self._open[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


_WEIGHTS: WeakValueDictionary[Path, Weights] = WeakValueDictionary()
"""By directory, while a context of this process has them."""


def weights_in(directory: Path) -> Weights:
    """Return what `write_weights` has written."""
    found = _WEIGHTS.get(directory)
    if found is None:
        found = Weights(directory, json.loads((directory / INDEX).read_text()))
        _WEIGHTS[directory] = found
    return found


@dataclass
class Context:
    """Parameters, evaluation keys and weights.

    Attributes
    ----------
    params, keys
        None where nothing is encrypted. Keys may include those of bootstrapping.
    store
        Weights by name.
    bootstrapping
        Parameters of bootstrapping, if there are keys for it.
    """

    params: Parameters | None = None
    keys: EvaluationKeys | BootstrappingKeys | None = None
    store: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    bootstrapping: BootstrappingParameters | None = field(default=None, init=False)
    _encrypted: Encrypted | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.keys, BootstrappingKeys):
            self.bootstrapping = self.keys.params

    def interpreter(self, kind: str | InterpreterFactory) -> Any:
        """Return an interpreter.

        Parameters
        ----------
        kind
            ``"encrypted"``, ``"simulated"``, or a function that makes one from a context.

        Raises
        ------
        ClusterError
            If there is no such interpreter, or it needs parameters that the context lacks.
        """
        if not isinstance(kind, str):
            return kind(self)
        if kind == "simulated":
            return Simulated()
        if kind != "encrypted":
            raise ClusterError(
                f"there is no interpreter {kind!r}; give 'encrypted', 'simulated' or a function "
                "that makes one from a Context"
            )
        if self.params is None:
            raise ClusterError(
                "an encrypted run needs parameters and evaluation keys; give them to "
                "Executor.prepare first"
            )
        if self._encrypted is None:
            keys, bootstrapper = self.keys or EvaluationKeys(self.params), None
            if isinstance(keys, BootstrappingKeys):
                bootstrapper = Bootstrapper(
                    keys.params, keys, baby_steps=FEW_BABY_STEPS, keep_memory=False
                )
                keys = keys.evaluation
            self._encrypted = Encrypted(Evaluator(self.params, keys), bootstrapper)
        return self._encrypted


def warm_up(context: Context) -> None:
    """Load, or compile, the kernels that every program uses, before the first task is timed."""
    params, keys = context.params, context.keys
    if params is None or keys is None or params.max_level < 1:
        return
    if isinstance(keys, BootstrappingKeys):
        keys = keys.evaluation
    evaluator = context.interpreter("encrypted").evaluator
    shape = (1, 2, len(params.limbs(1)), params.ring_degree)
    x = Ciphertext(params, params.ring.zeros(shape), 1, params.scales[1])
    evaluator.add(x, x)
    with suppress(MissingKeyError):
        evaluator.multiply(x, x)
    for step in sorted(keys.steps)[:1]:
        with suppress(MissingKeyError):
            evaluator.rotate(x, step)


@contextmanager
def _new(directory: Path) -> Iterator[Path]:
    """Make a directory as a whole: weights are looked for by name again after a disk was full."""
    try:
        with new_directory(directory, "read_context") as temporary:
            yield temporary
    except OSError as e:
        raise ClusterError(
            f"{directory} cannot be written: {e.strerror or e}; TMPDIR or directory= names another "
            "place with room for keys and weights"
        ) from e


def write_weights(store: Mapping[str, NDArray[Any]], directory: Path) -> list[Path]:
    """Write weights into a new directory, or nothing; return its files, relative to it.

    Raises
    ------
    ClusterError
        If it cannot be written.
    """
    with _new(directory) as new:
        names = {}
        for i, (name, array) in enumerate(store.items()):
            names[name] = f"weight-{i:05d}.npy"
            np.save(new / names[name], np.ascontiguousarray(array), allow_pickle=False)
        (new / INDEX).write_text(json.dumps(names))
    return files_of(directory)


def write_context(context: Context, directory: Path, weights: str = "") -> None:
    """Write a context into a new directory, or nothing.

    Parameters
    ----------
    context
        Its weights are not written.
    directory
        The directory.
    weights
        Name of the directory beside it that `write_weights` has made, if there is one.

    Raises
    ------
    ClusterError
        If it cannot be written.
    """
    index: dict[str, Any] = {"params": None, "bootstrapping": None, "weights": weights}
    if context.params is not None:
        index["params"] = asdict(context.params.literal)
    if context.bootstrapping is not None:
        index["bootstrapping"] = asdict(context.bootstrapping.literal)
    index["keys"] = context.keys is not None
    with _new(directory) as new:
        if isinstance(context.keys, BootstrappingKeys):
            save_expanded_bootstrapping(context.keys, new / "keys")
        elif context.keys is not None:
            save_expanded(context.keys, new / "keys")
        (new / INDEX).write_text(json.dumps(index))


def read_context(directory: Path) -> Context:
    """Return the context in a directory, its large arrays as maps of the files."""
    index = json.loads((directory / INDEX).read_text())
    store: Mapping[str, NDArray[Any]] = {}
    if index["weights"]:
        store = weights_in(directory.parent / index["weights"])
    if index["params"] is None:
        return Context(store=store)
    with warnings.catch_warnings():  # the client has been warned
        warnings.simplefilter("ignore", InsecureParametersWarning)
        params = parameters_from_dict(index["params"], index["bootstrapping"], allow_insecure=True)
    keys: EvaluationKeys | BootstrappingKeys | None = None
    if isinstance(params, BootstrappingParameters):
        keys = open_expanded_bootstrapping(directory / "keys", params)
        params = params.params
    elif index["keys"]:
        keys = open_expanded(directory / "keys", params)
    return Context(params, keys, store)


def files_of(directory: Path) -> list[Path]:
    """Return all files under a directory, relative to it."""
    return sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())
