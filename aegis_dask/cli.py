"""Command line: ``aegis``."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from aegis_dask import __version__
from aegis_dask.errors import AegisError

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

P = ParamSpec("P")

app = typer.Typer(
    name="aegis",
    help="Transformer inference on CKKS-encrypted activations.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that ``sys.argv`` names and exit with its status."""
    app()


def _complain(message: str, style: str = "") -> None:
    Console(stderr=True, soft_wrap=True).print(Text(message, style=style))


def _command(body: Callable[P, int]) -> Callable[P, None]:
    """Make a command of `body`: its result is the exit status, its user errors are one line."""

    @wraps(body)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            status = body(*args, **kwargs)
        except AegisError as error:
            _complain(f"error: {error}", style="red")
            status = USER_ERROR
        except KeyboardInterrupt:
            _complain("Interrupted.")
            status = INTERRUPTED
        raise typer.Exit(status)

    return command


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aegis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
@_command
def demo(
    preset: Annotated[str, typer.Option(help="Parameter set to use.")] = "n16-d40",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with; all cores if not given.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the input values; fresh ones if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> int:
    """Encrypt, compute and decrypt: what CKKS does, how precisely and how fast on this machine."""
    from aegis_dask.demo import run  # imports Numba, which --version and --help can do without

    return run(preset=preset, threads=threads, seed=seed, as_json=as_json)


if __name__ == "__main__":
    main()
