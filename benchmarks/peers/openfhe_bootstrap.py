"""OpenFHE's bootstrapping, in turns: `python -m benchmarks.peers.openfhe_bootstrap`.

OpenFHE's slots are real here, its default; ``EvalBootstrapStCFirst`` then raises one ciphertext
where ``EvalBootstrap`` raises two.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.peers import _turns
from benchmarks.peers._turns import Refresh, Subject

_DIGITS = 3
_FIRST_BITS = 60


def build(config: Mapping[str, Any]) -> Subject:
    """Context, keys and a ciphertext at the lowest level that is refreshed from.

    Parameters
    ----------
    config
        ``logn``, ``budget`` (levels of each linear transform), ``depth``, ``scale_bits``,
        ``slots_first``, and ``secure``: refuse parameters of less than 128 bits.
    """
    import openfhe as fhe

    slots, depth = 1 << (config["logn"] - 1), config["depth"]
    budget, slots_first = [config["budget"]] * 2, config["slots_first"]
    params = fhe.CCParamsCKKSRNS()
    params.SetSecurityLevel(fhe.HEStd_128_classic if config["secure"] else fhe.HEStd_NotSet)
    params.SetSecretKeyDist(fhe.SPARSE_ENCAPSULATED)
    params.SetRingDim(2 * slots)
    params.SetBatchSize(slots)
    params.SetMultiplicativeDepth(depth)
    params.SetScalingModSize(config["scale_bits"])
    params.SetFirstModSize(_FIRST_BITS)
    # With budget 4-4 twenty times more precise than FIXEDMANUAL, and as fast.
    params.SetScalingTechnique(fhe.FLEXIBLEAUTO)
    params.SetKeySwitchTechnique(fhe.HYBRID)
    params.SetNumLargeDigits(_DIGITS)
    context = fhe.GenCryptoContext(params)
    for feature in (fhe.PKE, fhe.KEYSWITCH, fhe.LEVELEDSHE, fhe.ADVANCEDSHE, fhe.FHE):
        context.Enable(feature)
    dimensions, correction, precompute = [0, 0], 0, True  # the library's choice
    context.EvalBootstrapSetup(budget, dimensions, slots, correction, precompute, slots_first)
    keys = context.KeyGen()
    context.EvalMultKeyGen(keys.secretKey)
    context.EvalBootstrapKeyGen(keys.secretKey, slots)
    # OpenFHE counts levels downwards. Both orders adjust the scale, which takes one more level.
    start = depth - 1 - (config["budget"] if slots_first else 0)
    message = _turns.sample(slots, real=True)
    plain = context.MakeCKKSPackedPlaintext(message.tolist(), 1, start)
    ct = context.Encrypt(keys.publicKey, plain)
    run = context.EvalBootstrapStCFirst if slots_first else context.EvalBootstrap
    refresh = Refresh(
        lambda: run(ct),
        lambda out: context.Decrypt(keys.secretKey, out).GetRealPackedValue(),
        message,
        # In its favour: the rescale that the result still waits for is not counted.
        lambda out: int(start - out.GetLevel()),
    )
    described = {
        "version": fhe.__version__,
        "ring_dim": context.GetRingDimension(),
        "log_q": _FIRST_BITS + depth * config["scale_bits"],
        "dnum": _DIGITS,
    }
    return Subject({"real": refresh}, {**config, **described})


if __name__ == "__main__":
    sys.exit(_turns.serve("openfhe", build))
