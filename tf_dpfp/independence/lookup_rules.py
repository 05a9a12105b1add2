"""Rules of lookups, and of sums by index.

A lookup in a table that is free of data is a function of the index. A lookup
in examples needs indices that are proved to be in range: kernels, and the
gradients of TensorFlow, compute `example * size + index`, which is another
example's place if the index is out of range.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import findings
from tf_dpfp.independence import image_rules
from tf_dpfp.independence import layouts
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import state_rules
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value

OTHERS = "It looks up other examples by their place in the batch."
BEYOND = (
    "It looks up an index that is out of range for some batch sizes, and then "
    "finds zero."
)
OUT_OF_RANGE = (
    "It looks up positions of an example by an index that may be out of range, "
    "and then lands in another example."
)


@registry.rule("GatherV2", "Gather", takes_numbers=True, takes_batch_size=True)
def gather(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Looks indices up along an axis."""
    table, index = values[:2]
    fronts, axis = 0, 0
    if op.type == "GatherV2":
        fronts = op.get_attr("batch_dims")
        fronts += index.rank if fronts < 0 else 0
        axis = values[2].integers("axis")[0] % table.rank
    known = _gathered_numbers(table, index, axis)
    if known is not None:
        return known
    sizes = (
        *table.shape[:axis],
        *index.shape[fronts:],
        *table.shape[axis + 1 :],
    )
    sizes = walk.filled(sizes, op.outputs[0])
    plain = table.layout is not None and table.layout.is_plain
    if plain and axis == 0 and index.numbers == (sizes_lib.ROW,):
        if table.numbers_examples or index.rank:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
        return Value(Kind.SINGLE, sizes)
    if table.is_examples and index.hangs_on_batch:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if index.is_examples and table.hangs_on_batch:
        raise findings.Refusal(
            "It computes with the batch size.", findings.BATCH_SIZE
        )
    if table.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if index.numbers_examples:
        if fronts:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
        return _gather_by_example(table, index, axis, sizes)
    if table.is_examples:
        return _gather_in_examples(table, index, axis, fronts, sizes)
    if index.is_examples:
        return _gather_in_table(table, index, axis, fronts, sizes)
    hangs = table.hangs_on_batch or index.hangs_on_batch
    if table.kind is Kind.UNIFORM and may_miss(index, table.shape[axis]):
        return values_lib.uniform(sizes, True)
    # Zeros are found beyond the last: they are not what the table holds.
    finds = bounds_lib.of(index, tf.int64).within(table.shape[axis])
    if table.kind is Kind.UNIFORM and finds:
        return values_lib.uniform(sizes, hangs)
    ranges = table.ranges if finds and not table.hangs_on_batch else None
    one = None if ranges is None or len(ranges) > 1 else ranges
    return values_lib.free(sizes, None, hangs, one)


def _gathered_numbers(table: Value, index: Value, axis: int) -> Value | None:
    """Returns known numbers at known places."""
    array, places = table.array(), index.array()
    if array is None or places is None or axis != 0 or not array.ndim:
        return None
    flat = [p for p in places.ravel()]
    if any(p is None or not p.is_number for p in flat):
        return None
    if any(not 0 <= int(p) < len(array) for p in flat):
        return None
    rows = [array[int(p)] for p in flat]
    found = np.empty(len(rows), object)
    if array.ndim > 1:
        return None
    found[:] = rows
    hangs = table.on_batch_size or index.on_batch_size
    return values_lib.numbers_of(found.reshape(places.shape), hangs)


def _gather_by_example(
    table: Value, index: Value, axis: int, sizes: Sizes
) -> Value:
    """Looks up an example's own rows by `example * step + position`."""
    if index.ranges is None or len(index.ranges) != 1:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    (bounds,) = index.ranges
    if table.kind is Kind.UNIFORM:
        step, size = bounds.step, table.shape[axis]
        fits = size is not None and size.divided_by(step) == sizes_lib.BATCH
        if not fits or not bounds.within(step):
            raise findings.Refusal(OUT_OF_RANGE, findings.IN_RANGE)
        return values_lib.uniform(sizes, table.hangs_on_batch)
    own, at = table.layout, index.example_layout
    if not table.is_examples or own is None or own.axis != axis:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if own.before != 1 or bounds.step != own.after:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if not bounds.within(own.after):
        raise findings.Refusal(OUT_OF_RANGE, findings.IN_RANGE)
    return values_lib.examples(sizes, at.at(axis + at.axis))


