"""What operating a cluster must show. What is not built yet is missed, and says so."""

from __future__ import annotations

from functools import partial

from benchmarks.claims import Claim, Finding, Options, _operate_cluster
from benchmarks.claims._processes import passing


def _missing(what: str) -> Finding:
    return Finding(None, f"not built yet: {what}", sound=False)


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    later = {
        "clients": "a service for several clients",
        "fuzzing": "the parsers are fuzzed by property tests only, not ten million times",
        "dashboard": "pages in the scheduler's dashboard",
        "pickle": "a service port, to send a malicious pickle to",
    }
    return [
        passing(
            "fifty-kills",
            *("-m", "slow", "tests/runtime/test_resume.py"),
            slow=True,
        ),
        *_operate_cluster.claims(),
        *(Claim(name, ">= 1", "", partial(_missing, what)) for name, what in later.items()),
    ]
