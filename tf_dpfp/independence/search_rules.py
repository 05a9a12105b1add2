"""Rules of searches in rows: each number by itself, in its own row."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import image_rules
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value


@registry.rule("LowerBound", "UpperBound")
def search(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Finds the place of each number in the sorted row of the same index."""
    del op, walk
    rows, wanted = values
    if rows.rank != 2 or wanted.rank != 2:
        raise findings.Refusal("Its operands have more or fewer axes.")
    if not rows.is_examples and not wanted.is_examples:
        hangs = any(
            v.hangs_on_batch or sizes_lib.hang_on_batch(v.shape) for v in values
        )
        return values_lib.free(wanted.sizes, None, hangs)
    count = rows.shape[1]
    bounds = None if count is None else (Range(sizes_lib.ZERO, count),)
    if not rows.is_examples and wanted.example_layout.axis == 1:
        # Examples side by side, each of which is looked up by itself.
        if sizes_lib.hang_on_batch(rows.shape):
            raise findings.Refusal(
                "It looks examples up among as many numbers as there are "
                "examples.",
                findings.BATCH_SIZE,
            )
        return values_lib.examples(wanted.shape, wanted.example_layout, bounds)
    layout = image_rules.in_front(values)
    assert layout is not None, values
    if rows.shape[0] != wanted.shape[0]:
        raise findings.Refusal(
            "Its operands may differ in their number of rows.",
            is_definite=False,
        )
    return values_lib.examples(wanted.shape, layout, bounds)


@registry.rule("InTopK", "InTopKV2")
def in_greatest(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Tests each row's label against its greatest numbers."""
    del op, walk
    rows, labels = values[:2]
    if any(v.is_examples for v in values[2:]):
        raise findings.Refusal("The data decide how many are compared.")
    layout = image_rules.in_front([rows, labels])
    if layout is None:
        return values_lib.free(labels.sizes, None, True)
    return values_lib.examples(labels.shape, layout)
