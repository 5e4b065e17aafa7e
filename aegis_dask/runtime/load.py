"""Which workers of a host are running a task: so that a lone one may use all cores.

Where a program has nothing to do in parallel, as in the refreshes of a single ciphertext, all
workers but one are idle. Workers that we start on a machine share a small file in memory, with a
byte for each; before every kernel a worker looks how many are at work, and takes its share of the
threads. Residues do not depend on the number of threads.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from aegis_dask.ring import threads


class Load:
    """A worker's view of the file.

    Parameters
    ----------
    path
        The file, as long as there are workers.
    index
        Number of this worker.
    cores
        Threads of all workers together.
    """

    def __init__(self, path: Path, index: int, cores: int) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.index, self.cores = index, min(cores, threads.max_threads())
        self._set = 0

    def begin(self) -> None:
        """Say that a task has begun, and let the kernels of this process adapt."""
        self._map[self.index] = 1
        self._set = 0
        threads.before_kernels(self.adapt)

    def end(self) -> None:
        """Say that the task has ended."""
        threads.before_kernels(None)
        self._map[self.index] = 0

    def share(self) -> int:
        """Return the threads that this worker may use now."""
        return max(1, self.cores // max(1, self._map[:].count(1)))

    def adapt(self) -> None:
        """Set the number of threads of the calling thread's kernels to the share."""
        share = self.share()
        if share != self._set:
            threads.set_threads(share)
            self._set = share
