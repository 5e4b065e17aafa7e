"""Runs inputs and judges them: in one process, or in several that are watched."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any

from aegis_dask.errors import AegisError, InsecureParametersWarning
from benchmarks.fuzzing import Target
from benchmarks.fuzzing.mutate import mutate

HEADROOM = 512 << 20
"""Address space that a process may take beyond what it has before the first input."""
SAMPLE = 500
"""Every so manieth input's memory is measured."""
SILENCE = 60.0
"""Seconds after which an input that does not end is a hang, on a machine as busy as may be."""
MOST_FAILURES = 20
MEMORY = Path("/dev/shm")
BATCH = 5000
"""Inputs between two reports of a process."""


@dataclass(frozen=True)
class Failure:
    """An input that a parser did not take as it must.

    Attributes
    ----------
    target, seed, index
        What the input is made of.
    what
        What happened.
    data
        The input.
    """

    target: str
    seed: int
    index: int
    what: str
    data: bytes

    def save(self, folder: Path) -> Path:
        """Write the input to a file, with what happened beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.target}-{self.seed}-{self.index}.bin"
        path.write_bytes(self.data)
        path.with_suffix(".txt").write_text(f"{self}\n\n{self.what}\n", "utf-8", "backslashreplace")
        return path

    def __str__(self) -> str:
        return (
            f"python -m benchmarks.fuzzing --only {self.target} --seed {self.seed} "
            f"--index {self.index}"
        )


@dataclass
class Tally:
    """What became of the inputs of one target.

    Attributes
    ----------
    inputs, accepted
        How many there were, and how many were valid.
    places
        Lines of the library that refused one, as (file, line).
    seconds
        Largest CPU time of one.
    memory
        Largest memory of one that was measured, in bytes.
    """

    inputs: int = 0
    accepted: int = 0
    places: set[tuple[str, int]] = field(default_factory=set)
    seconds: float = 0.0
    memory: int = 0

    def add(self, other: Tally) -> None:
        """Add what became of further inputs."""
        self.inputs += other.inputs
        self.accepted += other.accepted
        self.places |= other.places
        self.seconds = max(self.seconds, other.seconds)
        self.memory = max(self.memory, other.memory)


@dataclass
class Report:
    """Tallies by the names of targets, and failures."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return sum(t.inputs for t in self.tallies.values())

    def add(self, other: Report) -> None:
        """Add what another process found."""
        for name, tally in other.tallies.items():
            self.tallies.setdefault(name, Tally()).add(tally)
        self.failures += other.failures


# -- inputs ---------------------------------------------------------------------------------


def make_input(target: Target, seed: int, index: int) -> bytes:
    """Return input `index` of a target."""
    rng = Random((seed << 96) + (zlib.crc32(target.name.encode()) << 64) + index)
    return mutate(rng, target.kind, target.examples)


class Schedule:
    """Which target an input is for: by shares, the same for every run with these targets."""

    def __init__(self, targets: Sequence[Target]) -> None:
        total = sum(t.share for t in targets)
        slots = [max(1, round(10_000 * t.share / total)) for t in targets]
        self._cycle = [t for t, count in zip(targets, slots, strict=True) for _ in range(count)]
        Random(0).shuffle(self._cycle)

    def __getitem__(self, index: int) -> Target:
        return self._cycle[index % len(self._cycle)]


# -- one process ----------------------------------------------------------------------------


def run(
    schedule: Schedule, seed: int, indices: range, sample: int = SAMPLE, current: Any = None
) -> Report:
    """Run inputs in this process.

    Parameters
    ----------
    schedule, seed, indices
        Which inputs.
    sample
        Every so manieth input's memory is measured.
    current
        Its ``value`` is set to each index before its input is parsed.
    """
    report = Report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        for index in indices:
            if current is not None:
                current.value = index
            target = schedule[index]
            data = make_input(target, seed, index)
            tally = report.tallies.setdefault(target.name, Tally())
            what = judge(target, data, tally, index % sample == 0)
            if what is not None:
                report.failures.append(Failure(target.name, seed, index, what, data))
                if len(report.failures) >= MOST_FAILURES:
                    break
    return report


def judge(target: Target, data: bytes, tally: Tally, measured: bool = False) -> str | None:
    """Run one input; return what is wrong with what became of it, or None."""
    what = None
    if measured:
        tracemalloc.start()
    begin = time.thread_time()
    try:
        target.parse(data)
        tally.accepted += 1
    except AegisError as e:
        tally.places.add(_place(e.__traceback__))
        try:
            str(e).encode()  # it will be printed
        except UnicodeEncodeError as error:
            what = f"the message of an error cannot be printed: {error}"
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        what = "".join(traceback.format_exception(e))
    seconds = time.thread_time() - begin
    tally.inputs += 1
    if measured:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        tally.memory = max(tally.memory, peak)
        most = target.multiple * len(data) + target.constant
        if what is None and peak > most:
            what = f"{peak} bytes of memory for {len(data)} bytes, at most {most} were expected"
        return what  # being traced takes time
    tally.seconds = max(tally.seconds, seconds)
    if what is None and seconds > target.seconds:
        what = f"{seconds:.2f} s of CPU time, at most {target.seconds:.2f} were expected"
    return what


