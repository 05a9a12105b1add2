"""Rules of operations that move elements: transpose, join, cut, pad."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dpfp.independence import arithmetic
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
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value

BY_NUMBER = "It picks examples by their place in the batch."


@registry.rule("Transpose", "ConjugateTranspose", takes_numbers=True)
def transpose(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Puts the axes in another order."""
    del op, walk
    value, order_value = values
    order = [a % value.rank for a in order_value.integers("permutation")]
    array = value.array()
    if array is not None:
        return values_lib.numbers_of(
            np.transpose(array, order), value.on_batch_size
        )
    sizes = tuple(value.shape[a] for a in order)
    if not value.is_examples:
        return values_lib.like(value, sizes)
    own = value.example_layout
    return values_lib.like(value, sizes, own.at(order.index(own.axis)))


def _common_sizes(parts: Sequence[Value]) -> list[MaybeSize]:
    """Returns sizes of parts of one shape, known where one of them is."""
    sizes = list(parts[0].shape)
    for part in parts[1:]:
        sizes = [
            t if s is None else s
            for s, t in zip(sizes, part.shape, strict=True)
        ]
    return sizes


def _joined(
    parts: Sequence[Value], sizes: Sizes, axis: int, added: bool, walk: Walk
) -> Value:
    """Describes parts that are joined along another axis than the examples'.

    Args:
        parts: The parts.
        sizes: Sizes of the result.
        axis: The axis along which they are joined.
        added: True if the axis is a new one.
        walk: The walk.
    """
    shift = int(added)
    for part in parts:
        if part.numbers_examples:
            raise findings.Refusal(
                "It joins the examples' numbers.", findings.ROW_NUMBER
            )
    if any(p.is_examples for p in parts):
        layout = layouts.meet(parts, parts[0].rank)
        return values_lib.examples(
            sizes, layout.at(layout.axis + (shift and axis <= layout.axis))
        )
    hangs = any(p.hangs_on_batch for p in parts)
    axes = [
        i for i, s in enumerate(sizes) if s is not None and s.hangs_on_batch
    ]
    # Along another axis than the joined one, equal numbers stay equal.
    equal = all(p.kind is Kind.UNIFORM for p in parts) and not hangs
    if equal and len(axes) == 1 and axes[0] != axis:
        size = sizes[axes[0]]
        after = None if size is None else size.divided_by(walk.batch)
        if after is not None:
            return values_lib.examples(sizes, Layout(axes[0], ONE, after))
    return values_lib.free(sizes, None, hangs)


