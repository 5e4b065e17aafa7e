"""A hostile service: its client says so, briefly, and prints nothing that a terminal obeys."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_dask.errors import SerializationError, ServiceError
from aegis_dask.service.http import remote as remote_module
from aegis_dask.service.http.answers import (
    JOB,
    KEYS,
    MAX_ERROR,
    MAX_TEXT,
    OFFER,
    read_answer,
    read_list,
    read_refusal,
)
from aegis_dask.service.http.remote import RemoteService
from aegis_dask.service.messages import most_bytes
from tests.service.conftest import aegis, json_of, refused
from tests.service.http.conftest import Person, Served, registered

ESCAPE = "\x1b]0;pwned\x07\x1b[31m\u202e"
SHA256 = "0123456789abcdef" * 4
VALID: dict[str, dict[str, Any]] = {
    "offer": {
        **{"fingerprint": SHA256, "graph": "bert_layer", "model": "tiny", "weights": SHA256},
        **{"tokens": 32, "is_secure": True, "keys": 9, "keys_bytes": 10, "request_bytes": 11},
    },
    "keys": {"id": SHA256[:16], "offer": SHA256, "sha256": SHA256, "bytes": 5, "created": 1.5},
    "job": {
        **{"id": SHA256[:16], "state": "done", "position": None, "share": 1.0, "stage": ""},
        **{"length": 5, "error": "", "created": 1.5, "started": 2, "finished": None, "changes": 0},
    },
}
FIELDS = {"offer": OFFER, "keys": KEYS, "job": JOB}
WRONG: dict[str, list[Any]] = {
    **{name: ["", "../x", SHA256 + "0", 5] for name in ("id", "fingerprint", "offer", "sha256")},
    **{name: [5, ["x"], "x" * 257, ESCAPE] for name in ("graph", "model", "stage")},
    **{name: [-1, 1 << 63, 1.0, True, "5"] for name in ("keys", "keys_bytes", "request_bytes")},
    **{name: [-1, 1 << 63, 1.0, True, "5"] for name in ("bytes", "changes")},
    **{name: [0, 1 << 30, 1.0, True, None] for name in ("tokens", "length")},
    **{name: [-1, 1e300, True, "5", []] for name in ("created", "started", "finished")},
    "weights": [5, "x"],
    "is_secure": [0, 1, None, "true"],
    "state": ["", "Done", 5, None, ["done"]],
    "position": [0, 1 << 63, 1.5, True],
    "share": [-0.1, 1.1, None, True],
    "error": [5, None, []],
}


@dataclass
class Hostile:
    """A server that answers as it is told, and what it was asked."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    repeats: int = 1
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def says(self, body: Any, status: int = 200, **headers: str) -> RemoteService:
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return RemoteService(self.url, "token")


@contextmanager
def listening(hostile: Hostile) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            hostile.asked.append(dict(self.headers.items()))
            self.send_response(hostile.status)
            for name, value in hostile.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):
                for _ in range(hostile.repeats):
                    self.wfile.write(hostile.body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    monkeypatch.setattr(remote_module, "RETRIES", 1)
    hostile = Hostile()
    with listening(hostile) as hostile.url:
        yield hostile


def test_what_is_compressed_is_not_asked_for_and_refused(hostile: Hostile) -> None:
    remote = hostile.says(gzip.compress(b" " * (1 << 24) + b"[]"), Content_Encoding="gzip")
    with pytest.raises(ServiceError, match="its answer has the encoding 'gzip'"):
        remote.offers()
    hostile.headers = {"Content-Encoding": f"x{chr(27)}"}
    with pytest.raises(ServiceError) as error:
        remote.offers()
    assert str(error.value).isprintable()
    assert {asked["Accept-Encoding"] for asked in hostile.asked} == {"identity"}
    hostile.says(b"[]", Content_Encoding="identity")
    assert remote.offers() == []


def test_answers_end(
    hostile: Hostile, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = people["alice"].client.job
    monkeypatch.setattr(remote_module, "MAX_JSON", 1 << 20)
    remote = hostile.says(b" " * (1 << 20))
    hostile.repeats = 200
    for ask in (
        remote.offers,
        remote.key_sets,
        remote.jobs,
        lambda: remote.describe(SHA256),
        lambda: remote.status(SHA256[:16]),
        lambda: remote.remove_keys(SHA256[:16]),
    ):
        with pytest.raises(ServiceError, match="its answer has more than 1048576 bytes"):
            ask()
    with pytest.raises(ServiceError, match=f"its answer has more than {most_bytes(job)} bytes"):
        remote.result(SHA256[:16], job)
    hostile.status = 500
    with pytest.raises(ServiceError, match="refuses: status 500"):
        remote.offers()


def test_results_are_within_their_bound(served_result: tuple[Served, bytes]) -> None:
    served, result = served_result
    assert len(result) <= most_bytes(served.job)


@pytest.fixture
def served_result(idle: Served, people: dict[str, Person]) -> tuple[Served, bytes]:
    """What a job gives that does run."""
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    idle.runner.start()
    job = remote.submit(keys, person.client.encrypt(person.x), len(person.x))
    assert remote.wait(job.id, timeout=60).state == "done"
    return idle, idle.store.result_path(job.id).read_bytes()


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>", b"\xff", b"NaN", b"[1e999]", b'{"a": 1, "a": 2}', b"9" * 40, b'"\\ud800"'),
        *(b"[" * 100000, b"[" * 20 + b"]" * 20, b"[" + b"[]," * 70000 + b"[]]"),
        *(b'[]}, {"a": []', b'[], "more": 5', b""),
    ],
)
def test_json_that_is_none_or_strange(hostile: Hostile, body: bytes) -> None:
    remote = hostile.says(body)
    for ask in (remote.offers, remote.jobs, lambda: remote.describe(SHA256)):
        with pytest.raises((ServiceError, SerializationError)) as error:
            ask()
        assert len(str(error.value)) < 500
        assert str(error.value).isprintable()
    with pytest.raises((ServiceError, SerializationError)):
        remote.status(SHA256[:16])


