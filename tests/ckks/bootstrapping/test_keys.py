"""The ephemeral secret, and the keys that lead to it and back."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from aegis_dask.ckks import sampling
from aegis_dask.ckks.bootstrapping.keys import RequiredKeys
from tests.ckks.bootstrapping.conftest import Context


def test_sparse_secrets_have_their_weight_anywhere_and_both_signs() -> None:
    drawn = [sampling.sparse_ternary(256, 32) for _ in range(200)]
    assert all(np.count_nonzero(s) == 32 for s in drawn)
    assert all(set(np.unique(s)) <= {-1, 0, 1} for s in drawn)
    total = np.abs(drawn).sum(axis=0)
    # 200 draws of probability 1/8: mean 25, standard deviation 4.7; six of them to either side
    assert total.min() > 0
    assert total.max() < 54
    assert abs(np.sum(drawn)) < 6 * 80  # 6,400 signs


@pytest.mark.parametrize("weight", [0, 9])
def test_a_weight_that_does_not_fit_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match="of 8 coefficients"):
        sampling.sparse_ternary(8, weight)


def test_keys_to_the_sparse_secret_live_modulo_q0_and_one_prime_only(context: Context) -> None:
    key, chain = context.keys.to_sparse, context.params.sparse_chain
    assert key.b.shape == (2, 3, context.params.params.ring_degree)
    assert key.ring.chain == chain
    assert chain.primes == tuple(
        context.params.params.chain.primes[i] for i in context.params.params.limbs(0)
    )


def test_the_sparse_secret_is_not_kept(context: Context) -> None:
    # Nothing that a key refers to is a sparse ternary array.
    n = context.params.params.ring_degree
    seen: set[int] = set()
    todo: list[object] = [context.keys]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            assert item.size != n or np.count_nonzero(item) > n // 4
        elif type(item).__module__.startswith(("aegis_dask.ckks", "builtins")):
            todo += [r for r in gc.get_referents(item) if not isinstance(r, type)]


def test_every_seed_is_its_own(context: Context) -> None:
    keys = context.keys
    seeds = [k.seed for k in keys.raised.values()] + [keys.to_sparse.seed]
    seeds += [k.seed for k in keys.evaluation.galois.values()]
    assert len(set(seeds)) == len(seeds)


def test_requirements_are_joined_at_their_highest_levels() -> None:
    one = RequiredKeys({1: 3, 2: 5}, (0, 4), 7, -1)
    other = RequiredKeys({2: 9, 8: 1}, (0, 2), 5, 6)
    assert one | other == RequiredKeys({1: 3, 2: 9, 8: 1}, (0, 2, 4), 7, 6)
