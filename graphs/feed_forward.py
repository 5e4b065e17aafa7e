"""The feed-forward half of one encoder layer: ``LayerNorm(x + down(GELU(up(x))))``.

aegis run graphs/feed_forward.py --text "..."
"""

from aegis_dask.circuits.encoder import feed_forward_block
from aegis_dask.models import reference as plain

layers = 1


def program(x, layers):
    """Run on an encrypted token matrix."""
    with x.capture.scope("layer0"):
        return feed_forward_block(x, layers[0])


def reference(model, x):
    """Do the same in float64 on ``[tokens, features]``."""
    layer = model.layers[0]
    inner = plain.gelu(plain.linear(x, layer.up))
    return plain.layer_norm(x + plain.linear(inner, layer.down), layer.norm2)
