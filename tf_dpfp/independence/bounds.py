"""Bounds of whole numbers that are not known."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_dpfp.independence import findings
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Range
from tf_dpfp.independence.values import Value


@functools.cache
def limits(dtype: tf.DType) -> tuple[int, int]:
    """Returns the least and the greatest number of a type; TensorFlow is slow.

    Args:
        dtype: A type of whole numbers.
    """
    return dtype.min, dtype.max


def of(value: Value, dtype: tf.DType) -> Range:
    """Returns bounds of all elements."""
    if value.ranges is not None:
        if len(value.ranges) > 1 and value.numbers_examples:
            raise findings.Refusal(
                "It uses numbers of examples.", findings.ROW_NUMBER
            )
        return values_lib.hull(value.ranges)
    if value.numbers is not None:
        if dtype != tf.bool and not all(
            n is None or _fits(n, dtype) for n in value.numbers
        ):
            return UNBOUNDED
        return _bounds_of_numbers(value.numbers)
    if dtype == tf.bool:
        return Range(sizes_lib.ZERO, sizes_lib.ONE)
    if dtype in (tf.uint8, tf.int8, tf.uint16, tf.int16):
        return Range(*map(Size.of, limits(dtype)))
    return UNBOUNDED


def _bounds_of_numbers(numbers: Sequence[MaybeSize]) -> Range:
    if None in numbers or not numbers:
        return UNBOUNDED
    return values_lib.hull([Range(n, n) for n in numbers])


def of_result(op: tf.Operation, values: Sequence[Value]) -> Range:
    """Returns bounds of an elementwise operation's result.

    Only of whole numbers: a clipped number that is not a number stays so.

    Args:
        op: The operation.
        values: Its inputs.

    Returns:
        A `Range`.

    Raises:
        Refusal: If the number of an example is used in a way that the bounds
            can't express.
    """
    function = _BOUNDS.get(op.type)
    dtype = op.outputs[0].dtype
    numbered = any(v.numbers_examples for v in values)
    if function is None or not all(map(_is_whole, (*op.outputs, *op.inputs))):
        if numbered:
            raise findings.Refusal(
                "It computes with the number of the row.", findings.ROW_NUMBER
            )
        return UNBOUNDED
    if op.type == "Cast" and dtype == tf.bool:
        if numbered:
            raise findings.Refusal(
                "It computes with the number of the row.", findings.ROW_NUMBER
            )
        return Range(sizes_lib.ZERO, sizes_lib.ONE)
    if op.type == "Cast" and numbered:
        _check_widened(values[0], op.inputs[0].dtype, dtype)
    found = function(
        *[of(v, t.dtype) for v, t in zip(values, op.inputs, strict=True)]
    )
    if found is None:
        raise findings.Refusal(
            "It computes with the number of the row.", findings.ROW_NUMBER
        )
    # A sum without one of its bounds may wrap around, past the other one.
    if op.type in _MAY_WRAP and not fits(found, dtype):
        return Range(None, None, found.step)
    return found


def _is_whole(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_integer or tensor.dtype == tf.bool


def _check_widened(value: Value, dtype: tf.DType, wider: tf.DType) -> None:
    """Refuses numbers of examples that may have wrapped around before."""
    if wider.size <= dtype.size:
        return
    for each in value.ranges or ():
        if not (each.step * sizes_lib.BATCH).surely_fits(8 * dtype.size):
            raise findings.Refusal(
                "The number of the row wraps around in it.", findings.ROW_NUMBER
            )


def clipped(op: tf.Operation, values: Sequence[Value]) -> Value | None:
    """Describes a clipped whole number, whatever it was before.

    Args:
        op: An operation.
        values: Its inputs, some of which are mixed.

    Returns:
        A free `Value` if both bounds are equal: then it is their number. A
        mixed one if it has bounds now; `None` if nothing is known.
    """
    dtype = op.outputs[0].dtype
    mixed = next(v for v in values if v.kind is Kind.MIXED)
    if op.type not in ("Minimum", "Maximum") or not dtype.is_integer:
        return None
    if any(v.sizes != () or v.numbers_examples for v in values):
        return None
    found = of_result(op, values)
    hangs = sizes_lib.hang_on_batch((found.low, found.high))
    if found.low is not None and found.low == found.high and not hangs:
        return values_lib.free((), (found.low,))
    return dataclasses.replace(mixed, sizes=(), ranges=(found,))


def fits(found: Range, dtype: tf.DType) -> bool:
    """Returns true if the bounds don't wrap around.

    Sizes of tensors, and their products, are taken to fit into the type that
    a graph uses for them.
    """
    return all(
        number is not None and _fits(number, dtype)
        for number in (found.low, found.high)
    )


def _fits(number: Size, dtype: tf.DType) -> bool:
    if number.is_number:
        low, high = limits(dtype)
        return low <= int(number) <= high
    if dtype.is_unsigned and not values_lib.at_least(number, sizes_lib.ZERO):
        return False
    return number.surely_fits(8 * dtype.size)


def held_by(value: Value, dtype: tf.DType) -> Value:
    """Drops bounds that a type of few bits can't hold, as they wrap around.

    Args:
        value: What a rule says of a tensor.
        dtype: Type of the tensor.

    Raises:
        Refusal: If the number of an example wraps around.
    """
    if not value.ranges or not dtype.is_integer:
        return value
    if value.numbers_examples and dtype.size < 4:
        raise findings.Refusal(
            "The number of the row wraps around in it.", findings.ROW_NUMBER
        )
    ranges = tuple(
        r
        if all(n is None or _fits(n, dtype) for n in (r.low, r.high))
        else Range(None, None, r.step)
        for r in value.ranges
    )
    if ranges == value.ranges:
        return value
    return dataclasses.replace(value, ranges=ranges)


def _both(
    function: Callable[[Size, Size], MaybeSize], a: MaybeSize, b: MaybeSize
) -> MaybeSize:
    return None if a is None or b is None else function(a, b)


def _add_bounds(a: Range, b: Range) -> Range:
    return Range(
        _both(operator.add, a.low, b.low),
        _both(operator.add, a.high, b.high),
        a.step + b.step,
    )


def _subtract_bounds(a: Range, b: Range) -> Range:
    return Range(
        _both(operator.sub, a.low, b.high),
        _both(operator.sub, a.high, b.low),
        a.step - b.step,
    )


def _multiply_bounds(a: Range, b: Range) -> Range | None:
    for one, factor in ((a, b), (b, a)):
        by = factor.low
        if (
            by is not None
            and by == factor.high
            and not factor.numbers_examples
            and values_lib.at_least(by, sizes_lib.ZERO)
        ):
            low = None if one.low is None else one.low * by
            high = None if one.high is None else one.high * by
            return Range(low, high, one.step * by)
    if a.numbers_examples or b.numbers_examples:
        return None
    corners = [
        _both(operator.mul, x, y)
        for x, y in itertools.product((a.low, a.high), (b.low, b.high))
    ]
    return _bounds_of_numbers(corners)


def _minimum_bounds(a: Range, b: Range) -> Range | None:
    if a.numbers_examples or b.numbers_examples:
        return None
    return Range(
        _both(values_lib.smaller, a.low, b.low), _one_of(a.high, b.high)
    )


def _maximum_bounds(a: Range, b: Range) -> Range | None:
    if a.numbers_examples or b.numbers_examples:
        return None
    return Range(
        _one_of(a.low, b.low), _both(values_lib.greater, a.high, b.high)
    )


def _one_of(a: MaybeSize, b: MaybeSize) -> MaybeSize:
    """Chooses among two bounds that both hold: the second is the clip's."""
    return a if b is None else b


