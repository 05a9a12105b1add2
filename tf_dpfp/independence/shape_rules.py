"""Rules of operations that read, make or change shapes.

The elements of a shape are known as polynomials, so that a reshape to a
shape that was computed in the graph can be followed.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dpfp.independence import arithmetic
from tf_dpfp.independence import findings
from tf_dpfp.independence import layouts
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value


@registry.rule("Shape", "ShapeN", takes_mixed=True, takes_numbers=True)
def shape(op: tf.Operation, values: Sequence[Value], walk: Walk) -> list[Value]:
    """Reads sizes, which are known even of tensors that are not proved."""
    del op, walk
    return [_shape_of(value) for value in values]


def _shape_of(value: Value) -> Value:
    sizes = value.sizes
    uncertain = value.kind in (Kind.MIXED, Kind.SINGLE)
    if sizes is None or (uncertain and None in sizes):
        if value.kind is Kind.SINGLE:
            return Value(Kind.SINGLE, (Size.of(len(sizes)),) if sizes else None)
        if value.kind is Kind.MIXED:
            return values_lib.mixed(value.finding)
        raise findings.Refusal(
            "The sizes of its operand are not known.", is_definite=False
        )
    if None in sizes and value.hangs_on_batch:
        return values_lib.free((Size.of(len(sizes)),), None, True)
    return values_lib.free((Size.of(len(sizes)),), sizes)


@registry.rule("Rank", takes_mixed=True, takes_numbers=True)
def rank(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Reads the number of axes."""
    del op, walk
    return values_lib.free((), (Size.of(values[0].rank),))


