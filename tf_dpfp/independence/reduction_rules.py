"""Rules of operations that add up, sort or transform along axes.

None of them may run along the axis of the examples.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import arithmetic
from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import findings
from tf_dpfp.independence import layouts
from tf_dpfp.independence import registry
from tf_dpfp.independence import shape_rules
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value

OVER = "It works over the examples: what one adds, all of them see."

# The same of equal numbers, however many there are.
_OF_EQUALS = ("Max", "Min", "Any", "All")


@registry.rule(
    "Sum", "Mean", "Max", "Min", "Prod", "Any", "All", "EuclideanNorm"
)
def reduce(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reduces axes to one number."""
    value, axes_value = values
    if axes_value.numbers is None and value.is_free:
        hangs = value.hangs_on_batch or sizes_lib.hang_on_batch(value.shape)
        return values_lib.free(walk.static(op.outputs[0]), None, hangs)
    axes = {a % value.rank for a in axes_value.integers("axis")}
    keeps = op.get_attr("keep_dims")
    if value.is_examples and value.example_layout.axis in axes:
        raise findings.Refusal(OVER)
    sizes = tuple(
        ONE if i in axes else s
        for i, s in enumerate(value.shape)
        if keeps or i not in axes
    )
    over = [value.shape[a] for a in axes]
    ranges = _reduced_ranges(op.type, value, over)
    if value.is_examples:
        own = value.example_layout
        axis = own.axis if keeps else own.axis - sum(a < own.axis for a in axes)
        return values_lib.examples(sizes, own.at(axis), ranges)
    number = _reduced_number(op, value, axes)
    if number is not None:
        return values_lib.free(sizes, (number,), value.on_batch_size)
    many = sizes_lib.hang_on_batch(over) and (
        op.type not in _OF_EQUALS or _may_be_none(over)
    )
    hangs = value.hangs_on_batch or many
    if value.kind is Kind.UNIFORM:
        return values_lib.uniform(sizes, hangs)
    return values_lib.free(sizes, None, hangs, ranges)


def _may_be_none(sizes: Sequence[MaybeSize]) -> bool:
    """Tells if some batch size leaves nothing to reduce."""
    return not all(s is not None and values_lib.at_least(s, ONE) for s in sizes)


def _reduced_ranges(
    kind: str, value: Value, over: Sequence[MaybeSize]
) -> tuple[Range, ...] | None:
    """Returns bounds of the greatest or smallest number."""
    # Of none, it is the least or the greatest of its type.
    if kind not in ("Max", "Min") or value.ranges is None or _may_be_none(over):
        return None
    return (values_lib.hull(value.ranges),)


def _reduced_number(
    op: tf.Operation, value: Value, axes: set[int]
) -> MaybeSize:
    """Returns the result of reducing a list of known numbers."""
    if value.numbers is None or len(axes) < value.rank:
        return None
    kind, dtype = op.type, op.outputs[0].dtype
    numbers = [n for n in value.numbers if n is not None]
    if len(numbers) < len(value.numbers):
        return None
    if kind in ("Prod", "All"):
        return arithmetic.in_dtype(sizes_lib.product(numbers), dtype)
    if kind == "Sum":
        return arithmetic.in_dtype(sum(numbers, sizes_lib.ZERO), dtype)
    if kind not in ("Max", "Min") or not numbers:
        return None
    if not all(n.is_number or n.surely_fits(8 * dtype.size) for n in numbers):
        return None
    choose = values_lib.greater if kind == "Max" else values_lib.smaller
    found: MaybeSize = numbers[0]
    for number in numbers[1:]:
        found = None if found is None else choose(found, number)
    return found


