"""One whole encoder layer: self-attention, feed-forward network, both LayerNorms.

It takes more levels than a secure ring has, so ciphertexts are refreshed on the way: minutes. For
seconds:

    aegis run bert_layer --insecure --text "..."
"""

import numpy as np

from aegis_dask.circuits.encoder import attention_block, feed_forward_block
from aegis_dask.models import reference as plain

layers = 1


def program(x, layers):
    """Run on an encrypted token matrix."""
    with x.capture.scope("layer0"):
        attended = attention_block(x, layers[0])
        return feed_forward_block(attended, layers[0])


def reference(model, x):
    """Do the same in float64 on ``[tokens, features]``."""
    return plain.layer(model.layers[0], x, np.ones(len(x), bool), model.config.heads)
