"""Weights of Keras layers under the names that their gradients belong to.

The public `kernel` and `embeddings` of a layer under LoRA, or a quantized one,
are tensors that are computed from several weights.
"""

import keras


def kernel_of(layer: keras.layers.Layer) -> keras.Variable | None:
    """Returns the kernel variable of a layer; `None` if it is not built.

    Args:
        layer: A Dense, EinsumDense or convolution layer.
    """
    return getattr(layer, "_kernel", None)


def table_of(layer: keras.layers.Layer) -> keras.Variable | None:
    """Returns the table variable of a layer; `None` if it is not built.

    Args:
        layer: An Embedding layer.
    """
    return getattr(layer, "_embeddings", None)
