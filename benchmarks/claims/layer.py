"""What one encrypted layer on Dask must show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.claims import Claim, Finding, Options
from benchmarks.claims import _layer_checks as checks
from benchmarks.claims._processes import passing


def _demo(value: Callable[[dict[str, Any]], float], note: str = "") -> Callable[[], Finding]:
    """Take a figure from one run of `aegis demo --insecure`; the secure one is in `bootstrap`."""

    def measure() -> Finding:
        result = checks.demo("--insecure")
        return Finding(value(result), note.format(**result))

    return measure


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    marks = ["-m", "not slow" if options.quick else "slow or not slow"]
    quick = options.quick
    return [
        Claim(
            "demo-seconds",
            "<= 300",
            "s, kernels compiled anew",
            _demo(lambda r: round(r["seconds_in_all"], 1)),
        ),
        Claim("demo-tokens", ">= 16", "tokens", _demo(lambda r: r["tokens"])),
        Claim(
            "demo-max-error",
            "<= 1e-2",
            "of layer outputs",
            _demo(lambda r: r["precision"]["max_error"], "{precision}"),
        ),
        Claim("demo-report", ">= 1000", "bytes of HTML", _demo(lambda r: r["report_bytes"])),
        Claim(
            "scheduling-share",
            "<= 0.05",
            "of the workers' time in the demo",
            _demo(lambda r: r["run"]["scheduling_share"]),
        ),
        Claim(
            "similarity-mean",
            ">= 0.999",
            "cosine, six simulated layers",
            partial(checks.similarity, quick, "mean"),
        ),
        Claim(
            "similarity-worst",
            ">= 0.99",
            "cosine, six simulated layers",
            partial(checks.similarity, quick, "worst"),
        ),
        Claim(
            "similarity-512-tokens",
            ">= 0.99",
            "cosine, worst",
            checks.long_similarity,
            slow=True,
        ),
        Claim(
            "same-residues",
            "<= 0",
            "configurations that differ",
            partial(checks.different_residues, quick),
        ),
        passing("same-residues-tests", "tests/runtime", *marks),
        Claim("capture-seconds", "< 60", "s, BERT-base x 2,048", checks.symbolic_seconds),
        Claim("capture-memory", "< 2", "GiB", checks.symbolic_memory),
        passing("counts-as-documented", "tests/circuits/test_counts.py", *marks),
        passing("bad-input", "tests/test_cli.py", "tests/service", "tests/runtime", *marks),
        passing("no-secret-on-the-server", "tests/service", "-k", "secret", *marks),
    ]
