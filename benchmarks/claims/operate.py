"""What operating a cluster must show. What is not built yet is missed, and says so."""

from __future__ import annotations

from functools import partial

from benchmarks.claims import Claim, Finding, Options, operate_dashboard
from benchmarks.claims._processes import passing


def _missing(what: str) -> Finding:
    return Finding(None, f"not built yet: {what}", sound=False)


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    later = {
        "clients": "a service for several clients",
        "fuzzing": "the parsers are fuzzed by property tests only, not ten million times",
        "partition": "hosts in network namespaces",
        "tls": "certificates, and a locked service port",
    }
    return [
        passing(
            "fifty-kills",
            *("-m", "slow", "tests/runtime/test_resume.py"),
            slow=True,
        ),
        *operate_dashboard.claims(options),
        *(Claim(name, ">= 1", "", partial(_missing, what)) for name, what in later.items()),
    ]
