"""Joins: what holds of a tensor that may be either of two."""

import dataclasses
from collections.abc import Sequence

from tf_dpfp.independence import findings
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value


def join(a: Value, b: Value) -> Value:
    """Returns what holds of both values.

    The choice between them must be free of data and of the batch size.

    Args:
        a: What is known of the tensor in one case.
        b: What is known of it in the other.

    Returns:
        A `Value` that describes both.

    Raises:
        Refusal: If nothing holds of both.
    """
    if a == b:
        return a
    for value in (a, b):
        if value.kind is Kind.MIXED:
            return value
    kinds = {a.kind, b.kind}
    if Kind.LIST in kinds:
        return _join_lists(a, b)
    if Kind.RESOURCE in kinds:
        raise findings.Refusal("It takes one of several variables.")
    if Kind.SINGLE in kinds:
        return _join_single(a, b)
    sizes = _join_sizes(a, b)
    ranges = _join_ranges(a, b)
    if Kind.EXAMPLES in kinds:
        return _join_examples(a, b, sizes, ranges)
    hangs = a.hangs_on_batch or b.hangs_on_batch
    if kinds == {Kind.UNIFORM} and sizes != ():
        found = values_lib.uniform(sizes, hangs)
        return dataclasses.replace(found, ranges=ranges)
    if sizes is None:
        hangs = True
    return values_lib.free(sizes, _join_numbers(a, b), hangs, ranges)


def _join_sizes(a: Value, b: Value) -> Sizes | None:
    if a.sizes is None or b.sizes is None:
        return None
    if len(a.sizes) != len(b.sizes):
        raise findings.Refusal("Its number of axes is not always the same.")
    if a.sizes == b.sizes:
        return a.sizes
    if sizes_lib.hang_on_batch((*a.sizes, *b.sizes)):
        if not (a.is_examples and b.is_examples):
            raise findings.Refusal("Its shape is not always the same.")
    return tuple(
        s if s == t else None for s, t in zip(a.sizes, b.sizes, strict=True)
    )


def common_sizes(found: Sequence[Sizes | None]) -> Sizes | None:
    """Returns sizes that hold of all shapes.

    Args:
        found: Sizes of each; `None` if not even their number is known.
    """
    known = [sizes for sizes in found if sizes is not None]
    if len(known) < len(found) or len(set(map(len, known))) != 1:
        return None
    return tuple(
        column[0] if len(set(column)) == 1 else None
        for column in zip(*known, strict=True)
    )


def _join_ranges(a: Value, b: Value) -> tuple[Range, ...] | None:
    if a.ranges == b.ranges:
        return a.ranges
    if a.numbers_examples or b.numbers_examples:
        raise findings.Refusal(
            "It computes with the number of the row.", findings.ROW_NUMBER
        )
    # Bounds that still move in a loop would never settle.
    return None


def _join_numbers(a: Value, b: Value) -> tuple[sizes_lib.MaybeSize, ...] | None:
    if a.numbers is None or b.numbers is None:
        return None
    if len(a.numbers) != len(b.numbers):
        return None
    if sizes_lib.hang_on_batch((*a.numbers, *b.numbers)):
        return a.numbers if a.numbers == b.numbers else None
    return tuple(
        n if n == m else None for n, m in zip(a.numbers, b.numbers, strict=True)
    )


def _join_examples(
    a: Value, b: Value, sizes: Sizes | None, ranges: tuple[Range, ...] | None
) -> Value:
    if sizes is None or any(v.hangs_on_batch for v in (a, b)):
        raise findings.Refusal("It is not always per example.")
    if a.is_examples and b.is_examples:
        if a.layout != b.layout:
            raise findings.Refusal(
                "The examples do not always lie along the same axis."
            )
        return values_lib.examples(sizes, a.example_layout, ranges)
    owner, other = (a, b) if a.is_examples else (b, a)
    axis = owner.example_layout.axis
    if other.kind is not Kind.UNIFORM or sizes[axis] != owner.shape[axis]:
        raise findings.Refusal("It is not always per example.")
    return values_lib.examples(sizes, owner.example_layout, ranges)


def _join_single(a: Value, b: Value) -> Value:
    for value in (a, b):
        if value.kind is not Kind.SINGLE and (
            not value.is_free or preconditions.holds_batch_size(value)
        ):
            raise findings.Refusal("One example meets the whole batch.")
    sizes = a.sizes if a.sizes == b.sizes else None
    return Value(Kind.SINGLE, sizes)


def _join_lists(a: Value, b: Value) -> Value:
    if a.kind is not b.kind:
        raise findings.Refusal("It is not always a list.")
    if a.declared != b.declared:
        # An item that was never set is zeros of the shape that was declared.
        raise findings.Refusal("The shape of its items is not always the same.")
    length = a.length if a.length == b.length else None
    if length is None:
        lengths = [v.length for v in (a, b)]
        if sizes_lib.hang_on_batch(lengths):
            raise findings.Refusal("Its length is not always the same.")
    if a.item is None or b.item is None:
        item = b.item if a.item is None else a.item
    else:
        item = join(a.item, b.item)
    by_item = a.by_item or b.by_item
    for value in (a, b):
        if by_item and not value.by_item and value.item is not None:
            if value.item.kind is not Kind.UNIFORM:
                raise findings.Refusal("It mixes examples in a list.")
    return Value(
        Kind.LIST,
        item=item,
        length=length,
        by_item=by_item,
        declared=a.declared,
        on_batch_size=a.on_batch_size or b.on_batch_size,
        name=a.name if a.name == b.name else "",
    )
