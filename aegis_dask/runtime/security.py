"""Whom to talk to, and encrypted how: addresses, TLS settings, and what to refuse.

Dask runs the code of whoever reaches its ports. Beyond loopback connections are TLS with
certificates on both sides, unless somebody says otherwise in so many words.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask.config
from distributed.security import Security

from aegis_dask import config
from aegis_dask.errors import ClusterError, SecurityError
from aegis_dask.runtime.certificates import CA, CLIENT, CLUSTER, check_certificates

ENCRYPTED = ("tls", "wss")
"""Schemes of addresses whose connections are encrypted."""


def load_security(directory: str | Path) -> Any:
    """Return Dask's TLS settings from a directory of `certificates.make_certificates`.

    Encryption is required, of TLS 1.3, with certificates on both sides. Where the directory holds
    the files of clients only, or of scheduler and workers only, the settings are for those.

    Raises
    ------
    SecurityError
        If files are missing, do not fit together, are not private or have expired.
    """
    directory = Path(directory).expanduser().absolute()  # programs elsewhere get the names
    if not directory.is_dir():
        raise SecurityError(
            f"there is no directory {directory} of certificates; 'aegis certs make {directory}' "
            "makes one"
        )
    roles = [r for r in (CLIENT, CLUSTER) if (directory / f"{r}.pem").exists()] or [CLIENT]
    files: dict[str, str] = {}
    for role in roles:
        check_certificates(directory, role)
        for name in ("client",) if role == CLIENT else ("scheduler", "worker"):
            files[f"tls_{name}_cert"] = str(directory / f"{role}.pem")
            files[f"tls_{name}_key"] = str(directory / f"{role}.key")
    return Security(
        require_encryption=True,
        tls_ca_file=str(directory / CA),
        tls_min_version=ssl.TLSVersion.TLSv1_3,
        **files,
    )


def configured_security() -> Any:
    """Return the TLS settings of Dask's configuration: of ``aegis.tls``, or Dask's own; or None."""
    if config.tls():
        return load_security(config.tls())
    if dask.config.get("distributed.comm.tls.ca-file", None):
        return Security(require_encryption=True)
    return None


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback interface, and only that."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(a[4][0]).is_loopback for a in found)


def agree(address: str, security: Any = None, insecure_transport: bool = False) -> tuple[str, Any]:
    """Return the full address of a scheduler, and the TLS settings with which to connect.

    Parameters
    ----------
    address
        Such as ``tls://10.0.0.5:8786``; without a scheme it is ``tls`` if there are settings.
    security
        `distributed.Security`; by default what Dask's configuration says, if the address does not
        say ``tcp``.
    insecure_transport
        Permit what is not encrypted beyond loopback.

    Raises
    ------
    ClusterError
        If the address is none.
    SecurityError
        If address and settings contradict each other, or the connection would not be encrypted.
    """
    scheme, separator, _ = address.partition("://")
    if security is None and (not separator or scheme in ENCRYPTED):
        security = configured_security()
    if not separator:
        scheme = "tcp" if security is None else "tls"
        address = f"{scheme}://{address}"
    url = urlsplit(address)
    try:
        port = url.port
    except ValueError:
        port = None
    if not url.hostname or port is None:
        raise ClusterError(
            f"{address.removeprefix('tcp://')!r} is no address of a scheduler; give one such as "
            "tls://10.0.0.5:8786"
        )
    if scheme in ENCRYPTED:
        if security is None:
            raise SecurityError(
                f"{address} needs certificates; give their directory (--tls, or "
                "Executor.connect(security=load_security(directory)))"
            )
        return address, security
    if security is not None and security.require_encryption:
        raise SecurityError(
            f"certificates are given, but {address} would not be encrypted; give "
            f"tls://{url.netloc}, or leave the certificates out"
        )
    if not insecure_transport and not is_loopback(url.hostname):
        raise SecurityError(
            f"{address} is another machine, and the connection would not be encrypted: whoever is "
            "between sees and can change everything, and Dask runs the code of whoever connects. "
            "Start the cluster with TLS ('aegis certs make', 'aegis cluster up') and give "
            f"tls://{url.netloc} and --tls, or say --insecure-transport (insecure_transport=True)"
        )
    return address, security


def check_handshake(address: str, security: Any, timeout: float) -> None:
    """Shake hands with a TLS server, to say clearly what is wrong; its name is checked too.

    Dask itself does not check the names of hosts: within a cluster, addresses are not known in
    advance, and whoever has a certificate of the cluster's authority is a part of it.

    Raises
    ------
    SecurityError
        If one side refuses the other.
    OSError
        If nobody answers.
    """
    url = urlsplit(address)
    context: ssl.SSLContext = security.get_connection_args("client")["ssl_context"]
    if context is None:
        raise SecurityError(
            "the TLS settings have no certificate for clients; scheduler and workers demand one: "
            "give a directory with client.pem and client.key"
        )
    context.check_hostname = True
    assert url.hostname is not None
    try:
        with (
            socket.create_connection((url.hostname, url.port), timeout) as raw,
            context.wrap_socket(raw, server_hostname=url.hostname) as stream,
        ):
            # In TLS 1.3 a server that refuses our certificate says so after the handshake. One that
            # accepts it sends a message of Dask's.
            stream.recv(1)
    except ssl.SSLCertVerificationError as e:
        raise SecurityError(f"{address}: {_explain(e, url.hostname)}") from None
    except ssl.SSLError as e:
        if "ALERT" in str(e.reason or ""):
            raise SecurityError(
                f"{address} refuses our certificate ({_alert(e)}); it has another authority, or "
                "has expired: take ca.pem, client.pem and client.key from where the cluster's were "
                "made"
            ) from None
        raise SecurityError(
            f"{address} does not speak TLS ({_alert(e)}); was the scheduler started without "
            "certificates?"
        ) from None


def _explain(error: ssl.SSLCertVerificationError, host: str) -> str:
    reason = error.verify_message
    if "expired" in reason:
        return (
            "its certificate has expired; make new ones with 'aegis certs make' and start the "
            "cluster again with them"
        )
    if "ismatch" in reason:
        return (
            f"its certificate is not for {host} ({reason}); reach it by a name that it has "
            f"('aegis certs show'), or make certificates with --host {host}"
        )
    return (
        f"its certificate is not of our authority ({reason}); take ca.pem from where the cluster's "
        "certificates were made, or check the address"
    )


def _alert(error: ssl.SSLError) -> str:
    return str(error.reason or error).lower().replace("_", " ")
