"""Rules of slices: whole batches may be cut out, single rows may not."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.movement_rules import BY_NUMBER
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Layout
from tf_dpfp.independence.values import Value


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a strided slice does to one axis.

    Attributes:
        kind: `"new"`, `"index"`, `"full"` or `"range"`.
        begin: First index of a range, or the index.
        end: Index behind the last one; `None` with `to_end` for the end.
        stride: Step of a range.
        to_end: True if the range has no end of its own.
    """

    kind: str
    begin: MaybeSize = None
    end: MaybeSize = None
    stride: MaybeSize = None
    to_end: bool = False


def _parts(op: tf.Operation, values: Sequence[Value], rank: int) -> list[_Part]:
    """Reads begins, ends, strides and masks of a strided slice."""
    names = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    attributes = op.node_def.attr  # Read once: each read makes a copy.
    masks = {name: attributes[f"{name}_mask"].i for name in names}
    count = _count(values)

    def has(name: str, i: int) -> bool:
        return bool(masks[name] >> i & 1)

    used = sum(
        not has("ellipsis", i) and not has("new_axis", i) for i in range(count)
    )
    begins, ends, strides = (v.numbers or (None,) * count for v in values)
    parts: list[_Part] = []
    for i in range(count):
        if has("ellipsis", i):
            parts += [_Part("full")] * (rank - used)
        elif has("new_axis", i):
            parts.append(_Part("new"))
        elif has("shrink_axis", i):
            parts.append(_Part("index", begins[i]))
        else:
            begin = sizes_lib.ZERO if has("begin", i) else begins[i]
            open_end = has("end", i)
            parts.append(_Part("range", begin, ends[i], strides[i], open_end))
    left = rank - sum(p.kind != "new" for p in parts)
    return parts + [_Part("full")] * left


def _count(values: Sequence[Value]) -> int:
    for value in values:
        if value.sizes and value.sizes[0] is not None:
            return int(value.sizes[0])
    raise findings.Refusal(
        "It cuts along a number of axes that is not known.", is_definite=False
    )


def _keeps_all(part: _Part, size: MaybeSize) -> bool:
    """Returns true if the part takes every index, in order."""
    if part.kind == "full":
        return True
    if part.kind != "range" or part.stride != 1 or part.begin != 0:
        return False
    return part.to_end or (size is not None and part.end == size)


def _length(part: _Part, size: MaybeSize) -> MaybeSize:
    """Returns the number of indices that a range takes, if it is known."""
    if _keeps_all(part, size):
        return size
    if part.stride != 1 or size is None or part.begin is None:
        return None
    begin = _from_front(part.begin, size)
    end = size if part.to_end else _from_front(part.end, size)
    if begin is None or end is None:
        return None
    return end - begin if values_lib.at_least(end, begin) else None


def _from_front(index: MaybeSize, size: Size) -> MaybeSize:
    """Returns an index that is counted from the front and within the axis."""
    if index is None or index == size:
        return index
    if not index.is_number and not index.surely_fits(32):
        return None
    if index.is_number and int(index) < 0:
        index = size + index
        return index if values_lib.at_least(index, sizes_lib.ZERO) else None
    if values_lib.at_least(size, index) and values_lib.at_least(
        index, sizes_lib.ZERO
    ):
        return index
    return size if values_lib.at_least(index, size) else None


