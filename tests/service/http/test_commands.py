"""``aegis serve``, ``clients`` and ``remote``, as somebody would type them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aegis_dask.errors import ServiceError
from aegis_dask.service.client import Client
from aegis_dask.service.http.remote import RemoteService
from tests.service.conftest import TEXT, TOLERANCE, aegis, json_of, refused
from tests.service.http.conftest import Served

ROOT = Path(__file__).parents[3]


@contextmanager
def service(checkpoint: Path, state: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``aegis serve`` in a process of its own; give it and its address."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "aegis_dask.cli", "serve", "feed_forward", "--insecure"),
            *("--model", str(checkpoint), "--state", str(state), "--port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    try:
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            if line.startswith("Listening on "):
                url = line.split()[-1]
                break
        assert url, process.communicate()[1]
        yield process, url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_a_service_is_used_killed_and_started_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, job = tmp_path / "state", tmp_path / "job"
    added = aegis("clients", "add", "alice", "--state", state)
    assert added.exit_code == 0
    monkeypatch.setenv("AEGIS_TOKEN", added.stdout.strip())
    own = ("--model", checkpoint, "--keys", job)
    with service(checkpoint, state) as (process, url):
        (offer,) = json_of("remote", "offers", "--service", url)["offers"]
        assert (offer["graph"], offer["tokens"], offer["is_secure"]) == ("feed_forward", 32, False)
        register = ("remote", "register", "feed_forward", "--service", url, "--out")
        message = refused(*register, job, "--model", checkpoint)
        assert "what the service offers is insecure" in message
        assert not job.exists()
        registered = json_of(*register, job, "--model", checkpoint, "--insecure")
        assert {f.name for f in job.iterdir()} == {"client", "service.json"}
        assert "exists, and is never overwritten" in refused(*register, job)
        message = refused(*register[:2], "bert_layer", *register[3:], tmp_path / "other")
        assert "offers bert_layer on all-MiniLM-L6-v2 not at all" in message
        assert not (tmp_path / "other").exists()
        run = json_of("remote", "run", *own, "--text", TEXT, "--output", tmp_path / "y.npy")
        assert run["precision"]["max_error"] < TOLERANCE
        assert np.load(tmp_path / "y.npy").shape == (run["tokens"], run["features"])
        accepted = json_of("remote", "submit", *own, "--text", TEXT)["job"]
        process.send_signal(signal.SIGKILL)  # workers notice, and end
        process.wait()
    monkeypatch.setattr("aegis_dask.service.http.remote.RETRIES", 1)
    assert "cannot be reached" in refused("remote", "jobs", "--keys", job)
    with service(checkpoint, state) as (process, url):
        where = (job / "service.json").read_text()
        (job / "service.json").write_text(where.replace(run_url(where), url))
        ended = json_of("remote", "fetch", accepted, *own)
        assert ended["tokens"] == run["tokens"]
        (mine,) = json_of("clients", "list", "--state", state)["clients"]
        assert (mine["client"], mine["key_sets"], mine["jobs"]) == ("alice", 1, 2)
        assert aegis("remote", "cancel", accepted, "--keys", job).exit_code == 0
        (left,) = json_of("remote", "jobs", "--keys", job)["jobs"]
        assert left["id"] == run["job"]
        assert "you have no job" in refused("remote", "cancel", accepted, "--keys", job)
        assert aegis("clients", "remove", "alice", "--state", state).exit_code == 0
        assert "a token is needed" in refused("remote", "jobs", "--keys", job)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert registered["keys"]


def test_a_registration_goes_on_where_it_has_stopped(
    idle: Served, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert idle.remote("alice")
    monkeypatch.setenv("AEGIS_TOKEN", idle.tokens["alice"])
    out, at = tmp_path / "job", ("--service", idle.url)
    register = ("remote", "register", "feed_forward", *at, "--out", out)
    given = ("--model", checkpoint, "--insecure")
    real = RemoteService.register

    def lost(*arguments: Any) -> str:
        real(*arguments)
        raise ServiceError("the answer has been lost")

    with monkeypatch.context() as patch:
        patch.setattr(RemoteService, "register", lost)
        result = aegis(*register, *given)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "with the SECRET KEY: give the same command again to go on" in said
    secret = (out / "client" / "secret.aegis").read_bytes()
    (left,) = json_of("remote", "keys", *at)["keys"]  # the service has taken them
    assert json_of(*register, *given)["keys"] == left["id"]
    assert (out / "client" / "secret.aegis").read_bytes() == secret
    assert {f.name for f in out.iterdir()} == {"client", "service.json"}
    assert "exists, and is never overwritten" in refused(*register, *given)
    # A quota that is used up does not lock out.
    other = (*register[:-1], tmp_path / "other", *given)
    assert "1 sets of keys are registered" in aegis(*other).stderr
    shown = aegis("remote", "keys", *at).stdout
    assert left["id"] in shown
    assert "feed_forward" in shown
    assert json_of("remote", "keys", *at, "--remove", left["id"]) == {"keys": []}
    assert json_of(*other)["keys"] != left["id"]
    assert "you have no keys" in refused("remote", "keys", *at, "--remove", left["id"])


def test_keys_that_are_not_complete_are_not_sent(
    idle: Served, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert idle.remote("alice")
    monkeypatch.setenv("AEGIS_TOKEN", idle.tokens["alice"])
    out = tmp_path / "job"
    register = ("remote", "register", "feed_forward", "--service", idle.url, "--out", out)
    (out / ".bundle").mkdir(parents=True)  # as after a kill
    assert "exists, and is never overwritten" in refused(*register)
    # Those of another job are refused too.
    (out / ".bundle").rename(out / "bundle")
    given = ("--model", checkpoint, "--insecure")
    other = SimpleNamespace(job=SimpleNamespace(fingerprint="other"))
    monkeypatch.setattr(Client, "open", lambda *_: other)
    result = aegis(*register, *given)
    assert "holds keys for another job than the service offers now" in result.stderr
    monkeypatch.undo()
    monkeypatch.setenv("AEGIS_TOKEN", idle.tokens["alice"])
    assert "there is no file" in aegis(*register, *given).stderr
    assert (out / "bundle").exists()
    assert idle.store.keys("alice") == []


def run_url(where: str) -> str:
    return next(word for word in where.split('"') if word.startswith("http"))


def serve_refused(checkpoint: Path, tmp_path: Path, *options: str | Path) -> str:
    given = ("--model", checkpoint, "--insecure", "--state", tmp_path / "state")
    return refused("serve", "feed_forward", *given, *options)


def test_what_cannot_be_served_is_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
    message = serve_refused(checkpoint, tmp_path, "--host", "0.0.0.0")
    assert "is beyond this machine: clients' tokens would travel in the clear" in message
    message = serve_refused(checkpoint, tmp_path, "--certificate", tmp_path / "c.pem")
    assert "--certificate and --key belong together" in message
    both = ("--certificate", tmp_path / "c.pem", "--key", tmp_path / "k.pem")
    assert "there is no file" in serve_refused(checkpoint, tmp_path, *both)
    (tmp_path / "c.pem").touch()
    key = tmp_path / "k.pem"
    key.touch()
    for mode in (0o640, 0o604, 0o620):
        key.chmod(mode)
        message = serve_refused(checkpoint, tmp_path, *both)
        assert f"{key} can be read by others than its owner; 'chmod 600 {key}'" in message
    key.chmod(0o600)
    assert "--length is 64" in serve_refused(checkpoint, tmp_path, *both, "--length", "64")
    assert "--length is 64" in serve_refused(checkpoint, tmp_path, "--length", "64")


def test_a_port_in_use_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        start = time.monotonic()
        given = ("--model", checkpoint, "--insecure", "--state", tmp_path, "--port", port)
        result = aegis("serve", "feed_forward", *given)
        assert result.exit_code == 2, result.output
        assert f"127.0.0.1:{port} cannot be listened on" in " ".join(result.stderr.split())
        assert time.monotonic() - start < 60


def test_files_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_TOKEN", "t")
    assert "there is no file" in refused("remote", "jobs", "--keys", tmp_path)
    (tmp_path / "service.json").write_text("{}")
    assert "does not name a service" in refused("remote", "jobs", "--keys", tmp_path)
    options = ("--service", "http://127.0.0.1:1", "--token-file", tmp_path / "none")
    assert "there is no file" in refused("remote", "offers", *options)