def test_redirects_are_not_followed(hostile: Hostile) -> None:
    remote = hostile.says(b"[]", 302, Location=f"{hostile.url}/elsewhere")
    with pytest.raises(ServiceError, match="its answer has status 302"):
        remote.offers()
    assert len(hostile.asked) == 1


@pytest.mark.parametrize("what", FIELDS)
def test_fields_are_what_they_should_be(hostile: Hostile, what: str) -> None:
    remote, valid = hostile.says([VALID[what] | {"later": [1]}]), VALID[what]
    ask: dict[str, Callable[[], list[Any]]] = {
        **{"offer": remote.offers, "keys": remote.key_sets, "job": remote.jobs}
    }
    (found,) = ask[what]()
    assert (vars(found) if what == "job" else found) == valid
    assert FIELDS[what].keys() == valid.keys() <= WRONG.keys()
    for name in valid:
        hostile.says([{k: v for k, v in valid.items() if k != name}])
        with pytest.raises(SerializationError, match=r"does not describe"):
            ask[what]()
        for wrong in WRONG[name]:
            hostile.says([valid | {name: wrong}])
            with pytest.raises(SerializationError, match=f"{name} of ") as error:
                ask[what]()
            assert len(str(error.value)) < 300
            assert str(error.value).isprintable()
    for body in ({}, None, 5, [5], [[]], "x"):
        hostile.says(body)
        with pytest.raises(SerializationError, match="the service's answer"):
            ask[what]()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*JOB]), inner),
)


@given(st.sampled_from([*FIELDS]), st.data(), ANYTHING)
def test_no_field_raises_anything_else(what: str, data: st.DataObject, value: Any) -> None:
    name = data.draw(st.sampled_from([*VALID[what], "other"]))
    text = json.dumps([VALID[what] | {name: value}, *data.draw(st.sampled_from([[], [value]]))])
    try:
        found = read_list("it", read_answer(text.encode()), FIELDS[what])
    except SerializationError:
        return
    for each in found[0].values():
        assert not isinstance(each, str) or each.isprintable()


@given(ANYTHING)
def test_no_refusal_raises_anything(value: Any) -> None:
    for body in (value, {"detail": value}, {"detail": [value]}, {"detail": [{"loc": value}]}):
        told = read_refusal(json.dumps(body).encode())
        assert told is None or (told.isprintable() and len(told) <= MAX_TEXT + 3)


def test_refusals_are_told_as_far_as_they_can_be(hostile: Hostile) -> None:
    def said(body: Any) -> str:
        remote = hostile.says(body, 409)
        with pytest.raises(ServiceError, match="refuses: ") as error:
            remote.offers()
        message = str(error.value).partition("refuses: ")[2]
        assert message.isprintable()
        return message

    assert said({"detail": "a quota is used up"}) == "a quota is used up"
    assert said({"detail": [{"loc": ["query", 1], "msg": "no"}]}) == "query.1: no"
    assert said({"detail": f"a{ESCAPE}b\nc"}) == "a ]0;pwned  [31m b c"
    assert said({"detail": "x" * 5000}) == "x" * MAX_TEXT + "..."
    for body in (b"", b"<html>", {}, {"detail": 5}, {"detail": [5]}, [], {"detail": [{"loc": 5}]}):
        assert said(body) == "status 409"
    assert said({"detail": "x" * MAX_ERROR}) == "status 409"


def test_commands_print_nothing_that_a_terminal_obeys(
    hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_TOKEN", "t")
    (tmp_path / "service.json").write_text(json.dumps({"service": hostile.url, "keys": "k"}))
    hostile.says([VALID["offer"] | {"model": ESCAPE}])
    assert "model of an offer is" in refused("remote", "offers", "--service", hostile.url)
    hostile.says([VALID["job"] | {"stage": ESCAPE}])
    assert "stage of a job is" in refused("remote", "jobs", "--keys", tmp_path)
    hostile.says([VALID["job"] | {"error": ESCAPE}])
    (job,) = json_of("remote", "jobs", "--keys", tmp_path)["jobs"]
    assert job["error"] == " ]0;pwned  [31m "
    shown = aegis("remote", "jobs", "--keys", tmp_path)
    assert shown.exit_code == 0
    assert not {"\x1b", "\x07", "\u202e"} & set(shown.output)


def test_a_result_has_as_many_tokens_as_were_sent(
    idle: Served, people: dict[str, Person], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = people["alice"]
    remote, keys = registered(idle, "alice", person)
    idle.runner.start()
    real = remote_module.read_fields
    monkeypatch.setattr(
        remote_module,
        "read_fields",
        lambda *given: real(*given) | ({"length": 3} if given[0] == "a job" else {}),
    )
    assert remote.run(person.client, keys, person.x, timeout=60).shape == person.x.shape


def test_a_proxy_of_the_environment_does_not_get_the_token(
    idle: Served, hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, hostile.url)
    assert len(idle.remote("alice").offers()) == 1
    assert hostile.asked == []
