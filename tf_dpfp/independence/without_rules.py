"""Operations without a rule, and those of one example alone."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import state_rules
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

UNWRITTEN = "It reads memory that nothing was written to."


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
    if not free or op.op_def.is_stateful or state_rules.is_unruly(op):
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
        if value.kind is Kind.RESOURCE:
            state_rules.check_read(value)
        if value.kind in (Kind.SINGLE, Kind.RESOURCE):
            continue
        if not value.is_free:
            raise findings.Refusal("One example meets the whole batch.")
        if preconditions.holds_batch_size(value):
            raise findings.Refusal(
                "One example meets the number of its row, or of all rows.",
                findings.ROW_NUMBER,
            )
    _check_memory(op, values)
    keeps = op.op_def.is_stateful and op.type not in state_rules.READS
    if keeps or state_rules.is_unruly(op):
        raise findings.Refusal(
            "There is no rule for this operation.",
            findings.NO_RULE,
            is_definite=False,
        )
    if op.op_def.is_stateful and "seed2" in op.node_def.attr:
        walk.note_random(op)
    return [Value(Kind.SINGLE, s) for s in _sizes(op, values, walk)]


def _sizes(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Sizes | None]:
    """Returns sizes that hold whatever the data are; others are not known."""
    found = [walk.static(o) for o in op.outputs]
    rule = registry.RULES.get(op.type)
    if rule is None or not any(s is None or None in s for s in found):
        return found
    # Unknown sizes of inputs are followed by rules alone.
    stand_ins = [
        values_lib.free(v.sizes) if v.kind is Kind.SINGLE else v for v in values
    ]
    try:
        with walk.unjudged():
            results = rule.apply(op, stand_ins, walk)
    except (findings.Refusal, *findings.RULE_ERRORS):
        return found
    results = results if isinstance(results, list) else [results]
    return [
        _filled(sizes, result.sizes)
        for sizes, result in zip(found, results, strict=True)
    ]


def _filled(sizes: Sizes | None, others: Sizes | None) -> Sizes | None:
    """Fills in sizes that are not known."""
    if sizes is None or others is None or len(sizes) != len(others):
        return others if sizes is None else sizes
    return tuple(
        t if s is None else s for s, t in zip(sizes, others, strict=True)
    )


def _check_memory(op: tf.Operation, values: Sequence[Value]) -> None:
    """Refuses to read memory that was not written to, of other examples."""
    if op.type == "Empty" and not op.get_attr("init"):
        raise findings.Refusal(UNWRITTEN)
    if op.type not in ("DynamicStitch", "ParallelDynamicStitch"):
        return
    places = {n for v in values[: len(values) // 2] for n in v.numbers or (-1,)}
    if places != set(range(len(places))):
        raise findings.Refusal(UNWRITTEN, is_definite=False)
