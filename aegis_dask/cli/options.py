"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


class InterpreterName(StrEnum):
    """How a program is run."""

    ENCRYPTED = "encrypted"
    SIMULATED = "simulated"


Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object to stdout instead of tables.")
]
GraphName: TypeAlias = Annotated[
    str,
    typer.Argument(
        help="Graph program: a Python file, or the name of one that comes with the library, such "
        "as bert_layer.",
        metavar="GRAPH",
    ),
]
GraphOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--graph",
        help="Graph program, if it is not one that comes with the library.",
        metavar="GRAPH",
    ),
]
Model: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Checkpoint folder; all-MiniLM-L6-v2 from its package if not given."),
]
Sha256: TypeAlias = Annotated[
    str | None, typer.Option(help="SHA-256 that the weights file must have.", metavar="HEX")
]
Text: TypeAlias = Annotated[str, typer.Option(help="The text; it never leaves this process.")]
CalibrationFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Calibrated ranges (see aegis calibrate); calibration.json beside the model if there "
        "is one, else they are measured now.",
    ),
]
Length: TypeAlias = Annotated[
    int | None,
    typer.Option("--length", "--tokens", min=1, help="Longest text to make room for, in tokens."),
]
Scheduler: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Address of a Dask scheduler, such as tls://10.0.0.5:8786, or @NAME for a cluster of "
        "aegis cluster up; without it workers are started on this machine."
    ),
]
Tls: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Directory of certificates (aegis certs make) with which to reach the scheduler; by "
        "default that of DASK_AEGIS__TLS, or what Dask's configuration says.",
        metavar="DIRECTORY",
    ),
]
InsecureTransport: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--insecure-transport",
        help="Reach a scheduler on another machine WITHOUT ENCRYPTION. Whoever is between can run "
        "code on both.",
    ),
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of workers: 2 on this machine, or all that the scheduler has."
    ),
]


CONNECT_SECONDS = 10.0
Timeout: TypeAlias = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        help="How long to wait for a scheduler, and for its workers, such as jobs that are queued.",
        metavar="SECONDS",
    ),
]


class ClusterKind(StrEnum):
    """What is started on this machine."""

    AUTO = "auto"
    LOCAL = "local"
    CUDA = "cuda"


Cluster: TypeAlias = Annotated[
    ClusterKind,
    typer.Option(
        "--cluster",
        help="Workers to start on this machine: one per GPU (cuda), or two that share its cores "
        "(local); auto takes GPUs where there are any, and dask-cuda.",
    ),
]
Machine: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Search a plan for these devices and links: cpu, h200-nvlink, a100-40-pcie, .. or a "
        ".json file; without it what others need is sent to them."
    ),
]
PlanFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        help="Run this plan, a .json file of 'aegis plan --out', on as many workers as it is for.",
    ),
]
Insecure: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Use a small ring WITHOUT SECURITY, to try things. Never for real data."
    ),
]
ScaleBits: TypeAlias = Annotated[
    int, typer.Option(help="log2 of the scale of ciphertexts: 35, 40 or 45.")
]
Tolerance: TypeAlias = Annotated[
    float, typer.Option(min=0.0, help="Largest error that is accepted (else exit status 1).")
]
Report: TypeAlias = Annotated[
    Path | None, typer.Option(help="Write an HTML report of the run to this file.")
]
Record: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Write what was measured to this .json file, for aegis report."),
]
Output: TypeAlias = Annotated[
    Path | None, typer.Option(help="Write the result, float64 (tokens x features), as .npy.")
]
