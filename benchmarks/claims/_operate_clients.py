"""Many clients of one service."""

from __future__ import annotations

from functools import cache, partial

from benchmarks import clients
from benchmarks.claims import Claim, Finding, Options

CLIENTS, MINUTES, QUICK_MINUTES = 24, 15.0, 1.0
MOST_GROWTH = 0.05
"""Of memory in the ten minutes after the warm-up, beside which noise is visible."""


def claims(options: Options) -> list[Claim]:
    """No job fails, memory stays, and greedy clients get no more than others."""
    minutes = QUICK_MINUTES if options.quick else MINUTES

    @cache
    def report() -> clients.Report:
        return clients.measure(CLIENTS, minutes)

    def failed() -> Finding:
        r = report()
        note = f"{r.done} done in {minutes:g} minutes, {r.median_seconds:.1f} s each (median)"
        return Finding(r.failed, "; ".join([note, *r.errors]), sound=r.done >= CLIENTS)

    def growth() -> Finding:
        r = report()
        note = f"{r.growth_mb_per_hour:+.0f} MB an hour on {r.memory_mb:.0f} MB"
        return Finding(100 * r.growth, note)

    def fairness() -> Finding:
        r = report()
        return Finding(r.jain, f"{r.least} to {r.most} jobs each; every other client is greedy")

    command = f"python -m benchmarks.clients --clients {CLIENTS} --minutes {minutes:g}"
    make = partial(Claim, command=command, slow=True)
    return [
        make("clients-failed", "== 0", "jobs failed", failed),
        make("clients-memory", f"<= {100 * MOST_GROWTH:g}", "% growth once warm", growth),
        make("clients-fair", ">= 0.95", "Jain's index of jobs done", fairness),
    ]
