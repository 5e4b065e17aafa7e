"""Transformer inference on CKKS-encrypted activations, spread over a Dask cluster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aegis_dask._version import __version__
from aegis_dask.errors import AegisError

if TYPE_CHECKING:
    from aegis_dask.ckks.encoder import Encoder
    from aegis_dask.ckks.encryptor import Decryptor, Encryptor
    from aegis_dask.ckks.evaluator import Evaluator
    from aegis_dask.ckks.keys import (
        EvaluationKey,
        EvaluationKeys,
        KeyGenerator,
        PublicKey,
        SecretKey,
    )
    from aegis_dask.ckks.linear import LinearTransform
    from aegis_dask.ckks.objects import Ciphertext, Plaintext
    from aegis_dask.ckks.parameters import PRESETS, Parameters, ParametersLiteral
    from aegis_dask.ckks.polynomial import chebyshev_coefficients
    from aegis_dask.ckks.precision import PrecisionStats, precision_stats
    from aegis_dask.ckks.scale import Scale
    from aegis_dask.ckks.serialization import (
        dumps,
        load,
        load_evaluation_key,
        load_secret_key,
        loads,
        save,
        save_secret_key,
    )
    from aegis_dask.ckks.sharing import Sharing
    from aegis_dask.ring.threads import get_threads, set_threads

# Public name -> module that defines it. Resolved on first use, so that `import aegis_dask` stays
# light: Numba alone takes a good part of a second.
_LAZY: dict[str, str] = {
    name: f"aegis_dask.ckks.{module}"
    for module, names in {
        "encoder": ("Encoder",),
        "encryptor": ("Decryptor", "Encryptor"),
        "evaluator": ("Evaluator",),
        "keys": ("EvaluationKey", "EvaluationKeys", "KeyGenerator", "PublicKey", "SecretKey"),
        "linear": ("LinearTransform",),
        "objects": ("Ciphertext", "Plaintext"),
        "parameters": ("PRESETS", "Parameters", "ParametersLiteral"),
        "polynomial": ("chebyshev_coefficients",),
        "precision": ("PrecisionStats", "precision_stats"),
        "scale": ("Scale",),
        "sharing": ("Sharing",),
        "serialization": (
            "dumps",
            "load",
            "load_evaluation_key",
            "load_secret_key",
            "loads",
            "save",
            "save_secret_key",
        ),
    }.items()
    for name in names
} | dict.fromkeys(("get_threads", "set_threads"), "aegis_dask.ring.threads")

__all__ = [
    "PRESETS",
    "AegisError",
    "Ciphertext",
    "Decryptor",
    "Encoder",
    "Encryptor",
    "EvaluationKey",
    "EvaluationKeys",
    "Evaluator",
    "KeyGenerator",
    "LinearTransform",
    "Parameters",
    "ParametersLiteral",
    "Plaintext",
    "PrecisionStats",
    "PublicKey",
    "Scale",
    "SecretKey",
    "Sharing",
    "__version__",
    "chebyshev_coefficients",
    "dumps",
    "get_threads",
    "load",
    "load_evaluation_key",
    "load_secret_key",
    "loads",
    "precision_stats",
    "save",
    "save_secret_key",
    "set_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
