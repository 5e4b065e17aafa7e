"""Progress of a run: what a callback is told, and a bar for terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    done, total
        Tasks.
    share
        Of the estimated work, 0 to 1.
    stage
        Name of the stage whose task has just finished.
    seconds
        Since the run began.
    """

    done: int
    total: int
    share: float
    stage: str
    seconds: float

    @property
    def layer(self) -> str:
        """First part of the name of the stage."""
        return self.stage.split("/")[0]

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to go, or None where it is too early to say."""
        if self.share < 0.02:
            return None
        return self.seconds * (1 - self.share) / self.share


ProgressCallback = Callable[[Progress], None]
"""Called in the thread that called `Executor.run`, several times a second at most."""


@contextmanager
def progress_bar(description: str = "running", console: Any = None) -> Iterator[ProgressCallback]:
    """Show a bar in the terminal; yields the callback to give to `Executor.run`."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0%}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[stage]}", style="dim", markup=False),  # others may name it
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(description, total=1.0, stage="")

        def update(progress: Progress) -> None:
            bar.update(task, completed=progress.share, stage=progress.stage)

        yield update
