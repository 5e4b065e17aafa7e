"""What operating a cluster must show. What is not built yet is missed, and says so."""

from __future__ import annotations

from functools import partial

from benchmarks.claims import (
    Claim,
    Finding,
    Options,
    operate_clients,
    operate_dashboard,
    operate_fuzzing,
)
from benchmarks.claims._processes import passing


def _missing(what: str) -> Finding:
    return Finding(None, f"not built yet: {what}", sound=False)


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    later = {
        "partition": "hosts in network namespaces",
        "tls": "certificates, and a locked service port",
    }
    return [
        passing(
            "fifty-kills",
            *("-m", "slow", "tests/runtime/test_resume.py"),
            slow=True,
        ),
        *operate_clients.claims(options),
        operate_fuzzing.claim(),
        *operate_dashboard.claims(options),
        *(Claim(name, ">= 1", "", partial(_missing, what)) for name, what in later.items()),
    ]
