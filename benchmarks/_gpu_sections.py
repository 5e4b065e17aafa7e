"""What `benchmarks.gpu` measures: kernels, operations, bootstrapping, layers, each beside the CPU.

Everything random is new in every run. "equal" compares all residues with those of the CPU.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from statistics import median
from typing import Any

import dask.config
import numpy as np
from numpy.typing import NDArray

from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.ckks.encryptor import Decryptor, Encryptor
from aegis_dask.ckks.evaluator import Evaluator
from aegis_dask.ckks.keys import KeyGenerator
from aegis_dask.ckks.objects import Ciphertext
from aegis_dask.ckks.precision import precision_stats
from aegis_dask.models.calibration import calibrate
from aegis_dask.models.checkpoint import BertConfig, random_bert
from aegis_dask.models.graphs import load_graph
from aegis_dask.models.programs import OUTPUT
from aegis_dask.ring.backend import HoistedKey, Ring
from aegis_dask.runtime.executor import Executor
from aegis_dask.service import local
from aegis_dask.service.client import Client
from aegis_dask.service.job import make_job
from aegis_dask.service.server import Server
from benchmarks._moving import host, moved

BATCHES = 5
SAMPLES, SAMPLE_TOKENS = 8, 128
"""Texts of a calibration, beside the one that is run: longer ones would take the CPU minutes."""


@dataclass(frozen=True)
class Record:
    """One line of the table.

    Attributes
    ----------
    name
        What was measured.
    seconds
        Of one call: the least of several batches of calls that follow each other.
    bytes
        Read and written at least, if that is known.
    launches
        Kernels of one call.
    equal
        Whether the residues are those of the CPU; None where they were not compared.
    note
        Anything else, in words.
    figures
        Anything else, in numbers.
    """

    name: str
    seconds: float
    bytes: int | None = None
    launches: int | None = None
    equal: bool | None = None
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON has it."""
        return asdict(self)


@contextmanager
def on_cpu() -> Iterator[None]:
    """Let rings be the CPU's meanwhile."""
    with dask.config.set({"aegis.backend": "cpu"}):
        yield


def timed(ring: Ring, call: Callable[[], Any], least: float) -> float:
    """Return the seconds of a call, from batches of calls of `least` seconds each."""
    for _ in range(2):
        call()
    ring.synchronize()
    begin = time.perf_counter()
    call()
    ring.synchronize()
    count = max(1, int(least / max(1e-7, time.perf_counter() - begin)))
    best = float("inf")
    for _ in range(BATCHES):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        ring.synchronize()
        best = min(best, (time.perf_counter() - begin) / count)
    return best


def launches_of(ring: Any, call: Callable[[], Any]) -> int | None:
    """Return the kernels of one call."""
    counter = getattr(ring, "launches", None)
    if counter is None:
        return None
    before = counter.total()
    call()
    return int(counter.total() - before)


class Section:
    """One section of the run; `least` is how long a batch of calls lasts."""

    def __init__(self, preset: str, least: float, say: Callable[[str], None]) -> None:
        self.bootstrapping = BootstrappingParameters.preset(preset)
        self.params = self.bootstrapping.params
        self.least, self.say = least, say
        self.rng = np.random.default_rng()
        self.records: list[Record] = []

    @property
    def ring(self) -> Ring:
        """The ring that is measured."""
        return self.params.ring

    def add(
        self,
        name: str,
        call: Callable[[], Any],
        size: int | None = None,
        equal: bool | None = None,
        note: str = "",
    ) -> None:
        """Measure a call."""
        launches = launches_of(self.ring, call)
        seconds = timed(self.ring, call, self.least)
        self.records.append(Record(name, seconds, size, launches, equal, note))
        share = "" if size is None else f", {size / seconds / 1e9:.0f} GB/s"
        verdict = {None: "", True: ", equal", False: ", DIFFERENT FROM THE CPU"}[equal]
        self.say(f"  {name}: {seconds * 1e6:.1f} us{share}{verdict}")

    def slots(self, *shape: int) -> Any:
        """Return random complex slots."""
        size = (*shape, self.params.slots)
        return self.rng.uniform(-1, 1, size) + 1j * self.rng.uniform(-1, 1, size)


