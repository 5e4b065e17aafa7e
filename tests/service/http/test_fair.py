"""Clients take turns by the time that their jobs take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.service.http.fair import FairShare
from aegis_dask.service.http.store import JobRecord


def job(client: str, created: float) -> JobRecord:
    identifier = f"{client}{created}"
    return JobRecord(
        *(identifier, client, "k", "o", 1, "s", 1, "queued", 0, created, None, None, "")
    )


def served(seconds: dict[str, float], rounds: int) -> dict[str, float]:
    """Give every client endless jobs of some length; return the time that each has got."""
    fair = FairShare()
    queue = {name: job(name, i) for i, name in enumerate(seconds)}
    got = dict.fromkeys(seconds, 0.0)
    for i in range(rounds):
        chosen = fair.choose(sorted(queue.values(), key=lambda j: j.created), [])
        assert chosen is not None
        fair.charge(chosen.client, seconds[chosen.client])
        got[chosen.client] += seconds[chosen.client]
        queue[chosen.client] = job(chosen.client, 100.0 + i)
    return got


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6))
def test_everybody_gets_the_same_time_within_a_job(lengths: list[float]) -> None:
    got = served({f"c{i}": s for i, s in enumerate(lengths)}, 200)
    assert max(got.values()) - min(got.values()) <= 2 * max(lengths) + 1e-6


def test_nothing_is_chosen_of_nothing() -> None:
    assert FairShare().choose([], ["a"]) is None


def test_one_with_many_jobs_does_not_delay_another() -> None:
    fair = FairShare()
    many = [job("busy", i) for i in range(50)]
    assert fair.choose(many, []) == many[0]
    fair.charge("busy", 10)
    late = job("late", 99)
    assert fair.choose([*many[1:], late], []) == late


def test_who_was_away_has_saved_nothing_up() -> None:
    fair = FairShare()
    for i in range(10):
        assert fair.choose([job("a", i)], []) is not None
        fair.charge("a", 1)
    order = []
    queue = [job("a", 100), job("b", 101), job("a", 102), job("b", 103), job("b", 104)]
    while queue:
        chosen = fair.choose(queue, [])
        assert chosen is not None
        order.append(chosen.client)
        queue.remove(chosen)
        fair.charge(chosen.client, 1)
    assert order.count("a") == 2
    assert order[:4] in (["a", "b", "a", "b"], ["b", "a", "b", "a"], ["a", "b", "b", "a"])


def test_who_has_nothing_running_comes_first() -> None:
    fair = FairShare()
    fair.choose([job("a", 0), job("b", 1)], [])
    fair.charge("b", 5)
    chosen = fair.choose([job("a", 0), job("b", 1)], ["a"])
    assert chosen is not None
    assert chosen.client == "b"


def test_who_comes_and_goes_gets_no_more_than_who_waits() -> None:
    """A client with one job at a time is away for a moment after each."""
    fair = FairShare()
    got = {"waits": 0, "comes and goes": 0}
    for i in range(40):
        queue = [job("waits", i)]
        if i % 2:  # not there when the place after its own job is given away
            queue.append(job("comes and goes", i + 0.5))
        chosen = fair.choose(queue, [])
        assert chosen is not None
        fair.charge(chosen.client, 1)
        got[chosen.client] += 1
    assert got["waits"] >= got["comes and goes"] >= 18


def test_clients_that_are_gone_are_forgotten() -> None:
    fair = FairShare()
    for i in range(100):
        fair.choose([job(f"c{i}", i), job("steady", i)], [])
        fair.charge(f"c{i}", 1)
        fair.charge("steady", 1)
    assert len(fair._used) < 5
