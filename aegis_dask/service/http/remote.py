"""A client of the service: what travels is what `service.client` writes into files."""

from __future__ import annotations

import hashlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shorten
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.serialization import dumps, loads
from aegis_dask.errors import SerializationError, ServiceError
from aegis_dask.program.encrypted import CipherArray
from aegis_dask.runtime.security import is_loopback
from aegis_dask.service.client import Client
from aegis_dask.service.files import MAX_JSON, reading
from aegis_dask.service.http.answers import (
    JOB,
    KEYS,
    MAX_ERROR,
    OFFER,
    plain,
    read_answer,
    read_fields,
    read_list,
    read_refusal,
)
from aegis_dask.service.http.store import ENDED
from aegis_dask.service.job import Job
from aegis_dask.service.messages import check_batch, most_bytes

TOKEN = "AEGIS_TOKEN"
"""Environment variable with the token."""
RETRIES = 5
WAIT_SECONDS = 20.0
CHECKED_BYTES = 4 << 20
"""Of keys, each second, that a service checks at least; it may have others' to check first."""

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Status:
    """A job at the service.

    Attributes
    ----------
    id, state
        Identifier, and ``queued``, ``running``, ``done``, ``failed`` or ``cancelled``.
    position
        In the queue, from 1; None if it does not wait.
    share, stage
        How far it is, 0 to 1, and the operator that has just finished.
    length
        Tokens of the text.
    error
        Why it failed, or "".
    created, started, finished
        Seconds since 1970 on the service's clock; None if not yet.
    changes
        For `RemoteService.wait`.
    """

    id: str
    state: str
    position: int | None
    share: float
    stage: str
    length: int
    error: str
    created: float
    started: float | None
    finished: float | None
    changes: int

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