# -- kernels -------------------------------------------------------------------------------------


def kernels(section: Section) -> None:
    """Measure every kernel of the interface on all limbs of the top level and P."""
    params, ring, rng = section.params, section.ring, section.rng
    level = params.max_level
    limbs, window = params.extended_limbs(level), params.limbs(level)
    primes, n = params.chain.all_primes, params.ring_degree
    with on_cpu():
        cpu = params.ring

    def residues(*shape: int, of: Any = limbs) -> Any:
        q = np.array([primes[i] for i in of])[:, None]
        return rng.integers(0, q, (*shape, len(of), n), np.int64).astype(np.uint32)

    def case(name: str, method: str, size: int, *arguments: Any, **options: Any) -> None:
        """Compare a method, then measure it; arrays of uint32 go to the device unless wrapped."""
        sent = [_to_device(ring, a) for a in arguments]
        named = {k: _to_device(ring, v) for k, v in options.items()}
        expected = getattr(cpu, method)(*map(_plain, arguments), **options)
        found = getattr(ring, method)(*sent, **named)
        same = None
        if expected is not None:
            same = bool(np.array_equal(ring.to_host(found), expected))
        del found, expected
        section.add(name, lambda: getattr(ring, method)(*sent, **named), size, same)

    limb, count, own = 4 * n, len(limbs), len(window)
    copied = ring.from_host(residues(8))
    into = ring.empty(copied.shape)

    def copy() -> None:
        into[...] = copied

    section.add("copy", copy, 2 * copied.nbytes)

    x, y = residues(1, 2, of=window), residues(1, 2, of=window)
    pair = 2 * own * limb
    case(f"ntt of {count} limbs", "ntt", 4 * count * limb, residues(), limbs)
    case(f"intt of {count} limbs", "intt", 4 * count * limb, residues(), limbs)
    case("add", "add", 3 * pair, x, y, window)
    case("multiply by a plaintext", "multiply", 2 * pair + own * limb, x, y[0, 0], window)
    case("multiply by a constant", "multiply_runs", 2 * pair, x, _Host(x[0, 0, :, :2]), window)
    case("tensor product", "tensor", pair * 7 // 2, x, y, window)
    case("automorphism", "automorphism", 2 * pair, x, 5)
    case("uniform residues", "uniform", count * limb, bytes(32), 0, [0], limbs)
    signed = rng.integers(-(2**40), 2**40, n)
    case("signed integers", "from_signed", (2 + count) * limb, signed, limbs)

    ev = Evaluator(params)
    raising, down = ev.levels.digit_raise(level), ev.levels.mod_down(level, level)
    digits = len(raising.conversions)
    c1 = residues(1, of=window)
    key_b, key_a = (residues(len(params.key_digits(level)), of=range(len(primes))) for _ in "ba")
    key = 2 * digits * count * limb
    device = [ring.from_host(a) for a in (c1, key_b, key_a)]
    raised = ring.raise_digits(device[0], raising)
    bytes_raised = digits * count * limb
    section.add(
        "ModUp of all digits",
        lambda: ring.raise_digits(device[0], raising),
        3 * own * limb + bytes_raised,
    )
    ring.inner_product(device[0], raised, raising, device[1], device[2], True)
    section.add(
        "key product of raised digits",
        lambda: ring.inner_product(device[0], raised, raising, device[1], device[2], False),
        bytes_raised + key + 2 * count * limb,
    )
    plain_digits, addend = ring.to_host(raised), residues(1, of=window)
    turned = [HoistedKey(key_b, key_a, g) for g in (5, 25, 125, 625)]
    case(
        "products with 4 keys at once, turned", "turned_products",
        bytes_raised + len(turned) * (key + 2 * count * limb) + own * limb,
        c1, plain_digits, raising, turned, False, addend,
    )  # fmt: skip
    sums = residues(1, 2)
    case("ModDown", "mod_down", (2 * count + 2 * own) * limb, sums, down)
    everything = (own + 2 * bytes_raised // limb + 4 * count + 2 * own) * limb + key
    case("key switch", "switch_key", everything, c1, raising, key_b, key_a, down)

    terms, outs = 48, 48
    left = residues(terms, 2, of=window[:8])
    weights = rng.integers(0, 2**24, (8, 32, outs, terms)).astype(np.uint32)
    size = left.nbytes * (1 + outs // terms) + weights.nbytes
    case(f"GEMM {outs} x {terms}, 8 limbs", "gemm", size, left, weights, window[:8])
    few, thin = residues(16, 2, of=window[:8]), weights[:, :1, :4, :16]
    size = few.nbytes * (1 + 4 / 16) + thin.nbytes
    case("GEMM 4 x 16, 8 limbs", "gemm", int(size), few, np.ascontiguousarray(thin), window[:8])
    right = residues(16, 2, of=window[:8])
    several = residues(4, 16, 2, of=window[:8])
    size = right.nbytes + several.nbytes + 4 * 3 * 8 * limb
    case("contraction of 16 terms, 4 outputs", "contract", size, right, several, window[:8])
    coefficients = rng.integers(-(2**30), 2**30, (32, outs, terms))
    size = coefficients.nbytes + 4 * 8 * prod(coefficients.shape)
    case("encode weights, 8 limbs", "encode_weights", size, coefficients, window[:8])


class _Host:
    """An array that stays on the host."""

    def __init__(self, array: Any) -> None:
        self.array = np.ascontiguousarray(array)


def _plain(x: Any) -> Any:
    return x.array if isinstance(x, _Host) else x


def _to_device(ring: Ring, x: Any) -> Any:
    if isinstance(x, _Host):
        return x.array
    if isinstance(x, list) and x and isinstance(x[0], HoistedKey):
        return [k._replace(b=ring.from_host(k.b), a=ring.from_host(k.a)) for k in x]
    return ring.from_host(x) if isinstance(x, np.ndarray) and x.dtype == np.uint32 else x


# -- operations ----------------------------------------------------------------------------------


def operations(section: Section) -> None:
    """Measure operations of the scheme on one ciphertext at the top level."""
    params = section.params
    steps = [1, 2, 3, 4, 5, 6, 7, 8]
    with on_cpu():
        generator = KeyGenerator(params)
        secret = generator.secret_key()
        keys = generator.evaluation_keys(secret, rotations=steps)
        x, y = (Encryptor(params, secret).encrypt(section.slots()) for _ in range(2))
        expected = {k: host(v) for k, v in _operations(Evaluator(params, keys), x, y, steps)}
    ev = Evaluator(params, moved(keys))
    a, b = moved(x), moved(y)
    found = {k: np.array_equal(host(v), expected[k]) for k, v in _operations(ev, a, b, steps)}
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: ev.add(a, b),
        "multiply, relinearise, rescale": lambda: ev.multiply(a, b),
        "rotate": lambda: ev.rotate(a, 1),
        "8 hoisted rotations": lambda: ev.rotate_many(a, steps),
    }
    for name, call in calls.items():
        equal = all(same for k, same in found.items() if k.startswith(name))
        section.add(name, call, equal=equal)


def _operations(
    ev: Evaluator, x: Ciphertext, y: Ciphertext, steps: list[int]
) -> list[tuple[str, Ciphertext]]:
    turned = ev.rotate_many(x, steps)
    return [
        ("add", ev.add(x, y)),
        ("multiply, relinearise, rescale", ev.multiply(x, y)),
        ("rotate", ev.rotate(x, 1)),
        *((f"8 hoisted rotations, by {k}", turned[k]) for k in steps),
    ]


def bootstrap(section: Section) -> None:
    """Measure a refresh of all slots, complex and real."""
    params, scheme = section.bootstrapping, section.params
    with on_cpu():
        secret = KeyGenerator(scheme).secret_key()
        planned = Bootstrapper(params)
        keys = bootstrapping_keys(params, secret, planned.required_keys)
        ours = Bootstrapper(params, keys)
        encryptor, decryptor = Encryptor(scheme, secret), Decryptor(scheme, secret)
        values = {"complex": section.slots(), "real": section.slots().real}
        inputs = {k: encryptor.encrypt(v, level=ours.input_level) for k, v in values.items()}
        expected = {k: ours.refresh(x, k == "real") for k, x in inputs.items()}
        bits = {
            k: precision_stats(values[k], decryptor.decrypt(out)) for k, out in expected.items()
        }
    theirs = Bootstrapper(params, moved(keys))
    for kind, x in inputs.items():
        a = moved(x)
        equal = bool(np.array_equal(host(theirs.refresh(a, kind == "real")), expected[kind].data))
        note = (
            f"{scheme.slots} slots, {theirs.output_level} levels left, {bits[kind].mean:.1f} bits "
            f"on average, {bits[kind].worst:.1f} at worst"
        )
        name = f"bootstrap, {kind} slots"
        section.add(
            name, lambda a=a, r=kind == "real": theirs.refresh(a, r), equal=equal, note=note
        )


# -- layers --------------------------------------------------------------------------------------


def short_texts(
    rng: np.random.Generator, config: BertConfig, tokens: int
) -> list[NDArray[np.int64]]:
    """Return texts to calibrate on, of `tokens` tokens at most."""
    count = min(tokens, SAMPLE_TOKENS)
    return [rng.integers(0, config.vocabulary, count) for _ in range(SAMPLES)]


def layer(section: Section, config: BertConfig, tokens: int, secure: bool) -> None:
    """Run one encoder layer of a shape twice, on one worker in this process.

    The first run prepares the weights (`program.weights`), which the second finds on the device:
    that is what every further request takes, and what is recorded.
    """
    rng = section.rng
    model = random_bert(config, int(rng.integers(1 << 30)))
    ids = rng.integers(0, config.vocabulary, tokens).tolist()
    section.say("  calibrating")
    calibration = calibrate(model, [np.array(ids), *short_texts(rng, config, tokens)])
    job = make_job(
        model, calibration, load_graph("bert_layer"), tokens, tokens=tokens,
        allow_insecure=not secure,
    )  # fmt: skip
    prepared = local.prepare(job, ids)
    client = Client.create(job)
    keys = client.evaluation_keys()
    key_bytes = keys.nbytes
    with Executor.local(1, processes=False) as executor:
        server = Server(job, keys, executor)
        del keys
        x = client.encrypt(prepared.x)
        first, result = (server.evaluate(x, len(prepared.x)) for _ in range(2))
    output = client.decrypt(result.outputs[OUTPUT])
    outcome = local.Outcome(prepared, result, output, "encrypted")
    lasted: Counter[int] = Counter()
    for span in result.timeline:  # of several for a task that does several things
        lasted[span.task] += span.stop - span.start  # type: ignore[assignment]
    figures = {
        "first_seconds": first.seconds,
        "median_task_seconds": median(lasted.values()),
        "dask_share": 1 - result.scheduling.busy / result.seconds,
        "largest_error": outcome.precision.max_error,
    }
    notes = [
        repr(job.params),
        f"{result.tasks} tasks, median {figures['median_task_seconds'] * 1e3:.0f} ms",
        f"Dask {figures['dask_share']:.1%} of the time",
        f"{first.seconds:.2f} s with weights to prepare",
        f"{job.keys.count} keys, {key_bytes / 1e9:.1f} GB",
        f"largest error {outcome.precision.max_error:.1e}",
        f"12 layers at this rate: {12 * result.seconds:.0f} s",
    ]
    name = f"layer of width {config.hidden}, {tokens} tokens"
    section.records.append(Record(name, result.seconds, note="; ".join(notes), figures=figures))
    section.say(f"  {name}: {result.seconds:.2f} s; {'; '.join(notes)}")
