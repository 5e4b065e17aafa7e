"""What commands show: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aegis_dask.ckks.bootstrapping.parameters import AnyParameters, scheme_of
from aegis_dask.ckks.precision import PrecisionStats
from aegis_dask.ckks.security import SECURITY_BITS
from aegis_dask.errors import InsecureParametersWarning
from aegis_dask.placement.traffic import format_bytes
from aegis_dask.program.refresh import Placement
from aegis_dask.runtime.progress import ProgressCallback, progress_bar
from aegis_dask.runtime.result import Result
from aegis_dask.service.local import Outcome
from aegis_dask.service.summary import group_stages


class Terminal:
    """Where a command writes.

    Parameters
    ----------
    as_json
        Print one JSON object instead of tables.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(soft_wrap=True)
        self.err = Console(stderr=True, soft_wrap=True)
        # What we have to say of insecure parameters we say once, below.
        warnings.simplefilter("ignore", InsecureParametersWarning)

    def note(self, message: str) -> None:
        """Say something on stderr."""
        self.err.print(Text(message))

    def warn(self, message: str) -> None:
        """Say something on stderr that must not be missed."""
        self.err.print(Text.assemble(("warning: ", "bold red"), message))

    def warn_if_insecure(self, params: AnyParameters) -> None:
        """Say that parameters protect nothing, if so."""
        if not params.is_secure:
            self.warn(
                f"{scheme_of(params).name} is INSECURE, anyone can find the secret key: "
                f"{params.weakness}. Never use it for real data"
            )

    def step(self, message: str) -> AbstractContextManager[None]:
        """Show on stderr that something has begun, until it ends."""
        return self._status(message)

    @contextmanager
    def _status(self, message: str) -> Iterator[None]:
        with self.err.status(Text(message)):
            yield

    def bar(self, message: str) -> AbstractContextManager[ProgressCallback]:
        """Show the progress of a run on stderr."""
        return progress_bar(message, self.err)

    def say(self, message: str, style: str = "") -> None:
        """Print a line of the result, unless that is JSON."""
        if not self.as_json:
            self.out.print(Text(message, style=style))

    def show(self, table: Table) -> None:
        """Print a table, unless the result is JSON."""
        if not self.as_json:
            self.out.print(table)

    def pairs(self, values: Mapping[str, object]) -> None:
        """Print names and values in two columns."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        for name, value in values.items():
            grid.add_row(Text(name), Text(str(value)))
        self.show(grid)

    def json(self, values: Mapping[str, Any]) -> None:
        """Print the one object that ``--json`` asks for."""
        if self.as_json:
            sys.stdout.write(json.dumps(values, allow_nan=False) + "\n")
            sys.stdout.flush()


def table_of(*columns: str) -> Table:
    """Return an empty table: the first column to the left, the others to the right."""
    # Narrow: tables go into terminals of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for i, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if i else "left"
        width = len(column)
        table.add_column(column, justify=justify, no_wrap=i > 0, min_width=width, overflow="fold")
    return table


def short_count(count: float) -> str:
    """Return a number in five characters or so."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * (10 if unit == "k" else 1):
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}" if count >= 100 or count == int(count) else f"{count:.1f}"


def parameter_lines(params: AnyParameters, placement: Placement | None = None) -> dict[str, object]:
    """Return what to say of parameters, and of the refreshes of a program if it has any."""
    security = f"{SECURITY_BITS} bits" if params.is_secure else "NONE (insecure)"
    params = scheme_of(params)
    levels, refreshes = f"{params.max_level}", {}
    if placement is not None:
        low, high = placement.budget.input_level, placement.budget.output_level
        levels = f"{high - low} between refreshes, from {high} down to {low}"
        refreshes = {"bootstraps": f"{placement.bootstraps}, at {len(placement.sites)} sites"}
    return {
        "parameters": params.name,
        "ring degree N": f"2^{params.literal.log_n} = {params.ring_degree:,}",
        "levels": f"{levels}, scale 2^{params.literal.scale_bits}",
        **refreshes,
        "log2 QP": f"{params.log2_key_modulus:.0f}",
        "security": security,
    }


def operator_table(result: Result) -> Table:
    """Return times per operator, over all workers."""
    table = table_of("operator", "tasks", "seconds", "share")
    groups = group_stages(result)
    total = sum(o.seconds for o in groups.values()) or 1.0
    for name, o in groups.items():
        table.add_row(Text(name), str(o.calls), f"{o.seconds:.2f}", f"{o.seconds / total:.0%}")
    return table


def transfer_table(result: Result) -> Table:
    """Return bytes per pair of workers, and to and from the client."""
    places = [*(f"worker {w.name}" for w in result.workers), "client"]
    table = table_of("bytes from \\ to", *places)
    for place, row in zip(places, result.transfers.matrix, strict=True):
        table.add_row(place, *(format_bytes(n) if n else "" for n in row))
    return table


def precision_line(stats: PrecisionStats, against: str) -> str:
    """Return a line on the precision."""
    return (
        f"Largest error against {against}: {stats.max_error:.2e} ({stats.worst:.1f} bits at the "
        f"worst value, {stats.mean:.1f} bits on average)."
    )


def show_run(terminal: Terminal, outcome: Outcome) -> None:
    """Print times, bytes, memory and precision of a run."""
    result = outcome.result
    terminal.show(operator_table(result))
    terminal.show(transfer_table(result))
    steps = ", ".join(f"{step} {s:.2f} s" for step, s in outcome.seconds.items())
    terminal.say(
        f"{result.tasks} tasks on {len(result.workers)} workers in {result.seconds:.2f} s; "
        f"{result.scheduling_share:.1%} of the workers' time went into scheduling and transfers; "
        f"largest memory of a worker {result.memory_text}."
    )
    if result.resumed:
        times = "once" if result.resumed == 1 else f"{result.resumed} times"
        terminal.say(
            f"A worker was lost {times}: the run went on after the last finished layer, and the "
            "figures above are those since then."
        )
    terminal.say(f"Steps: {steps}.")
    show_precision(terminal, outcome)


def show_precision(terminal: Terminal, outcome: Outcome) -> None:
    """Print how exact a run was, and why."""
    if outcome.prepared.reference is not None:
        terminal.say(precision_line(outcome.precision, "the model in float64"))
    terminal.say(precision_line(outcome.circuit_precision, "the same circuit without encryption"))