@registry.rule("StridedSlice", shapes=(1, 2, 3), takes_numbers=True)
def strided_slice(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Cuts a part out of a tensor, `x[begin:end:stride]`."""
    value, *limits = values
    if any(v.is_examples for v in limits):
        raise findings.Refusal("The data decide what it cuts out.")
    parts = _parts(op, limits, value.rank)
    known = _sliced_numbers(value, parts)
    if known is not None:
        return known
    if parts and takes_own_row(value, parts[0].begin):
        return _own_row(value, parts, op, walk)
    sizes, layout = _sliced(value, parts, walk, op.outputs[0])
    ranges = value.ranges or ()
    if len(ranges) > 1 and _keeps_last(parts, value):
        return dataclasses.replace(
            values_lib.like(_bare(value), sizes, layout), ranges=ranges
        )
    if len(ranges) > 1 and parts[-1].kind == "index":
        column = parts[-1].begin
        if column is not None and column.is_number:
            bounds = (ranges[int(column)],)
            return dataclasses.replace(
                values_lib.like(_bare(value), sizes, layout), ranges=bounds
            )
    return values_lib.like(value, sizes, layout)


def takes_own_row(value: Value, begin: MaybeSize) -> bool:
    """Returns true for the row of the example that a loop is at."""
    own = value.layout
    return own is not None and own.is_plain and begin == sizes_lib.ROW


def _own_row(
    value: Value, parts: Sequence[_Part], op: tf.Operation, walk: Walk
) -> Value:
    """Cuts out the row of the example that a loop is at."""
    one = parts[0].kind == "index" or (
        parts[0].kind == "range"
        and not parts[0].to_end
        and parts[0].end == sizes_lib.ROW + 1
        and parts[0].stride == 1
    )
    others = [n for p in parts[1:] for n in (p.begin, p.end, p.stride)]
    if not one or value.numbers_examples or sizes_lib.hang_on_batch(others):
        raise findings.Refusal(BY_NUMBER)
    sizes = walk.static(op.outputs[0])
    if parts[0].kind == "index":
        rest = values_lib.free(value.shape[1:])
        sizes, _ = _sliced(rest, parts[1:], walk, op.outputs[0])
    return Value(Kind.SINGLE, sizes)


def _bare(value: Value) -> Value:
    return dataclasses.replace(value, ranges=None, numbers=None)


def _keeps_last(parts: Sequence[_Part], value: Value) -> bool:
    return _keeps_all(parts[-1], value.shape[-1])


def _sliced_numbers(value: Value, parts: Sequence[_Part]) -> Value | None:
    """Returns known numbers of a slice of known numbers."""
    array = value.array()
    if array is None:
        return None
    index: list[Any] = []
    for part in parts:
        if part.kind == "new":
            index.append(None)
        elif part.kind == "full":
            index.append(slice(None))
        elif part.kind == "index":
            if part.begin is None or not part.begin.is_number:
                return None
            index.append(int(part.begin))
        else:
            limits = [part.begin, part.end, part.stride]
            if part.to_end:
                limits[1] = sizes_lib.ZERO
            if any(n is None or not n.is_number for n in limits):
                return None
            begin, end, step = (int(Size.of(n or 0)) for n in limits)
            if step < 0:
                return None
            index.append(slice(begin, None if part.to_end else end, step))
    return values_lib.numbers_of(array[tuple(index)], value.on_batch_size)


def _sliced(
    value: Value, parts: Sequence[_Part], walk: Walk, output: tf.Tensor
) -> tuple[Sizes, Layout | None]:
    """Returns sizes of a slice, and the layout of the examples in it."""
    sizes: list[MaybeSize] = []
    layout, axis = None, 0
    for part in parts:
        if part.kind == "new":
            sizes.append(ONE)
            continue
        size = value.shape[axis]
        mine = value.is_examples and value.example_layout.axis == axis
        axis += 1
        if mine:
            layout = _cut_batch(value, part, size, len(sizes), walk)
            size = layout.before * walk.batch * layout.after
        else:
            _check_cut(value, part, size)
        if not mine and part.kind != "index":
            length = _length(part, size)
            if length is None:
                static = walk.static(output)
                length = static[len(sizes)] if static is not None else None
            if length is None and sizes_lib.hang_on_batch(
                [size, part.begin, part.end, part.stride]
            ):
                raise findings.Refusal(BY_NUMBER)
            size = length
        if part.kind != "index":
            sizes.append(size)
    return tuple(sizes), layout


def _check_cut(value: Value, part: _Part, size: MaybeSize) -> None:
    """Checks that the batch size does not decide what is cut out."""
    if _keeps_all(part, size) or value.kind is Kind.UNIFORM:
        return
    limits = [part.begin, part.stride, None if part.to_end else part.end]
    if sizes_lib.hang_on_batch(limits):
        raise findings.Refusal(
            "The batch size, or the number of the row, decides what it cuts "
            "out.",
            findings.BATCH_SIZE,
        )


def _cut_batch(
    value: Value, part: _Part, size: MaybeSize, position: int, walk: Walk
) -> Layout:
    """Returns the layout of whole batches that are cut out."""
    own = value.example_layout
    if _keeps_all(part, size):
        return own.at(position)
    length = _length(part, size) if part.kind == "range" else None
    whole = walk.batch * own.after
    begin = (
        None
        if size is None or part.begin is None
        else (_from_front(part.begin, size))
    )
    if length is None or begin is None:
        raise findings.Refusal(BY_NUMBER)
    before = length.divided_by(whole)
    if before is None or begin.divided_by(whole) is None:
        raise findings.Refusal(BY_NUMBER)
    return Layout(position, before, own.after)


@registry.rule("StridedSliceGrad", shapes=(0, 1, 2, 3))
def strided_slice_gradient(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Puts a gradient into zeros, at the place that was cut out."""
    target, *limits, gradient = values
    sizes = target.numbers
    if sizes is None:
        raise findings.Refusal(
            "It cuts a tensor of unknown sizes.", is_definite=False
        )
    parts = _parts(op, limits, len(sizes))
    rows = _rows_kept(parts, sizes)
    if not gradient.is_examples:
        return _free_gradient(gradient, sizes, rows, walk)
    own = gradient.example_layout
    for axis, position in rows.items():
        if position != own.axis:
            continue
        if sizes[axis] == gradient.shape[own.axis]:
            return values_lib.examples(sizes, own.at(axis))
    raise findings.Refusal(BY_NUMBER)


def _rows_kept(parts: Sequence[_Part], sizes: Sizes) -> dict[int, int]:
    """Maps every axis that is kept whole to its place in the slice."""
    kept, axis, position = {}, 0, 0
    for part in parts:
        if part.kind == "new":
            position += 1
            continue
        if _keeps_all(part, sizes[axis]):
            kept[axis] = position
        else:
            limits = [
                part.begin,
                part.stride,
                None if part.to_end else part.end,
            ]
            if sizes_lib.hang_on_batch(limits):
                raise findings.Refusal(BY_NUMBER, findings.BATCH_SIZE)
        axis += 1
        position += part.kind != "index"
    return kept


def _free_gradient(
    gradient: Value, sizes: Sizes, rows: dict[int, int], walk: Walk
) -> Value:
    """Describes a data-free gradient in zeros: equal rows, if kept whole."""
    axes = [
        i for i, s in enumerate(sizes) if s is not None and s.hangs_on_batch
    ]
    equal = gradient.kind is Kind.UNIFORM and not gradient.hangs_on_batch
    if equal and len(axes) == 1 and axes[0] in rows:
        size = sizes[axes[0]]
        after = None if size is None else size.divided_by(walk.batch)
        if after is not None:
            return values_lib.examples(sizes, Layout(axes[0], ONE, after))
    return values_lib.free(sizes, None, gradient.hangs_on_batch)


@registry.rule("Slice", shapes=(1, 2), takes_numbers=True)
def cut(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Cuts a part out of a tensor, by begins and sizes."""
    value, begins, lengths = values
    if begins.is_examples or lengths.is_examples:
        raise findings.Refusal("The data decide what it cuts out.")
    rank = value.rank
    begin = begins.numbers or (None,) * rank
    length = lengths.numbers or (None,) * rank
    parts = []
    for size, b, n in zip(value.shape, begin, length, strict=True):
        if b is None and sizes_lib.hang_on_batch([n]):
            # The end, of which nothing is known, would hide it.
            raise findings.Refusal(BY_NUMBER, findings.BATCH_SIZE)
        open_end = n == -1 or (n is not None and b == 0 and n == size)
        end = None if b is None or n is None else b + n
        parts.append(_Part("range", b, end, ONE, bool(open_end)))
    known = _sliced_numbers(value, parts)
    if known is not None:
        return known
    if parts and takes_own_row(value, parts[0].begin):
        return _own_row(value, parts, op, walk)
    sizes, layout = _sliced(value, parts, walk, op.outputs[0])
    # Its kernel checks that the part is within the tensor.
    whole = values_lib.at_least
    sizes = tuple(
        n if s is None and n is not None and whole(n, sizes_lib.ZERO) else s
        for s, n in zip(sizes, length, strict=True)
    )
    return values_lib.like(value, sizes, layout)
