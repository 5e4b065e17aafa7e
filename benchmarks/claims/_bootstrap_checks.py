"""Checks of bootstrapping that need neither another library nor the tests."""

from __future__ import annotations

import json
from functools import cache

from aegis_dask.ckks.bootstrapping.parameters import (
    BOOTSTRAPPING_PRESETS,
    BootstrappingParameters,
)
from benchmarks import precision
from benchmarks.bootstrapping import MAIN
from benchmarks.claims import Finding
from benchmarks.claims._processes import run_python

_QUICK_SLOTS = 1 << 15
_LAYERS = 12

#: BERT-base at 2,048 tokens, in the largest ring; a merged refresh is two full ones.
_PLACEMENT = """
import json, time, warnings
warnings.simplefilter("ignore")
from aegis_dask.circuits.packing import Packing
from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
from aegis_dask.models.calibration import typical_calibration
from aegis_dask.models.checkpoint import named_config, shape_only
from aegis_dask.models.programs import bert_program, encoder_layers
from aegis_dask.program.refresh import minimum_cut
from aegis_dask.service.job import budget_of
params = BootstrappingParameters.preset({preset!r})
begin = time.perf_counter()
config = named_config("bert-base", 2048)
layers = encoder_layers(shape_only(config), typical_calibration(config))
program = bert_program(shape_only(config), layers, Packing(params.params.slots, 2048, 2048))
placement = minimum_cut(program, budget_of(params))
seconds = time.perf_counter() - begin
print(json.dumps({{
    "seconds": seconds,
    "layers": len(layers),
    "operations": len(program.nodes),
    "sites": len(placement.sites),
    "merged": placement.bootstraps,
    "full": placement.unmerged,
}}))
"""


# -- precision ----------------------------------------------------------------------------------


@cache
def _precisions(quick: bool) -> tuple[precision.Precision, ...]:
    return tuple(precision.in_own_process(MAIN, _QUICK_SLOTS if quick else precision.SLOTS))


def precision_bits(quick: bool, what: str) -> Finding:
    """Bits of refreshed slots, ``mean`` or ``worst``: for the magnitude with the fewest."""
    found = _precisions(quick)
    bits = [p.mean if what == "mean" else p.worst for p in found]
    note = ", ".join(
        f"parts up to {p.magnitude:g}: {b:.1f}" for p, b in zip(found, bits, strict=True)
    )
    slots = min(p.slots for p in found)
    note += f"; {slots} slots each, {MAIN}"
    return Finding(round(min(bits), 2), note, sound=quick or slots >= precision.SLOTS)


# -- parameters ---------------------------------------------------------------------------------


def _secure() -> list[BootstrappingParameters]:
    return [
        BootstrappingParameters.preset(name)
        for name, literal in BOOTSTRAPPING_PRESETS.items()
        if not literal.insecure
    ]


def modulus_bits() -> Finding:
    """Largest log2 QP of the secure presets with N = 2^16, on their real primes."""
    found = {p.params.name: p.params.log2_key_modulus for p in _secure() if p.literal.log_n == 16}
    note = ", ".join(f"{name}: {bits:.1f}" for name, bits in found.items())
    return Finding(round(max(found.values()), 2), note)


def sparse_modulus_bits() -> Finding:
    """Largest log2 modulus of a key to an ephemeral secret of weight 32, N = 2^16."""
    found = {
        p.params.name: p.sparse_chain.log2_key_modulus
        for p in _secure()
        if (p.literal.log_n, p.literal.sparse_weight) == (16, 32)
    }
    note = ", ".join(f"{name}: {bits:.1f}" for name, bits in found.items())
    return Finding(round(max(found.values()), 2), note + "; the bound is Lattigo's, no standard")


def usable_levels(level_bits: int) -> Finding:
    """Most usable levels of that size among the secure presets with N = 2^16."""
    found = {
        p.params.name: p.usable_levels
        for p in _secure()
        if (p.literal.log_n, p.literal.level_bits) == (16, level_bits)
    }
    return Finding(max(found.values(), default=0), ", ".join(found))


# -- placement ----------------------------------------------------------------------------------


@cache
def _placement() -> dict[str, float]:
    ran = run_python(_PLACEMENT.format(preset=MAIN))
    found: dict[str, float] = json.loads(ran.output)
    if found["layers"] != _LAYERS:
        raise RuntimeError(f"BERT-base has {_LAYERS} layers, {found['layers']:g} were placed")
    return found


def refreshes_per_layer(kind: str) -> Finding:
    """Bootstraps per layer: ``full``, or with two real ciphertexts ``merged`` in one."""
    found = _placement()
    note = f"{found['merged']:g} bootstraps at {found['sites']:g} sites, {MAIN}"
    return Finding(round(found[kind] / _LAYERS, 1), note)


def placement_seconds() -> Finding:
    """Seconds from the shape of the model to the placement, in a new process."""
    found = _placement()
    return Finding(round(found["seconds"], 1), f"{found['operations']:g} operations")