class RemoteService:
    """A service, by its address.

    Parameters
    ----------
    url
        For example ``https://aegis.example.org:8765``. Beyond this machine it must be https.
    token
        That the operator gave you; from the environment variable ``AEGIS_TOKEN`` by default.
    ca
        Certificate of the authority that has signed the service's, if it is not a public one.
    timeout
        Seconds without an answer after which the service is taken for unreachable.

    Raises
    ------
    ServiceError
        If the address is none, or would send the token in the clear.

    Examples
    --------
    >>> with RemoteService("https://aegis.example.org:8765", token) as service:  # doctest: +SKIP
    ...     keys = service.register(client)
    ...     y = service.run(client, keys, x)
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        ca: Path | None = None,
        timeout: float = 60.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServiceError(f"{url!r} is no address of a service; give https://HOST:PORT")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ServiceError(
                f"{url} would send your token and data in the clear; use https (plain http is for "
                "this machine only)"
            )
        token = token or os.environ.get(TOKEN)
        if not token:
            raise ServiceError(
                f"no token is given; ask the operator for one, and put it into {TOKEN}"
            )
        self.url, self._timeout = url.rstrip("/"), timeout
        try:
            verify = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as e:
            raise ServiceError(f"the certificate {ca} cannot be used: {e}") from None
        self._http = httpx2.Client(
            base_url=self.url,
            # What is compressed may be a thousand times as large as it seems.
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
            timeout=timeout,
            verify=verify,
            # A proxy that the environment names would get the token in the clear; with TLS it is
            # only asked for a tunnel.
            trust_env=parts.scheme == "https",
        )

    def __enter__(self) -> RemoteService:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # -- what the service has ----------------------------------------------------------------

    def offers(self) -> list[dict[str, Any]]:
        """Return what the service computes: graph, model, tokens, sizes, fingerprint."""
        return read_list("an offer", self._ask("GET", "/v1/offers"), OFFER)

    def describe(self, fingerprint: str) -> dict[str, Any]:
        """Return the description of a job, for `service.job.read_job`."""
        found = self._ask("GET", f"/v1/offers/{fingerprint}")
        if not isinstance(found, dict):
            raise SerializationError(f"the service's answer is {shorten(found)}, not a job")
        return found

    def key_sets(self) -> list[dict[str, Any]]:
        """Return the evaluation keys that you have registered."""
        return read_list("keys", self._ask("GET", "/v1/keys"), KEYS)

    def remove_keys(self, identifier: str) -> None:
        """Delete evaluation keys at the service."""
        self._ask("DELETE", f"/v1/keys/{identifier}")

    def jobs(self) -> list[Status]:
        """Return your jobs, the oldest first."""
        return [Status(**job) for job in read_list("a job", self._ask("GET", "/v1/jobs"), JOB)]

    # -- jobs --------------------------------------------------------------------------------

    def register(self, job: Job, keys: Path) -> str:
        """Send evaluation keys, once; return their identifier at the service.

        If it is not known whether they have arrived, repeat it: what the service has is not sent
        again.

        Parameters
        ----------
        job
            An offer of the service.
        keys
            File of the keys, of a bundle that `Client.save_bundle` has written.

        Raises
        ------
        ServiceError
            If the service does not offer the job, or refuses the keys.
        """
        with reading(keys):
            size = keys.stat().st_size
        known = [k for k in self.key_sets() if (k["offer"], k["bytes"]) == (job.fingerprint, size)]
        if known:
            digest = _sha256(keys)
            for each in known:
                if each["sha256"] == digest:
                    return str(each["id"])
        # The answer comes when the service has written and checked everything.
        patience = httpx2.Timeout(self._timeout, read=self._timeout + size / CHECKED_BYTES)
        # As a stream: keys may be larger than memory has room for.
        answer = self._ask(
            "POST",
            "/v1/keys",
            params={"offer": job.fingerprint},
            content=lambda: _chunks(keys),
            headers={"Content-Length": str(size)},
            timeout=patience,
        )
        return str(read_fields("keys", answer, KEYS)["id"])

    def submit(self, keys: str, x: CipherArray, length: int) -> Status:
        """Send an encrypted input; return the job, which the service will not forget.

        Raises
        ------
        ServiceError
            If it is refused, or a quota is used up.
        """
        data = dumps(x.batch)
        parameters = {"keys": keys, "length": length}
        return _status(self._ask("POST", "/v1/jobs", params=parameters, content=lambda: data))

    def status(self, identifier: str) -> Status:
        """Return a job.

        Raises
        ------
        ServiceError
            If there is none.
        """
        return _status(self._ask("GET", f"/v1/jobs/{identifier}"))

    def news(self, status: Status, seconds: float) -> Status:
        """Return a job as soon as it is not as it was, or after some seconds, a minute at most."""
        seen = {"state": status.state, "changes": status.changes, "wait": seconds}
        return _status(self._ask("GET", f"/v1/jobs/{status.id}", params=seen))

    def wait(
        self,
        identifier: str,
        *,
        timeout: float | None = None,
        watch: Callable[[Status], None] | None = None,
    ) -> Status:
        """Return a job when it has ended.

        Parameters
        ----------
        identifier
            The job.
        timeout
            Seconds to wait at most.
        watch
            Called with whatever is new.

        Raises
        ------
        ServiceError
            If it has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        status = self.status(identifier)
        while True:
            if watch is not None:
                watch(status)
            left = WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if status.has_ended:
                return status
            if left <= 0:
                raise ServiceError(
                    f"job {identifier} is {status.state} after {timeout:g} s; wait longer, or "
                    "fetch its result later"
                )
            status = self.news(status, min(left, WAIT_SECONDS))

    def result(self, identifier: str, job: Job) -> CipherArray:
        """Fetch an encrypted result.

        Raises
        ------
        ServiceError
            If there is none, with the reason.
        SerializationError
            If it is damaged or not of this job.
        """
        data = self._retried("GET", f"/v1/jobs/{identifier}/result", most_bytes(job))
        batch = loads(data, job.params, expect=Ciphertext)
        check_batch(batch, job.layout.shape, None, "the result")
        return CipherArray(batch, job.layout.shape)

    def decrypted(self, client: Client, ended: Status, length: int | None = None) -> Float:
        """Fetch the result of a job that has ended, and decrypt it.

        Parameters
        ----------
        client
            Has the secret key.
        ended
            The job.
        length
            Tokens of the text, where they are known; by default as many as the service says.

        Raises
        ------
        ServiceError
            If the job has failed or was cancelled.
        """
        if ended.state != "done":
            raise ServiceError(f"job {ended.id} has {ended.state}: {ended.error or 'by request'}")
        return client.decrypt(self.result(ended.id, client.job), length or ended.length)

    def cancel(self, identifier: str) -> None:
        """Cancel a job, or forget one that has ended, with its result."""
        self._ask("DELETE", f"/v1/jobs/{identifier}")

    def run(
        self,
        client: Client,
        keys: str,
        x: Float,
        *,
        timeout: float | None = None,
        watch: Callable[[Status], None] | None = None,
    ) -> Float:
        """Encrypt hidden states, let the service compute, fetch and decrypt the result.

        Parameters
        ----------
        client
            Has the secret key.
        keys
            From `register`.
        x
            Float64 ``[length, features]``.
        timeout, watch
            As for `wait`.

        Raises
        ------
        ServiceError
            If the job fails, or has not ended in time.
        """
        job = self.submit(keys, client.encrypt(x), len(x))
        return self.decrypted(client, self.wait(job.id, timeout=timeout, watch=watch), len(x))

    # -- HTTP --------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        data = self._retried(method, path, MAX_JSON, **options)
        try:
            return read_answer(data) if data else None
        except SerializationError as e:
            raise self._foreign(str(e)) from None

    def _retried(self, method: str, path: str, most: int, **options: Any) -> bytearray:
        """Ask again while there is no connection: every request may be repeated."""
        content = options.pop("content", None)
        attempt = 0
        with self._trouble():
            while True:
                body = None if content is None else content()
                try:
                    return self._once(method, path, most, content=body, **options)
                except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError) as e:
                    attempt += 1
                    if (
                        attempt == RETRIES
                        or isinstance(e.__cause__, ssl.SSLError)
                        or "CERT" in str(e)
                    ):
                        raise
                    time.sleep(min(5.0, 0.25 * 2**attempt))

    def _once(self, method: str, path: str, most: int, **options: Any) -> bytearray:
        """Return an answer of at most `most` bytes."""
        with self._http.stream(method, path, **options) as response:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise self._foreign(f"its answer has the encoding {shorten(encoding)}")
            if response.is_error:
                body = _body(response, MAX_ERROR)
                why = None if body is None else read_refusal(body)
                why = why or f"status {response.status_code}"
                raise ServiceError(f"the service at {self.url} refuses: {why}")
            if not response.is_success:
                raise self._foreign(f"its answer has status {response.status_code}")
            data = _body(response, most)
        if data is None:
            raise self._foreign(f"its answer has more than {most} bytes")
        return data

    def _foreign(self, why: str) -> ServiceError:
        return ServiceError(
            f"what answers at {self.url} is no service of this library: {why}; check the address"
        )

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ReadTimeout as e:
            raise ServiceError(
                f"the service at {self.url} has not answered in time; it may have done what it was "
                "asked for all the same: ask again, nothing is done twice"
            ) from e
        except httpx2.TransportError as e:
            why = plain(str(e)) or type(e).__name__
            raise ServiceError(
                f"the service at {self.url} cannot be reached: {why}; check address, certificate "
                "and network"
            ) from e


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _body(response: httpx2.Response, most: int) -> bytearray | None:
    """Return the body of an answer as it comes, or None if it has more than `most` bytes."""
    data = bytearray()
    for chunk in response.iter_raw():
        if len(data) + len(chunk) > most:
            return None
        data += chunk
    return data


def _status(data: Any) -> Status:
    return Status(**read_fields("a job", data, JOB))
