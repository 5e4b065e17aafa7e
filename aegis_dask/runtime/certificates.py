"""Certificates for a cluster: an authority of its own, and what it has signed.

A directory holds the authority's certificate (``ca.pem``), the certificate and key of scheduler and
workers (``cluster.pem``, ``cluster.key``) and those of clients (``client.pem``, ``client.key``).
The key of the authority is never written: nobody can sign another certificate, and renewing means a
new directory. Keys are ECDSA on P-256, which every TLS library knows.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aegis_dask.errors import ParameterError, SecurityError

CA = "ca.pem"
CLUSTER = "cluster"
"""Role of scheduler and workers, which are servers and clients of each other."""
CLIENT = "client"
"""Role of those who submit runs. Its certificate cannot pass for that of a scheduler or worker."""
ROLES = (CLUSTER, CLIENT)
DAYS = 365
MAX_DAYS = 3650
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names that every cluster certificate has, for tunnels and for clusters on one machine."""

_SKEW = datetime.timedelta(minutes=5)  # clocks of hosts differ
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)
_Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True)
class Certificate:
    """What a certificate says.

    Attributes
    ----------
    file
        Where it is.
    role
        ``"ca"``, ``"cluster"`` or ``"client"``.
    names
        Hosts for which it holds.
    begins, ends
        When it is valid, UTC.
    fingerprint
        SHA-256 of the certificate, in hexadecimal.
    """

    file: Path
    role: str
    names: tuple[str, ...]
    begins: datetime.datetime
    ends: datetime.datetime
    fingerprint: str

    def check_date(self) -> None:
        """Check that it is valid now.

        Raises
        ------
        SecurityError
            If it has expired or is not valid yet.
        """
        now = datetime.datetime.now(datetime.UTC)
        if now > self.ends:
            raise SecurityError(
                f"{self.file} expired on {self.ends:%Y-%m-%d %H:%M} UTC; make new certificates "
                "with 'aegis certs make', give them to scheduler, workers and clients, and start "
                "the cluster again"
            )
        if now < self.begins:
            raise SecurityError(
                f"{self.file} is valid from {self.begins:%Y-%m-%d %H:%M} UTC only; check the clock "
                "of this machine"
            )


def make_certificates(directory: Path, hosts: Sequence[str] = (), days: int = DAYS) -> None:
    """Make an authority and certificates in a new directory, for its owner only.

    Parameters
    ----------
    directory
        Must not exist. It appears when it is complete.
    hosts
        Host names or addresses at which the scheduler is reached, beside the loopback ones.
    days
        How long they are valid.

    Raises
    ------
    ParameterError
        If a host or the number of days cannot be.
    SecurityError
        If the directory exists or cannot be written.
    """
    if not 1 <= days <= MAX_DAYS:
        raise ParameterError(f"--days is {days}; give 1 to {MAX_DAYS}")
    names = [_general_name(host) for host in dict.fromkeys([*LOOPBACK, *hosts])]
    if directory.exists() or directory.is_symlink():
        raise SecurityError(
            f"{directory} exists, and certificates are never overwritten; give another name or "
            "remove it"
        )
    now = datetime.datetime.now(datetime.UTC)
    valid = now - _SKEW, now + datetime.timedelta(days=days)
    files = _sign_all(names, valid)
    try:
        directory.absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent = directory.absolute().parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=parent))  # mode 0700
        try:
            for name, data in files.items():
                descriptor = os.open(temporary / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
            temporary.rename(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as e:
        raise SecurityError(f"{directory} cannot be written: {e.strerror or e}") from None


def read_certificates(directory: Path) -> list[Certificate]:
    """Return what the certificates in a directory say; those of one role may be missing.

    Raises
    ------
    SecurityError
        If there is none, or one cannot be read.
    """
    found = [
        read_certificate(directory / f"{role}.pem")
        for role in ("ca", *ROLES)
        if (directory / f"{role}.pem").exists()
    ]
    if not found:
        raise SecurityError(
            f"{directory} holds no certificates; 'aegis certs make {directory}' makes some"
        )
    return found


def read_certificate(file: Path) -> Certificate:
    """Return what a certificate says.

    Raises
    ------
    SecurityError
        If it cannot be read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as e:
        raise SecurityError(f"{file} cannot be read: {e.strerror or e}") from None
    except ValueError as e:
        raise SecurityError(f"{file} is no certificate in PEM format: {e}") from None
    names: tuple[str, ...] = ()
    with suppress(x509.ExtensionNotFound):
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(str(name.value) for name in extension.value)
    return Certificate(
        file,
        file.stem,
        names,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex(),
    )


def check_certificates(directory: Path, role: str) -> None:
    """Check that a directory holds what a role needs: files that fit, valid now, and private.

    Raises
    ------
    SecurityError
        Saying what is missing or wrong.
    """
    ca, cert, key = directory / CA, directory / f"{role}.pem", directory / f"{role}.key"
    for file in (ca, cert, key):
        if not file.is_file():
            raise SecurityError(
                f"{directory} lacks {file.name}, which {_people(role)} need; copy it from where "
                "'aegis certs make' was run"
            )
    check_private(key)
    for file in (ca, cert):
        read_certificate(file).check_date()
    authority = x509.load_pem_x509_certificate(ca.read_bytes())
    try:
        x509.load_pem_x509_certificate(cert.read_bytes()).verify_directly_issued_by(authority)
    except Exception:  # of several kinds, for a wrong name and for a wrong signature
        raise SecurityError(
            f"{cert} was not issued by the authority in {ca}; take all files from one directory"
        ) from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key)
    except (ssl.SSLError, OSError):
        raise SecurityError(
            f"{key} is not the private key of {cert}; take all files from one directory"
        ) from None


def check_private(key: Path) -> None:
    """Refuse a private key that others can read.

    Raises
    ------
    SecurityError
        If they can. On Windows permissions are not checked.
    """
    if os.name == "posix" and _is_exposed(key):
        raise SecurityError(
            f"{key} can be read by others than its owner; 'chmod 600 {key}', and make new "
            "certificates if others have had access"
        )


def _is_exposed(key: Path) -> bool:
    """Whether others can read a key, or change it.

    One that belongs to somebody else and is readable through our group was given to us on purpose:
    Kubernetes does so with its Secrets.
    """
    status = key.stat()
    mine = status.st_uid == os.geteuid()
    return bool(status.st_mode & (0o077 if mine else 0o027))


def _people(role: str) -> str:
    return "scheduler and workers" if role == CLUSTER else "clients"


def _sign_all(
    names: list[x509.GeneralName], valid: tuple[datetime.datetime, datetime.datetime]
) -> dict[str, bytes]:
    """Return the contents of the files; the authority's key is forgotten."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aegis cluster authority")])
    builder = _begin(subject, authority_key.public_key(), subject, authority_key, valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority = builder.add_extension(_usage(signs=True), critical=True).sign(
        authority_key, hashes.SHA256()
    )
    files = {CA: _pem(authority)}
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    for role, uses in {CLUSTER: [server, client], CLIENT: [client]}.items():
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"aegis {role}")])
        builder = _begin(name, key.public_key(), subject, authority_key, valid)
        builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        if role == CLUSTER:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        files[f"{role}.pem"] = _pem(builder.sign(authority_key, hashes.SHA256()))
        files[f"{role}.key"] = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    return files


def _begin(
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: _Key,
    valid: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(identifier, critical=False)
        .add_extension(above, critical=False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        labels = host.removeprefix("*.").split(".")
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            raise ParameterError(
                f"{host!r} is no host; give a name or an address such as 10.0.0.5, without a port"
            ) from None
        return x509.DNSName(host)