@registry.rule("Size", takes_mixed=True, takes_numbers=True)
def size(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Counts elements."""
    shapes = shape(op, values, walk)[0]
    if shapes.kind in (Kind.MIXED, Kind.SINGLE):
        return Value(
            shapes.kind,
            () if shapes.kind is Kind.SINGLE else None,
            finding=shapes.finding,
        )
    if shapes.numbers is None:
        return values_lib.free((), None, shapes.on_batch_size)
    total = sizes_lib.product(shapes.numbers)
    if total is None:
        return values_lib.free((), None, shapes.on_batch_size)
    return values_lib.free((), (total,))


@registry.rule(
    "ZerosLike",
    "OnesLike",
    takes_mixed=True,
    takes_numbers=True,
    takes_lists=True,
)
def constant_like(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Fills a tensor of the same shape with one number."""
    (value,) = values
    if value.kind is Kind.LIST:
        item = value.item
        if item is not None:
            item = constant_like(op, [item], walk)
        return dataclasses.replace(value, item=item, by_item=False, name="")
    if value.kind is Kind.MIXED and (
        value.sizes is None or None in value.sizes
    ):
        return values_lib.mixed(value.finding)
    if value.kind is Kind.SINGLE:
        return Value(Kind.SINGLE, value.sizes)
    number = sizes_lib.ZERO if op.type == "ZerosLike" else ONE
    whole = op.outputs[0].dtype.is_integer
    sizes = value.sizes
    if sizes is not None and None in sizes and value.hangs_on_batch:
        sizes = None
    return values_lib.uniform(sizes, number=number if whole else None)


@registry.rule("Fill", shapes=(0,), lists_sizes=True)
def fill(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Fills a new tensor with one number."""
    dims, number = values
    if number.is_examples:
        raise findings.Refusal("It spreads one example's number everywhere.")
    sizes = dims.numbers
    if sizes is None:
        sizes = None if dims.hangs_on_batch else walk.static(op.outputs[0])
    small = sizes is not None and all(
        s is not None and s.is_number for s in sizes
    )
    if small and number.numbers and sizes is not None:
        total = sizes_lib.product(sizes)
        if total is not None and int(total) <= 64:
            return values_lib.free(sizes, number.numbers * int(total))
    bound = number.numbers[0] if number.numbers else None
    return values_lib.uniform(sizes, number.hangs_on_batch, bound)


@registry.rule("Reshape", shapes=(1,), takes_numbers=True)
def reshape(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Arranges the elements anew, in the same order."""
    value, target = values
    sizes = _target(op, value, target, walk)
    array = value.array()
    if array is not None and all(s is not None and s.is_number for s in sizes):
        numbers = array.reshape([int(s) for s in sizes if s is not None])
        return values_lib.numbers_of(numbers, value.on_batch_size)
    if not value.is_examples:
        # An unknown size of the result may be a multiple of the batch size.
        unsure = None in sizes and sizes_lib.hang_on_batch(value.shape)
        if unsure and value.kind is Kind.UNIFORM:
            return values_lib.uniform(None, value.on_batch_size)
        return values_lib.like(value, sizes)
    layout = layouts.regroup(value, sizes, walk.batch)
    ranges = value.ranges or ()
    if len(ranges) > 1 and sizes and sizes[-1] == value.shape[-1]:
        return values_lib.examples(sizes, layout, value.ranges)
    return values_lib.like(value, sizes, layout)


def _target(op: tf.Operation, value: Value, target: Value, walk: Walk) -> Sizes:
    """Works out the sizes that a reshape asks for."""
    wanted = target.numbers
    if wanted is None:
        static = walk.static(op.outputs[0])
        if static is None or target.hangs_on_batch:
            raise findings.Refusal(
                "It reshapes to a shape that is not known.", is_definite=False
            )
        wanted = static
    sizes = list(wanted)
    open_axes = [i for i, s in enumerate(sizes) if s == -1]
    if open_axes:
        (axis,) = open_axes
        total = sizes_lib.product(value.shape)
        rest = sizes_lib.product(sizes[:axis] + sizes[axis + 1 :])
        known = None
        if total is not None and rest is not None:
            known = total.divided_by(rest)
            if known is None and total.hangs_on_batch:
                raise findings.Refusal(
                    f"It reshapes {layouts.describe(value)} so that an axis "
                    "holds several examples in part."
                )
        sizes[axis] = known
    return walk.filled(tuple(sizes), op.outputs[0])


@registry.rule("ExpandDims", takes_numbers=True)
def expand_dims(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds an axis of size 1."""
    del op, walk
    value, axis_value = values
    (axis,) = axis_value.integers("axis")
    return insert_axis(value, axis % (value.rank + 1))


def insert_axis(value: Value, axis: int) -> Value:
    """Adds an axis of size 1 at a place."""
    array = value.array()
    if array is not None:
        return values_lib.numbers_of(
            np.expand_dims(array, axis), value.on_batch_size
        )
    sizes = (*value.shape[:axis], ONE, *value.shape[axis:])
    if not value.is_examples:
        return values_lib.like(value, sizes)
    own = value.example_layout
    moved = own.at(own.axis + (axis <= own.axis))
    if axis < value.rank:
        return values_lib.examples(sizes, moved, value.ranges)
    return values_lib.like(value, sizes, moved)


@registry.rule("Squeeze", takes_numbers=True)
def squeeze(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Drops axes of size 1."""
    (value,) = values
    axes = {axis % value.rank for axis in op.get_attr("squeeze_dims")}
    if not axes:
        if not all(_is_one_or_not(s, walk) for s in value.shape):
            raise findings.Refusal(
                "It drops axes of size 1, and sizes are not known.",
                "Name the axis: `ops.squeeze(x, axis=...)`.",
                is_definite=False,
            )
        axes = {i for i, s in enumerate(value.shape) if s == 1}
    array = value.array()
    if array is not None:
        squeezed = np.squeeze(array, tuple(axes))
        return values_lib.numbers_of(squeezed, value.on_batch_size)
    return drop_axes(value, axes, "drops the axis of the examples")


def _is_one_or_not(size: MaybeSize, walk: Walk) -> bool:
    """Returns true if it is known whether a size is 1."""
    if size is None:
        return False
    if size.is_number:
        return True
    return walk.least_rows > 1 and size.divided_by(walk.batch) is not None


def drop_axes(value: Value, axes: set[int], what: str) -> Value:
    """Removes axes; refuses if the examples lie along one of them."""
    sizes = tuple(s for i, s in enumerate(value.shape) if i not in axes)
    if not value.is_examples:
        return values_lib.like(value, sizes)
    own = value.example_layout
    if own.axis in axes:
        raise findings.Refusal(f"It {what}.")
    moved = own.at(own.axis - sum(a < own.axis for a in axes))
    return values_lib.like(value, sizes, moved)


@registry.rule("BroadcastTo", shapes=(1,), takes_numbers=True, lists_sizes=True)
def broadcast_to(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Repeats a tensor along axes of size 1."""
    value, target = values
    sizes = target.numbers
    if sizes is None:
        sizes = None if target.hangs_on_batch else walk.static(op.outputs[0])
    if sizes is None:
        raise findings.Refusal(
            "It repeats to a shape that is not known.", is_definite=False
        )
    array = value.array()
    total = sizes_lib.product(sizes)
    if array is not None and total is not None and total.is_number:
        if int(total) <= arithmetic.MOST_NUMBERS:
            shape = [int(s) for s in sizes if s is not None]
            wide = np.broadcast_to(array, shape)
            return values_lib.numbers_of(wide, value.on_batch_size)
    return spread(value, sizes, walk)


def spread(value: Value, sizes: Sizes, walk: Walk) -> Value:
    """Repeats a tensor along axes of size 1, and new axes in front."""
    if value.is_examples:
        own = value.example_layout
        axis = own.axis + len(sizes) - value.rank
        if sizes[axis] != value.shape[own.axis]:
            raise findings.Refusal("It repeats the examples.")
        # Indices of the last axis stay what they are, if there are several.
        ranges = value.ranges or ()
        if len(ranges) > 1 and sizes[-1] == value.shape[-1]:
            return values_lib.examples(sizes, own.at(axis), value.ranges)
        return values_lib.like(value, sizes, own.at(axis))
    # Not left to TensorFlow, which takes a repeated constant for one of the
    # shape that it had, whatever the shape that was asked for.
    for size, wide in zip(value.shape[::-1], sizes[::-1], strict=False):
        if size not in (None, 1, wide) and sizes_lib.hang_on_batch(
            [size, wide]
        ):
            raise findings.Refusal(f"It repeats {size} to {wide}.")
    found = layouts.combined([value], sizes, walk.batch, is_uniform=True)
    return Value(
        found.kind,
        found.sizes,
        found.layout,
        on_batch_size=found.on_batch_size,
        ranges=values_lib.one_range(value),
    )


@registry.rule("Tile", shapes=(1,), takes_numbers=True, lists_sizes=True)
def tile(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Puts copies of a tensor side by side."""
    del op
    value, multiples = values
    if multiples.numbers is None:
        raise findings.Refusal(
            "It repeats by a number that is not known.", is_definite=False
        )
    array = value.array()
    if array is not None and all(
        m is not None and m.is_number for m in multiples.numbers
    ):
        tiled = np.tile(
            array, [int(Size.of(m or 0)) for m in multiples.numbers]
        )
        if tiled.size <= arithmetic.MOST_NUMBERS:
            return values_lib.numbers_of(tiled, value.on_batch_size)
    sizes = tuple(
        None if s is None or m is None else s * m
        for s, m in zip(value.shape, multiples.numbers, strict=True)
    )
    if value.is_examples:
        own = value.example_layout
        times = multiples.numbers[own.axis]
        if times is None or sizes_lib.hang_on_batch(multiples.numbers):
            raise findings.Refusal("It repeats the examples.")
        layout = _copied(own, times)
        return values_lib.like(value, sizes, layout)
    if value.kind is Kind.UNIFORM:
        return values_lib.like(value, sizes)
    return _tiled_rows(value, multiples.numbers, sizes, walk)


def _copied(layout: values_lib.Layout, times: Size) -> values_lib.Layout:
    """Returns the layout of copies that follow each other."""
    return values_lib.Layout(layout.axis, layout.before * times, layout.after)


def _tiled_rows(
    value: Value, times: Sequence[MaybeSize], sizes: Sizes, walk: Walk
) -> Value:
    """Repeats data-free numbers, as often as there are examples."""
    hangs = value.hangs_on_batch
    axes = [
        i for i, m in enumerate(times) if m is not None and m.hangs_on_batch
    ]
    if len(axes) == 1 and not hangs:
        (axis,) = axes
        after, before = value.shape[axis], times[axis]
        before = None if before is None else before.divided_by(walk.batch)
        if after is not None and before is not None:
            layout = values_lib.Layout(axis, before, after)
            ranges = values_lib.one_range(value)
            return values_lib.examples(sizes, layout, ranges)
    return values_lib.free(sizes, None, hangs, values_lib.one_range(value))
