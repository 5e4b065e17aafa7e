"""Commands and TLS: what they refuse, in their users' words."""

from __future__ import annotations

import shutil
from pathlib import Path

from aegis_dask.runtime.certificates import make_certificates
from tests.service.conftest import refused


def test_commands_refuse_plain_connections_to_other_machines(
    checkpoint: Path, tmp_path: Path
) -> None:
    run = ("run", "bert_layer", "--model", checkpoint, "--text", "the cat", "--insecure")
    message = refused(*run, "--scheduler", "tcp://192.0.2.1:8786")
    assert "--insecure-transport" in message


def test_commands_say_which_certificates_are_missing(checkpoint: Path, tmp_path: Path) -> None:
    certs, copy = tmp_path / "certs", tmp_path / "copy"
    make_certificates(certs)
    run = ("verify", "bert_layer", "--model", checkpoint, "--text", "the cat", "--insecure")
    assert "give its address with --scheduler" in refused(*run, "--tls", certs)
    shutil.copytree(certs, copy)
    (copy / "client.pem").unlink()
    (copy / "cluster.pem").unlink()
    there = ("--scheduler", "tls://127.0.0.1:1")
    assert "lacks client.pem" in refused(*run, *there, "--tls", copy)
    message = refused(*run, *there, "--tls", certs)
    assert "no scheduler answers at tls://127.0.0.1:1" in message
    assert "needs certificates" in refused(*run, *there)
