"""What every rule asks of the values that it is given, and of its results."""

import dataclasses
from collections.abc import Collection, Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import inferred
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value

# Kernels, or rules, compare the sizes that these are given with those of a
# tensor.
_COMPARED = frozenset(("Reshape", "Slice", "StridedSlice"))


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
    if per_example:
        _check_equal(rule, [v for v in values if v.kind is Kind.UNIFORM])
    if hangs and per_example and not rule.takes_batch_size:
        raise findings.Refusal(
            "It computes with the batch size.", findings.BATCH_SIZE
        )
    return hangs


def check_sizes(
    op: tf.Operation,
    rule: registry.Rule,
    values: Sequence[Value],
    axes: Collection[MaybeSize],
) -> None:
    """Refuses to make a tensor as large as a number that may wrap around.

    Args:
        op: An operation.
        rule: Its rule.
        values: What is known of its inputs.
        axes: Sizes of axes that there are, which did not wrap around.

    Raises:
        findings.Refusal: If a size may be another one than the graph computes.
    """
    if not rule.shapes or op.type in _COMPARED:
        return
    for i in rule.shapes:
        if not -len(values) <= i < len(values):
            continue
        bits = 8 * op.inputs[i].dtype.size
        for number in values[i].numbers or ():
            if number is None or number.is_number or number in axes:
                continue
            if not number.surely_fits(bits):
                raise findings.Refusal(
                    f"It makes a tensor of size {number}, which may be more "
                    "than its type holds.",
                    is_definite=False,
                )


def _check_equal(rule: registry.Rule, values: Sequence[Value]) -> None:
    """Refuses numbers that may be as many as examples along some axes.

    One axis of a number that is the same everywhere may meet the examples; what
    comes of a second one would tell how many there are.

    Args:
        rule: Rule of the operation, with an operand that is per example.
        values: Its operands that are one number everywhere.
    """
    for value in values:
        if value.sizes is None and not rule.takes_lists:
            raise findings.Refusal(
                "The sizes of an operand are not known.", is_definite=False
            )
        sizes = value.sizes or ()
        if sum(s is not None and s.hangs_on_batch for s in sizes) > 1:
            raise findings.Refusal(
                "The batch size occurs in more than one axis of an operand.",
                findings.BATCH_SIZE,
            )


def finish(
    rule: registry.Rule,
    values: Sequence[Value],
    results: Sequence[Value],
    hangs: bool,
) -> list[Value]:
    """Checks what must hold of all results.

    A size that is not known must be free of the batch size. So where the batch
    size goes in and an unknown size comes out, nothing is said of it.

    Args:
        rule: Rule of the operation.
        values: What is known of the operation's inputs.
        results: What the rule says of its outputs.
        hangs: True if the results may hang on the batch size.

    Returns:
        The results, those that are free of data marked if they may hang on
        the batch size.

    Raises:
        findings.Refusal: If a result of the batch size was taken for one of
            examples.
    """
    if rule.takes_mixed:
        return list(results)
    if hangs and not rule.takes_batch_size:
        if any(v.is_examples for v in results):
            raise findings.Refusal(
                "It computes with the batch size.", findings.BATCH_SIZE
            )
    marks = [_is_unmarked(v) and (hangs or _is_unsure(v)) for v in results]
    if not hangs and any(marks):
        # What is not known of numbers is free of the batch size.
        listed = rule.lists_sizes and all(
            values[i].numbers is not None for i in rule.shapes
        )
        counts = not (listed or rule.takes_lists) and any(
            map(holds_batch_size, values)
        )
        marks = [counts and mark for mark in marks]
    return [
        dataclasses.replace(value, on_batch_size=True) if mark else value
        for value, mark in zip(results, marks, strict=True)
    ]


def _is_unmarked(value: Value) -> bool:
    return value.is_free and not value.on_batch_size


def _is_unsure(value: Value) -> bool:
    return value.sizes is None or None in value.sizes


def without_claims(op: tf.Operation, results: Sequence[Value]) -> list[Value]:
    """Checks that what an operation says of its shapes is proved.

    Args:
        op: An operation of a type in `inferred.CLAIMS`.
        results: What its rule says of its outputs.

    Returns:
        The results, without the sizes of those that are not proved.

    Raises:
        findings.Refusal: If it says what is not proved.
    """
    found = []
    for shape, value in zip(inferred.claimed(op), results, strict=True):
        if value.kind in (Kind.LIST, Kind.RESOURCE):
            found.append(value)
        elif not inferred.says_more(shape, value.sizes):
            found.append(value)
        elif value.kind in (Kind.MIXED, Kind.SINGLE):
            found.append(dataclasses.replace(value, sizes=None))
        else:
            raise findings.Refusal(*inferred.UNPROVED_SHAPE, is_definite=False)
    return found


def holds_batch_size(value: Value) -> bool:
    """Tells if the batch size may be read off a tensor or its shape.

    Args:
        value: What is known of the tensor.
    """
    if value.kind in (Kind.LIST, Kind.RESOURCE, Kind.SINGLE):
        return value.hangs_on_batch
    if value.on_batch_size or sizes_lib.hang_on_batch(value.sizes or ()):
        return True
    # Of unknown sizes, a number that is the same everywhere says nothing.
    return value.sizes is None and value.kind is Kind.UNIFORM
