"""The feed-forward half of one encoder layer: ``LayerNorm(x + down(GELU(up(x))))``.

    aegis run feed_forward --text "..."

Its input is what the attention half gives; the client computes that in the clear before it
encrypts, so that the values are those that the layer was calibrated for.
"""

import numpy as np

from aegis_dask.circuits.encoder import feed_forward_block
from aegis_dask.models import reference as plain

layers = 1


def program(x, layers):
    """Apply the second half of layer 0."""
    with x.capture.scope("layer0"):
        return feed_forward_block(x, layers[0])


def prepare(model, x):
    """Return what the first half of layer 0 gives."""
    layer, seen = model.layers[0], {}
    plain.layer(layer, x, np.ones(len(x), bool), model.config.heads, seen.__setitem__)
    return plain.layer_norm(seen["norm1.input"], layer.norm1)


def reference(model, x):
    """Compute the same in float64."""
    layer = model.layers[0]
    inner = plain.gelu(plain.linear(x, layer.gate or layer.up))
    if layer.gate is not None:
        inner = inner * plain.linear(x, layer.up)
    return plain.layer_norm(x + plain.linear(inner, layer.down), layer.norm2)
