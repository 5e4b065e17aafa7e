"""Checks of the engine that need neither another library nor the tests."""

from __future__ import annotations

import re
import tempfile
import time
from dataclasses import replace
from functools import cache

import numpy as np

import aegis_dask as aegis
from aegis_dask.ckks.noise import NoiseModel
from aegis_dask.ckks.security import max_log2_modulus
from aegis_dask.errors import InsecureParametersError
from benchmarks.claims import Finding
from benchmarks.claims._processes import pytest, run_python

_TRIALS = 3
_STARTS = 5
_SMALL = "n13-d30"
_LARGE = "n16-d40"

#: From nothing to a decrypted product. No warning: the preset is a secure one.
_FIRST_PRODUCT = f"""
import aegis_dask as aegis
params = aegis.Parameters.preset({_SMALL!r})
generator = aegis.KeyGenerator(params)
secret = generator.secret_key()
encryptor = aegis.Encryptor(params, generator.public_key(secret))
evaluator = aegis.Evaluator(params, generator.evaluation_keys(secret))
a, b = encryptor.encrypt([0.5, -0.25]), encryptor.encrypt([0.5, 0.5])
product = aegis.Decryptor(params, secret).decrypt(evaluator.multiply(a, b))
assert abs(product[:2] - [0.25, -0.125]).max() < 1e-2, product[:2]
"""


@cache
def _products() -> tuple[list[aegis.PrecisionStats], list[aegis.PrecisionStats]]:
    """Products of fresh ciphertexts under some keys: at the top level, and one level below.

    At the top the scale is 2^50, which leaves the noise of the product itself; below, the operands
    are encrypted with the scale of the product, 2^40.
    """
    params = aegis.Parameters.preset(_LARGE)
    top = params.max_level
    found = [_precision(params, level) for level in (top, top - 1) for _ in range(_TRIALS)]
    return found[:_TRIALS], found[_TRIALS:]


def mean_precision() -> Finding:
    """Bits of the mean error after one product at scale 2^40, at both levels, the worst of all."""
    top, below = _products()
    note = (
        f"{_LARGE}: {min(p.mean for p in top):.1f} with operands of scale 2^50, "
        f"{min(p.mean for p in below):.1f} with operands of scale 2^40 (public key)"
    )
    return Finding(round(min(p.mean for p in top + below), 2), note)


def worst_precision() -> Finding:
    """Bits of the worst slot after one product of the most precise operands.

    The floor is the rounding of the one rescale: its error has the standard deviation
    ``sqrt(N (1 + 2N/3) / 12)`` in a slot, and the worst of N/2 slots about ``sqrt(ln(N/2))`` times
    that, so no implementation with this ring, secret and scale reaches more.
    """
    top, below = _products()
    noise = NoiseModel(aegis.Parameters.preset(_LARGE))
    level = noise.params.max_level - 1
    floor = noise.bits(noise.largest(noise.rounding(level)))
    note = (
        f"{_LARGE}: {min(p.worst for p in below):.1f} with operands of scale 2^40; the rounding of "
        f"one rescale alone leaves {floor:.1f}"
    )
    return Finding(round(min(p.worst for p in top), 2), note)


def _precision(params: aegis.Parameters, level: int) -> aegis.PrecisionStats:
    generator, rng = aegis.KeyGenerator(params), np.random.default_rng(1)
    secret = generator.secret_key()
    encryptor = aegis.Encryptor(params, generator.public_key(secret))
    evaluator = aegis.Evaluator(params, generator.evaluation_keys(secret))
    parts = rng.uniform(-1, 1, (4, params.slots))
    x, y = parts[0] + 1j * parts[1], parts[2] + 1j * parts[3]
    product = evaluator.multiply(encryptor.encrypt(x, level), encryptor.encrypt(y, level))
    return aegis.precision_stats(x * y, aegis.Decryptor(params, secret).decrypt(product))


def import_time() -> Finding:
    """Seconds of a fresh process that only imports the package, the interpreter included."""
    with tempfile.TemporaryDirectory() as folder:
        bytecode = {"PYTHONPYCACHEPREFIX": folder}
        run_python("import aegis_dask", bytecode)
        seconds = [run_python("import aegis_dask", bytecode).seconds for _ in range(_STARTS)]
        empty = min(run_python("pass", bytecode).seconds for _ in range(_STARTS))
    return Finding(round(min(seconds), 3), f"of which an empty program takes {empty:.3f} s")


def second_start() -> Finding:
    """Seconds from the start of a process to its end just after the first decrypted product."""
    with tempfile.TemporaryDirectory() as folder:
        bytecode = {"PYTHONPYCACHEPREFIX": folder}
        run_python(_FIRST_PRODUCT, bytecode)
        seconds = [run_python(_FIRST_PRODUCT, bytecode).seconds for _ in range(_STARTS)]
    return Finding(round(min(seconds), 3), f"{_SMALL}, compiled kernels in the cache")


def first_run() -> Finding:
    """Lines that announce the compilation of the kernels when their cache is empty."""
    with tempfile.TemporaryDirectory() as folder:
        ran = run_python(_FIRST_PRODUCT, {"AEGIS_CACHE_DIR": folder})
    lines = [line for line in ran.errors.splitlines() if re.search(r"compil", line, re.IGNORECASE)]
    note = f"{ran.seconds:.0f} s"
    return Finding(len(lines), f"{note}: {lines[0]}" if lines else note)


def insecure_refused() -> Finding:
    """Secure presets with just as many special primes as exceed the 128-bit bound."""
    refused, accepted = 0, []
    for name, literal in sorted(aegis.PRESETS.items()):
        if literal.insecure:
            continue
        bits = aegis.Parameters.preset(name).log2_key_modulus
        room = max_log2_modulus(literal.log_n) - bits
        # Special primes lie between 2^29 and 2^30.
        extra = int(room // 29) + 1
        try:
            aegis.Parameters.from_literal(
                replace(literal, special_primes=literal.special_primes + extra, name="")
            )
        except InsecureParametersError:
            refused += 1
        else:
            accepted.append(name)
    note = f"{refused} presets beyond the bound" + "".join(f"; accepted: {a}" for a in accepted)
    return Finding(refused, note, sound=not accepted)


def fresh() -> Finding:
    """Share of residues that differ between two encryptions of one message."""
    params = aegis.Parameters.preset(_SMALL)
    generator = aegis.KeyGenerator(params)
    secret = generator.secret_key()
    shares = []
    for key in (generator.public_key(secret), secret):
        encryptor = aegis.Encryptor(params, key)
        a, b = (encryptor.encrypt([1.0, 2.0]).data for _ in range(2))
        shares += [float(np.mean(a[:, k] != b[:, k])) for k in (0, 1)]
    return Finding(round(min(shares), 6), "public key and secret key, both components")


def quick_suite() -> Finding:
    """Minutes of the quick test suite."""
    begin = time.perf_counter()
    finding = pytest()
    minutes = round((time.perf_counter() - begin) / 60, 2)
    return Finding(minutes, finding.note or f"{finding.value} passed", finding.sound)
