"""Events of a scheduler for several listeners, also after the connection was lost."""

from __future__ import annotations

import time
from typing import Any

import pytest
from distributed import Client, LocalCluster

from aegis_dask.dashboard.monitor import TASKS
from aegis_dask.runtime.events import KINDS, Events


def hears(found: list[Any], client: Client) -> bool:
    deadline = time.monotonic() + 10
    before = len(found)
    while len(found) == before and time.monotonic() < deadline:
        client.log_event(TASKS, time.monotonic())
        time.sleep(0.05)
    return len(found) > before


@pytest.mark.parametrize("is_new_client", [True, False])
def test_whoever_begins_to_listen_after_a_reconnect_hears_events(is_new_client: bool) -> None:
    early: list[Any] = []
    late: list[Any] = []
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        Client(cluster, set_as_default=False) as other,
    ):
        events = Events(client)
        with events.listening(lambda kind, event: early.append(event)):
            assert hears(early, other)
            for topic in KINDS:  # what a scheduler does when a client is gone
                cluster.scheduler.unsubscribe_topic(topic, client.id)
            if is_new_client:
                events.client = other
            with events.listening(lambda kind, event: late.append(event)):
                assert hears(late, other)
        assert len(set(late)) == len(late)  # each once, though subscribed twice
        assert early[-len(late) :] == late
        heard = len(late)
        other.log_event(TASKS, "nobody listens")
        time.sleep(0.2)
        assert len(late) == heard
