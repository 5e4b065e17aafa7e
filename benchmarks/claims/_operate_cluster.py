"""Clusters of several hosts: what crosses the link between them, and what if it is cut.

The hosts are network namespaces: making them takes root and the ip command. Where they cannot be
made the tests are skipped, and the claims are missed.
"""

from __future__ import annotations

from functools import partial

from benchmarks.claims import Claim
from benchmarks.claims._processes import pytest, pytest_command

TESTS = "tests/runtime/test_hosts_apart.py"
APART = {
    "tls": (6, "not cut_in_mid_run"),
    "partition": (3, "cut_in_mid_run"),
}
"""Claim -> how many tests there are, and which."""


def claims() -> list[Claim]:
    """Only TLS on the wire, and strangers refused; a link cut for 10, 45 and 90 s."""
    out = []
    for name, (count, chosen) in APART.items():
        arguments = ("-m", "slow", TESTS, "-k", chosen)
        out.append(
            Claim(
                name,
                f">= {count}",
                "tests passed, none failed",
                partial(pytest, *arguments),
                command=" ".join(pytest_command(*arguments)),
                slow=True,
            )
        )
    return out
