"""Rules of depthwise convolutions, which work on every channel alone.

Vectorised, with weights of its own for each example, such a convolution has the
examples among its channels: channel `c` of the inputs meets the weights of
channel `c`, and makes the channels `c * m` to `c * m + m - 1` of the result,
with `m` the depth multiplier. So examples stay apart if they lie in the same
way along the channels of both.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import contraction_rules
from tf_dpfp.independence import findings
from tf_dpfp.independence import image_rules
from tf_dpfp.independence import registry
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value

# Axes of the weights: height, width, channels, multiplier.
_OF_WEIGHTS, _MULTIPLIER = 2, 3


@registry.rule("DepthwiseConv2dNative")
def depthwise(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Convolves every channel with weights of its own."""
    if not _lies_in(values[1], _OF_WEIGHTS):
        return image_rules.windows(op, values, walk, (0,))
    image, weights = values
    channels = _channels(op)
    multiplier = _known(weights.shape[_MULTIPLIER])
    layout = _meet((image, channels, ONE), (weights, _OF_WEIGHTS, ONE))
    static = _static(op, walk)
    sizes = list(image_rules.kept_sizes(op, image, static))
    layout = Layout(channels, layout.before, layout.after * multiplier)
    sizes[channels] = layout.before * walk.batch * layout.after
    return values_lib.examples(tuple(sizes), layout)


@registry.rule("DepthwiseConv2dNativeBackpropInput", shapes=(0,))
def input_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Computes the gradient of each channel of the inputs."""
    if not _lies_in(values[1], _OF_WEIGHTS):
        return image_rules.input_gradient(op, values, walk)
    _, weights, gradient = values
    channels = _channels(op)
    multiplier = _known(weights.shape[_MULTIPLIER])
    layout = _meet(
        (weights, _OF_WEIGHTS, ONE), (gradient, channels, multiplier)
    )
    sizes = list(_filled(_static(op, walk), values[0].numbers))
    sizes[channels] = weights.shape[_OF_WEIGHTS]
    return values_lib.examples(tuple(sizes), layout.at(channels))


@registry.rule("DepthwiseConv2dNativeBackpropFilter", shapes=(1,))
def weight_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Computes the gradient of the weights of each channel."""
    image, shape, gradient = values
    channels = _channels(op)
    if not _lies_in(image, channels):
        return contraction_rules.weight_gradient(op, values, walk)
    multiplier = _known((shape.numbers or [None] * 4)[_MULTIPLIER])
    layout = _meet((image, channels, ONE), (gradient, channels, multiplier))
    sizes = list(_filled(_static(op, walk), shape.numbers))
    sizes[_OF_WEIGHTS] = image.shape[channels]
    return values_lib.examples(tuple(sizes), layout.at(_OF_WEIGHTS))


def _channels(op: tf.Operation) -> int:
    return 1 if op.get_attr("data_format") == b"NCHW" else 3


def _lies_in(value: Value, axis: int) -> bool:
    return value.is_examples and value.example_layout.axis == axis


def _known(multiplier: MaybeSize) -> Size:
    if multiplier is None or multiplier.hangs_on_batch:
        raise findings.Refusal(
            "Its depth multiplier is not known.", is_definite=False
        )
    return multiplier


def _meet(*operands: tuple[Value, int, Size]) -> Layout:
    """Returns the layout of the channels of the inputs.

    Args:
        *operands: Operands, each with the axis of its channels, and how many
            of them there are for each channel of the inputs.

    Raises:
        Refusal: If an example of one meets another one of another.
    """
    found = set()
    for value, axis, times in operands:
        if not _lies_in(value, axis):
            raise findings.Refusal(
                "Examples lie among the channels of one operand, and not of "
                "another."
            )
        own = value.example_layout
        after = own.after.divided_by(times)
        if after is None:
            raise findings.Refusal("It cuts through the channels of examples.")
        found.add(Layout(0, own.before, after))
    if len(found) > 1:
        raise findings.Refusal("Its operands hold the examples differently.")
    return found.pop()


def _static(op: tf.Operation, walk: Walk) -> Sizes:
    static = walk.static(op.outputs[0])
    return (None,) * 4 if static is None else static


def _filled(sizes: Sizes, wanted: Sequence[MaybeSize] | None) -> Sizes:
    if wanted is None:
        return sizes
    return tuple(
        w if s is None else s for s, w in zip(sizes, wanted, strict=True)
    )
