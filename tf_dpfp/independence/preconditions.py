"""What every rule asks of the values that it is given."""

from collections.abc import Sequence

from tf_dpfp.independence import findings
from tf_dpfp.independence import registry
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value


def check(rule: registry.Rule, values: Sequence[Value]) -> bool:
    """Checks what all rules ask for.

    Args:
        rule: Rule of the operation, with what it says it can take.
        values: What is known of the operation's inputs.

    Returns:
        True if the result may hang on the batch size.

    Raises:
        findings.Refusal: If a value is nothing that the rule can take.
    """
    if rule.takes_mixed:
        return False
    count = len(values)
    shapes = {i % count for i in rule.shapes if -count <= i < count}
    per_example = lists = False
    for value in values:
        per_example = per_example or value.is_examples
        lists = lists or value.kind in (Kind.LIST, Kind.RESOURCE)
        if value.numbers_examples and not rule.takes_numbers:
            raise findings.Refusal(
                "It computes with the number of the row.",
                findings.ROW_NUMBER,
            )
    if lists and not rule.takes_lists:
        raise findings.Refusal("It reads a list or a variable.")
    hangs = False
    for i, value in enumerate(values):
        if i in shapes and value.is_examples:
            raise findings.Refusal("The data decide a shape.")
        if value.hangs_on_batch and (i not in shapes or value.numbers is None):
            hangs = True
    # One axis of a number that is the same everywhere may meet the examples;
    # what comes of a second one would tell how many there are.
    if per_example and any(map(_repeats_batch, values)):
        raise findings.Refusal(
            "The batch size occurs in more than one axis of an operand.",
            findings.BATCH_SIZE,
        )
    if hangs and per_example and not rule.takes_batch_size:
        raise findings.Refusal(
            "It computes with the batch size.", findings.BATCH_SIZE
        )
    return hangs


def _repeats_batch(value: Value) -> bool:
    sizes = value.sizes or ()
    count = sum(s is not None and s.hangs_on_batch for s in sizes)
    return value.kind is Kind.UNIFORM and count > 1
