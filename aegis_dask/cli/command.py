"""Exit statuses and messages: what every command has in common."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from aegis_dask.errors import AegisError

CHECK_FAILED = 1
USER_ERROR = 2
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_ended_by = signal.SIGINT

P = ParamSpec("P")


def command(body: Callable[P, int | None]) -> Callable[P, None]:
    """Make a command of `body`: it returns the exit status; its user errors are one message."""

    @wraps(body)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            status = body(*args, **kwargs) or 0
        except AegisError as error:
            complain(f"error: {error}", style="red")
            status = USER_ERROR
        except KeyboardInterrupt:
            complain("Interrupted.")
            status = 128 + _ended_by  # as shells report it
        raise typer.Exit(status)

    return wrapped


def end_in_order() -> None:
    """Let signals that end the process end it as Ctrl-C does: it has keys on the disk to delete.

    One that is ignored, as by nohup, stays so.
    """

    def end(number: int, frame: object) -> None:
        global _ended_by
        _ended_by = signal.Signals(number)
        raise KeyboardInterrupt

    for each in ENDING:
        if signal.getsignal(each) is signal.SIG_DFL:
            signal.signal(each, end)


def complain(message: str, style: str = "") -> None:
    """Print a message to stderr."""
    Console(stderr=True, soft_wrap=True).print(Text(message, style=style))


def repeat_lost_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """Send an interrupt again that fell into a callback, whose exceptions Python ignores.

    Dask has one that the garbage collector calls. It is a `sys.unraisablehook`.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        # In a while, and from another thread: here it would be lost once more.
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
