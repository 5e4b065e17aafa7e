"""Our bootstrapping, in turns with its peers: `python -m benchmarks.peers.aegis_bootstrap`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.peers import OURS, _turns
from benchmarks.peers._turns import Refresh, Subject


def build(config: Mapping[str, Any]) -> Subject:
    """Keys and a ciphertext at the lowest level that is refreshed from.

    Parameters
    ----------
    config
        ``preset``: name of a preset with bootstrapping.
    """
    from aegis_dask.ckks.bootstrapping.bootstrapper import Bootstrapper
    from aegis_dask.ckks.bootstrapping.keys import bootstrapping_keys
    from aegis_dask.ckks.bootstrapping.parameters import BootstrappingParameters
    from aegis_dask.ckks.encryptor import Decryptor, Encryptor
    from aegis_dask.ckks.keys import KeyGenerator

    params = BootstrappingParameters.preset(config["preset"])
    scheme = params.params
    secret = KeyGenerator(scheme).secret_key()
    keys = bootstrapping_keys(params, secret, Bootstrapper(params).required_keys)
    bootstrapper = Bootstrapper(params, keys)
    encryptor, decryptor = Encryptor(scheme, secret), Decryptor(scheme, secret)

    def refresh(real: bool) -> Refresh:
        message = _turns.sample(scheme.slots, real)
        ct = encryptor.encrypt(message, level=bootstrapper.input_level)
        return Refresh(
            lambda: bootstrapper.refresh(ct, real=real),
            lambda out: decryptor.decrypt(out).reshape(-1),
            message,
            lambda out: out.level - bootstrapper.input_level,
        )

    described = {
        "ring_dim": scheme.ring_degree,
        "log_q": round(scheme.log2_moduli[-1], 1),
        "log_qp": round(scheme.log2_key_modulus, 1),
        "dnum": scheme.digits,
        "usable_levels": params.usable_levels,
        "key_bytes": keys.nbytes,
    }
    refreshes = {"complex": refresh(real=False), "real": refresh(real=True)}
    return Subject(refreshes, {**config, **described})


if __name__ == "__main__":
    sys.exit(_turns.serve(OURS, build))
