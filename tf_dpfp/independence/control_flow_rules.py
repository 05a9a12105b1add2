"""Rules of functions, branches and loops.

What they decide by must be free of data and of the batch size. A loop is
interpreted until what is known of its variables no longer changes.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

# A loop's variables become less known with every round: few rounds are enough.
_MOST_ROUNDS = 12

_DECIDES = (
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
def call(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Interprets the function."""
    found = walk.call(op, op.get_attr("f").name, values)
    return _refined(op, found, walk)


def _refined(
    op: tf.Operation, found: Sequence[Value], walk: Walk
) -> list[Value]:
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
    number = condition.numbers[0] if condition.numbers else None
    if number is not None and not number.is_number:
        number = None
    taken = None if number is None else 1 - min(1, abs(int(number)))
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
    number = index.numbers[0] if index.numbers else None
    taken = None
    if number is not None and number.is_number:
        taken = int(number)
        if not 0 <= taken < len(names):
            taken = len(names) - 1
    return _branches(op, index, arguments, names, taken, walk)


def _branches(
    op: tf.Operation,
    condition: Value,
    arguments: Sequence[Value],
    names: Sequence[str],
    taken: int | None,
    walk: Walk,
) -> list[Value]:
    # A branch that is never taken for any batch size has no effect, but one
    # that is not taken for a batch of none would tell that by its effects.
    if taken is not None and not (
        condition.on_batch_size and op.type in ("If", "Case")
    ):
        return _refined(op, walk.call(op, names[taken], arguments), walk)
    if condition.kind is Kind.MIXED and condition.finding is not None:
        raise findings.Refusal(condition.finding.reason)
    if condition.kind is Kind.SINGLE:
        return _chosen_by_one(op, arguments, names, walk)
    if not condition.is_free or condition.hangs_on_batch:
        raise findings.Refusal(_DECIDES, findings.RULE_OUT)
    found = walk.call(op, names[0], arguments)
    for name in names[1:]:
        others = walk.call(op, name, arguments)
        found = [
            walk.join(op, a, b) for a, b in zip(found, others, strict=True)
        ]
    return _refined(op, found, walk)


def _chosen_by_one(
    op: tf.Operation,
    arguments: Sequence[Value],
    names: Sequence[str],
    walk: Walk,
) -> list[Value]:
    """Decides for the one example that a loop is at."""
    if op.type in ("If", "Case"):
        raise findings.Refusal("The data decide whether something is written.")
    results = [walk.call(op, name, arguments) for name in names]
    for found in results:
        for value in found:
            plain = value.kind is Kind.SINGLE or (
                value.is_free and not value.hangs_on_batch
            )
            if not plain:
                raise findings.Refusal("One example meets the whole batch.")
    return [Value(Kind.SINGLE, walk.static(o)) for o in op.outputs]


@registry.rule(
    "While",
    "StatelessWhile",
    takes_mixed=True,
    takes_numbers=True,
    takes_lists=True,
)
def while_loop(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Interprets rounds until nothing changes."""
    condition_name = op.get_attr("cond").name
    body_name = op.get_attr("body").name
    counters = _counters(walk.body(op, body_name), values)
    # Within a loop over examples, the counter of another loop is a number.
    counts = not walk.loops
    state = list(values)
    walk.loops += 1
    try:
        for _ in range(_MOST_ROUNDS):
            for i in counters:
                state[i] = _counter(counts)
            with walk.unjudged():
                (goes_on,) = walk.call(op, condition_name, state)
                _check_condition(goes_on)
                if counts and not goes_on.counts_examples:
                    counts = False
                    continue
                new = walk.call(op, body_name, state)
            joined = [
                a if i in counters else walk.join(op, a, b)
                for i, (a, b) in enumerate(zip(state, new, strict=True))
            ]
            if joined == state:
                break
            state = joined
        else:
            raise findings.Refusal("It is a loop that does not settle.")
        if walk.loops == 1:
            _check_nothing_carried(state)
        # Once more, to judge what is written in it.
        walk.call(op, condition_name, state)
        walk.call(op, body_name, state)
    finally:
        walk.loops -= 1
    for i in counters:
        state[i] = values_lib.free((), (None,))
        if counts:
            state[i] = values_lib.free((), None, True)
    return _refined(op, state, walk)


def _check_nothing_carried(state: Sequence[Value]) -> None:
    """Checks that no example's numbers are there in the next one's round."""
    for value in state:
        held = value.item if value.kind is Kind.LIST else value
        if held is None or value.by_item:
            continue
        if held.kind is Kind.SINGLE:
            raise findings.Refusal(
                "It carries numbers of one example over to the next one."
            )


def _check_condition(goes_on: Value) -> None:
    if goes_on.kind is Kind.MIXED and goes_on.finding is not None:
        raise findings.Refusal(
            "It is a loop as long as the data say. " + goes_on.finding.reason
        )
    if goes_on.counts_examples:
        return
    if not goes_on.is_free or goes_on.hangs_on_batch:
        raise findings.Refusal(
            "It is a loop as long as the data, or the batch size, say.",
            findings.RULE_OUT,
        )


def _counter(counts: bool) -> Value:
    return dataclasses.replace(
        values_lib.free((), (None,)), counts_examples=counts
    )


def _counters(body: tf.Graph, values: Sequence[Value]) -> set[int]:
    """Finds the variables that start at 0 and grow by 1 in every round."""
    found = set()
    for i, (start, output) in enumerate(
        zip(values, body.outputs, strict=True)
    ):
        if start.numbers != (sizes_lib.ZERO,) or start.shape != ():
            continue
        if _adds_one(output, body.inputs[i]):
            found.add(i)
    return found


def _adds_one(tensor: tf.Tensor, start: tf.Tensor) -> bool:
    """Returns true if a tensor is `start + 1`."""
    op = tensor.op
    while op.type == "Identity":
        op = op.inputs[0].op
    if op.type not in ("Add", "AddV2"):
        return False
    for one, other in (op.inputs, reversed(op.inputs)):
        if one is start and tf.get_static_value(other) == 1:
            return True
    return False
