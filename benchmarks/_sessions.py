"""The other end of `benchmarks.peers._turns`: starts a peer's process and tells it when to run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import OURS, PEERS, _environment, interpreter

_ROOT = Path(__file__).resolve().parents[1]
_MODULES = {
    OURS: "benchmarks.peers.aegis_bootstrap",
    "openfhe": "benchmarks.peers.openfhe_bootstrap",
}


@dataclass(frozen=True)
class Config:
    """One library with one set of parameters.

    Attributes
    ----------
    name
        What it is called in records and tables.
    lib
        Key of `benchmarks.peers.PEERS`.
    arguments
        What its process builds.
    slots
        Kinds of slots that it refreshes: complex, real, or both one after the other.
    """

    name: str
    lib: str
    arguments: Mapping[str, Any] = field(hash=False)
    slots: tuple[str, ...]


class Session:
    """A process that waits for its turn; a context manager.

    Parameters
    ----------
    config
        What it measures.
    threads
        Its number of threads.
    quiet_wait_s
        How long each turn may wait for a quiet machine, and repeat what was disturbed.
    records
        Everything it says is appended here, with the name of the configuration and the threads.

    Attributes
    ----------
    beside
        Configuration that it takes turns with, to be set; its turns are marked with that.
    """

    def __init__(
        self,
        config: Config,
        threads: int,
        quiet_wait_s: float,
        records: list[dict[str, Any]],
    ) -> None:
        self.config, self.threads, self._records = config, threads, records
        self.beside = ""
        command = [interpreter(config.lib), "-m", _MODULES[config.lib]]
        command += [f"--config={json.dumps(dict(config.arguments))}"]
        command += [f"--quiet-wait={quiet_wait_s}"]
        self.ready = self._missing = False
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=_environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as reason:
            print(f"{config.name}: skipped, cannot start {command[0]}: {reason}")

    def __enter__(self) -> Session:
        """Wait until it is ready, or known not to be."""
        found = self._next() if self._process else None
        if found is not None and found["kind"] == "missing":
            self._missing = True
            peer, lib = PEERS[self.config.lib], self.config.lib
            print(
                f"{self.config.name}: skipped ({found['reason']}); to include it: {peer.install}; "
                f"AEGIS_BENCH_PYTHON_{lib.upper()} names another interpreter"
            )
        self.ready = found is not None and found["kind"] == "ready"
        return self

    def run(self) -> None:
        """One turn: one refresh for each kind of slots. Nothing, if the process is not ready."""
        for slots in self.config.slots:
            if self.ready:
                self._tell(slots)
                found = self._next()
                self.ready = found is not None and found["kind"] == "time"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the process; one that died leaves a record of kind `error`."""
        process = self._process
        if process is None:
            return
        if kind is not None:
            process.kill()
        try:
            assert process.stdin is not None
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died before it read: its exit status tells
        while self._next() is not None:
            pass
        status = process.wait()
        if status and not self._missing:
            self._record({"kind": "error", "error": f"exit status {status}"})

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the end of its output tells

    def _next(self) -> dict[str, Any] | None:
        """Next record of the process, None when there are no more."""
        assert self._process is not None
        for line in self._process.stdout or ():
            if line.startswith("{"):  # libraries may print warnings of their own
                return self._record(json.loads(line))
        return None

    def _record(self, found: dict[str, Any]) -> dict[str, Any]:
        common = {"config": self.config.name, "lib": self.config.lib, "threads": self.threads}
        out = {**common, **found, **({"beside": self.beside} if self.beside else {})}
        print(json.dumps(out), file=sys.stderr, flush=True)
        if found["kind"] != "missing":
            self._records.append(out)
        return out
