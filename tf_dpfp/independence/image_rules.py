"""Rules of operations on batches: convolutions, pools, images.

Each of them works on every index of the first axis alone. Examples, merged
with other axes or not, may lie there and nowhere else.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value

# For each operation the inputs that have the batch in front. The others are
# weights, or shapes.
_BATCHED: dict[str, tuple[int, ...]] = {
    "AvgPool": (0,),
    "AvgPool3D": (0,),
    "Conv2D": (0,),
    "Conv3D": (0,),
    "DepthToSpace": (0,),
    "Dilation2D": (0,),
    "Dilation2DBackpropInput": (0, 2),
    "ExtractImagePatches": (0,),
    "LRN": (0,),
    "LRNGrad": (0, 1, 2),
    "MaxPool": (0,),
    "MaxPool3D": (0,),
    "MaxPool3DGrad": (0, 1, 2),
    "MaxPool3DGradGrad": (0, 1, 2),
    "MaxPoolGrad": (0, 1, 2),
    "MaxPoolGradGrad": (0, 1, 2),
    "MaxPoolV2": (0,),
    "ResizeArea": (0,),
    "ResizeBicubic": (0,),
    "ResizeBicubicGrad": (0, 1),
    "ResizeBilinear": (0,),
    "ResizeBilinearGrad": (0, 1),
    "ResizeNearestNeighbor": (0,),
    "ResizeNearestNeighborGrad": (0,),
    "ScaleAndTranslate": (0,),
    "ScaleAndTranslateGrad": (0, 1),
    "SpaceToDepth": (0,),
}

# Of these, padded ones are as long as what they read, if they move by one.
_WINDOWS = frozenset(
    """
    AvgPool AvgPool3D Conv2D Conv3D DepthwiseConv2dNative MaxPool MaxPool3D
    """.split()
)

# Gradients with respect to inputs: the shape that they are given comes first,
# and the gradient last.
_INPUT_GRADIENTS = (
    "AvgPool3DGrad",
    "AvgPoolGrad",
    "Conv2DBackpropInput",
    "Conv3DBackpropInputV2",
)


@registry.rule(*_BATCHED)
def batched(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Works on every index of the first axis alone."""
    return windows(op, values, walk, _BATCHED[op.type])


@registry.rule(*_INPUT_GRADIENTS, shapes=(0,))
def input_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Computes the gradient of each index of the first axis alone."""
    wanted = values[0].numbers
    # If all are known, there is nothing to infer: its kernel makes a tensor of
    # these sizes.
    given = None if wanted is None or None in wanted else wanted
    if given is not None and len(given) != values[-1].rank:
        given = None
    found = windows(op, values, walk, (len(values) - 1,), given)
    if not found.is_examples or wanted is None:
        return found
    sizes = tuple(
        t if s is None else s for s, t in zip(found.shape, wanted, strict=True)
    )
    return values_lib.examples(sizes, found.example_layout)


def windows(
    op: tf.Operation,
    values: Sequence[Value],
    walk: Walk,
    positions: tuple[int, ...],
    given: Sizes | None = None,
) -> Value:
    """Describes what works on every index of the first axis alone.

    Args:
        op: The operation.
        values: Its inputs.
        walk: The walk.
        positions: The inputs that have the batch in front.
        given: Sizes of its result, if one of its inputs says them.

    Returns:
        Value of its first output.

    Raises:
        Refusal: If examples lie elsewhere.
    """
    for i, value in enumerate(values):
        if i not in positions and value.is_examples:
            raise findings.Refusal(
                "Its weights or settings are made of examples."
            )
        if i not in positions and sizes_lib.hang_on_batch(value.sizes or ()):
            # Ones for each example: how many there are would count.
            raise findings.Refusal(
                "The batch size is a size of its weights or settings.",
                findings.BATCH_SIZE,
            )
    found = [values[i] for i in positions]
    layout = in_front(found) or _equal_in_front(found, walk.batch)
    static = given or walk.static(op.outputs[0])
    if layout is None:
        hangs = any(
            v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in found
        )
        return values_lib.free(static, None, hangs)
    if static is None:
        raise findings.Refusal(
            "The number of axes of its result is not known.", is_definite=False
        )
    size = layout.before * walk.batch * layout.after
    if any(v.shape[0] != size for v in found):
        # Some kernels have as many rows as one operand, and don't compare.
        raise findings.Refusal(
            "Its operands may differ in their number of rows.",
            is_definite=False,
        )
    rest = kept_sizes(op, values[positions[0]], static)[1:]
    return values_lib.examples((size, *rest), layout)


def kept_sizes(op: tf.Operation, value: Value, sizes: Sizes) -> Sizes:
    """Fills in unknown sizes of windows that begin at every position.

    Args:
        op: The operation.
        value: What it reads.
        sizes: Sizes of its result, as far as they are known.
    """
    attributes = op.node_def.attr
    if op.type not in _WINDOWS or attributes["padding"].s != b"SAME":
        return sizes
    strides = attributes["strides"].list.i
    front = attributes["data_format"].s.startswith(b"NC")
    channels = 1 if front else len(sizes) - 1
    return tuple(
        s if s is not None or axis == channels or stride != 1 else t
        for axis, (s, t, stride) in enumerate(
            zip(sizes, value.shape, strides, strict=True)
        )
    )


@registry.rule("ImageProjectiveTransformV2", "ImageProjectiveTransformV3")
def projected(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads each image at places of its own transform, or of one for all."""
    transforms = values[1].shape
    one = not values[1].is_examples and transforms[0] == sizes_lib.ONE
    return windows(op, values, walk, (0,) if one else (0, 1))


