"""Operations without a rule, and those of one example alone."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import state_rules
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value


def of_free(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Describes a function of what is free of data: it is so, too.

    Args:
        op: An operation.
        values: Its inputs.
        walk: The walk.

    Returns:
        Values of the outputs.

    Raises:
        Refusal: If data are in an input, or the operation has a state.
    """
    free = all(v.is_free and not v.hangs_on_batch for v in values)
    if not free or op.op_def.is_stateful:
        raise findings.Refusal(
            "There is no rule for this operation.",
            findings.NO_RULE,
            is_definite=False,
        )
    hangs = any(
        v.sizes is None or sizes_lib.hang_on_batch(v.sizes) for v in values
    )
    return [values_lib.free(walk.static(o), None, hangs) for o in op.outputs]


def of_one(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Describes a function of one example alone.

    Args:
        op: An operation.
        values: Its inputs.
        walk: The walk.

    Returns:
        Values of the outputs.

    Raises:
        Refusal: If the example meets others, or the operation has a state.
    """
    for value in values:
        if value.kind in (Kind.SINGLE, Kind.RESOURCE):
            continue
        if not value.is_free:
            raise findings.Refusal("One example meets the whole batch.")
        if preconditions.holds_batch_size(value):
            raise findings.Refusal(
                "One example meets the number of its row, or of all rows.",
                findings.ROW_NUMBER,
            )
    if op.op_def.is_stateful:
        if op.type not in state_rules.READS:
            raise findings.Refusal(
                "There is no rule for this operation.",
                findings.NO_RULE,
                is_definite=False,
            )
        if "Random" in op.type:
            walk.note_random(op)
    return [Value(Kind.SINGLE, walk.static(o)) for o in op.outputs]
