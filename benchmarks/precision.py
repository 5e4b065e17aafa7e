"""Precision of bootstrapping over a million slots and more: `python -m benchmarks.precision`.

Every preset refreshes fresh encryptions of random complex slots, with parts uniform up to 1 and,
apart from that, up to the largest that the preset states. Some slots of each ciphertext are
extreme: 0, and both parts at their bounds. Each preset has a process and one set of keys.

Beside them what others publish for their parameter sets.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from math import ceil, log2
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks._measure import machine_info
from benchmarks._tables import table

RESULTS = Path("benchmarks/results/precision.json")
_ROOT = Path(__file__).resolve().parents[1]

SLOTS = 1 << 20
_ROUND = 1 << 15
"""Slots that are refreshed at a time: one ciphertext of the largest ring, a batch of the others."""


@dataclass(frozen=True)
class Precision:
    """Errors of one preset.

    Attributes
    ----------
    preset
        Its name.
    magnitude
        Largest part of a slot.
    slots, ciphertexts
        How many were refreshed.
    max_error, mean_error
        Absolute error of a complex slot.
    seconds
        Of all refreshes.
    """

    preset: str
    magnitude: float
    slots: int
    ciphertexts: int
    max_error: float
    mean_error: float
    seconds: float

    @property
    def worst(self) -> float:
        """Bits of the worst slot."""
        return -log2(self.max_error)

    @property
    def mean(self) -> float:
        """Bits of the mean error."""
        return -log2(self.mean_error)


@dataclass(frozen=True)
class Published:
    """What others say of theirs; bits that they do not tell are None."""

    library: str
    parameters: str
    slots: int
    worst: float | None
    mean: float | None
    source: str


_LATTIGO = "Lattigo, circuits/ckks/bootstrapping/default_parameters.go"
_NOTE = "measured by us, OpenFHE 1.6.1, 2026-11-20, real slots"
PUBLISHED = (
    # Lattigo's comments give one figure per set and do not call it the worst: an average here.
    Published("Lattigo", "N16QP1546H192H32, 9 x 40 bits", 1 << 15, None, 26.6, _LATTIGO),
    Published("Lattigo", "N16QP1547H192H32, 5 x 45, arcsine", 1 << 15, None, 32.1, _LATTIGO),
    Published("Lattigo", "N16QP1767H32768H32, 13 x 40", 1 << 15, None, 23.8, _LATTIGO),
    Published("Lattigo", "N16QP1788H32768H32, 9 x 45, arcsine", 1 << 15, None, 29.8, _LATTIGO),
    Published("Lattigo", "N15QP768H192H32, 50 + 25", 1 << 14, None, 15.4, _LATTIGO),
    Published("Lattigo", "N15QP880H16384H32, 4 x 31", 1 << 14, None, 17.3, _LATTIGO),
    # OpenFHE has no table of it: its example prints what it measures.
    Published(
        "OpenFHE",
        "SPARSE_ENCAPSULATED, 26 x 50",
        1 << 15,
        11.0,
        None,
        "CAPS-UMU/FIDESlib, issue 33, for OpenFHE 1.5.1",
    ),
    Published("OpenFHE", "SPARSE_ENCAPSULATED, 3-3, 22 x 52", 1 << 15, 13.3, None, _NOTE),
    Published("OpenFHE", "SPARSE_ENCAPSULATED, 4-4, 19 x 55", 1 << 15, 15.7, None, _NOTE),
)


def extremes(magnitude: float) -> list[complex]:
    """Slots at the bounds and in the middle."""
    steps = (-magnitude, 0.0, magnitude)
    return [complex(re, im) for re, im in product(steps, steps)]


def messages(
    rng: np.random.Generator, batch: int, slots: int, magnitude: float
) -> NDArray[np.complex128]:
    """Random slots of a batch of ciphertexts, `extremes` in places of their own in each."""
    parts = rng.uniform(-magnitude, magnitude, (2, batch, slots))
    out: NDArray[np.complex128] = parts[0] + 1j * parts[1]
    special = extremes(magnitude)
    for row in out:
        row[rng.choice(slots, len(special), replace=False)] = special
    return out


def measure_preset(
    preset: str, slots: int = SLOTS, magnitudes: Sequence[float] | None = None
) -> list[Precision]:
    """Refresh at least `slots` slots for each magnitude: by default 1 and the largest stated."""
    from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
    from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
    from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
    from aegis_dask.ckks.encryptor import Decryptor, Encryptor
    from aegis_dask.ckks.keys import KeyGenerator

    params = BootstrappingParameters.preset(preset)
    secret = KeyGenerator(params.params).secret_key()
    keys = bootstrapping_keys(params, secret, Bootstrapper(params).required_keys)
    bootstrapper = Bootstrapper(params, keys)
    encryptor, decryptor = Encryptor(params.params, secret), Decryptor(params.params, secret)

    def errors(sent: NDArray[np.complex128]) -> tuple[NDArray[np.float64], float]:
        ct = encryptor.encrypt(sent, level=bootstrapper.input_level)
        begin = time.perf_counter()
        out = bootstrapper.refresh(ct)
        seconds = time.perf_counter() - begin
        return np.abs(decryptor.decrypt(out).reshape(sent.shape) - sent), seconds

    chosen = magnitudes or (1.0, params.literal.max_magnitude)
    return [accumulate(preset, m, params.params.slots, slots, errors) for m in chosen]


def accumulate(
    preset: str,
    magnitude: float,
    slots: int,
    wanted: int,
    errors: Callable[[NDArray[np.complex128]], tuple[NDArray[np.float64], float]],
) -> Precision:
    """Ask `errors` of random messages until there are `wanted` slots, `slots` per ciphertext."""
    rng = np.random.default_rng()
    batch = max(1, min(_ROUND, wanted) // slots)
    rounds = ceil(wanted / (batch * slots))
    largest = total = seconds = 0.0
    for _ in range(rounds):
        found, took = errors(messages(rng, batch, slots, magnitude))
        # NaN would not be larger than anything.
        largest = max(largest, float(np.nan_to_num(found, nan=np.inf).max()))
        total += float(found.mean())
        seconds += took
    ciphertexts = rounds * batch
    return Precision(
        preset,
        magnitude,
        ciphertexts * slots,
        ciphertexts,
        largest,
        total / rounds,
        round(seconds, 2),
    )


def in_own_process(
    preset: str, slots: int = SLOTS, magnitudes: Sequence[float] | None = None
) -> list[Precision]:
    """`measure_preset` in a fresh process, whose memory goes with it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure_preset, preset, slots, magnitudes).result()


