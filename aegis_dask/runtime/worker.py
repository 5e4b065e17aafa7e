"""What runs on a worker: the state of a run, and the one function of which every task is a call.

Tasks carry numbers only: program, keys and weights are with the worker, in its plugin.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import get_worker

from aegis_dask.circuits.operators import operator_of
from aegis_dask.dashboard.metrics import Meter
from aegis_dask.dashboard.monitor import TASKS, TROUBLE
from aegis_dask.errors import ClusterError, harmless_text
from aegis_dask.placement.limbs.plan import LimbProgram
from aegis_dask.placement.limbs.shard import Shard, key_lookup
from aegis_dask.placement.tasks import Argument, Take, Task
from aegis_dask.program.graph import Program
from aegis_dask.program.interpreter import run_stage
from aegis_dask.runtime.context import Context, InterpreterFactory
from aegis_dask.runtime.load import Load
from aegis_dask.runtime.measure import Received, Record, Timed, WorkerReport, now
from aegis_dask.runtime.serialization import Results, check_intact, payload_bytes

PLUGIN = "aegis"
"""Name of the plugin on every worker."""

_threads = threading.local()


class TaskError(ClusterError):
    """A task raised an exception: its index, the worker, the exception and its traceback.

    With it the stage, where a task is for several.
    """

    def __init__(
        self, index: int, worker: str, error: BaseException, trace: str, stage: int | None = None
    ) -> None:
        super().__init__(index, worker, error, trace, stage)
        self.index, self.worker, self.error, self.trace = index, worker, error, trace
        self.stage = stage

    def __str__(self) -> str:
        return f"task {self.index} failed on {self.worker}: {self.error!r}"


@dataclass(frozen=True)
class RunSpec:
    """What a worker must know of a run.

    Attributes
    ----------
    run
        Name of the run; the keys of its tasks end in it.
    context
        Identifier of the context.
    program, tasks
        What to run.
    interpreter
        Kind of interpreter, or what makes it.
    addresses
        Address of worker 0, 1, ...
    load
        File of `runtime.load` if all workers share the cores of one host, else "".
    by_limbs
        For tasks that divide the work by limbs: the kernel calls.
    """

    run: str
    context: str
    program: Program
    tasks: list[Task]
    interpreter: str | InterpreterFactory
    addresses: tuple[str, ...]
    load: str = ""
    by_limbs: LimbProgram | None = None


@dataclass
class RunState:
    """A run on one worker.

    Attributes
    ----------
    spec, context
        What runs, on what.
    lock
        Held by the task that runs: one at a time for all runs of the worker.
    threads
        Threads of the kernels; None where none are called.
    report
        What has been measured.
    is_cancelled
        Whether tasks that have not begun are to fail.
    active
        Tasks that run, or wait for the lock.
    failed
        Task -> stage in which it raised.
    numbers
        Key of a task -> its index.
    incoming
        Task -> worker that sent its result, until a task here takes it.
    meter
        What the worker counts for Prometheus.
    """

    spec: RunSpec
    context: Context
    lock: threading.Lock
    threads: int | None
    report: WorkerReport = field(default_factory=WorkerReport)
    is_cancelled: bool = False
    active: list[int] = field(default_factory=list)
    failed: dict[int, int] = field(default_factory=dict)
    numbers: dict[Any, int] = field(default_factory=dict)
    incoming: dict[int, int] = field(default_factory=dict)
    meter: Meter | None = None
    _interpreter: Any = None
    _load: Load | None = None
    _shard: Shard | None = None

    def run(self, index: int, inputs: Sequence[Any], worker: Any) -> Any:
        """Run a task.

        Raises
        ------
        TaskError
            Whatever goes wrong.
        """
        self.active.append(index)
        try:
            with self.lock:  # a worker with several threads: kernels have threads of their own
                return self._run(index, inputs, worker)
        except Exception as error:
            trace = traceback.format_exc()
            stage = self.failed.get(index)
            self._tell(index, stage, error, worker)
            raise TaskError(index, worker.address, _picklable(error), trace, stage) from None
        finally:
            self.active.remove(index)

    def receive(self, received: Received) -> None:
        """Note values that have come from another worker."""
        self.report.received.append(received)
        if received.source not in self.spec.addresses:
            return
        sender = self.spec.addresses.index(received.source)
        self.incoming.update({self.numbers[key]: sender for key in received.keys})

    def _run(self, index: int, inputs: Sequence[Any], worker: Any) -> Any:
        task = self.spec.tasks[index]
        self._check(task, worker.address)
        for value in inputs:
            check_intact(value)
        if self.spec.load and self.threads is not None:
            return self._run_sharing(task, inputs, worker)
        self._set_threads()
        return self._measured(task, inputs, worker)

    def _run_sharing(self, task: Task, inputs: Sequence[Any], worker: Any) -> Any:
        """Run a task with the threads that other workers of the host leave."""
        assert self.threads is not None
        if self._load is None:
            number = self.spec.addresses.index(worker.address)
            cores = self.threads * len(self.spec.addresses)
            self._load = Load(Path(self.spec.load), number, cores)
        self._load.begin()
        try:
            return self._measured(task, inputs, worker)
        finally:
            self._load.end()
            _threads.count = None

    def _measured(self, task: Task, inputs: Sequence[Any], worker: Any) -> Any:
        if self._interpreter is None:
            self._interpreter = self.context.interpreter(self.spec.interpreter)
        made = _Made(task)
        steps: list[tuple[int, float, float]] = []
        for k, part in enumerate(task.steps):
            given = [made.take(k, i) if i < 0 else inputs[i] for i in part.takes]
            e = Timed(self._interpreter)
            record = Record(task.index, part.task.stage, part.task.kind, start=now())
            try:
                out = self._compute(part.task, e, given)
            except Exception:
                self.failed[task.index] = part.task.stage
                raise
            if self.context.params is not None:
                self.context.params.ring.synchronize()  # a result that is sent is there
            record.stop = now()
            record.operations, record.payload = e.operations, payload_bytes(out)
            made.add(k, out)
            self.report.records.append(record)
            steps.append((record.stage, record.start, record.stop))
            if self.meter is not None:
                operator = operator_of(self.spec.program.stages[record.stage].name)
                self.meter.step(operator, record.seconds, record.operations)
        done = {
            "run": self.spec.run,
            "task": task.index,
            "device": task.owner,
            "steps": steps,
            "received": self._received(task, inputs),
        }
        worker.log_event(TASKS, done)
        return made.given() if task.parts else out

    def _received(self, task: Task, inputs: Sequence[Any]) -> list[tuple[int, int]]:
        """Return what was fetched for this task first: who sent it, and bytes of residues."""
        found = []
        for source, value in zip(task.sources, inputs, strict=True):
            sender = self.incoming.pop(source, None)
            if sender is not None:
                found.append((sender, payload_bytes(value)))
        if self.meter is not None:
            self.meter.received += sum(count for _, count in found)
        return found

    def _tell(self, index: int, stage: int | None, error: Exception, worker: Any) -> None:
        """Tell the monitor what went wrong: in words only where they are ours."""
        if self.meter is not None:
            self.meter.failed += 1
        name = self.spec.program.stages[self.spec.tasks[index].stage if stage is None else stage]
        what = harmless_text(error)
        where = f"task {index} of {name.name}, device {worker.name}"
        worker.log_event(TROUBLE, {"run": self.spec.run, "where": where, "what": what})

    def _check(self, task: Task, address: str) -> None:
        if self.is_cancelled:
            raise ClusterError("the run was cancelled")
        wanted = self.spec.addresses[task.owner]
        if address != wanted:
            raise ClusterError(
                f"the task is placed on {wanted} and was started on {address}; the scheduler must "
                "respect the pins of tasks: use no plugin that changes them"
            )

    def _set_threads(self) -> None:
        """Set the number of threads of the kernels: it belongs to the calling thread."""
        if self.threads is not None and getattr(_threads, "count", None) != self.threads:
            from aegis_dask.ring.threads import max_threads, set_threads

            set_threads(min(self.threads, max_threads()))
            _threads.count = self.threads

    # -- kinds of tasks ----------------------------------------------------------------------

    def _compute(self, task: Task, e: Timed, inputs: Sequence[Any]) -> Any:
        if task.kind in ("join", "pick"):
            return _value(task.arguments[0], e, inputs)
        if task.kind == "sum":
            total = _value(task.arguments[0], e, inputs)
            for argument in task.arguments[1:]:
                total = e.add(total, _value(argument, e, inputs))
            return total
        if task.kind in ("round", "share", "limbs"):
            return self._by_limbs(task, inputs)
        program, stage = self.spec.program, self.spec.program.stages[task.stage]
        arguments = {a.node: _value(a, e, inputs) for a in task.arguments}
        found = run_stage(program, stage, e, self.context.store, arguments, task.rows)
        if len(task.results) == 1:
            return found[task.results[0]]
        return Results(found[i] for i in task.results)

    def _by_limbs(self, task: Task, inputs: Sequence[Any]) -> Any:
        params, known = self.context.params, self.spec.by_limbs
        assert params is not None
        assert known is not None
        if self._shard is None:
            find = key_lookup(self.context.interpreter("encrypted").evaluator)
            self._shard = Shard(known.schedule, task.owner, params.ring, find)
        out = known.compute(task, inputs, self._shard)
        return Results(out) if isinstance(out, list) else out


class _Made:
    """What the parts of a task give, while later parts or the caller need it."""

    def __init__(self, task: Task) -> None:
        self._steps, self._last_uses = task.steps, task.last_uses
        self._values: dict[int, Any] = {}
        self._given: list[Any] = []

    def take(self, part: int, before: int) -> Any:
        """Return for a part what an earlier one gives."""
        return self._values[part + before]

    def add(self, part: int, out: Any) -> None:
        """Keep what a part gives, and let go what no later one takes."""
        self._values[part] = out
        for j in [j for j in self._values if self._last_uses.get(j, j) == part]:
            del self._values[j]
        step = self._steps[part]
        several = len(step.task.results) > 1
        self._given += [out[s] if several else out for s in step.gives]

    def given(self) -> Any:
        """Return what the task gives."""
        return self._given[0] if len(self._given) == 1 else Results(self._given)


def _value(argument: Argument, e: Timed, inputs: Sequence[Any]) -> Any:
    parts = [_taken(take, e, inputs) for take in argument.takes]
    if len(parts) == 1:
        return parts[0]
    if not argument.add:
        return e.join(parts)
    total = parts[0]
    for part in parts[1:]:
        total = e.add(total, part)
    return total


def _taken(take: Take, e: Timed, inputs: Sequence[Any]) -> Any:
    value = inputs[take.source]
    if take.slot is not None:
        value = value[take.slot]
    return value if take.rows is None else e.part(value, *take.rows)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ClusterError(f"{type(error).__name__}: {error}")
    return error


def run_task(run: str, index: int, *inputs: Any) -> Any:
    """Run one task of a run on the worker that calls this.

    Raises
    ------
    ClusterError
        If the worker does not know the run: it joined later, or was restarted.
    """
    worker = get_worker()
    plugin: Any = worker.plugins.get(PLUGIN)
    state: RunState | None = None if plugin is None else plugin.runs.get(run)
    if state is None:
        raise ClusterError(
            f"worker {worker.address} does not know run {run}: it has joined or was restarted "
            "since the run began, or the run was cancelled; run again"
        )
    return state.run(index, inputs, worker)
