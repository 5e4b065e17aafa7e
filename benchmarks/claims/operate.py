"""What operating a cluster and a service must show."""

from __future__ import annotations

from benchmarks.claims import (
    Claim,
    Options,
    _operate_clients,
    _operate_cluster,
    _operate_dashboard,
    _operate_fuzzing,
)
from benchmarks.claims._processes import passing


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    return [
        passing(
            "fifty-kills",
            *("-m", "slow", "tests/runtime/test_resume.py"),
            slow=True,
        ),
        *_operate_clients.claims(options),
        _operate_fuzzing.claim(),
        *_operate_dashboard.claims(options),
        *_operate_cluster.claims(),
        passing(
            "pickle",
            *("tests/service/http/test_service.py", "-k", "pickle or without_a_token"),
        ),
    ]
