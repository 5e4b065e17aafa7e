"""Whose job is next: clients take turns by the time that their jobs have taken."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from aegis_dask.service.http.store import JobRecord


class FairShare:
    """Chooses the next job so that every client that waits gets the same share of the cluster.

    That of the client whose jobs have taken least time; its oldest. A client that comes back is
    treated as if it had used as much as the least of those that wait: it gets its share from now
    on, not what it did not use before. (Start-time fair queueing, Goyal, Vin and Cheng, 1996.)
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._last = ""  # client whose job was chosen last

    def choose(self, queued: Sequence[JobRecord], running: Collection[str]) -> JobRecord | None:
        """Return the next job.

        Parameters
        ----------
        queued
            All jobs that wait, the oldest first.
        running
            Clients with jobs that run, one entry each job.
        """
        first: dict[str, JobRecord] = {}
        for job in queued:
            first.setdefault(job.client, job)
        if not first:
            return None
        active = {*first, *running}
        least = min((self._used[c] for c in active if c in self._used), default=0.0)
        # Who is away keeps what it has used, until that is no more than it would be given anyway.
        self._used = {c: used for c, used in self._used.items() if c in active or used > least}
        for c in active:
            self._used[c] = max(self._used.get(c, least), least)
        counts = {c: list(running).count(c) for c in first}
        client = min(
            first, key=lambda c: (counts[c], self._used[c], c == self._last, first[c].created)
        )
        self._last = client
        return first[client]

    def charge(self, client: str, seconds: float) -> None:
        """Note that a job of a client has taken some time."""
        self._used[client] = self._used.get(client, 0.0) + seconds
