"""What the CPU engine must show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks._results import Run
from benchmarks.claims import Claim, Finding, Options, _engine_checks
from benchmarks.claims._processes import passing
from benchmarks.engine import measure_run
from benchmarks.peers import OURS

_PEER = "openfhe"
_LOGN = 16

#: claim -> operation, thread counts, least speedup over OpenFHE at N = 2^16
_SPEEDUPS: dict[str, tuple[str, tuple[int, ...], float]] = {
    "multiply-speedup-1t": ("multiply_relin_rescale", (1,), 5.5),
    "multiply-speedup-2t": ("multiply_relin_rescale", (2,), 5.5),
    "rotate-speedup-1t": ("rotate", (1,), 5),
    "rotate-speedup-2t": ("rotate", (2,), 5),
    "keygen-relin": ("keygen_relin", (1, 2), 1),
    "keygen-rotation": ("keygen_rotation", (1, 2), 1),
    "encrypt": ("encrypt", (1, 2), 1),
}
#: claim -> element-wise operation and thread counts; at most `_COPY_RATIO` times a copy's duration
_COPIES = {
    "add-vs-copy": ("add", (1, 2)),
    "multiply-plain-vs-copy": ("multiply_plain", (1, 2)),
}
_COPY_RATIO = 1.5
_KEY_SIZE = "rotation-key-size"


class _Figures:
    """One run of `benchmarks.engine` with what the chosen claims need, made when first asked."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._run: Run | None = None

    def run(self) -> Run:
        """The run, the same one for every claim."""
        if self._run is None:
            speedups = [v[:2] for name, v in _SPEEDUPS.items() if self._options.wants(name)]
            copies = [v for name, v in _COPIES.items() if self._options.wants(name)]
            needed = speedups + copies
            ops = sorted({op for op, _ in needed})
            threads = sorted({t for _, counts in needed for t in counts})
            budget, wait = (0.4, 0) if self._options.quick else (1.5, 20)
            # Sizes are reported without any operation; `add` is the cheapest.
            self._run = measure_run(
                _LOGN, threads or [1], [_PEER], ops or ["add"], budget, quiet_wait_s=wait
            )
        return self._run

    def _worst(
        self, values: dict[int, float | None], worst: Callable[[Any], float], note: str
    ) -> Finding:
        known = [v for v in values.values() if v is not None]
        if len(known) < len(values):
            return Finding(None, "; ".join(self.run().problems()) or "not measured", sound=False)
        return Finding(round(worst(known), 3), note)

    def speedup(self, op: str, threads: tuple[int, ...]) -> Finding:
        """Time of OpenFHE over ours, the worst of the thread counts."""
        run = self.run()
        parts = []
        for t in threads:
            ours, theirs = (run.milliseconds(lib, t, op) for lib in (OURS, _PEER))
            parts.append(f"{t} threads: ours {ours} ms, OpenFHE {theirs} ms")
        if any(run.disturbed(_PEER, t, op) for t in threads):
            return Finding(None, f"OpenFHE was disturbed; {'; '.join(parts)}", sound=False)
        return self._worst({t: run.speedup(_PEER, t, op) for t in threads}, min, "; ".join(parts))

    def copy_ratio(self, op: str, threads: tuple[int, ...]) -> Finding:
        """Time of an operation over that of copying as many bytes, the worst."""
        run = self.run()
        parts = []
        for t in threads:
            ours, copy = run.milliseconds(OURS, t, op), run.copy_ms(op, t)
            parts.append(f"{t} threads: {ours} ms, copy {copy} ms")
        return self._worst({t: run.copy_ratio(op, t) for t in threads}, max, "; ".join(parts))

    def key_size(self) -> Finding:
        """Our written rotation key over OpenFHE's."""
        run = self.run()
        ours, theirs = (run.size(lib, "rotation_key") for lib in (OURS, _PEER))
        if not ours or not theirs:
            return Finding(None, "; ".join(run.problems()) or "not measured", sound=False)
        kind = run.size_note(OURS, "rotation_key")
        note = f"ours {ours / 1e6:.2f} MB ({kind}), OpenFHE {theirs / 1e6:.2f} MB"
        return Finding(round(ours / theirs, 4), note, sound=kind == "serialised")


def claims(options: Options) -> list[Claim]:
    """Every claim, in the order of the table."""
    figures = _Figures(options)
    selection = ["-m", "not slow" if options.quick else "slow or not slow"]
    return [
        passing("kernels-exact", "tests/ring", *selection),
        passing("scheme-every-level", "tests/ckks", *selection),
        Claim("precision-after-multiply", ">= 25", "bits, mean", _engine_checks.mean_precision),
        Claim(
            "precision-after-multiply-worst",
            ">= 25",
            "bits, worst of 32,768 slots",
            _engine_checks.worst_precision,
        ),
        *(
            Claim(name, f">= {least:g}", "x OpenFHE", partial(figures.speedup, op, threads))
            for name, (op, threads, least) in _SPEEDUPS.items()
        ),
        *(
            Claim(name, f"<= {_COPY_RATIO:g}", "x copy", partial(figures.copy_ratio, op, threads))
            for name, (op, threads) in _COPIES.items()
        ),
        Claim(_KEY_SIZE, "<= 0.5", "x OpenFHE", figures.key_size),
        Claim("import-time", "< 0.5", "s", _engine_checks.import_time),
        Claim("second-start", "< 2", "s", _engine_checks.second_start),
        Claim("first-run-announced", ">= 1", "progress lines", _engine_checks.first_run, slow=True),
        Claim("insecure-refused", ">= 1", "sets refused", _engine_checks.insecure_refused),
        passing("secret-not-in-public-objects", "tests/ckks/test_serialization.py", "-k", "secret"),
        Claim("fresh-randomness", ">= 0.99", "residues that differ", _engine_checks.fresh),
        passing("seed-vectors", "tests/ring/test_sampling.py"),
        Claim(
            "quick-suite-minutes",
            "< 10",
            "minutes",
            _engine_checks.quick_suite,
            command="python -m pytest -q",
            slow=True,
        ),
    ]
