"""Rules of functions and branches.

What they decide by must be free of data and of the batch size.
"""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import joins
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

DECIDES = (
    "It decides by the data what is computed for all examples, or by the "
    "batch size."
)


@registry.rule(
    "PartitionedCall",
    "StatefulPartitionedCall",
    takes_mixed=True,
    takes_numbers=True,
    takes_lists=True,
)
def call(op: tf.Operation, values: Sequence[Value], walk: Walk) -> list[Value]:
    """Interprets the function."""
    found = walk.call(op, op.get_attr("f").name, values)
    return refined(op, found, walk)


def refined(
    op: tf.Operation, found: Sequence[Value], walk: Walk
) -> list[Value]:
    """Fills in sizes that TensorFlow knows of an operation's outputs."""
    return [
        walk.refined(value, output)
        for value, output in zip(found, op.outputs, strict=True)
    ]


@registry.rule(
    "If",
    "StatelessIf",
    takes_mixed=True,
    takes_numbers=True,
    takes_lists=True,
)
def if_else(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Joins two branches."""
    names = [op.get_attr(b).name for b in ("then_branch", "else_branch")]
    condition, *arguments = values
    check_scalar(condition)
    number = _known_number(condition)
    taken = None if number is None else 1 - min(1, abs(number))
    return _branches(op, condition, arguments, names, taken, walk)


@registry.rule(
    "Case",
    "StatelessCase",
    takes_mixed=True,
    takes_numbers=True,
    takes_lists=True,
)
def case(op: tf.Operation, values: Sequence[Value], walk: Walk) -> list[Value]:
    """Joins several branches."""
    names = [branch.name for branch in op.get_attr("branches")]
    index, *arguments = values
    taken = _known_number(index)
    if taken is not None and not 0 <= taken < len(names):
        taken = len(names) - 1
    return _branches(op, index, arguments, names, taken, walk)


def check_scalar(condition: Value) -> None:
    """Refuses to decide by whether there are as many elements as examples.

    A condition that is not one number is true if it has elements.

    Args:
        condition: What is known of a condition.

    Raises:
        Refusal: If the batch size may be a size of it.
    """
    sizes = condition.sizes
    if not condition.is_free or sizes == ():
        return
    unsure = sizes is None and condition.kind is Kind.UNIFORM
    if unsure or sizes_lib.hang_on_batch(sizes or ()):
        raise findings.Refusal(DECIDES, findings.RULE_OUT)


def _known_number(condition: Value) -> int | None:
    """Returns the number that decides, if it is known."""
    if condition.sizes != () or not condition.numbers:
        return None
    number = condition.numbers[0]
    return int(number) if number is not None and number.is_number else None


def _branches(
    op: tf.Operation,
    condition: Value,
    arguments: Sequence[Value],
    names: Sequence[str],
    taken: int | None,
    walk: Walk,
) -> list[Value]:
    if taken is not None:
        # A branch that is taken for all batches but an empty one tells, by
        # what it writes, that there is a batch.
        if condition.on_batch_size and op.op_def.is_stateful:
            walk.note_effects(op)
        return refined(op, walk.call(op, names[taken], arguments), walk)
    if condition.kind is Kind.MIXED and condition.finding is not None:
        raise findings.Refusal(condition.finding.reason)
    if condition.kind is Kind.SINGLE:
        return _chosen_by_one(op, arguments, names, walk)
    if not condition.is_free or condition.hangs_on_batch:
        raise findings.Refusal(DECIDES, findings.RULE_OUT)
    found = walk.call(op, names[0], arguments)
    for name in names[1:]:
        others = walk.call(op, name, arguments)
        found = [
            walk.join(op, a, b) for a, b in zip(found, others, strict=True)
        ]
    return refined(op, found, walk)


def _chosen_by_one(
    op: tf.Operation,
    arguments: Sequence[Value],
    names: Sequence[str],
    walk: Walk,
) -> list[Value]:
    """Decides for the one example that a loop is at."""
    if walk.has_effects(op):
        raise findings.Refusal("The data decide whether something is written.")
    results = [walk.call(op, name, arguments) for name in names]
    for found in results:
        for value in found:
            plain = value.kind is Kind.SINGLE or (
                value.is_free and not preconditions.holds_batch_size(value)
            )
            # A branch that is not taken hands its gradient an empty holder.
            if not plain and not _holds_nothing(value):
                raise findings.Refusal("One example meets the whole batch.")
    return [
        Value(Kind.SINGLE, joins.common_sizes([v.sizes for v in column]))
        for column in zip(*results, strict=True)
    ]


def _holds_nothing(value: Value) -> bool:
    empty = value.item is None and value.length is None and not value.by_item
    return value.kind is Kind.LIST and empty and not value.hangs_on_batch
