"""Gradient rule of `TimeDistributed`.

Keras calls the layer that it holds once for each time step. Here it is called
once, on the steps of all examples end to end; what it holds is recorded by
itself, and the gradients of the steps of one example are added up.
"""

import inspect
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.per_example import generic
from tf_dpfp.per_example import own_weights
from tf_dpfp.per_example import recording
from tf_dpfp.per_example import rules

# Rules that call a layer once for each row, vectorised.
_ROW_BY_ROW = (generic.GenericRule, own_weights.OwnWeightsRule)
_SIGNATURE = inspect.signature(keras.layers.TimeDistributed.call)


@rules.register_gradient_rule(keras.layers.TimeDistributed)
class TimeDistributedRule(rules.GradientRule):
    """No weights of its own: what it holds is recorded by itself."""

    holds_units = True

    def supports(self, layer):
        held = keras_layers.all_layers(layer)
        if any(map(own_weights.may_add_losses, held)):
            return False
        # These look rows up by their number, which here is that of a step
        # and no example's: nothing that is proved.
        units = recording.find_units(layer.layer)
        return not any(isinstance(u.rule, _ROW_BY_ROW) for u in units)

    def record(self, layer, call, args, kwargs):
        del call
        given = _SIGNATURE.bind(layer, *args, **kwargs).arguments
        inputs, mask = given["inputs"], given.get("mask")
        steps = _steps(inputs)
        if isinstance(steps, int) and not steps:
            raise ValueError(
                f"Layer '{layer.name}' has no time step to run its layer on. "
                "Pad the examples to one step at least. Received: inputs of "
                f"shape {inputs.shape}"
            )
        held: dict[str, Any] = {}
        if mask is not None and keras_layers.takes(layer.layer, "mask"):
            held["mask"] = _fold(mask)
        if keras_layers.takes(layer.layer, "training"):
            held["training"] = given.get("training")
        with recording.folded(steps):
            outputs = layer.layer.call(_fold(inputs), **held)
        outputs = tree.map_structure(lambda t: _unfold(t, inputs), outputs)
        return outputs, rules.LayerCall(layer, self, inputs, ())

    def gradients(self, call, output_gradients):
        del call, output_gradients
        return []


def _steps(inputs: tf.Tensor) -> tf.Tensor | int:
    known = inputs.shape[1]
    return tf.shape(inputs)[1] if known is None else known


def _fold(tensor: tf.Tensor) -> tf.Tensor:
    """From `(batch, time, ...)` to `(batch * time, ...)`."""
    tensor = tf.convert_to_tensor(tensor)
    shape, known = tf.shape(tensor), tensor.shape
    folded = tf.reshape(
        tensor, tf.concat([[shape[0] * shape[1]], shape[2:]], axis=0)
    )
    rows = None if None in known[:2] else known[0] * known[1]
    return tf.ensure_shape(folded, [rows, *known[2:]])


def _unfold(tensor: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """From `(batch * time, ...)` to `(batch, time, ...)`, as of `like`."""
    shape = tf.shape(tensor)
    apart = tf.reshape(
        tensor, tf.concat([tf.shape(like)[:2], shape[1:]], axis=0)
    )
    return tf.ensure_shape(apart, [*like.shape[:2], *tensor.shape[1:]])
