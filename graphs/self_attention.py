"""The attention half of one encoder layer: ``LayerNorm(x + Attention(x))``.

aegis run self_attention --text "..."
"""

import numpy as np

from aegis_dask.circuits.encoder import attention_block
from aegis_dask.models import reference as plain

layers = 1


def program(x, layers):
    """Run on an encrypted token matrix."""
    with x.capture.scope("layer0"):
        return attention_block(x, layers[0])


def reference(model, x):
    """Do the same in float64 on ``[tokens, features]``."""
    layer, heads = model.layers[0], model.config.heads

    def split(weights):
        return plain.linear(x, weights).reshape(len(x), heads, -1).swapaxes(0, 1)

    query, key, value = split(layer.query), split(layer.key), split(layer.value)
    weights = plain.softmax(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]))
    attended = (weights @ value).swapaxes(0, 1).reshape(x.shape)
    return plain.layer_norm(x + plain.linear(attended, layer.output), layer.norm1)
