"""A layer that is called on one example after the other."""

import inspect

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.per_example import one_by_one
from tf_dpfp.per_example import rules
from tf_dpfp.per_example.generic import GenericRule
from tf_dpfp.per_example.generic import copies


@keras.saving.register_keras_serializable("tf_dpfp")
class PerExample(keras.layers.Wrapper):
    """Calls a layer on one example after the other.

    Private training is refused if a layer mixes the examples of a batch, and
    warns if it can't prove that a layer does not. Within this wrapper a layer
    sees batches of one: whatever it computes, no example can influence what it
    gives for another. In training and in inference alike.

    It is slow: a loop over the examples of each batch, and another one for the
    gradients, in which the layer is called once more. A gradient rule of the
    layer's own is not used within. Rather replace or mend the layer where that
    can be done.

    What a layer keeps of its data (a moving average, a loss of its own) is
    refused within the wrapper, too.

    Args:
        layer: The layer. It must take a batch of one.
        **kwargs: Arguments of `keras.layers.Layer`. `dtype` is the one of the
            layer by default.

    Call arguments:
        inputs: Tensor whose first axis is the batch.
        *args: Further arguments of the layer. The first axis of every tensor
            must be the batch.
        training: Handed to the layer, if it takes it.
        mask: Handed to the layer, if it takes it.
        **kwargs: Further arguments of the layer, likewise.

    Input shape:
        That of the layer.

    Output shape:
        That of the layer. The first axis is the batch.

    Raises:
        ValueError: If the layer is called with tensors of several batch
            sizes, keeps statistics or adds a loss.

    Example:

    ```python
    class Whitened(keras.layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x)  # Over the whole batch.

    model = keras.Sequential([
        keras.Input((20,)),
        tf_dpfp.PerExample(Whitened()),
        keras.layers.Dense(2),
    ])
    ```
    """

    def __init__(self, layer, **kwargs):
        if isinstance(layer, keras.layers.Layer):
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        self.supports_masking = self.layer.supports_masking

    def build(self, input_shape=None):
        # Only a call tells the shapes of all arguments.
        del input_shape

    def call(self, inputs, *args, training=None, mask=None, **kwargs):
        args, kwargs = self.arguments(inputs, args, training, mask, kwargs)
        weights = tuple(v for v in self.layer.variables if v.trainable)
        values = [tf.convert_to_tensor(v.value) for v in weights]
        call = one_by_one.OneByOne(self.layer, weights)
        outputs, added = call(args, kwargs, values, has_copies=False)
        if added is not None:
            self.add_loss(keras.ops.mean(added))
        return outputs

    def arguments(self, inputs, args, training, mask, kwargs):
        """Returns the arguments of the layer, and builds it.

        Args:
            inputs: First argument.
            args: Further positional arguments.
            training: As in `call`.
            mask: As in `call`.
            kwargs: Further keyword arguments.

        Returns:
            A tuple and a dictionary.
        """
        kwargs = dict(kwargs)
        taken = inspect.signature(self.layer.call).parameters
        if training is not None and "training" in taken:
            kwargs["training"] = training
        if mask is not None and "mask" in taken:
            kwargs["mask"] = mask
        args = (inputs, *args)
        if not self.layer.built:
            symbolic = tree.map_structure(_symbolic, (args, kwargs))
            self.layer(*symbolic[0], **symbolic[1])
        return args, kwargs

    def compute_output_spec(
        self, inputs, *args, training=None, mask=None, **kwargs
    ):
        args, kwargs = self.arguments(inputs, args, training, mask, kwargs)
        outputs = self.layer(*args, **kwargs)
        return tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, t.dtype), outputs
        )

    def compute_output_shape(self, input_shape, *args, **kwargs):
        return self.layer.compute_output_shape(input_shape, *args, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)


def _symbolic(leaf):
    if tf.is_tensor(leaf):
        return keras.KerasTensor((None, *leaf.shape[1:]), leaf.dtype.name)
    return leaf


@rules.register_gradient_rule(PerExample)
class PerExampleRule(GenericRule):
    """A copy of the weights for each example, as in the generic rule."""

    def record(self, layer, call, args, kwargs):
        del call
        inputs, rest, options = args[:1], args[1:], dict(kwargs)
        if not inputs:
            inputs = (options.pop("inputs"),)
        one_args, one_kwargs = layer.arguments(
            inputs[0],
            rest,
            options.pop("training", None),
            options.pop("mask", None),
            options,
        )
        weights = self.variables(layer)
        batch_size = tf.shape(tree.flatten(inputs)[0])[0]
        sources = tuple(copies(v, batch_size) for v in weights)
        outputs, added = one_by_one.OneByOne(layer.layer, tuple(weights))(
            one_args, one_kwargs, sources, has_copies=True
        )
        return outputs, rules.LayerCall(
            layer, self, inputs[0], sources, weights, added=added
        )