def _gather_in_examples(
    table: Value, index: Value, axis: int, fronts: int, sizes: Sizes
) -> Value:
    """Looks up positions within each example."""
    own = table.example_layout
    if own.axis == axis:
        raise findings.Refusal(OTHERS)
    if own.axis >= fronts:
        if index.is_examples:
            raise findings.Refusal(
                "It looks up every example's positions in all examples."
            )
        # Positions that are the same for all: each example's own.
        moved = (
            own.axis
            if own.axis < axis
            else (own.axis + index.rank - fronts - 1)
        )
        return values_lib.examples(sizes, own.at(moved))
    if index.is_examples:
        if index.example_layout != own:
            raise findings.Refusal(
                "Its operands hold the examples differently."
            )
    elif index.kind is not Kind.UNIFORM and index.shape[own.axis] != 1:
        raise findings.Refusal(
            "It looks up another position for every row of the batch.",
            findings.ROW_NUMBER,
        )
    _check_in_range(index, table.shape[axis])
    return values_lib.examples(sizes, own)


def may_miss(index: Value, size: MaybeSize) -> bool:
    """Tells if the batch size decides whether a lookup finds a number.

    Kernels return zeros for an index that is out of range, or stop.

    Args:
        index: What is known of the indices.
        size: Size of the axis along which they are looked up.
    """
    if not sizes_lib.hang_on_batch([size]):
        return False
    return not bounds_lib.of(index, tf.int64).within(size)


def _check_in_range(index: Value, size: MaybeSize) -> None:
    bounds = bounds_lib.of(index, tf.int64)
    if not bounds.within(size):
        raise findings.Refusal(OUT_OF_RANGE, findings.IN_RANGE)


def _gather_in_table(
    table: Value, index: Value, axis: int, fronts: int, sizes: Sizes
) -> Value:
    """Looks up examples' indices in numbers that are free of data."""
    at = index.example_layout
    if may_miss(index, table.shape[axis]):
        raise findings.Refusal(BEYOND, findings.IN_RANGE)
    if at.axis >= fronts:
        return values_lib.examples(sizes, at.at(axis + at.axis - fronts))
    if table.kind is not Kind.UNIFORM and table.shape[at.axis] != 1:
        raise findings.Refusal(
            "It looks up a table that differs from row to row.",
            findings.ROW_NUMBER,
        )
    _check_in_range(index, table.shape[axis])
    return values_lib.examples(sizes, at)


