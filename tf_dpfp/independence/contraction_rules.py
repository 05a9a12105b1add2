"""Rules of products: matrices, einsum, convolutions.

Every axis has a label. An example stays by itself if its axis is an axis of
the result, and the same one in every operand that has examples.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import layouts
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

Labels = list[str]

# Beginnings of the labels of axes that are broadcast; others are equally long.
_BROADCAST = ("front", "more")


@registry.rule(
    "MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "SparseMatMul"
)
def matrix_product(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Multiplies matrices; axes in front are broadcast."""
    plain = op.type in ("MatMul", "SparseMatMul")
    turned = ("transpose_a", "transpose_b") if plain else ("adj_x", "adj_y")
    left, right = values
    rank = max(left.rank, right.rank)
    front = [f"front{i}" for i in range(rank - 2)]
    first, second = ["row", "inner"], ["inner", "column"]
    attributes = op.node_def.attr  # Read once: each read makes a copy.
    if attributes[turned[0]].b:
        first.reverse()
    if attributes[turned[1]].b:
        second.reverse()
    specs = [
        front[rank - left.rank :] + first,
        front[rank - right.rank :] + second,
    ]
    return _contract(op, values, specs, [*front, "row", "column"], walk)


@registry.rule("Einsum")
def einsum(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Multiplies and adds up as the equation says."""
    equation = op.get_attr("equation").decode().replace(" ", "")
    terms, _, result = equation.partition("->")
    specs = [
        _spelled(term, value.rank)
        for term, value in zip(terms.split(","), values, strict=True)
    ]
    if "..." not in result:
        return _contract(op, values, specs, list(result), walk)
    static = walk.static(op.outputs[0])
    if static is None:
        raise findings.Refusal(
            "The number of axes of its result is not known.", is_definite=False
        )
    return _contract(op, values, specs, _spelled(result, len(static)), walk)


def _spelled(term: str, rank: int) -> Labels:
    """Lists the labels of an einsum's term, with those of the ellipsis."""
    if "..." not in term:
        return list(term)
    before, _, after = term.partition("...")
    count = rank - len(before) - len(after)
    # Ellipses are aligned at their last axes.
    middle = [f"more{i}" for i in range(-count, 0)]
    return [*before, *middle, *after]


def _contract(
    op: tf.Operation,
    values: Sequence[Value],
    specs: Sequence[Labels],
    result: Labels,
    walk: Walk,
) -> Value:
    """Describes a sum of products over the labels that the result lacks."""
    axis_sizes = _sizes_of_labels(specs, values)
    sizes = tuple(axis_sizes[label] for label in result)
    sizes = walk.filled(sizes, op.outputs[0])
    if not any(v.is_examples for v in values):
        return _without_examples(values, specs, result, sizes, walk)
    label = _label_of_examples(values, specs, result)
    summed = [s for name, s in axis_sizes.items() if name not in result]
    if sizes_lib.hang_on_batch(summed):
        # Of a factor that is the same for all rows, as many as there are.
        raise findings.Refusal(
            "It adds up as many numbers as there are examples.",
            findings.BATCH_SIZE,
        )
    own = next(v.example_layout for v in values if v.is_examples)
    return values_lib.examples(sizes, own.at(result.index(label)))


def _sizes_of_labels(
    specs: Sequence[Labels], values: Sequence[Value]
) -> dict[str, MaybeSize]:
    """Returns the size of every label; axes in front are broadcast."""
    found: dict[str, MaybeSize] = {}
    for spec, value in zip(specs, values, strict=True):
        for label, size in zip(spec, value.shape, strict=True):
            if label not in found:
                found[label] = size
            elif len(label) > 1 and label.startswith(_BROADCAST):
                (found[label],) = layouts.broadcast([(found[label],), (size,)])
            elif found[label] in (None, 1):
                found[label] = size
    return found


def _label_of_examples(
    values: Sequence[Value], specs: Sequence[Labels], result: Labels
) -> str:
    """Returns the label along which the examples stay apart."""
    pairs = list(zip(specs, values, strict=True))
    owners = [(s, v) for s, v in pairs if v.is_examples]
    labels = {s[v.example_layout.axis] for s, v in owners}
    if len(labels) > 1:
        raise findings.Refusal(
            "Examples of both operands meet: each is multiplied by the others."
        )
    (label,) = labels
    if len({v.example_layout.at(0) for _, v in owners}) > 1:
        raise findings.Refusal("Its operands hold the examples differently.")
    if label not in result:
        raise findings.Refusal("It adds up over the examples.")
    spec, owner = owners[0]
    size = owner.shape[spec.index(label)]
    for spec, value in pairs:
        if spec.count(label) > 1:
            raise findings.Refusal("It takes a diagonal through the examples.")
        if value.is_examples or label not in spec:
            continue
        other = value.shape[spec.index(label)]
        if other != 1 and (value.kind is not Kind.UNIFORM or other != size):
            raise findings.Refusal(
                "An operand has a number of its own for every row of the "
                "batch.",
                findings.ROW_NUMBER,
            )
    return label


def _without_examples(
    values: Sequence[Value],
    specs: Sequence[Labels],
    result: Labels,
    sizes: Sequence[MaybeSize],
    walk: Walk,
) -> Value:
    """Describes a product of tensors that are free of data."""
    hangs = any(v.hangs_on_batch for v in values)
    for spec, value in zip(specs, values, strict=True):
        for label, size in zip(spec, value.shape, strict=True):
            inner = label not in result
            hangs = hangs or (inner and (size is None or size.hangs_on_batch))
    if len(set(result)) < len(result):
        # Numbers on a diagonal, and zeros beside it.
        return values_lib.free(tuple(sizes), None, hangs)
    if all(v.kind is Kind.UNIFORM for v in values):
        return values_lib.uniform(tuple(sizes), hangs)
    # Rows of equal numbers times a matrix: equal rows.
    found = [
        (i, s)
        for i, s in enumerate(sizes)
        if s is not None and s.hangs_on_batch
    ]
    if len(found) == 1 and not hangs:
        ((axis, size),) = found
        after = size.divided_by(walk.batch)
        equal = all(
            v.kind is Kind.UNIFORM or result[axis] not in s
            for s, v in zip(specs, values, strict=True)
        )
        if equal and after is not None:
            layout = values_lib.Layout(axis, ONE, after)
            return values_lib.examples(tuple(sizes), layout)
    return values_lib.free(tuple(sizes), None, hangs)


@registry.rule("BiasAdd", "BiasAddV1")
def bias_add(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds a number for every channel."""
    value, bias = values
    if op.type == "BiasAdd" and op.get_attr("data_format") == b"NCHW":
        sizes = (*bias.shape, *[ONE] * (value.rank - 2))
    else:
        sizes = bias.shape
    if bias.is_examples:
        raise findings.Refusal("The examples are the bias.")
    shaped = values_lib.like(bias, sizes)
    if not value.is_examples:
        return layouts.combined(
            [value, shaped], value.shape, walk.batch, is_uniform=True
        )
    layout = layouts.meet([value, shaped], value.rank)
    return values_lib.examples(value.shape, layout)


@registry.rule(
    "BiasAddGrad",
    "Conv2DBackpropFilter",
    "Conv3DBackpropFilterV2",
    "Dilation2DBackpropFilter",
)
def weight_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Adds a weight's gradient up over the first axis."""
    if any(v.is_examples for v in values):
        raise findings.Refusal("It adds a gradient up over the examples.")
    hangs = any(
        v.hangs_on_batch or v.sizes is None or sizes_lib.hang_on_batch(v.sizes)
        for v in values
    )
    return values_lib.free(walk.static(op.outputs[0]), None, hangs)
