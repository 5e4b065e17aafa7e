"""What a scheduler tells, for several runs of one client at once.

Dask keeps one handler for a topic; a subscription of each run's own would silence the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client

from aegis_dask.dashboard.monitor import TASKS

Listener = Callable[[str, Any], None]
"""Takes the kind of an event and its content."""

KINDS = {TASKS: "task", "all": "cluster", "worker-restart-memory": "memory"}
"""Topic of Dask's -> what we call its events."""


class Events:
    """Hands the events of a scheduler to whoever listens.

    Parameters
    ----------
    client
        Client of the cluster. Nobody else may subscribe to these topics with it.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._listeners: list[Listener] = []
        self._lock = threading.Lock()

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call `listener` with every event meanwhile, in the thread of the client's event loop."""
        with self._lock:
            self._listeners.append(listener)
            # Again, though others listen: they may have begun before the connection was lost, with
            # which a scheduler forgets what was subscribed.
            for topic, kind in KINDS.items():
                self.client.subscribe_topic(topic, self._handler(kind))
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)
                if not self._listeners:
                    for topic in KINDS:
                        with suppress(Exception):  # the client may have lost its scheduler
                            self.client.unsubscribe_topic(topic)

    def _handler(self, kind: str) -> Callable[[tuple[float, Any]], None]:
        def handle(event: tuple[float, Any]) -> None:
            for listener in list(self._listeners):
                listener(kind, event[1])

        return handle