@registry.rule("ResourceGather", takes_lists=True)
def resource_gather(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Looks indices up in a variable."""
    state_rules.check_read(values[0])
    index = values[1]
    rows = walk.static(op.outputs[0])
    if rows is None or op.get_attr("batch_dims"):
        raise findings.Refusal(
            "It looks up a variable of unknown sizes.", is_definite=False
        )
    sizes = (*index.shape, *rows[index.rank :])
    if index.is_examples:
        return values_lib.examples(sizes, index.example_layout)
    if index.kind is Kind.UNIFORM and not index.hangs_on_batch:
        axes = [
            i for i, s in enumerate(sizes) if s is not None and s.hangs_on_batch
        ]
        front = sizes[axes[0]] if axes else None
        after = None if front is None else front.divided_by(walk.batch)
        if len(axes) == 1 and after is not None:
            return values_lib.examples(sizes, Layout(axes[0], ONE, after))
    return values_lib.free(sizes, None, index.hangs_on_batch)


@registry.rule("GatherNd", takes_numbers=True)
def gather_nd(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Looks up by several indices at a time, listed along the last axis."""
    del op, walk
    table, index = values
    if table.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    width = index.shape[-1]
    if width is None or not width.is_number:
        raise findings.Refusal(
            "It looks up by an unknown number of indices.", is_definite=False
        )
    count = int(width)
    sizes = (*index.shape[:-1], *table.shape[count:])
    columns = bounds_by_column(index, count)
    misses = not table.is_examples and any(
        _column_may_miss(bounds, size)
        for bounds, size in zip(columns, table.shape[:count], strict=True)
    )
    if not table.is_examples and not index.is_examples:
        hangs = table.hangs_on_batch or index.hangs_on_batch or misses
        return values_lib.free(sizes, None, hangs)
    if misses:
        raise findings.Refusal(BEYOND, findings.IN_RANGE)
    if index.is_examples and index.example_layout.axis == index.rank - 1:
        raise findings.Refusal(OTHERS)
    if not table.is_examples:
        if table.kind is not Kind.UNIFORM and index.numbers_examples:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
        return values_lib.examples(sizes, index.example_layout)
    own = table.example_layout
    if own.axis >= count:
        if index.is_examples:
            raise findings.Refusal(OTHERS)
        return values_lib.examples(
            sizes, own.at(own.axis - count + index.rank - 1)
        )
    check_own(columns, own, table.shape[:count])
    return values_lib.examples(sizes, index.example_layout)


def _column_may_miss(bounds: Range, size: MaybeSize) -> bool:
    """Tells if the batch size, or the row, decides whether one is found."""
    if bounds.numbers_examples:
        # Number `row * step + place` of as many as there are.
        fits = size is not None and size == sizes_lib.BATCH * bounds.step
        return not fits or not bounds.within(bounds.step)
    return sizes_lib.hang_on_batch([size]) and not bounds.within(size)


def bounds_by_column(index: Value, count: int) -> list[Range]:
    """Returns bounds for each of several indices."""
    ranges = index.ranges or (bounds_lib.UNBOUNDED,)
    if len(ranges) == count:
        return list(ranges)
    return [values_lib.hull(ranges)] * count


def check_own(
    columns: Sequence[Range], own: Layout, sizes: Sequence[MaybeSize]
) -> None:
    """Checks that indices point into their own example.

    Args:
        columns: Bounds of each index.
        own: Layout of the examples, along one of the indexed axes.
        sizes: Sizes of the indexed axes.

    Raises:
        Refusal: If they may point elsewhere.
    """
    for axis, (bounds, size) in enumerate(zip(columns, sizes, strict=True)):
        if axis == own.axis:
            if own.before != 1 or bounds.step != own.after:
                raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
            size = own.after
        elif bounds.numbers_examples:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
        if not bounds.within(size):
            raise findings.Refusal(OUT_OF_RANGE, findings.IN_RANGE)


@registry.rule("OneHot")
def one_hot(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Marks the place of an index; none if it is out of range."""
    del walk
    index, depth, on, off = values
    if any(v.is_examples for v in (depth, on, off)):
        raise findings.Refusal("The data decide its numbers.")
    axis = op.get_attr("axis")
    axis = index.rank if axis == -1 else axis
    count = depth.numbers[0] if depth.numbers else None
    sizes = (*index.shape[:axis], count, *index.shape[axis:])
    bounds = None
    if on.numbers and off.numbers:
        bounds = (
            values_lib.hull([Range(n, n) for n in (*on.numbers, *off.numbers)]),
        )
    if not index.is_examples:
        hangs = index.hangs_on_batch or depth.hangs_on_batch
        return values_lib.free(sizes, None, hangs, bounds)
    own = index.example_layout
    return values_lib.examples(
        sizes, own.at(own.axis + (axis <= own.axis)), bounds
    )


@registry.rule(
    "DenseBincount",
    "SparseSoftmaxCrossEntropyWithLogits",
    "SoftmaxCrossEntropyWithLogits",
)
def by_rows(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Works on each row of the first axis alone."""
    rows = list(values)
    if op.type == "DenseBincount":
        counted, depth, weights = values
        # Without weights, the tensor of weights has no elements.
        rows = [counted] if 0 in weights.shape else [counted, weights]
        if counted.rank != 2 and any(v.is_examples for v in rows):
            raise findings.Refusal("It counts over all examples.")
        if depth.is_examples:
            raise findings.Refusal("The data decide how far it counts.")
    layout = image_rules.in_front(rows)
    if layout is None:
        hangs = any(
            v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in values
        )
        return [
            values_lib.free(walk.static(o), None, hangs) for o in op.outputs
        ]
    if op.type == "DenseBincount":
        width = depth.numbers[0] if depth.numbers else None
        return [values_lib.examples((counted.shape[0], width), layout)]
    sizes = layouts.broadcast([values[0].shape, _as_column(values[1])])
    losses = values_lib.examples(sizes[:1], layout)
    return [losses, values_lib.examples(sizes, layout)]


def _as_column(labels: Value) -> Sizes:
    """Returns sizes of labels, one number or one row for each row."""
    return labels.shape if labels.rank == 2 else (*labels.shape, ONE)
