"""`tf.vectorized_map` in the graph of the caller, which XLA compiles once.

Where XLA compiles, TensorFlow makes a function of its own of it. The gradient
of that function takes axes of sums from what it returned. XLA must know axes as
constants, and so takes everything that the function is given for constants, the
examples, too: it compiles the step anew for every batch.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.parallel_for import control_flow_ops


def mapped(function: Callable[[Any], Any], elements: Any) -> Any:
    """Calls a function on each example, as `tf.vectorized_map` does.

    Args:
        function: Takes the tensors of one example, in the structure of
            `elements`.
        elements: Tensors with examples along the first axis, nested.

    Returns:
        What the function returns, examples along the first axis.
    """
    if tf.executing_eagerly():
        return tf.vectorized_map(function, elements)
    elements = tf.nest.map_structure(tf.convert_to_tensor, elements)
    flat = tf.nest.flatten(elements)
    known = [tensor.shape[0] for tensor in flat]
    if None in known:
        size = tf.reduce_max([tf.shape(tensor)[0] for tensor in flat])
    else:
        size = max(known)

    def of_one(row: tf.Tensor) -> Any:
        return function(
            tf.nest.map_structure(
                lambda tensor: control_flow_ops._broadcasting_gather(
                    tensor, row
                ),
                elements,
            )
        )

    return control_flow_ops._pfor_impl(
        of_one, size, fallback_to_while_loop=True, warn=True
    )