def _place(trace: TracebackType | None) -> tuple[str, int]:
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return os.path.basename(trace.tb_frame.f_code.co_filename), trace.tb_lineno


@contextmanager
def limited_memory(headroom: int = HEADROOM) -> Iterator[None]:
    """Let this process take only so much more address space: more is a `MemoryError` at once."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + headroom, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a folder for the files of a run, in memory where that is possible."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


def warm_up(targets: Sequence[Target]) -> None:
    """Parse every example, which must succeed: kernels are compiled, caches are filled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureParametersWarning)
        for target in targets:
            for example in target.examples:
                with suppress(AegisError):  # examples of other parsers are among those of some
                    target.parse(example)


# -- several processes ----------------------------------------------------------------------


Choose = Callable[[Path], list[Target]]
"""Makes the targets of a run in each of its processes, so it is pickled."""


def run_watched(
    choose: Choose,
    seed: int,
    count: int,
    processes: int,
    notify: Callable[[Report], None] | None = None,
    silence: float = SILENCE,
) -> Report:
    """Run inputs in processes of their own; one that dies or hangs is a failure, and is replaced.

    Parameters
    ----------
    choose
        Makes the targets.
    seed, count
        Inputs 0 to ``count - 1``.
    processes
        How many work at once.
    notify
        Called with the report so far, again and again.
    silence
        Seconds after which an input that does not end is a hang.
    """
    report = Report()
    share = -(-count // processes)
    starts = range(0, count, share)
    with scratch() as folder:  # made here, so that nothing stays of processes that are killed
        workers: list[_Worker] = []
        try:
            for i in starts:
                indices = range(i, min(count, i + share))
                workers.append(_Worker(choose, seed, indices, silence, folder))
            while any(w.left for w in workers) and len(report.failures) < MOST_FAILURES:
                for worker in workers:
                    worker.collect(report)
                if notify is not None:
                    notify(report)
                time.sleep(0.2)
        finally:
            for worker in workers:
                worker.stop()
    return report


_STARTING = 2**64 - 1
STARTUP = 600.0
"""Seconds that a process may take to begin: kernels may have to be compiled."""


class _Worker:
    def __init__(
        self, choose: Choose, seed: int, indices: range, silence: float, folder: Path
    ) -> None:
        self.choose, self.seed, self.left, self.silence = choose, seed, indices, silence
        self.folder = folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.current = context.Value("Q", _STARTING, lock=False)
        self.pipe, other = context.Pipe(duplex=False)
        own = Path(tempfile.mkdtemp(dir=self.folder))
        arguments = (self.choose, own, self.seed, self.left, self.current, other)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self.seen, self.since = _STARTING, time.monotonic()

    def collect(self, report: Report) -> None:
        """Take what the process has to say, and see whether it is alive."""
        alive = self.process.is_alive()  # before its last words are read
        with suppress(EOFError):
            while self.left and self.pipe.poll():
                found, stop = self.pipe.recv()
                report.add(found)
                self.left = range(stop, self.left.stop)
        if not self.left:
            return
        index, now = self.current.value, time.monotonic()
        if index != self.seen:
            self.seen, self.since = index, now
        hangs = now - self.since > (STARTUP if index == _STARTING else self.silence)
        if alive and not hangs:
            return
        self.stop()
        if index == _STARTING:
            raise RuntimeError("a process of the fuzzer did not start; its errors are above")
        what = (
            f"it did not end within {self.silence:.0f} s"
            if hangs
            else f"the process died with exit status {self.process.exitcode}"
        )
        report.add(_blame(self.choose, self.seed, index, what, index - self.left.start + 1))
        self.left = range(index + 1, self.left.stop)
        if self.left:
            self._start()

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def _blame(choose: Choose, seed: int, index: int, what: str, inputs: int) -> Report:
    """Report the input that a process ended with, and how many it had since its last report."""
    with scratch() as folder:
        target = Schedule(choose(folder))[index]
        data = make_input(target, seed, index)
    return Report({target.name: Tally(inputs)}, [Failure(target.name, seed, index, what, data)])


def choose_targets(folder: Path, names: Sequence[str] = ()) -> list[Target]:
    """Return the targets of these names, all if there are none.

    Raises
    ------
    ValueError
        If there is none of a name.
    """
    from benchmarks.fuzzing.targets import all_targets

    targets = all_targets(folder)
    known = [t.name for t in targets]
    if unknown := set(names) - set(known):
        raise ValueError(f"no target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [t for t in targets if not names or t.name in names]


def _work(
    choose: Choose, folder: Path, seed: int, indices: range, current: Any, pipe: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one ends it
    os.environ["NUMBA_NUM_THREADS"] = "1"  # kernels of so small a ring, and CPU time of one thread
    targets = choose(folder)
    warm_up(targets)
    gc.collect()
    gc.freeze()  # a collection would count for the input in which it happens
    schedule = Schedule(targets)
    with limited_memory():
        for begin in range(indices.start, indices.stop, BATCH):
            stop = min(begin + BATCH, indices.stop)
            found = run(schedule, seed, range(begin, stop), current=current)
            pipe.send((found, stop))
