"""Evaluation keys of a job: which, how large, and making them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from aegis_dask.ckks.bootstrapping.bootstrapper import FEW_BABY_STEPS, Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import BootstrappingKeys, RequiredKeys, bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.keys import EvaluationKeys, KeyGenerator, SecretKey
from aegis_dask.ckks.parameters import Parameters
from aegis_dask.placement.tasks import Plan
from aegis_dask.program.operations import Refresh
from aegis_dask.program.symbolic import Analysis, all_keys
from aegis_dask.program.symbolic import RequiredKeys as Needed

AnyKeys = EvaluationKeys | BootstrappingKeys


@dataclass(frozen=True)
class KeyList:
    """Evaluation keys that a job needs, each for the levels at which it is used.

    Attributes
    ----------
    params
        Parameters of the scheme.
    required
        The keys. A level of -1 stands for a key that is not needed.
    """

    params: Parameters
    required: RequiredKeys

    @property
    def count(self) -> int:
        """Number of keys."""
        r = self.required
        singles = (r.relinearisation >= 0) + (r.conjugation >= 0)
        return len(r.rotations) + len(r.raised) + singles + bool(r.raised)

    @property
    def nbytes(self) -> int:
        """Size in memory; that of the key to the ephemeral secret, a megabyte or two, left out."""
        r, params = self.required, self.params
        levels = [*r.rotations.values(), r.relinearisation, r.conjugation]
        ordinary = sum(params.key_bytes(level) for level in levels if level >= 0)
        limbs = len(params.extended_limbs(params.max_level))
        return ordinary + len(r.raised) * 2 * 4 * limbs * params.ring_degree


def list_keys(analysis: Analysis) -> KeyList:
    """Return the keys of a program, those of bootstrapping included if it refreshes."""
    return _list(analysis, analysis.keys, refreshes=True)


def keys_by_worker(analysis: Analysis, plan: Plan) -> list[KeyList]:
    """Return for each worker the keys of what a plan has it do: those that it must hold."""
    stages: list[set[int]] = [set() for _ in range(plan.workers)]
    for task in plan.tasks:
        stages[task.owner].update(p.task.stage for p in task.steps if p.task.kind == "stage")
    out = []
    for there in stages:
        nodes = [n for n in analysis.program.nodes if n.stage in there]
        refreshes = any(isinstance(n.op, Refresh) for n in nodes)
        out.append(_list(analysis, all_keys(analysis.node_keys[n.id] for n in nodes), refreshes))
    return out


def _list(analysis: Analysis, keys: Needed, refreshes: bool) -> KeyList:
    required = RequiredKeys(
        keys.rotations,
        (),
        -1 if keys.relinearisation is None else keys.relinearisation,
        -1 if keys.conjugation is None else keys.conjugation,
    )
    if refreshes and analysis.bootstrapping is not None:
        required |= _bootstrapping(analysis.bootstrapping)
    return KeyList(analysis.params, required)


@lru_cache(maxsize=16)
def _bootstrapping(params: BootstrappingParameters) -> RequiredKeys:
    """Return the keys of bootstrapping: seconds of work, since it encodes all matrices."""
    return Bootstrapper(params, baby_steps=FEW_BABY_STEPS).required_keys


def make_keys(analysis: Analysis, keys: KeyList, secret_key: SecretKey) -> AnyKeys:
    """Make the keys of a program."""
    required = keys.required
    if analysis.bootstrapping is not None:
        return bootstrapping_keys(analysis.bootstrapping, secret_key, required)
    return KeyGenerator(analysis.params).evaluation_keys(
        secret_key,
        rotations=required.rotations,
        conjugation=required.conjugation >= 0,
        relinearisation=required.relinearisation >= 0,
        level=max(required.conjugation, required.relinearisation, 0),
    )
