"""Certificates that aegis makes: complete, private, refused when they cannot be right."""

from __future__ import annotations

import datetime
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from aegis_dask.errors import ParameterError, SecurityError
from aegis_dask.runtime import certificates
from aegis_dask.runtime.certificates import (
    check_certificates,
    make_certificates,
    read_certificates,
)
from aegis_dask.runtime.security import load_security
from tests.service.conftest import aegis, json_of, refused

FILES = {"ca.pem", "cluster.pem", "cluster.key", "client.pem", "client.key"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs") / "made"
    make_certificates(directory, ["10.0.0.5", "node.example"])
    return directory


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_directory_holds_all_files_for_its_owner_only(made: Path) -> None:
    assert {p.name for p in made.iterdir()} == FILES
    assert made.stat().st_mode & 0o777 == 0o700
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in made.iterdir())
    assert [p.name for p in made.parent.iterdir()] == ["made"]  # nothing temporary is left
    assert not any(b"PRIVATE" in p.read_bytes() for p in made.glob("*.pem"))


def test_every_tls_library_accepts_the_chain(made: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    for purpose, name in (
        ("sslserver", "cluster"),
        ("sslclient", "cluster"),
        ("sslclient", "client"),
    ):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem"]
        done = subprocess.run([*command, f"{name}.pem"], cwd=made, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_client_cannot_pass_for_a_server(made: Path) -> None:
    """Whoever submits runs must not be able to collect those of others."""
    client = _context(made, "client", ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        _shake(_context(made, "cluster", ssl.PROTOCOL_TLS_CLIENT), client)
    _shake(
        _context(made, "client", ssl.PROTOCOL_TLS_CLIENT),
        _context(made, "cluster", ssl.PROTOCOL_TLS_SERVER),
    )


def test_nothing_is_overwritten(copy: Path) -> None:
    before = {p: p.read_bytes() for p in copy.iterdir()}
    with pytest.raises(SecurityError, match="never overwritten"):
        make_certificates(copy)
    assert {p: p.read_bytes() for p in copy.iterdir()} == before


@pytest.mark.parametrize("host", ["", "a b", "host:8786", "-x", "a..b", "tls://x", "x/y"])
def test_what_is_no_host_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is no host"):
        make_certificates(tmp_path / "new", [host])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("days", [0, -1, 100_000])
def test_validity_has_bounds(days: int, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--days"):
        make_certificates(tmp_path / "new", days=days)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    role = "client" if "client" in name else "cluster"
    with pytest.raises(SecurityError, match=f"lacks {name}"):
        check_certificates(copy, role)


def test_a_key_that_others_can_read_is_refused(copy: Path) -> None:
    (copy / "client.key").chmod(0o640)
    with pytest.raises(SecurityError, match="can be read by others"):
        load_security(copy)


def test_files_of_two_directories_do_not_fit_together(copy: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.pem", copy)
    with pytest.raises(SecurityError, match="was not issued by the authority"):
        load_security(copy)
    for name in ("ca.pem", "client.pem"):
        shutil.copy(tmp_path / "other" / name, copy)
    with pytest.raises(SecurityError, match="is not the private key of"):
        load_security(copy)


def test_what_is_no_certificate_is_named(copy: Path) -> None:
    (copy / "ca.pem").write_text("nonsense")
    with pytest.raises(SecurityError, match=r"ca\.pem is no certificate"):
        load_security(copy)
    with pytest.raises(SecurityError, match="there is no directory"):
        load_security(copy / "missing")


@pytest.mark.parametrize(
    ("shift", "message"), [(-400, "expired on"), (400, "is valid from"), (0, "")]
)
def test_the_date_counts(
    shift: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dated(tmp_path / "dated", shift, monkeypatch)
    if not message:
        load_security(tmp_path / "dated")
        return
    with pytest.raises(SecurityError, match=message):
        load_security(tmp_path / "dated")


def test_a_host_of_workers_needs_no_key_of_clients(copy: Path) -> None:
    for name in ("client.pem", "client.key"):
        (copy / name).unlink()
    security = load_security(copy)
    assert security.require_encryption
    assert security.tls_client_cert is None
    assert security.tls_worker_key == security.tls_scheduler_key == str(copy / "cluster.key")


def test_the_command_makes_and_shows(tmp_path: Path) -> None:
    values = json_of("certs", "make", tmp_path / "new", "--host", "10.0.0.5", "--days", 30)
    names = values["certificates"][1]["names"]
    assert names == ["localhost", "127.0.0.1", "::1", "10.0.0.5"]
    assert json_of("certs", "show", tmp_path / "new") == values
    ends = datetime.datetime.fromisoformat(values["certificates"][1]["ends"])
    assert 29 <= (ends - datetime.datetime.now(datetime.UTC)).days <= 30
    assert "10.0.0.5" in aegis("certs", "show", tmp_path / "new").stdout
    assert "never overwritten" in refused("certs", "make", tmp_path / "new")
    assert "holds no certificates" in refused("certs", "show", tmp_path)


def make_dated(directory: Path, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make certificates of a year as if `shift` days had passed."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return super().now(tz) + datetime.timedelta(days=shift)

    with monkeypatch.context() as patch:
        patch.setattr(certificates.datetime, "datetime", Clock)
        make_certificates(directory)


def _context(directory: Path, role: str, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(directory / "ca.pem")
    context.load_cert_chain(directory / f"{role}.pem", directory / f"{role}.key")
    return context


def _shake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Shake hands in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue


def test_read_certificates_names_roles(made: Path) -> None:
    assert [c.role for c in read_certificates(made)] == ["ca", "cluster", "client"]