def ours_table(found: Sequence[Precision]) -> str:
    """What was measured."""
    header = ["preset", "parts up to", "slots", "ciphertexts", "bits, worst", "bits, mean"]
    rows = [
        [
            p.preset,
            f"{p.magnitude:g}",
            f"2^{log2(p.slots):.3g}",
            str(p.ciphertexts),
            f"{p.worst:.1f}",
            f"{p.mean:.1f}",
        ]
        for p in found
    ]
    return table(header, rows)


def published_table() -> str:
    """What others publish."""
    header = ["library", "parameters", "slots", "bits, worst", "bits, mean", "source"]

    def bits(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    rows = [
        [p.library, p.parameters, f"2^{log2(p.slots):.0f}", bits(p.worst), bits(p.mean), p.source]
        for p in PUBLISHED
    ]
    return table(header, rows)


def _parse(argv: Sequence[str] | None, known: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--presets",
        type=lambda text: [part for part in text.split(",") if part],
        default=list(known),
        help="default: all with bootstrapping",
    )
    parser.add_argument("--slots", type=int, default=SLOTS, help="slots for each magnitude")
    parser.add_argument("--json", type=Path, help=f"write all figures here; default: {RESULTS}")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.presets) - set(known))
    if unknown:
        parser.error(f"unknown presets: {', '.join(unknown)}; known: {', '.join(known)}")
    if args.slots < 1:
        parser.error("--slots must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a refresh returned garbage."""
    from aegis_dask.ckks.bootstrapping.parameters import BOOTSTRAPPING_PRESETS

    args = _parse(argv, list(BOOTSTRAPPING_PRESETS))
    words = sys.argv[1:] if argv is None else list(argv)
    found: list[Precision] = []
    for preset in args.presets:
        found += in_own_process(preset, args.slots)
        print(f"{preset}: done", file=sys.stderr, flush=True)
    machine = machine_info()
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}, {machine['commit']}\n")
    print(ours_table(found), end="\n\n")
    print(published_table())
    path = args.json or _ROOT / RESULTS
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["python", "-m", "benchmarks.precision", *words]),
        "machine": machine,
        "presets": [{**asdict(p), "worst": p.worst, "mean": p.mean} for p in found],
        "published": [asdict(p) for p in PUBLISHED],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(not p.max_error < 1 for p in found))


if __name__ == "__main__":
    sys.exit(main())
