"""Rules of operations on lists of numbers: shapes, axes, permutations.

They are what graphs compute shapes with. Their elements are known.
"""

from collections.abc import Container, Sequence

import numpy as np
import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import layouts
from tf_dpfp.independence import registry
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.registry import Walk
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value


@registry.rule("BroadcastGradientArgs", shapes=(0, 1))
def broadcast_gradient_axes(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Lists the axes over which a gradient is added up after broadcasting.

    Two sizes are compared. Where one of them is not 1 for all batch sizes,
    they are equal, or the operation would have failed.
    """
    a, b = (v.numbers for v in values)
    if a is None or b is None:
        raise findings.Refusal(
            "The shapes of its operands are not known.", is_definite=False
        )
    if sizes_lib.hang_on_batch((*a, *b)):
        # Of a batch of one, it lists one more axis: to add up over it changes
        # nothing, but the length of the list would tell.
        if not all(_are_added_up(t, walk.released) for t in op.outputs):
            raise findings.Refusal(
                "It tells a batch of one from others.", findings.BATCH_SIZE
            )
    n = max(len(a), len(b))
    a = (ONE,) * (n - len(a)) + a
    b = (ONE,) * (n - len(b)) + b
    over_a, over_b = [], []
    for axis, (x, y) in enumerate(zip(a, b, strict=True)):
        if x == 1:
            over_a.append(Size.of(axis))
        if y == 1:
            over_b.append(Size.of(axis))
        if x == 1 or y == 1:
            continue
        if x is None or y is None or x != y:
            raise findings.Refusal(
                f"Sizes {x} and {y} meet, and one of them may be 1."
            )
    return [
        values_lib.free((Size.of(len(axes)),), axes)
        for axes in (over_a, over_b)
    ]


def _are_added_up(axes: tf.Tensor, released: Container[int]) -> bool:
    """Tells if all that happens to a list of axes is a sum over them.

    The number of axes that are left must not tell, either.
    """
    if _leaves(axes, released):
        return False
    for op in axes.consumers():
        if op.type == "Sum" and op.inputs[0] is not axes:
            summed = op.outputs[0]
            if op.get_attr("keep_dims") or _is_reshaped(summed, released):
                continue
            return False
        # `tf.vectorized_map` moves axes by one.
        if op.type not in _MOVES_AXES:
            return False
        if not _are_added_up(op.outputs[0], released):
            return False
    return True


def _leaves(tensor: tf.Tensor, released: Container[int]) -> bool:
    """Tells if a tensor is seen by more than its consumers."""
    outputs = getattr(tensor.graph, "outputs", ())
    return id(tensor) in released or any(tensor is t for t in outputs)


def _is_reshaped(tensor: tf.Tensor, released: Container[int]) -> bool:
    """Tells if a tensor is only used in another shape."""
    if _leaves(tensor, released):
        return False
    return all(
        op.type == "Reshape" and op.inputs[1] is not tensor
        for op in tensor.consumers()
    )


_MOVES_AXES = ("Add", "AddV2", "Cast", "GreaterEqual", "Identity")


@registry.rule("BroadcastArgs", shapes=(0, 1))
def broadcast_shapes(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Computes the shape of a broadcast result."""
    del op, walk
    a, b = (v.numbers for v in values)
    if a is None or b is None:
        raise findings.Refusal(
            "The shapes of its operands are not known.", is_definite=False
        )
    layouts.check_lost_sizes([a, b])
    sizes = layouts.broadcast([a, b])
    return values_lib.free((Size.of(len(sizes)),), sizes)


@registry.rule("Range", shapes=(0, 1, 2))
def counted(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Counts upwards: row numbers, if up to the batch size."""
    start, limit, delta = (v.numbers[0] if v.numbers else None for v in values)
    if start is None or limit is None or delta is None:
        hangs = any(v.hangs_on_batch for v in values)
        sizes = None if hangs else walk.static(op.outputs[0])
        return values_lib.free(sizes, None, hangs)
    return _count(start, limit, delta, walk.batch, op.outputs[0].dtype)


def _count(
    start: Size, limit: Size, delta: Size, batch: Size, dtype: tf.DType
) -> Value:
    whole = dtype.is_integer
    if all(n.is_number for n in (start, limit, delta)) and int(delta):
        found = range(int(start), int(limit), int(delta))
        count = Size.of(len(found))
        if whole and len(found) <= 64:
            return values_lib.free((count,), [Size.of(n) for n in found])
        ends = sorted((found[0], found[-1])) if found else (0, 0)
        bounds = Range(Size.of(ends[0]), Size.of(ends[1]))
        ranges = (bounds,) if whole else None
        return values_lib.free((count,), None, False, ranges)
    length = _steps(start, limit, delta)
    if length is None:
        hangs = any(n.hangs_on_batch for n in (start, limit, delta))
        return values_lib.free((None,), None, hangs)
    after = length.divided_by(batch)
    if whole and start == 0 and length.hangs_on_batch and after is not None:
        # Row `example * after + rest` holds `delta` times its own number.
        layout = values_lib.Layout(0, ONE, after)
        bounds = Range(sizes_lib.ZERO, (after - 1) * delta, after * delta)
        return values_lib.examples((length,), layout, (bounds,))
    ranges = (Range(start, limit - 1),) if whole else None
    hangs = start.hangs_on_batch or delta.hangs_on_batch
    return values_lib.free((length,), None, hangs, ranges)


def _steps(start: Size, limit: Size, delta: Size) -> MaybeSize:
    """Returns how often one counts upwards."""
    if delta != 1 and not all(n.surely_fits(32) for n in (start, limit, delta)):
        return None
    way = limit - start
    upwards = values_lib.at_least(way, sizes_lib.ZERO) and values_lib.at_least(
        delta, ONE
    )
    return way.divided_by(delta) if upwards else None


@registry.rule("InvertPermutation")
def invert_permutation(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> Value:
    """Turns a permutation around."""
    del op, walk
    order = values[0].integers("permutation")
    inverse = np.argsort(order)
    return values_lib.free(values[0].shape, [Size.of(int(i)) for i in inverse])


@registry.rule("ListDiff")
def difference(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Lists known numbers that are not in another list."""
    del op, walk
    left, right = (v.integers("list") for v in values)
    places = [i for i, n in enumerate(left) if n not in right]
    count = (Size.of(len(places)),)
    return [
        values_lib.free(count, [Size.of(left[i]) for i in places]),
        values_lib.free(count, [Size.of(i) for i in places]),
    ]


@registry.rule("ConcatOffset")
def concatenated_at(
    op: tf.Operation, values: Sequence[Value], walk: Walk
) -> list[Value]:
    """Computes where each part of a joined tensor begins."""
    del op, walk
    (axis,) = values[0].integers("axis")
    offset, found = sizes_lib.ZERO, []
    for value in values[1:]:
        begin = [sizes_lib.ZERO] * int(Size.of(value.shape[0] or 0))
        begin[axis] = offset
        found.append(values_lib.free(value.shape, begin))
        offset = offset + value.known("shape")[axis]
    return found


@registry.rule("DynamicStitch", "ParallelDynamicStitch")
def stitch(op: tf.Operation, values: Sequence[Value], walk: Walk) -> Value:
    """Puts numbers at known places, as gradients of reductions do."""
    del op, walk
    half = len(values) // 2
    places, parts = values[:half], values[half:]
    found: dict[int, MaybeSize] = {}
    hangs = any(v.on_batch_size for v in values)
    for place, part in zip(places, parts, strict=True):
        at = place.integers("index")
        if part.numbers is None or len(part.numbers) != len(at):
            raise findings.Refusal(
                "It joins numbers that are not known.", is_definite=False
            )
        found.update(zip(at, part.numbers, strict=True))
    if sorted(found) != list(range(len(found))):
        raise findings.Refusal(
            "It joins numbers that are not known.", is_definite=False
        )
    numbers = [found[i] for i in range(len(found))]
    return values_lib.free((Size.of(len(numbers)),), numbers, hangs)