def _mod_bounds(a: Range, b: Range) -> Range | None:
    if a.numbers_examples or b.numbers_examples:
        return None
    if b.low is None or not values_lib.at_least(b.low, sizes_lib.ONE):
        return UNBOUNDED
    return Range(sizes_lib.ZERO, None if b.high is None else b.high - 1)


def _same_bounds(a: Range) -> Range:
    return a


def _either_bounds(condition: Range, a: Range, b: Range) -> Range | None:
    if condition.numbers_examples or a.step != b.step:
        return None
    if condition.low is not None and condition.low == condition.high:
        return b if condition.low == 0 else a
    return Range(
        _both(values_lib.smaller, a.low, b.low),
        _both(values_lib.greater, a.high, b.high),
        a.step,
    )


def _less_bounds(a: Range, b: Range) -> Range | None:
    """Returns bounds of the truth, 0 or 1, that all `a` are below all `b`."""
    if a.numbers_examples or b.numbers_examples:
        return None
    if a.low is not None and b.high is not None:
        if values_lib.at_least(a.low, b.high):
            return Range(sizes_lib.ZERO, sizes_lib.ZERO)
    if a.high is not None and b.low is not None:
        if values_lib.at_least(b.low, a.high + 1):
            return Range(sizes_lib.ONE, sizes_lib.ONE)
    return _TRUTHS


def _not_bounds(a: Range) -> Range | None:
    if a.numbers_examples or a.low is None or a.low != a.high:
        return None if a.numbers_examples else _TRUTHS
    return Range(sizes_lib.ONE - a.low, sizes_lib.ONE - a.low)


def _clipped_bounds(a: Range, low: Range, high: Range) -> Range | None:
    # If the lower bound were above the upper one, kernels differ.
    if low.high is None or high.low is None:
        return UNBOUNDED
    if not values_lib.at_least(high.low, low.high):
        return UNBOUNDED
    found = _maximum_bounds(a, low)
    return None if found is None else _minimum_bounds(found, high)


UNBOUNDED = Range(None, None)
_TRUTHS = Range(sizes_lib.ZERO, sizes_lib.ONE)
# Operations whose result may not fit into its type.
_MAY_WRAP = frozenset(("Add", "AddV2", "Sub", "Mul", "Cast"))

_BOUNDS: dict[str, Callable[..., Range | None]] = {
    "Add": _add_bounds,
    "AddV2": _add_bounds,
    "Sub": _subtract_bounds,
    "Mul": _multiply_bounds,
    "Minimum": _minimum_bounds,
    "Maximum": _maximum_bounds,
    "ClipByValue": _clipped_bounds,
    "FloorMod": _mod_bounds,
    "Cast": _same_bounds,
    "Less": _less_bounds,
    "Greater": lambda a, b: _less_bounds(b, a),
    "LogicalNot": _not_bounds,
    "Select": _either_bounds,
    "SelectV2": _either_bounds,
}
