"""Rules of crops, each of the image that an index names.

Crop `i` is made of image `index[i]`. That is the example's own image only if
the index is proved to be the number of its row, as `tf.range(batch_size)` is.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import findings
from tf_dpfp.independence import image_rules
from tf_dpfp.independence import lookup_rules
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.lookup_rules import OTHERS
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value


@registry.rule("CropAndResize", shapes=(3,), takes_numbers=True)
def crop(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Cuts boxes out of images, and resizes them."""
    images, boxes, index, size = values
    if not any(v.is_examples for v in values):
        return _free(op, values, walk)
    _check_own(images, index)
    layout = _layout(index, [boxes])
    height, width = size.numbers or (None, None)
    sizes = (index.shape[0], height, width, images.shape[3])
    return values_lib.examples(sizes, layout)


@registry.rule("CropAndResizeGradBoxes", takes_numbers=True)
def box_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Computes the gradient of each box."""
    gradients, images, boxes, index = values
    if not any(v.is_examples for v in values):
        return _free(op, values, walk)
    _check_own(images, index)
    layout = _layout(index, [gradients, boxes])
    return values_lib.examples(boxes.shape, layout)


@registry.rule("CropAndResizeGradImage", shapes=(3,), takes_numbers=True)
def image_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Adds the gradients of an image's crops up."""
    gradients, boxes, index, size = values
    if not any(v.is_examples for v in values):
        return _free(op, values, walk)
    bounds = bounds_lib.of(index, tf.int32)
    if not index.is_examples or not bounds.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    own = Layout(0, ONE, bounds.step)
    sizes = size.numbers
    if sizes is None or sizes[0] != walk.batch * own.after:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    lookup_rules.check_own([bounds], own, sizes[:1])
    _layout(index, [gradients, boxes])
    return values_lib.examples(sizes, own)


def _check_own(images: Value, index: Value) -> None:
    """Checks that every index names an image of its own example."""
    if not images.is_examples or not index.is_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if images.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    bounds = bounds_lib.of(index, tf.int32)
    lookup_rules.check_own([bounds], images.example_layout, images.shape[:1])


def _layout(index: Value, others: Sequence[Value]) -> Layout:
    """Returns the layout of what has one row for each index."""
    layout = image_rules.in_front([index, *others])
    assert layout is not None, index
    for value in others:
        if value.numbers_examples:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
        if value.shape[0] != index.shape[0]:
            raise findings.Refusal(
                "Its operands may differ in their number of rows.",
                is_definite=False,
            )
    return layout


def _free(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    hangs = any(
        v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in values
    )
    return values_lib.free(walk.static(op.outputs[0]), None, hangs)
