"""Rules of loops.

A loop is interpreted until what is known of its variables no longer changes.
It must be as long as data-free numbers say, or have one round for each
example, `while i < batch_size`: then each round may see its own example, and
nothing is handed from one round to the next.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import functions
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.control_flow_rules import check_scalar
from tf_dpfp.independence.control_flow_rules import refined
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

# A loop's variables become less known with every round: few rounds are enough.
_MOST_ROUNDS = 12


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A loop and its variables.

    Attributes:
        op: The operation.
        condition: Name of the condition's function.
        body: Name of the body's function.
        counters: Variables that start at 0 and grow by 1 in every round.
        fixed: Variables that never change.
        is_over_examples: True if there is one round for each example.
    """

    op: tf.Operation
    condition: str
    body: str
    counters: frozenset[int]
    fixed: frozenset[int]
    is_over_examples: bool = False


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
    condition, body = (op.get_attr(n).name for n in ("cond", "body"))
    graph = walk.body(op, body)
    loop = _Loop(op, condition, body, *_variables(graph, values))
    # Within a loop over examples, another one is a loop like any other.
    if not walk.loops and _is_over_examples(loop, values, walk):
        loop = dataclasses.replace(loop, is_over_examples=True)
    walk.loops += 1
    before, walk.counting = (
        walk.counting,
        walk.counting or loop.is_over_examples,
    )
    try:
        state, goes_on = _settled(loop, values, walk)
    finally:
        walk.loops -= 1
        walk.counting = before
    return refined(op, _behind(loop, state, goes_on), walk)


def _variables(
    body: tf.Graph, values: Sequence[Value]
) -> tuple[frozenset[int], frozenset[int]]:
    """Finds the counters and the variables that never change."""
    counters, fixed = set(), set()
    for i, output in enumerate(body.outputs):
        if _source(output) is body.inputs[i]:
            fixed.add(i)
        starts = values[i].numbers == (sizes_lib.ZERO,)
        if starts and values[i].sizes == ():
            if _adds_one(output, body.inputs[i]):
                counters.add(i)
    return frozenset(counters), frozenset(fixed)


def _source(tensor: tf.Tensor) -> tf.Tensor:
    """Returns what a tensor is a copy of."""
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _adds_one(tensor: tf.Tensor, start: tf.Tensor) -> bool:
    """Returns true if a tensor is `start + 1`."""
    op = _source(tensor).op
    if op.type not in ("Add", "AddV2"):
        return False
    for one, other in (op.inputs, reversed(op.inputs)):
        if _source(one) is start and functions.constant(other) == 1:
            return True
    return False


def _is_over_examples(loop: _Loop, values: Sequence[Value], walk: Walk) -> bool:
    state = [
        _row_number() if i in loop.counters else v for i, v in enumerate(values)
    ]
    with walk.unjudged():
        (goes_on,) = walk.call(loop.op, loop.condition, state)
    return goes_on.counts_examples


def _row_number() -> Value:
    """Describes the counter of a loop over examples."""
    value = values_lib.free((), (sizes_lib.ROW,))
    return dataclasses.replace(value, counts_examples=True)


def _settled(
    loop: _Loop, values: Sequence[Value], walk: Walk
) -> tuple[list[Value], Value]:
    """Returns what holds of the variables in every round.

    Args:
        loop: The loop.
        values: Its arguments.
        walk: The walk.

    Returns:
        Values of the variables, and the one of the condition.
    """
    state = [_at_start(loop, i, v) for i, v in enumerate(values)]
    for _ in range(_MOST_ROUNDS):
        # What it writes is judged by what holds of every round.
        with walk.tentatively() as notes:
            (goes_on,) = walk.call(loop.op, loop.condition, state)
            _check_condition(loop, goes_on, walk)
            new = walk.call(loop.op, loop.body, state)
            joined = _joined(loop, state, new, walk)
            if joined == state:
                if loop.is_over_examples:
                    _check_nothing_carried(loop, state)
                notes.keep()
                return state, goes_on
        state = joined
    raise findings.Refusal("It is a loop that does not settle.")


def _joined(
    loop: _Loop, state: Sequence[Value], new: Sequence[Value], walk: Walk
) -> list[Value]:
    """Returns what holds of the variables before and after a round."""
    joined = []
    for i, (a, b) in enumerate(zip(state, new, strict=True)):
        if i in loop.counters or i in loop.fixed:
            joined.append(a)
        else:
            joined.append(walk.join(loop.op, a, _next_round(loop, b)))
    return joined


def _at_start(loop: _Loop, index: int, value: Value) -> Value:
    if index in loop.counters:
        if loop.is_over_examples:
            return _row_number()
        return values_lib.free((), (None,))
    if loop.is_over_examples and index not in loop.fixed:
        return _of_round(value)
    return value


def _of_round(value: Value) -> Value:
    """Describes a variable that changes from example to example."""
    if not value.is_free:
        return value
    return dataclasses.replace(
        value, numbers=None, ranges=None, on_batch_size=True
    )


def _next_round(loop: _Loop, value: Value) -> Value:
    """Describes a variable at the end of a round for the next one."""
    if not loop.is_over_examples:
        return value
    if any(size is not None and size.names_row for size in value.sizes or ()):
        raise findings.Refusal("The number of the row decides a shape.")
    return _of_round(value)


def _check_condition(loop: _Loop, goes_on: Value, walk: Walk) -> None:
    if goes_on.kind is Kind.MIXED and goes_on.finding is not None:
        raise findings.Refusal(
            "It is a loop as long as the data say. " + goes_on.finding.reason
        )
    check_scalar(goes_on)
    if goes_on.kind is Kind.SINGLE and not walk.has_effects(loop.op):
        return
    if loop.is_over_examples and goes_on.counts_examples:
        return
    if not goes_on.is_free or goes_on.hangs_on_batch:
        raise findings.Refusal(
            "It is a loop as long as the data, or the batch size, say.",
            findings.RULE_OUT,
        )


def _check_nothing_carried(loop: _Loop, state: Sequence[Value]) -> None:
    """Checks that no round hands anything to the next one."""
    for i, value in enumerate(state):
        if i in loop.fixed or i in loop.counters or value.is_free:
            continue
        # A list without items may still grow in every round.
        empty = value.item is None and value.length is not None
        if value.kind is Kind.LIST and (value.by_item or empty):
            continue
        if value.kind is Kind.MIXED:
            continue
        raise findings.Refusal(
            "It carries numbers of one example over to the next one."
        )


def _behind(loop: _Loop, state: Sequence[Value], goes_on: Value) -> list[Value]:
    """Describes the variables behind a loop."""
    found = list(state)
    for i in loop.counters:
        found[i] = values_lib.free((), (None,))
        if loop.is_over_examples:
            found[i] = values_lib.free((), None, True)
    if goes_on.kind is not Kind.SINGLE:
        return found
    # How many rounds there were is a fact about one example.
    for i, value in enumerate(found):
        if i not in loop.fixed:
            found[i] = _of_one(value)
    return found


def _of_one(value: Value) -> Value:
    if value.kind is Kind.MIXED:
        return value
    if value.kind is not Kind.SINGLE and (
        not value.is_free or preconditions.holds_batch_size(value)
    ):
        raise findings.Refusal("One example meets the whole batch.")
    return Value(Kind.SINGLE, value.sizes)
