"""All encoder layers of a model, one after the other.

Encrypted, ciphertexts are refreshed on the way, and it takes minutes; simulated, seconds:

    aegis run bert_model --interpreter simulated --text "..."
"""

import numpy as np

from aegis_dask.circuits.encoder import encoder_layer
from aegis_dask.models import reference as plain

layers = None  # all of them


def program(x, layers):
    """Run on an encrypted token matrix."""
    for i, layer in enumerate(layers):
        with x.capture.scope(f"layer{i}"):
            x = encoder_layer(x, layer)
    return x


def reference(model, x):
    """Do the same in float64 on ``[tokens, features]``."""
    return plain.encode(model, x, np.ones(len(x), bool))
