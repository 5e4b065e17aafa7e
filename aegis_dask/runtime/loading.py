"""Giving workers what they need: contexts of several clients at a time, weights once for all."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys
from aegis_dask.ckks.keys import EvaluationKeys
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.config import CPU
from aegis_dask.dashboard.monitor import OPENED
from aegis_dask.errors import DeviceFailedError
from aegis_dask.placement.devices import GPU_SPEED
from aegis_dask.runtime import cluster, plugin
from aegis_dask.runtime import context as contexts
from aegis_dask.runtime.context import Context
from aegis_dask.runtime.hosts import Hosts
from aegis_dask.runtime.session import DeviceLostError

Store = Mapping[str, NDArray[Any]]


@dataclass(eq=False)
class Loaded:
    """A context that the workers of a cluster have.

    Attributes
    ----------
    name
        How they call it.
    context
        Parameters and weights; the evaluation keys are in files where workers are processes.
    files
        Its files under the directory of `Hosts`.
    weights
        Directory of its weights there, "" without files.
    opened
        Workers that have opened it when they were asked last, and the backend of each.
    """

    name: str
    context: Context
    files: list[Path] = field(default_factory=list)
    weights: str = ""
    opened: dict[str, str] = field(default_factory=dict)

    def speed(self, threads: int) -> float:
        """Return how much faster than one thread of a CPU workers of so many are, estimated."""
        on_gpus = self.opened and all(backend != CPU for backend in self.opened.values())
        return GPU_SPEED if on_gpus else float(threads)


@dataclass
class _Weights:
    files: list[Path] = field(default_factory=list)
    users: int = 0


class Loader:
    """Contexts of a cluster.

    Parameters
    ----------
    client
        Client of the cluster.
    hosts
        Brings files to the workers.
    in_process
        Workers are threads of this process, and share its objects.
    owner
        Whose contexts they are, for the workers: Dask's client may be replaced.
    """

    def __init__(self, client: Client, hosts: Hosts, in_process: bool, owner: str) -> None:
        self.client, self._hosts, self._in_process = client, hosts, in_process
        self._owner = owner
        self._loaded: list[Loaded] = []
        self._weights: dict[str, _Weights] = {}
        self._lock = threading.RLock()

    def load(
        self,
        params: Parameters | None,
        keys: EvaluationKeys | BootstrappingKeys | None,
        store: Store,
    ) -> Loaded:
        """Write a context for the workers, which open it with `open`.

        Raises
        ------
        ClusterError
            If its files cannot be written.
        """
        if keys is not None and params is None:
            params = keys.evaluation.params if isinstance(keys, BootstrappingKeys) else keys.params
        loaded = Loaded(uuid.uuid4().hex[:12], Context(params, keys, dict(store)))
        with self._lock:
            self._loaded.append(loaded)
            if self._in_process:
                contexts.SHARED[loaded.name] = loaded.context
                return loaded
            try:
                self._write(loaded)
            except BaseException:
                self.unload(loaded)
                raise
        return loaded

    def unload(self, loaded: Loaded) -> None:
        """Let the workers forget a context, and delete its files; nothing happens the second time.

        No run may use it.
        """
        with self._lock:
            if loaded not in self._loaded:
                return
            self._loaded.remove(loaded)
            contexts.SHARED.pop(loaded.name, None)
            with suppress(Exception):  # workers may be gone
                self.client.run(plugin.close_context, loaded.name, on_error="ignore")
            if self._in_process:
                return
            self._hosts.withdraw(Path(loaded.name))
            shared = self._weights.get(loaded.weights)
            if shared is not None:
                shared.users -= 1
                if not shared.users:
                    del self._weights[loaded.weights]
                    self._hosts.withdraw(Path(loaded.weights))

    def open(self, loaded: Loaded, where: Mapping[str, str]) -> None:
        """Open a context on workers that have not.

        Parameters
        ----------
        loaded
            The context.
        where
            Address of each worker -> its copy of the directory of `Hosts`.

        Raises
        ------
        UnusableError
            If a worker cannot, or is gone.
        DeviceLostError
            If a worker cannot because its GPU has failed.
        """
        # They are asked every time: a process may be another one at the same address, or have been
        # told that we are gone.
        found = cluster.ask(self.client, where, "be asked", plugin.opened, loaded.name)
        missing = [address for address in where if not found[address]]
        known = found | loaded.opened
        loaded.opened = {a: backend for a, backend in known.items() if a not in missing}
        if not missing:
            return
        self._allow_for_maps()
        opening = {
            address: self.client.submit(
                plugin.open_context,
                loaded.name,
                str(Path(where[address]) / loaded.name),
                self._owner,
                workers=[address],
                pure=False,
                key=f"{OPENED}-{uuid.uuid4().hex}",
            )
            for address in missing
        }
        # One by one: an interrupted `gather` of several prints errors.
        for address, future in opening.items():
            wish = "open keys and weights"
            try:
                backend = cluster.result_of(self.client, future, address, wish)
            except DeviceFailedError as e:
                raise DeviceLostError(f"worker {address} cannot {wish}: {e}", address) from e
            loaded.opened[address] = str(backend)

    def close(self) -> None:
        """Unload everything."""
        for loaded in list(self._loaded):
            self.unload(loaded)

    def _write(self, loaded: Loaded) -> None:
        context, root = loaded.context, self._hosts.root
        if context.store:
            loaded.weights = f"weights-{_digest(context.store)}"
            shared = self._weights.setdefault(loaded.weights, _Weights())
            shared.users += 1
            if not shared.files:
                files = contexts.write_weights(context.store, root / loaded.weights)
                shared.files = [Path(loaded.weights) / file for file in files]
                self._publish(shared.files)
        directory = root / loaded.name
        contexts.write_context(context, directory, loaded.weights)
        context.keys = None  # the workers have them in files
        loaded.files = [Path(loaded.name) / file for file in contexts.files_of(directory)]
        self._publish(loaded.files)

    def _publish(self, files: Sequence[Path]) -> None:
        for file in files:
            self._hosts.publish(file)

    def _allow_for_maps(self) -> None:
        if self._in_process or self.client.cluster is None:
            return
        files = [file for loaded in self._loaded for file in loaded.files]
        files += [file for shared in self._weights.values() for file in shared.files]
        size = sum((self._hosts.root / file).stat().st_size for file in files)
        cluster.allow_for_maps(self.client, size)


def _digest(store: Store) -> str:
    """Return a name for weights: contexts with the same ones share their files."""
    digest = hashlib.sha256()
    for name, array in store.items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
