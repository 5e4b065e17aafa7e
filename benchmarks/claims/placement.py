"""What the placement of work must show."""

from __future__ import annotations

from functools import partial

from benchmarks.claims import Claim, Options
from benchmarks.claims import _placement_checks as checks
from benchmarks.claims._processes import passing


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    return [
        passing("predicted-bytes", "tests/runtime/test_predicted_bytes.py", "-m", ""),
        passing("properties", "tests/placement"),
        Claim(
            "efficiency-4-nvlink",
            ">= 0.97",
            "simulated, 2,048 tokens",
            partial(checks.efficiency, "h200-nvlink", 4),
        ),
        Claim(
            "efficiency-4-a100",
            ">= 0.97",
            "simulated, 2,048 tokens, the paper's kind of machine",
            partial(checks.efficiency, "a100-40-nvlink", 4),
        ),
        Claim(
            "efficiency-4-pcie",
            ">= 0.94",
            "simulated, 2,048 tokens",
            partial(checks.efficiency, "h200-pcie", 4),
        ),
        Claim(
            "speedup-4",
            ">= 3.88",
            "simulated, 2,048 tokens, NVLink",
            partial(checks.speedup, "h200-nvlink", 4),
        ),
        Claim(
            "memory-4",
            ">= 0.7",
            "below one device, keys included",
            partial(checks.memory_saved, "h200-nvlink", 4),
        ),
        Claim("planning-seconds", "< 60", "s, 12 layers, 8 devices", checks.planning_seconds),
        Claim("planning-memory", "< 4", "GiB", checks.planning_memory),
        Claim(
            "two-workers",
            ">= 1.9",
            "x one worker, one thread each, measured",
            checks.measured_speedup,
            slow=True,
        ),
        Claim(
            "two-workers-predicted",
            "<= 0.1",
            "off the measured time on two workers",
            checks.prediction,
            slow=True,
        ),
        Claim(
            "feed-forward-bytes",
            ">= 0.579",
            "below the strongest baseline",
            partial(checks.saved, "feed-forward"),
        ),
        Claim(
            "attention-bytes",
            ">= 0.813",
            "below the strongest baseline",
            partial(checks.saved, "attention"),
        ),
        Claim(
            "feed-forward-columns",
            ">= 0",
            "below a split by columns and rows (Megatron-LM)",
            checks.saved_by_columns,
        ),
        Claim(
            "search-never-worse",
            "<= 0",
            "strategies simulated to be faster",
            checks.never_worse,
        ),
        Claim(
            "throttled-link",
            ">= 0.5",
            "of the exposed communication saved by the search, 1 Gbit/s",
            checks.exposed_saved,
            slow=True,
        ),
    ]
