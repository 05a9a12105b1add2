"""Rules of sums by index, and of scattering: the gradients of lookups.

They compute places as `example * size + index`. That is the example's own
place only if the index is proved to be in range.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import findings
from tf_dpfp.independence import lookup_rules
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.lookup_rules import OTHERS
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value


@registry.rule(
    "UnsortedSegmentSum",
    "UnsortedSegmentMax",
    "UnsortedSegmentMin",
    "UnsortedSegmentProd",
    shapes=(2,),
    takes_numbers=True,
)
def segment_sum(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds up the rows that have the same index."""
    del op
    rows, index, count = values
    if rows.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    total = count.numbers[0] if count.numbers else None
    sizes = (total, *rows.shape[index.rank :])
    if not rows.is_examples and not index.is_examples:
        hangs = rows.hangs_on_batch or index.hangs_on_batch
        hangs = hangs or sizes_lib.hang_on_batch(rows.shape)
        return values_lib.free(sizes, None, hangs)
    if not index.is_examples:
        return _segments_alike(rows, index, sizes)
    if not index.numbers_examples:
        raise findings.Refusal(
            "It adds up rows of different examples that have the same index."
        )
    bounds = bounds_lib.of(index, tf.int64)
    at = index.example_layout
    step = bounds.step
    if rows.is_examples:
        if rows.example_layout != at:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    elif rows.kind is not Kind.UNIFORM:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if total is None or total != walk.batch * step:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if not bounds.within(step):
        raise findings.Refusal(lookup_rules.OUT_OF_RANGE, findings.IN_RANGE)
    return values_lib.examples(sizes, Layout(0, ONE, step))


def _segments_alike(rows: Value, index: Value, sizes: Sizes) -> Value:
    """Adds up positions that are the same ones for every example."""
    own = rows.example_layout
    if own.axis < index.rank:
        raise findings.Refusal(
            "It adds up rows of different examples that have the same index."
        )
    return values_lib.examples(sizes, own.at(own.axis - index.rank + 1))


@registry.rule(
    "SegmentMax", "SegmentMean", "SegmentMin", "SegmentProd", "SegmentSum"
)
def sorted_segments(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Adds up rows of the same index; the last one says how many there are."""
    rows, index = values
    if index.is_examples:
        raise findings.Refusal("The data decide which rows are added up.")
    if not rows.is_examples:
        hangs = any(
            v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in values
        )
        return values_lib.free(walk.static(op.outputs[0]), None, hangs)
    if sizes_lib.hang_on_batch(index.shape):
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    last = index.numbers[-1] if index.numbers else None
    sizes = (None if last is None else last + 1, *rows.shape[1:])
    return _segments_alike(rows, index, sizes)


@registry.rule("ScatterNd", shapes=(2,), takes_numbers=True)
def scatter(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Adds rows to zeros, at the places that indices name."""
    del op
    index, rows, target = values
    if target.numbers is None:
        raise findings.Refusal(
            "It adds to a tensor of unknown sizes.", is_definite=False
        )
    return _scattered(index, rows, target.numbers, None, walk)


@registry.rule(
    "TensorScatterUpdate",
    "TensorScatterAdd",
    "TensorScatterSub",
    "TensorScatterMax",
    "TensorScatterMin",
    takes_numbers=True,
)
def tensor_scatter(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Changes rows of a tensor, at the places that indices name."""
    del op
    table, index, rows = values
    if table.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    return _scattered(index, rows, table.shape, table, walk)


def _scattered(
    index: Value, rows: Value, sizes: Sizes, table: Value | None, walk: Walk
) -> Value:
    if rows.numbers_examples:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    parts = [v for v in (index, rows, table) if v is not None]
    if not any(v.is_examples for v in parts):
        hangs = any(
            v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in parts
        )
        return values_lib.free(sizes, None, hangs)
    width = index.shape[-1]
    if width is None or not width.is_number:
        raise findings.Refusal(
            "It changes places by unknown indices.", is_definite=False
        )
    count = int(width)
    if not index.is_examples:
        return _scattered_alike(index, rows, sizes, table, count)
    at = index.example_layout
    columns = lookup_rules.bounds_by_column(index, count)
    numbered = [i for i, c in enumerate(columns) if c.numbers_examples]
    if len(numbered) != 1 or at.axis == index.rank - 1:
        raise findings.Refusal(OTHERS)
    axis = numbered[0]
    own = Layout(axis, ONE, columns[axis].step)
    fits = sizes[axis] == walk.batch * own.after
    if not fits or (rows.is_examples and rows.example_layout != at):
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if not rows.is_examples and rows.kind is not Kind.UNIFORM:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if table is not None and not table.is_examples:
        if table.kind is not Kind.UNIFORM:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    elif table is not None and table.example_layout != own:
        raise findings.Refusal("Its operands hold the examples differently.")
    lookup_rules.check_own(columns, own, sizes[:count])
    return values_lib.examples(sizes, own)


def _scattered_alike(
    index: Value, rows: Value, sizes: Sizes, table: Value | None, count: int
) -> Value:
    """Changes the same places of all examples, which lie along a later axis."""
    axis = None
    if rows.is_examples:
        inner = rows.example_layout.axis - (index.rank - 1)
        if inner < 0:
            raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
        axis = inner + count
        own = rows.example_layout.at(axis)
    elif table is not None:
        own = table.example_layout
        axis = own.axis
    if axis is None or axis < count:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if table is not None and table.is_examples:
        if table.example_layout != own:
            raise findings.Refusal(
                "Its operands hold the examples differently."
            )
    elif table is not None and table.kind is not Kind.UNIFORM:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if not rows.is_examples and rows.kind is not Kind.UNIFORM:
        raise findings.Refusal(OTHERS, findings.ROW_NUMBER)
    if rows.is_examples:
        size = rows.shape[rows.example_layout.axis]
        if sizes[axis] != size:
            raise findings.Refusal(
                "Its operands hold the examples differently."
            )
    return values_lib.examples(sizes, own)