@registry.rule("ArgMax", "ArgMin")
def index_of_greatest(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Finds an index along an axis: always one of it, whatever the numbers."""
    del op, walk
    value, axis_value = values
    (axis,) = axis_value.integers("axis")
    axis %= value.rank
    if value.is_examples and value.example_layout.axis == axis:
        raise findings.Refusal(OVER)
    count = value.shape[axis]
    bounds = None if count is None else (Range(sizes_lib.ZERO, count - 1),)
    found = shape_rules.drop_axes(_without_facts(value), {axis}, "")
    if value.is_examples:
        return values_lib.examples(found.shape, found.example_layout, bounds)
    return values_lib.free(found.shape, None, value.hangs_on_batch, bounds)


def _without_facts(value: Value) -> Value:
    return Value(
        value.kind, value.sizes, value.layout, on_batch_size=value.on_batch_size
    )


@registry.rule("Cumsum", "Cumprod", "CumulativeLogsumexp", "ReverseV2", "Roll")
def along(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Runs along some axes and keeps the sizes."""
    del walk
    value, axes_value = values[0], values[-1]
    if any(v.is_examples for v in values[1:]):
        raise findings.Refusal("It moves by a number that the data decide.")
    axes = {a % value.rank for a in axes_value.integers("axis")}
    summed = _bounds_of_sums(op, value, axes)
    if not value.is_examples:
        hangs = value.hangs_on_batch
        if value.kind is Kind.UNIFORM and op.type in ("ReverseV2", "Roll"):
            return values_lib.uniform(value.sizes, hangs)
        return values_lib.free(value.sizes, None, hangs, summed)
    if value.example_layout.axis in axes:
        raise findings.Refusal(
            "It runs along the examples: later ones see earlier ones."
        )
    keeps = op.type in ("ReverseV2", "Roll")
    return values_lib.examples(
        value.shape,
        value.example_layout,
        values_lib.one_range(value) if keeps else summed,
    )


def _bounds_of_sums(
    op: tf.Operation, value: Value, axes: set[int]
) -> tuple[Range] | None:
    """Returns bounds of cumulative sums of whole numbers from zero on."""
    dtype = op.outputs[0].dtype
    ranges = values_lib.one_range(value)
    if op.type != "Cumsum" or not dtype.is_integer or not ranges:
        return None
    (each,) = ranges
    count = sizes_lib.product(value.shape[a] for a in axes)
    if each.low is None or each.high is None or count is None:
        return None
    if each.numbers_examples or not values_lib.at_least(
        each.low, sizes_lib.ZERO
    ):
        return None
    low = sizes_lib.ZERO if op.get_attr("exclusive") else each.low
    found = Range(low, each.high * count)
    return (found,) if bounds_lib.fits(found, dtype) else None


# For each operation the number of last axes that it works on, and its inputs
# that have the same axes in front.
_LAST: dict[str, tuple[int, tuple[int, ...]]] = {
    "AdjustContrastv2": (3, (0,)),
    "AdjustHue": (1, (0,)),
    "AdjustSaturation": (1, (0,)),
    "BatchMatrixBandPart": (2, (0,)),
    "Cholesky": (2, (0,)),
    "CholeskyGrad": (2, (0, 1)),
    "Cross": (1, (0, 1)),
    "Eig": (2, (0,)),
    "FFT": (1, (0,)),
    "FFT2D": (2, (0,)),
    "FFT3D": (3, (0,)),
    "HSVToRGB": (1, (0,)),
    "IFFT": (1, (0,)),
    "IFFT2D": (2, (0,)),
    "IFFT3D": (3, (0,)),
    "IRFFT": (1, (0,)),
    "IRFFT2D": (2, (0,)),
    "IRFFT3D": (3, (0,)),
    "LogMatrixDeterminant": (2, (0,)),
    "LogSoftmax": (1, (0,)),
    "Lu": (2, (0,)),
    "MatrixBandPart": (2, (0,)),
    "MatrixDeterminant": (2, (0,)),
    "MatrixDiag": (1, (0,)),
    "MatrixDiagPart": (2, (0,)),
    "MatrixDiagPartV3": (2, (0,)),
    "MatrixDiagV3": (1, (0,)),
    "MatrixInverse": (2, (0,)),
    "MatrixLogarithm": (2, (0,)),
    "MatrixSolve": (2, (0, 1)),
    "MatrixSquareRoot": (2, (0,)),
    "MatrixTriangularSolve": (2, (0, 1)),
    "Qr": (2, (0,)),
    "RFFT": (1, (0,)),
    "RFFT2D": (2, (0,)),
    "RFFT3D": (3, (0,)),
    "RGBToHSV": (1, (0,)),
    "SelfAdjointEigV2": (2, (0,)),
    "Softmax": (1, (0,)),
    "Svd": (2, (0,)),
    "TridiagonalMatMul": (2, (0, 1, 2, 3)),
    "TridiagonalSolve": (2, (0, 1)),
}
_SAME_SIZES = ("Softmax", "LogSoftmax", "MatrixBandPart", "Cholesky")


@registry.rule(*_LAST)
def along_last(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Works on the last axes of every index in front of them."""
    count, positions = _LAST[op.type]
    if op.type == "MatrixDiagV3" and len(set(values[1].integers())) > 1:
        # Several diagonals have an axis of their own.
        count = 2
    for i, value in enumerate(values):
        if not value.is_examples:
            continue
        if i not in positions:
            raise findings.Refusal("The data decide how it works.")
        if value.example_layout.axis >= value.rank - count:
            raise findings.Refusal(OVER)
    _check_aligned(values, positions)
    own = {
        v.example_layout.at(v.example_layout.axis - v.rank)
        for v in values
        if v.is_examples
    }
    if len(own) > 1:
        raise findings.Refusal("Its operands hold the examples differently.")
    if not own:
        found = _free_of_data(op, values, walk)
        one = len(positions) == 1
        front = values[0].shape[: values[0].rank - count] if one else ()
        return [_with_front(v, front) for v in found]
    for i in positions:
        if not values[i].is_examples and values[i].kind is not Kind.UNIFORM:
            raise findings.Refusal(
                "Only one of its operands has the axis of the examples."
            )
    main = next(v for v in values if v.is_examples)
    # One operation broadcasts; others compare.
    front = layouts.broadcast([values[i].shape[:-count] for i in positions])
    return [_outer(op, main, front, output, walk) for output in op.outputs]


def _check_aligned(values: Sequence[Value], positions: Sequence[int]) -> None:
    """Checks that nothing but the examples' axis is as long as the batch."""
    main = next((v for v in values if v.is_examples), None)
    if main is None:
        return
    axis = main.example_layout.axis
    for i, value in enumerate(values):
        if i in positions and value.rank != main.rank:
            raise findings.Refusal("Its operands have more or fewer axes.")
        rest = [s for j, s in enumerate(value.shape) if j != axis]
        if i not in positions:
            rest = list(value.shape)
        if sizes_lib.hang_on_batch(rest):
            raise findings.Refusal(
                "The batch size is the size of another axis than that of the "
                "examples.",
                findings.BATCH_SIZE,
            )
        own = value.shape[axis] if i in positions else None
        if i in positions and own != main.shape[axis]:
            raise findings.Refusal(
                "Its operands hold the examples differently."
            )


def _outer(
    op: tf.Operation, main: Value, front: Sizes, output: tf.Tensor, walk: Walk
) -> Value:
    if op.type in _SAME_SIZES:
        return values_lib.examples(main.shape, main.example_layout)
    static = walk.static(output)
    if static is None:
        raise findings.Refusal(
            "The number of axes of its result is not known.", is_definite=False
        )
    sizes = (*front, *static[len(front) :])
    return values_lib.examples(sizes, main.example_layout)


def _with_front(value: Value, front: Sizes) -> Value:
    """Fills in the sizes of axes that it works on every index of."""
    if value.sizes is None or len(value.sizes) < len(front):
        return value
    sizes = (*front, *value.sizes[len(front) :])
    return dataclasses.replace(value, sizes=sizes)


def _free_of_data(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    hangs = any(v.hangs_on_batch for v in values)
    main = values[0]
    if op.type == "Softmax" and main.kind is Kind.UNIFORM:
        last = main.shape[-1]
        hangs = hangs or last is None or last.hangs_on_batch
        return [values_lib.uniform(main.sizes, hangs)]
    hangs = hangs or any(sizes_lib.hang_on_batch(v.shape) for v in values)
    if op.type in _SAME_SIZES:
        return [values_lib.free(main.shape, None, hangs)]
    return [values_lib.free(walk.static(o), None, hangs) for o in op.outputs]


@registry.rule("TopK", "TopKV2")
def greatest(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Sorts along the last axis; its indices are always those of the axis."""
    value = values[0]
    if len(values) > 1 and values[1].is_examples:
        raise findings.Refusal("The data decide how many are kept.")
    last = value.shape[-1]
    if value.is_examples and value.example_layout.axis == value.rank - 1:
        raise findings.Refusal(OVER)
    count = _kept(op, values, walk)
    sizes = (*value.shape[:-1], count)
    bounds = None if last is None else (Range(sizes_lib.ZERO, last - 1),)
    if value.is_examples:
        layout = value.example_layout
        return [
            values_lib.examples(sizes, layout),
            values_lib.examples(sizes, layout, bounds),
        ]
    hangs = value.hangs_on_batch
    return [
        values_lib.free(sizes, None, hangs),
        values_lib.free(sizes, None, hangs, bounds),
    ]


def _kept(op: tf.Operation, values: Sequence[Value], walk: Walk) -> MaybeSize:
    if op.type == "TopK":
        return Size.of(op.get_attr("k"))
    numbers = values[1].numbers
    static = walk.static(op.outputs[0])
    return numbers[0] if numbers else static[-1] if static else None


@registry.rule("ReverseSequence")
def reverse_sequence(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Turns each row around, as far as its length says."""
    del walk
    value, lengths = values
    if value.kind is Kind.UNIFORM:
        return values_lib.uniform(value.sizes, value.hangs_on_batch)
    if not value.is_examples and not lengths.is_examples:
        return values_lib.free(value.sizes, None, value.hangs_on_batch)
    apart = value.is_examples and (
        value.example_layout.axis == op.get_attr("batch_dim")
    )
    if lengths.is_examples:
        apart = apart and (lengths.example_layout == value.example_layout.at(0))
    elif lengths.kind is not Kind.UNIFORM:
        apart = False
    if not apart:
        raise findings.Refusal(OVER)
    return values_lib.examples(value.shape, value.example_layout)