def in_front(values: Sequence[Value]) -> Layout | None:
    """Returns the layout of operands that have examples in the first axis.

    Args:
        values: The operands.

    Returns:
        Their layout, or `None` if none has examples.

    Raises:
        Refusal: If examples lie elsewhere, or an operand has a number of its
            own for every row.
    """
    found = [v.example_layout for v in values if v.is_examples]
    if not found:
        return None
    if any(layout != found[0] for layout in found):
        raise findings.Refusal("Its operands hold the examples differently.")
    if found[0].axis != 0:
        raise findings.Refusal(
            "The examples are not along its first axis, so that it works "
            "across them."
        )
    for value in values:
        if not value.is_examples and value.kind is not Kind.UNIFORM:
            raise findings.Refusal(
                "An operand has a number of its own for every row of the "
                "batch.",
                findings.ROW_NUMBER,
            )
        if sizes_lib.hang_on_batch(value.shape[1:]):
            raise findings.Refusal(
                "The batch size is the size of another axis than that of the "
                "examples.",
                findings.BATCH_SIZE,
            )
    return found[0]


def _equal_in_front(values: Sequence[Value], batch: Size) -> Layout | None:
    """Returns a layout of operands that are equal numbers for all examples."""
    front = values[0].shape[0]
    if front is None or not front.hangs_on_batch:
        return None
    if any(v.kind is not Kind.UNIFORM or v.hangs_on_batch for v in values):
        return None
    # Windows end where a row does: its size must not be that of the batch.
    if any(sizes_lib.hang_on_batch(v.shape[1:]) for v in values):
        return None
    after = front.divided_by(batch)
    if after is None or after.hangs_on_batch:
        return None
    return Layout(0, sizes_lib.ONE, after)


@registry.rule("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
def batch_normalization(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Normalizes: by kept statistics, or by those of the batch."""
    _check_frozen(op)
    result = windows(op, values, walk, (0,))
    # The other outputs are the statistics, which are weights.
    rest = [values_lib.free(walk.static(o)) for o in op.outputs[1:]]
    return [result, *rest]


@registry.rule(
    "FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3"
)
def batch_normalization_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Computes the gradient of a normalization by kept statistics."""
    _check_frozen(op)
    result = windows(op, values, walk, (0, 1))
    # Gradients of its weights are sums over the batch.
    rest = [
        walk.refused(op, output, "It adds a gradient up over the examples.")
        for output in op.outputs[1:]
    ]
    return [result, *rest]


def _check_frozen(op: tf.Operation) -> None:
    if op.get_attr("is_training"):
        raise findings.Refusal(
            "It normalizes by the mean and the variance of the whole batch.",
            "Replace it by LayerNormalization or GroupNormalization, see "
            "`tf_dpfp.fix`, or set `layer.trainable = False`.",
        )


@registry.rule("SpaceToBatchND")
def space_to_batch(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Moves blocks of positions in front of the batch."""
    value, blocks, _ = values
    factor = sizes_lib.product(blocks.known("block size"))
    if not value.is_examples or factor is None:
        hangs = value.hangs_on_batch or sizes_lib.hang_on_batch(value.shape)
        return values_lib.free(walk.static(op.outputs[0]), None, hangs)
    own = value.example_layout
    if own.axis != 0:
        raise findings.Refusal("The examples are not along its first axis.")
    layout = Layout(0, own.before * factor, own.after)
    return values_lib.examples(_sizes(op, walk, layout), layout)


@registry.rule("BatchToSpaceND")
def batch_to_space(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Moves what is in front of the batch back to the positions."""
    value, blocks, _ = values
    factor = sizes_lib.product(blocks.known("block size"))
    if not value.is_examples or factor is None:
        hangs = value.hangs_on_batch or sizes_lib.hang_on_batch(value.shape)
        return values_lib.free(walk.static(op.outputs[0]), None, hangs)
    own = value.example_layout
    before = own.before.divided_by(factor)
    if own.axis != 0 or before is None:
        raise findings.Refusal("It makes positions of different examples.")
    layout = Layout(0, before, own.after)
    return values_lib.examples(_sizes(op, walk, layout), layout)


def _sizes(op: tf.Operation, walk: Walk, layout: Layout) -> Sizes:
    static = walk.static(op.outputs[0])
    if static is None:
        raise findings.Refusal(
            "The number of axes of its result is not known.", is_definite=False
        )
    return (layout.before * walk.batch * layout.after, *static[1:])
