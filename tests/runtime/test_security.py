"""Connections: encrypted beyond loopback, both sides known, and clear words where they are not."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dask.config
import numpy as np
import pytest
from distributed import LocalCluster

from aegis_dask import config
from aegis_dask.errors import ClusterError, SecurityError
from aegis_dask.runtime.certificates import make_certificates
from aegis_dask.runtime.executor import Executor
from aegis_dask.runtime.security import agree, is_loopback, load_security
from tests.runtime.programs import SLOTS, chain
from tests.runtime.test_certificates import make_dated


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certs") / "made"
    make_certificates(directory)
    return directory


def tls_cluster(certs: Path) -> LocalCluster:
    return LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        host="tls://127.0.0.1",
        security=load_security(certs),
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    )


@pytest.fixture(scope="module")
def scheduler(certs: Path) -> Iterator[str]:
    with tls_cluster(certs) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        yield cluster.scheduler_address


def test_a_run_over_tls_is_a_run(scheduler: str, certs: Path) -> None:
    program = chain(2)
    with Executor.connect(scheduler, security=load_security(certs)) as executor:
        x = np.ones((4, SLOTS)) + 0j
        result = executor.run(program, {"x": x}, interpreter="simulated")
    assert np.array_equal(result.outputs["y"], x)  # a rotation of equal slots


def test_the_directory_may_be_configured(scheduler: str, certs: Path) -> None:
    with dask.config.set({config.TLS: str(certs)}), Executor.connect(scheduler) as executor:
        assert executor.client.security.require_encryption
        # Without a scheme TLS is meant.
        with Executor.connect(scheduler.removeprefix("tls://")):
            pass


def test_dasks_own_configuration_is_taken(scheduler: str, certs: Path) -> None:
    files = {
        "distributed.comm.tls.ca-file": str(certs / "ca.pem"),
        "distributed.comm.tls.client.cert": str(certs / "client.pem"),
        "distributed.comm.tls.client.key": str(certs / "client.key"),
    }
    with dask.config.set(files), Executor.connect(scheduler):
        pass


def test_an_authority_of_somebody_else_is_named(scheduler: str, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    with pytest.raises(SecurityError, match="its certificate is not of our authority"):
        Executor.connect(scheduler, security=load_security(tmp_path / "other"))


def test_a_client_that_the_scheduler_does_not_know_is_told_so(
    scheduler: str, certs: Path, tmp_path: Path
) -> None:
    """It trusts the scheduler's authority, but its own certificate is of another."""
    make_certificates(tmp_path / "other")
    security = load_security(tmp_path / "other")
    security.tls_ca_file = str(certs / "ca.pem")
    with pytest.raises(SecurityError, match="refuses our certificate"):
        Executor.connect(scheduler, security=security)


def test_a_plain_client_is_refused(scheduler: str) -> None:
    with pytest.raises(ClusterError, match="same TLS settings"):
        Executor.connect(scheduler.replace("tls://", "tcp://"), timeout=3)


def test_a_scheduler_without_tls_is_told_from_one_with(certs: Path) -> None:
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0"
    ) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "tls://")
        with pytest.raises(SecurityError, match="does not speak TLS"):
            Executor.connect(address, security=load_security(certs), timeout=3)


def test_a_name_that_the_certificate_lacks_is_named(
    scheduler: str, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.create_connection

    def connect(address: tuple[str, int], *rest: float) -> socket.socket:
        return real(("127.0.0.1", address[1]), *rest)

    monkeypatch.setattr(socket, "create_connection", connect)
    address = scheduler.replace("127.0.0.1", "other.example")
    with pytest.raises(SecurityError, match=r"is not for other.example .* --host other.example"):
        Executor.connect(address, security=load_security(certs))


def test_a_scheduler_whose_certificate_has_expired_is_named(
    certs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    make_dated(old, -400, monkeypatch)
    monkeypatch.setattr("aegis_dask.runtime.certificates.Certificate.check_date", lambda self: None)
    security = load_security(old)
    context = security.get_listen_args("scheduler")["ssl_context"]

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(ssl.SSLError):  # the other side does not like us
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(SecurityError, match="its certificate has expired"):
            Executor.connect(f"tls://127.0.0.1:{listener.getsockname()[1]}", security=security)
        thread.join()


def test_what_is_not_encrypted_stays_on_loopback() -> None:
    assert agree("tcp://127.0.0.1:8786") == ("tcp://127.0.0.1:8786", None)
    assert agree("localhost:8786") == ("tcp://localhost:8786", None)
    assert agree("tcp://[::1]:8786")[1] is None
    for address in ("tcp://10.0.0.5:8786", "10.0.0.5:8786", "ucx://10.0.0.5:8786"):
        with pytest.raises(SecurityError, match="is another machine"):
            agree(address)
        agree(address, insecure_transport=True)


def test_contradictions_are_refused(certs: Path) -> None:
    with pytest.raises(SecurityError, match="needs certificates"):
        agree("tls://10.0.0.5:8786")
    with pytest.raises(SecurityError, match=r"would not be encrypted; give tls://10\.0\.0\.5:8786"):
        agree("tcp://10.0.0.5:8786", load_security(certs))
    for address in ("somewhere", "tcp://x", "tcp://x:99999", "tcp://:1", ""):
        with pytest.raises(ClusterError, match="is no address of a scheduler"):
            agree(address)
    assert agree("10.0.0.5:1", load_security(certs))[0] == "tls://10.0.0.5:1"


def test_loopback_is_only_what_is_nothing_else() -> None:
    assert is_loopback("localhost")
    assert is_loopback("127.1.2.3")
    assert not is_loopback("10.0.0.5")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("no-such-host.invalid")
