"""Nothing that a run says or writes holds the secret key: logs, reports, output, tracebacks."""

from __future__ import annotations

import base64
import logging
import re
import traceback
from pathlib import Path

import numpy as np
import pytest

from aegis_dask.ckks.keys import SecretKey
from aegis_dask.service.client import Client
from aegis_dask.service.job import Job
from tests.conftest import logged
from tests.service.conftest import TEXT, aegis
from tests.service.memory import patterns_of

FEW = 12
"""Numbers in a row: of a secret, 12 ternary ones in print are noticed; of others, zeros are not."""


def told_forms(key: SecretKey) -> dict[str, str]:
    """Every pattern as hexadecimal and base64 text, and numbers in a row as they are printed."""
    out = {}
    for name, pattern in patterns_of(key).items():
        out[f"{name}, hexadecimal"] = pattern.hex()
        out[f"{name}, base64"] = base64.b64encode(pattern[:48]).decode()
    numbers = key._coefficients[: 8 * FEW]
    for start in range(0, len(numbers), FEW):
        part = numbers[start : start + FEW]
        if len(set(part.tolist())) > 2:
            out[f"coefficients from {start}"] = " ".join(str(v) for v in part)
    return out


def squeezed(text: str) -> str:
    """Text with numbers apart by one space, whatever it was printed as."""
    return re.sub(r"[\s,\[\]().]+", " ", text)


def holding(text: str, key: SecretKey) -> list[str]:
    plain = squeezed(text)
    return [name for name, form in told_forms(key).items() if form in text or form in plain]


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> list[SecretKey]:
    """The keys that clients make in this process."""
    made: list[SecretKey] = []
    create = Client.create.__func__  # type: ignore[attr-defined]

    def recorded(cls: type[Client], job: Job) -> Client:
        client: Client = create(cls, job)
        made.append(client._secret_key)
        return client

    monkeypatch.setattr(Client, "create", classmethod(recorded))
    return made


def test_a_run_tells_nothing_of_the_secret_key(
    checkpoint: Path,
    tmp_path: Path,
    secret: list[SecretKey],
    capfd: pytest.CaptureFixture[str],
) -> None:
    report, output = tmp_path / "report.html", tmp_path / "out.npy"
    command = ("run", "feed_forward", "--model", checkpoint, "--text", TEXT, "--insecure")
    with logged("", "distributed", level=logging.DEBUG) as log:
        result = aegis(*command, "--report", report, "--output", output, "--json")
    assert result.exit_code == 0, result.output
    (key,) = secret
    errors = capfd.readouterr()
    assert "Starting" in log.text  # Dask's processes
    for told in (result.output, log.text, errors.out, errors.err, report.read_text("utf-8")):
        assert holding(told, key) == []
    raw = output.read_bytes()
    assert not any(pattern in raw for pattern in patterns_of(key).values())
    # The search finds what is there.
    for form in (str(key._coefficients[:40].tolist()), str(key._coefficients[:40])):
        assert holding(f"...{form}...", key)
    assert holding(np.ascontiguousarray(key._coefficients).tobytes().hex(), key)


def test_an_error_tells_nothing_of_the_secret_key(
    checkpoint: Path, secret: list[SecretKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a traceback with the values of local variables."""

    def fail(self: Client, x: object) -> None:
        raise RuntimeError(f"failed in {self!r} with {self._secret_key!r}")

    monkeypatch.setattr(Client, "encrypt", fail)
    command = ("run", "feed_forward", "--model", checkpoint, "--text", TEXT, "--insecure")
    with pytest.raises(RuntimeError) as caught:
        aegis(*command)
    (key,) = secret
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    text = "".join(told.format())
    assert "SecretKey(" in text
    assert holding(text, key) == []
