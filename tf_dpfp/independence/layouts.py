"""How examples lie in tensors that meet, and in tensors that are reshaped."""

from collections.abc import Sequence

from tf_dpfp.independence import findings
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value


def broadcast(shapes: Sequence[Sizes]) -> Sizes:
    """Returns the sizes of tensors that are broadcast against each other.

    Raises:
        Refusal: If the batch size meets another size.
    """
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    rank = max(len(shape) for shape in shapes)
    padded = [(ONE,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(_wider(column) for column in zip(*padded, strict=True))


def _wider(column: Sequence[MaybeSize]) -> MaybeSize:
    found: MaybeSize = ONE
    for size in column:
        if found == 1:
            found = size
        elif size == 1 or size == found:
            continue
        elif size is None or found is None:
            known = found if size is None else size
            if sizes_lib.hang_on_batch([known]):
                # It is 1 for one batch size, and then not the result.
                return None
            # One of both is 1, or they are equal: the known one is it, unless
            # it may be 1 itself.
            least = None if known is None else known.least()
            found = None if least is None or least < 2 else known
        elif found.hangs_on_batch or size.hangs_on_batch:
            raise findings.Refusal(
                f"An axis of size {size} meets one of size {found}."
            )
        elif found.is_number and size.is_number:
            raise findings.Refusal(f"Sizes {found} and {size} don't match.")
        else:
            return None
    return found


def meet(values: Sequence[Value], rank: int) -> Layout:
    """Returns the layout of a result whose operands meet element by element.

    Args:
        values: The operands, at least one of which is per example.
        rank: Rank of the result; operands are aligned at their last axes.

    Raises:
        Refusal: If an example of one meets another one of another.
    """
    layouts = {
        v.example_layout.at(rank - v.rank + v.example_layout.axis)
        for v in values
        if v.is_examples
    }
    check_lost_sizes([v.shape for v in values])
    if len(layouts) > 1:
        raise findings.Refusal(
            "Examples lie along different axes of its operands, so that each "
            "example meets the others."
        )
    (layout,) = layouts
    size = next(v.shape[v.example_layout.axis] for v in values if v.is_examples)
    for value in values:
        axis = layout.axis - (rank - value.rank)
        if axis < 0 or value.is_examples or value.shape[axis] == 1:
            continue
        if value.kind is not Kind.UNIFORM:
            raise findings.Refusal(
                "An operand has a number of its own for every row of the "
                "batch.",
                findings.ROW_NUMBER,
            )
        if value.shape[axis] != size:
            raise findings.Refusal("The examples are repeated by broadcasting.")
    return layout


def check_lost_sizes(shapes: Sequence[Sizes]) -> None:
    """Refuses an unknown size that meets the batch size: it may be 1.

    Args:
        shapes: Sizes of tensors that are broadcast against each other.
    """
    if not any(None in shape for shape in shapes):
        return
    for axis in range(1, 1 + max(map(len, shapes))):
        sizes = [shape[-axis] for shape in shapes if len(shape) >= axis]
        if None in sizes and sizes_lib.hang_on_batch(sizes):
            raise findings.Refusal(
                "An axis of unknown size meets one of the batch size.",
                findings.BATCH_SIZE,
                is_definite=False,
            )


def equal_rows(
    sizes: Sizes, varied: Sequence[Value], batch: Size
) -> Layout | None:
    """Finds the axis of a data-free tensor along which its rows are equal.

    Args:
        sizes: Sizes of the tensor.
        varied: The operands whose elements differ, aligned at the last axes.
        batch: The batch size.

    Returns:
        A layout by which every example owns the same numbers; `None` if there
        is none, or none is needed.
    """
    axes = [
        i for i, s in enumerate(sizes) if s is not None and s.hangs_on_batch
    ]
    if len(axes) != 1:
        return None
    (axis,) = axes
    for value in varied:
        own = axis - (len(sizes) - value.rank)
        if own >= 0 and value.shape[own] != 1:
            return None
    size = sizes[axis]
    after = None if size is None else size.divided_by(batch)
    if after is None or after.hangs_on_batch:
        return None
    return Layout(axis, ONE, after)


def combined(
    values: Sequence[Value], sizes: Sizes, batch: Size, is_uniform: bool
) -> Value:
    """Describes a data-free result of operands that are broadcast.

    Args:
        values: The operands, all free of data.
        sizes: Sizes of the result.
        batch: The batch size.
        is_uniform: True if equal operands give equal results.
    """
    hangs = any(v.hangs_on_batch for v in values)
    varied = [v for v in values if v.kind is not Kind.UNIFORM]
    if not varied and is_uniform:
        return values_lib.uniform(sizes, hangs)
    if not hangs and is_uniform:
        layout = equal_rows(sizes, varied, batch)
        if layout is not None:
            return values_lib.examples(sizes, layout)
    return values_lib.free(sizes, None, hangs)


def regroup(value: Value, sizes: Sizes, batch: Size) -> Layout:
    """Returns the layout of a reshaped per-example tensor.

    Raises:
        Refusal: If the new axes cut through the examples.
    """
    layout = value.example_layout
    before, after = value.shape[: layout.axis], value.shape[layout.axis + 1 :]
    same_front = (
        len(sizes) > layout.axis
        and None not in before
        and sizes[: layout.axis + 1] == value.shape[: layout.axis + 1]
    )
    if same_front:
        return layout
    outer, inner = sizes_lib.product(before), sizes_lib.product(after)
    if outer is None or inner is None:
        raise findings.Refusal("It reshapes a tensor of unknown sizes.")
    outer, inner = outer * layout.before, inner * layout.after
    for axis, size in enumerate(sizes):
        behind = sizes_lib.product(sizes[axis + 1 :])
        front = sizes_lib.product(sizes[:axis])
        if size is None or behind is None or front is None:
            continue
        if size == 1 and batch != 1:
            continue
        own_after = inner.divided_by(behind)
        own_before = (
            None if own_after is None else size.divided_by(batch * own_after)
        )
        if own_before is not None and front * own_before == outer:
            return Layout(axis, own_before, own_after or ONE)
    raise findings.Refusal(
        f"It reshapes {describe(value)} to {words(sizes)}, which puts parts "
        "of several examples into one row.",
        "Keep the batch in the first axis, `ops.reshape(x, (-1, ...))`, and "
        "leave the number of examples as it is.",
    )


def describe(value: Value) -> str:
    """Writes a value's sizes for a message."""
    return "a tensor" if value.sizes is None else words(value.sizes)


def words(sizes: Sizes) -> str:
    """Writes sizes as Keras does."""
    written = ", ".join("?" if s is None else str(s) for s in sizes)
    return f"({written},)" if len(sizes) == 1 else f"({written})"


def hangs_with_rows(value: Value) -> bool:
    """Tells a result with the batch in its sizes, but not per example."""
    return (
        value.kind is Kind.FREE
        and value.hangs_on_batch
        and value.sizes is not None
        and sizes_lib.hang_on_batch(value.sizes)
    )


def as_examples(value: Value) -> Value:
    """Describes one number everywhere as rows of examples."""
    if value.kind is not Kind.UNIFORM or value.hangs_on_batch:
        return value
    if value.sizes is None or value.numbers_examples:
        return value
    axes = [
        i for i, s in enumerate(value.sizes) if sizes_lib.hang_on_batch([s])
    ]
    if len(axes) != 1:
        return value
    size = value.sizes[axes[0]]
    after = size and size.divided_by(sizes_lib.BATCH)
    if after is None or after.hangs_on_batch:
        return value
    layout = Layout(axes[0], after=after)
    return values_lib.examples(value.sizes, layout, value.ranges)


def checked(value: Value, batch: Size) -> Value:
    """Checks what must hold of every result.

    Args:
        value: The result.
        batch: The batch size.

    Returns:
        The result.

    Raises:
        Refusal: If the batch size occurs where examples do not lie.
    """
    if not value.is_examples:
        return value
    layout, size = value.example_layout, batch
    hangs = False
    if layout.before is not ONE or layout.after is not ONE:
        size = layout.before * batch * layout.after
        hangs = layout.before.hangs_on_batch or layout.after.hangs_on_batch
    for axis, other in enumerate(value.shape):
        if axis != layout.axis and other is not None and other.hangs_on_batch:
            hangs = True
    if hangs or value.shape[layout.axis] != size:
        raise findings.Refusal(
            "The batch size occurs in more than one axis of its result."
        )
    return value
