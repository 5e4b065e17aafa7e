"""Results are fetched from the worker that made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.worker_state_machine import WorkerState

from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.plugin import _fetch_from_makers


class State:
    """As much of Dask's class as is used."""

    __slots__ = ("address", "seen")

    def __init__(self) -> None:
        self.address = "c"
        self.seen: dict[str, Any] = {}

    def _update_who_has(self, who_has: Mapping[str, Any]) -> None:
        self.seen = dict(who_has)


def test_the_maker_is_chosen_where_it_is_known_and_elsewhere() -> None:
    state = State()
    _fetch_from_makers(state, {"made by a": "a", "made here": "c", "made by a lost one": "d"})
    everywhere = {
        "made by a": ["b", "a"],
        "made here": ["b", "c"],
        "made by a lost one": ["a", "b"],
        "of others": ["b"],
    }
    state._update_who_has(everywhere)
    assert state.seen == {**everywhere, "made by a": ["a"]}


def test_a_class_of_another_shape_is_left_alone() -> None:
    state = object()
    _fetch_from_makers(state, {})
    assert type(state) is object


def test_workers_do_so_and_forget_a_run_when_it_ends() -> None:
    with Executor.local(2, 1, processes=False) as executor:
        found: Any = executor.client.run(
            lambda dask_worker: (
                type(dask_worker.state).__mro__[1] is WorkerState,
                len(dask_worker.plugins["aegis"].makers),
            )
        )
    assert set(found.values()) == {(True, 0)}
