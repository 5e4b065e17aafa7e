"""Keeps a program running: ``python -m aegis_dask.runtime.keeper PROGRAM ARGUMENTS``.

A worker of Dask's that loses its scheduler ends for good, with its nanny; so after a network has
been down, it must be started again. SIGTERM ends program and keeper. A program that does not get
far several times in a row is given up: the scheduler is gone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

SHORT_SECONDS = 90.0
"""A program that ends sooner did not get far; longer than `standing.DEATH_SECONDS`."""
ATTEMPTS = 5
PAUSE_SECONDS = 1.0


class Keeper:
    """Runs a program until it is stopped or given up."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.is_stopped = False
        self.process: subprocess.Popen[bytes] | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """End the program: a handler of signals."""
        self.is_stopped = True
        if self.process is not None:
            self.process.terminate()

    def run(self) -> int:
        """Return the exit status: 0 if stopped, else the program's last."""
        short = status = 0
        while short < ATTEMPTS and not self.is_stopped:
            begin = time.monotonic()
            self.process = subprocess.Popen(self.command)
            status = self._wait()
            lived = time.monotonic() - begin
            short = 0 if lived > SHORT_SECONDS else short + 1
            _say(f"the program ended with status {status} after {lived:.0f} s")
            if not self.is_stopped:
                time.sleep(PAUSE_SECONDS)
        if self.is_stopped:
            return 0
        _say(f"given up after {ATTEMPTS} attempts")
        return status or 1

    def _wait(self) -> int:
        assert self.process is not None
        if self.is_stopped:  # since we looked last
            self.process.terminate()
        return self.process.wait()


def _say(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} - aegis keeper - {message}", flush=True)


def main() -> int:
    """Keep the program that the arguments name."""
    keeper = Keeper(sys.argv[1:])
    signal.signal(signal.SIGTERM, keeper.stop)
    signal.signal(signal.SIGINT, keeper.stop)
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main())
