"""What an offer works out once for all: programs and plans, within bounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aegis_dask.service.http import offers as offers_module
from aegis_dask.service.http.offers import Offer
from aegis_dask.service.job import Job


class Planning:
    """Counts what an offer has captured and planned; a program has 5 nodes, a plan 2 tasks."""

    def __init__(self, offered: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers, self.machine = 2, None
        self.captured: list[int] = []
        self.planned = 0
        self.offer = Offer(offered)
        monkeypatch.setattr(type(offered), "for_length", lambda _, length: self._capture(length))

    def _capture(self, length: int) -> Any:
        self.captured.append(length)
        return SimpleNamespace(program=SimpleNamespace(length=length, nodes=[None] * 5))

    def plan(self, program: Any, **_: Any) -> Any:
        self.planned += 1
        return SimpleNamespace(workers=self.workers, tasks=[None] * 2, of=program.length)

    def of(self, length: int) -> Any:
        executor: Any = self
        program: Any
        plan: Any
        program, plan = self.offer.planned(length, executor, executor)
        assert (program.length, plan.of, plan.workers) == (length, length, self.workers)
        return plan


def test_a_program_is_not_captured_again_for_other_workers(
    offered: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    planning = Planning(offered, monkeypatch)
    for planning.workers in (2, 3, 2, 2):
        planning.of(5)
    assert planning.captured == [5]
    assert planning.planned == 3


def test_plans_are_held_up_to_a_size(offered: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    planning = Planning(offered, monkeypatch)
    monkeypatch.setattr(offers_module, "NODE_BYTES", 2)
    monkeypatch.setattr(offers_module, "TASK_BYTES", 5)
    monkeypatch.setattr(offers_module, "PLANS_BYTES", 60)  # of three lengths
    for length in (1, 2, 3, 1, 4, 1, 3):
        planning.of(length)
    assert planning.captured == [1, 2, 3, 4]
    planning.of(2)
    assert planning.captured == [1, 2, 3, 4, 2]
    monkeypatch.setattr(offers_module, "PLANS_BYTES", 1)  # one is held even so
    planning.of(7)
    assert planning.of(7) is planning.of(7)
