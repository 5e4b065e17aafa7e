"""Valid inputs, the same in every process: residues and seeds are of a generator, not random."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks import sampling
from aegis_dask.ckks.bootstrapping.formats import key_layout
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, SeededKey
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.galois import conjugation_element, rotation_element
from aegis_dask.ckks.keys import EvaluationKey, EvaluationKeys, PublicKey, SecretKey
from aegis_dask.ckks.objects import Ciphertext, Plaintext
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.ckks.scale import Scale
from aegis_dask.ckks.serialization import dumps
from aegis_dask.errors import InsecureParametersWarning
from aegis_dask.models.calibration import typical_calibration
from aegis_dask.models.checkpoint import BertConfig, random_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.service.job import Job, make_job

PRESET, BOOTSTRAPPING_PRESET = "insecure-n10-d40", "insecure-n10-d40-b4"
SMALL_SECURE = ("n13-d30", "n14-d40")
BERT = BertConfig(1, 16, 2, 32, max_positions=16, vocabulary=16)
GRAPHS = ("feed_forward", "bert_layer")


@dataclass(frozen=True)
class Examples:
    """Objects of every class that is written, on a small ring; made once per process."""

    seed: int = 1

    @cached_property
    def params(self) -> Parameters:
        """Parameters without security, for speed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureParametersWarning)
            return Parameters.preset(PRESET)

    @cached_property
    def bootstrapping(self) -> BootstrappingParameters:
        """The same with bootstrapping."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureParametersWarning)
            return BootstrappingParameters.preset(BOOTSTRAPPING_PRESET)

    @cached_property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def _residues(self, shape: tuple[int, ...], primes: Sequence[int]) -> NDArray[np.uint32]:
        """Return ``[..., limb, N]`` below the primes."""
        tops = np.array(primes)[:, None]
        return self._rng.integers(0, tops, shape).astype(np.uint32)

    def _new_seed(self) -> bytes:
        return self._rng.bytes(sampling.SEED_BYTES)

    # -- objects ----------------------------------------------------------------------------

    def ciphertext(self, level: int, batch: int, components: int = 2) -> Ciphertext:
        """Return a ciphertext without a seed."""
        params = self.params
        primes = [params.chain.primes[i] for i in params.limbs(level)]
        shape = (batch, components, len(primes), params.ring_degree)
        return Ciphertext(params, self._residues(shape, primes), level, params.scales[level])

    def fresh(self, level: int, batch: int) -> Ciphertext:
        """Return a ciphertext whose second component comes from seeds."""
        params, out, seeds = self.params, self.ciphertext(level, batch), b""
        for b in range(batch):
            seeds += (seed := self._new_seed())
            limbs = params.limbs(level)
            out.data[b, 1] = params.ring.uniform(seed, sampling.DOMAIN_CIPHERTEXT, [0], limbs)[0]
        return Ciphertext(params, out.data, level, out.scale, seeds)

    def plaintext(self, level: int, period: int) -> Plaintext:
        """Return a plaintext."""
        params = self.params
        primes = [params.chain.primes[i] for i in params.limbs(level)]
        data = self._residues((len(primes), 2 * period), primes)
        return Plaintext(params, data, level, (params.scales[level] * Scale({3: 1})).sqrt(), period)

    def evaluation_key(self, params: Parameters, level: int) -> EvaluationKey:
        """Return a key for levels up to `level`."""
        primes = [params.chain.all_primes[i] for i in params.key_limbs(level)]
        shape = (len(params.key_digits(level)), len(primes), params.ring_degree)
        return EvaluationKey(params, self._residues(shape, primes), self._new_seed(), level)

    def evaluation_keys(self, params: Parameters) -> EvaluationKeys:
        """Return three keys of low levels."""
        n = params.ring_degree
        levels = {rotation_element(1, n): 1, conjugation_element(n): 0}
        galois = {g: self.evaluation_key(params, level) for g, level in levels.items()}
        return EvaluationKeys(params, self.evaluation_key(params, 0), galois)

    def public_key(self) -> PublicKey:
        """Return a public key."""
        primes = self.params.chain.all_primes
        b = self._residues((len(primes), self.params.ring_degree), primes)
        return PublicKey(self.params, b, self._new_seed())

    def secret_key(self) -> SecretKey:
        """Return a secret key that protects nothing."""
        coefficients = self._rng.integers(-1, 2, self.params.ring_degree)
        return SecretKey(self.params, coefficients.astype(np.int64))

    def bootstrapping_keys(self) -> BootstrappingKeys:
        """Return few keys of bootstrapping."""
        params = self.bootstrapping

        def key(rotation: int | None) -> SeededKey:
            layout = key_layout(params, rotation)
            return layout.key(self._residues(layout.shape, layout.primes), self._new_seed())

        evaluation = EvaluationKeys(params.params, self.evaluation_key(params.params, 0), {})
        return BootstrappingKeys(params, evaluation, key(None), {0: key(0)})

    @cached_property
    def job(self) -> Job:
        """A small job: one layer of a model of two heads."""
        return self.job_of(GRAPHS[0])

    def job_of(self, graph_name: str) -> Job:
        """Return the job of a graph that comes with the library."""
        model = random_bert(BERT, 1)
        calibration = typical_calibration(BERT)
        graph = load_graph(graph_name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureParametersWarning)
            return make_job(model, calibration, graph, 8, allow_insecure=True)


def written(obj: Any) -> bytes:
    """Return an object as bytes that depend on nothing else."""
    data: bytes = dumps(obj)
    return data


def file_of(write: Callable[[Path], object], folder: Path) -> bytes:
    """Return what `write` writes to a file."""
    path = folder / "example"
    write(path)
    data = path.read_bytes()
    path.unlink()
    return data


def as_json(data: Any) -> bytes:
    """Return JSON text."""
    return json.dumps(data).encode()
