"""``aegis certs``: certificates with which scheduler, workers and clients know each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis_dask.cli import options as o

if TYPE_CHECKING:
    from aegis_dask.runtime.certificates import Certificate
    from aegis_dask.terminal import Terminal

DEFAULT_DAYS = 365


def make(
    directory: Annotated[Path, typer.Argument(help="New directory for them.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address at which clients reach the scheduler; may be repeated. localhost "
            "is always in.",
            metavar="HOST",
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are valid.")] = (
        DEFAULT_DAYS
    ),
    as_json: o.Json = False,
) -> None:
    """Make a private authority, and certificates for scheduler, workers and clients."""
    from aegis_dask.runtime.certificates import make_certificates, read_certificates
    from aegis_dask.terminal import Terminal

    terminal = Terminal(as_json)
    make_certificates(directory, host or [], days)
    certificates = read_certificates(directory)
    terminal.pairs(
        {
            f"{directory}/ca.pem": "the authority's certificate: everybody needs it",
            f"{directory}/cluster.pem, cluster.key": "for hosts of the scheduler and of workers",
            f"{directory}/client.pem, client.key": "for those who submit runs",
        }
    )
    terminal.say(
        f"Valid until {certificates[0].ends:%Y-%m-%d}, for {', '.join(_names(certificates))}."
    )
    terminal.say(
        "Keep the .key files private: whoever has one can use the cluster, or be a part of it."
    )
    _print_json(terminal, directory, certificates)


def show(
    directory: Annotated[Path, typer.Argument(help="Directory of certificates.")],
    as_json: o.Json = False,
) -> None:
    """Show what certificates say, and check them."""
    from aegis_dask.runtime.certificates import (
        ROLES,
        check_certificates,
        read_certificates,
    )
    from aegis_dask.terminal import Terminal, table_of

    terminal = Terminal(as_json)
    certificates = read_certificates(directory)
    table = table_of("certificate", "valid until, UTC", "SHA-256")
    for certificate in certificates:
        ends, print_ = f"{certificate.ends:%Y-%m-%d %H:%M}", certificate.fingerprint
        table.add_row(certificate.file.name, ends, f"{print_[:16]}..")
    terminal.show(table)
    if names := _names(certificates):
        terminal.say(f"Hosts: {', '.join(names)}.")
    _print_json(terminal, directory, certificates)
    for role in ROLES:
        if any(c.role == role for c in certificates):
            check_certificates(directory, role)


def _names(certificates: list[Certificate]) -> list[str]:
    return [name for certificate in certificates for name in certificate.names]


def _print_json(terminal: Terminal, directory: Path, certificates: list[Certificate]) -> None:
    terminal.json(
        {
            "directory": str(directory),
            "certificates": [
                {
                    "file": str(c.file),
                    "role": c.role,
                    "names": list(c.names),
                    "begins": c.begins.isoformat(),
                    "ends": c.ends.isoformat(),
                    "sha256": c.fingerprint,
                }
                for c in certificates
            ],
        }
    )
