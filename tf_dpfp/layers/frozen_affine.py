"""A scale and an offset for each channel that no training changes."""

import keras
from keras import ops

from tf_dpfp import arguments


@keras.saving.register_keras_serializable("tf_dpfp")
class FrozenAffine(keras.layers.Layer):
    """Multiplies each channel by a constant, and adds another one.

    The inference of a pretrained `BatchNormalization`, in one weight for the
    scale and one for the offset. Neither is trainable, not even after
    `model.trainable = True`.

    Args:
        axis: Axis of the channels.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Any, with a known number of channels.

    Output shape:
        That of the input.

    Reference:
        The layer is what Detectron2 and torchvision call
        `FrozenBatchNorm2d`.
    """

    def __init__(self, axis: int = -1, **kwargs) -> None:
        super().__init__(**kwargs)
        self.axis = arguments.integer("axis", axis, least=-32)
        self.supports_masking = True
        # As BatchNormalization: half precision is for inputs and outputs.
        self.autocast = False

    def build(self, input_shape) -> None:
        channels = (input_shape[self.axis],)
        self.factor = self.add_weight(
            shape=channels,
            initializer="ones",
            trainable=False,
            autocast=False,
            name="factor",
        )
        self.offset = self.add_weight(
            shape=channels,
            initializer="zeros",
            trainable=False,
            autocast=False,
            name="offset",
        )
        self.input_spec = keras.InputSpec(
            ndim=len(input_shape), axes={self.axis: channels[0]}
        )

    def call(self, inputs):
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        factor = ops.reshape(self.factor, shape)
        offset = ops.reshape(self.offset, shape)
        outputs = ops.cast(inputs, factor.dtype) * factor + offset
        return ops.cast(outputs, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {"axis": self.axis}