@registry.rule("ConcatV2", "Concat", takes_numbers=True)
def concatenate(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Joins tensors along an axis."""
    if op.type == "Concat":
        axis_value, *parts = values
    else:
        *parts, axis_value = values
    (axis,) = axis_value.integers("axis")
    axis %= parts[0].rank
    arrays = [p.array() for p in parts]
    if all(a is not None for a in arrays):
        joined = np.concatenate([a for a in arrays if a is not None], axis)
        if joined.size <= 64:
            hangs = any(p.on_batch_size for p in parts)
            return values_lib.numbers_of(joined, hangs)
    sizes = _common_sizes(parts)
    lengths = [p.shape[axis] for p in parts]
    sizes[axis] = None if None in lengths else _total(lengths)
    owners = [p for p in parts if p.is_examples]
    if any(p.example_layout.axis == axis for p in owners):
        return _stacked(parts, tuple(sizes), axis)
    if axis == parts[0].rank - 1:
        columns = _columns(op, parts, [p.shape[axis] for p in parts])
        if columns is not None:
            layout = layouts.meet(parts, parts[0].rank)
            return values_lib.examples(tuple(sizes), layout, columns)
    return _joined(parts, tuple(sizes), axis, False, walk)


def _total(lengths: Sequence[MaybeSize]) -> Size:
    total = sizes_lib.ZERO
    for length in lengths:
        total = total + Size.of(length or 0)
    return total


def _stacked(parts: Sequence[Value], sizes: Sizes, axis: int) -> Value:
    """Joins whole batches one behind the other.

    Index `i` of each part belongs to example `(i // after) % batch_size`, and
    so it does in the result if `after` is the same in all. Row numbers stay
    those of the example, if they are made up alike in all parts.
    """
    if not all(p.is_examples for p in parts):
        raise findings.Refusal(
            "It joins other rows to the examples, which moves them to other "
            "places of the batch."
        )
    own = [p.example_layout for p in parts]
    ranges = None
    is_alike = all(
        layout.axis == axis and layout.after == own[0].after for layout in own
    )
    if any(p.numbers_examples for p in parts):
        ranges = parts[0].ranges
        is_alike &= all(p.ranges == ranges for p in parts)
        # Bounds of each index of the last axis are not those of a longer one.
        is_alike &= ranges is not None and len(ranges) == 1
    if not is_alike:
        raise findings.Refusal("Its operands hold the examples differently.")
    before = sum((layout.before for layout in own), sizes_lib.ZERO)
    return values_lib.examples(
        sizes, Layout(axis, before, own[0].after), ranges
    )


def _columns(
    op: tf.Operation, parts: Sequence[Value], widths: Sequence[MaybeSize]
) -> tuple[values_lib.Range, ...] | None:
    """Lists bounds for each index of the last axis, where parts are joined."""
    if not op.outputs[0].dtype.is_integer:
        return None
    if not any(p.is_examples for p in parts):
        return None
    found: list[values_lib.Range] = []
    for part, width in zip(parts, widths, strict=True):
        if width is None or not width.is_number or int(width) > 8:
            return None
        ranges = part.ranges or (values_lib.Range(None, None),)
        count = int(width)
        found += ranges if len(ranges) == count else ranges[:1] * count
        if len(ranges) not in (1, count):
            return None
    return tuple(found)


@registry.rule("Pack", takes_numbers=True)
def stack(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Stacks tensors along a new axis."""
    axis = op.get_attr("axis") % (values[0].rank + 1)
    arrays = [v.array() for v in values]
    if all(a is not None for a in arrays):
        stacked = np.stack([a for a in arrays if a is not None], axis)
        if stacked.size <= 64:
            hangs = any(v.on_batch_size for v in values)
            return values_lib.numbers_of(stacked, hangs)
    if len(values) == 1:
        return shape_rules.insert_axis(values[0], axis)
    if _is_partly_known(values):
        numbers = [v.numbers[0] if v.numbers else None for v in values]
        return values_lib.free((Size.of(len(values)),), numbers)
    common = _common_sizes(values)
    sizes = (*common[:axis], Size.of(len(values)), *common[axis:])
    if axis == values[0].rank:
        columns = _columns(op, values, [ONE] * len(values))
        if columns is not None:
            layout = layouts.meet(values, values[0].rank)
            return values_lib.examples(sizes, layout, columns)
    return _joined(values, sizes, axis, True, walk)


def _is_partly_known(values: Sequence[Value]) -> bool:
    """Returns true for whole numbers that are all free of the batch size."""
    return all(
        v.is_free
        and v.rank == 0
        and (v.numbers is not None or not v.hangs_on_batch)
        for v in values
    ) and any(v.numbers is not None for v in values)


@registry.rule("Unpack", takes_numbers=True)
def unstack(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Takes a tensor apart along an axis."""
    del walk
    (value,) = values
    axis = op.get_attr("axis") % value.rank
    array = value.array()
    if array is not None:
        parts = np.moveaxis(array, axis, 0)
        return [values_lib.numbers_of(p, value.on_batch_size) for p in parts]
    ranges = value.ranges or ()
    if len(ranges) == len(op.outputs) and axis == value.rank - 1:
        return [
            shape_rules.drop_axes(
                _with(value, r), {axis}, "takes examples apart"
            )
            for r in ranges
        ]
    part = shape_rules.drop_axes(value, {axis}, "takes examples apart")
    return [part for _ in op.outputs]


def _with(value: Value, bounds: values_lib.Range) -> Value:
    """Returns a value of one column, with its bounds."""
    ranges = (bounds,)
    if value.is_examples:
        return values_lib.examples(value.shape, value.example_layout, ranges)
    return values_lib.free(value.sizes, None, value.on_batch_size, ranges)


@registry.rule("Split")
def split(op: tf.Operation, values: Sequence[Value], walk: Walk) -> list[Value]:
    """Cuts a tensor into equal parts."""
    axis_value, value = values
    (axis,) = axis_value.integers("axis")
    axis %= value.rank
    count = len(op.outputs)
    whole = value.shape[axis]
    length = None if whole is None else whole.divided_by(count)
    array = value.array()
    if array is not None:
        pieces = np.split(array, count, axis)
        return [values_lib.numbers_of(p, value.on_batch_size) for p in pieces]
    if value.is_examples and value.example_layout.axis == axis:
        return _whole_batches(value, axis, [length] * count, walk)
    return _parts(op, value, axis, [length] * count, walk)


@registry.rule("SplitV", shapes=(1,))
def split_by_sizes(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Cuts a tensor into parts of given sizes."""
    value, lengths, axis_value = values
    (axis,) = axis_value.integers("axis")
    axis %= value.rank
    known: list[MaybeSize] = list(lengths.numbers or [None] * len(op.outputs))
    if -1 in known:
        known = [_rest(n, known, value.shape[axis]) for n in known]
    array = value.array()
    if array is not None and all(n is not None and n.is_number for n in known):
        ends = np.cumsum([int(n) for n in known if n is not None])[:-1]
        pieces = np.split(array, ends, axis)
        return [values_lib.numbers_of(p, value.on_batch_size) for p in pieces]
    if value.is_examples and value.example_layout.axis == axis:
        return _whole_batches(value, axis, known, walk)
    if sizes_lib.hang_on_batch(known) and value.kind is not Kind.UNIFORM:
        raise findings.Refusal(BY_NUMBER, findings.BATCH_SIZE)
    return _parts(op, value, axis, known, walk)


def _rest(
    length: MaybeSize, known: Sequence[MaybeSize], whole: MaybeSize
) -> MaybeSize:
    """Returns a part's size; -1 stands for what is left."""
    if length != -1:
        return length
    others = [n for n in known if n != -1]
    if whole is None or None in others:
        return None
    return whole - _total(others)


def _parts(
    op: tf.Operation,
    value: Value,
    axis: int,
    lengths: Sequence[MaybeSize],
    walk: Walk,
) -> list[Value]:
    parts = []
    for length, output in zip(lengths, op.outputs, strict=True):
        static = walk.static(output)
        if length is None and static is not None:
            length = static[axis]
        if length is None and sizes_lib.hang_on_batch([value.shape[axis]]):
            raise findings.Refusal(BY_NUMBER)
        sizes = (*value.shape[:axis], length, *value.shape[axis + 1 :])
        parts.append(values_lib.like(value, sizes))
    return parts


def _whole_batches(
    value: Value, axis: int, lengths: Sequence[MaybeSize], walk: Walk
) -> list[Value]:
    """Cuts between whole batches that lie one behind the other."""
    own = value.example_layout
    parts = []
    for length in lengths:
        before = (
            None
            if length is None
            else length.divided_by(walk.batch * own.after)
        )
        if before is None or before.hangs_on_batch:
            raise findings.Refusal(BY_NUMBER)
        sizes = (*value.shape[:axis], length, *value.shape[axis + 1 :])
        layout = Layout(axis, before, own.after)
        parts.append(values_lib.like(value, sizes, layout))
    return parts


@registry.rule("Pad", "PadV2", "MirrorPad", "MirrorPadGrad")
def pad(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds a border, or takes it off again."""
    value, widths = values[0], values[1]
    if any(v.is_examples for v in values[1:]):
        raise findings.Refusal("The data decide how it pads.")
    array = widths.array()
    known = arithmetic.padded(op, values)
    if known is not None:
        return known
    if not value.is_examples:
        hangs = value.hangs_on_batch or sizes_lib.hang_on_batch(value.shape)
        equal = value.kind is Kind.UNIFORM and op.type.startswith("Mirror")
        if equal and not hangs:
            return values_lib.uniform(walk.static(op.outputs[0]))
        return _padded_rows(op, value, array, hangs, walk)
    own = value.example_layout
    if array is None or any(n != 0 for n in array[own.axis]):
        raise findings.Refusal("It adds rows to the batch, or takes some off.")
    sign = -1 if op.type == "MirrorPadGrad" else 1
    return values_lib.examples(_padded(value.shape, array, sign), own)


def _padded(sizes: Sizes, widths: np.ndarray, sign: int) -> Sizes:
    return tuple(
        None if s is None or a is None or b is None else s + (a + b) * sign
        for s, (a, b) in zip(sizes, widths, strict=True)
    )


def _padded_rows(
    op: tf.Operation,
    value: Value,
    widths: np.ndarray | None,
    hangs: bool,
    walk: Walk,
) -> Value:
    """Pads data-free numbers: equal rows, if the batch is left alone."""
    if widths is not None and value.kind is Kind.UNIFORM:
        sign = -1 if op.type == "MirrorPadGrad" else 1
        sizes = _padded(value.shape, widths, sign)
        axes = [
            i for i, s in enumerate(sizes) if s is not None and s.hangs_on_batch
        ]
        plain = not value.hangs_on_batch and len(axes) == 1
        if plain and all(n == 0 for n in widths[axes[0]]):
            size = sizes[axes[0]]
            after = None if size is None else size.divided_by(walk.batch)
            if after is not None:
                return values_lib.examples(sizes, Layout(axes[0], ONE, after))
    return values_lib.free(walk.static(op.outputs[0]), None, hangs)
