"""Arithmetic on known whole numbers.

Shapes are computed in the graph: what they are is known here as polynomials
in the batch size and unknown sizes.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import sizes as sizes_lib
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence.sizes import ONE
from tf_dpfp.independence.sizes import ZERO
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.values import Value

# More elements than any list of sizes or axes has.
MOST_NUMBERS = 64
# Of numbers that wrapped around they give the result, wrapped around.
_WRAP_ALIKE = frozenset(("Add", "AddV2", "Sub", "Mul", "Neg"))


def calculate(op: tf.Operation, values: Sequence[Value]) -> Value | None:
    """Returns known elements of an elementwise operation on known numbers.

    Args:
        op: The operation.
        values: Its inputs.

    Returns:
        A `Value` with `numbers`, or `None` if nothing is known.
    """
    function = _FUNCTIONS.get(op.type)
    dtype = op.outputs[0].dtype
    if function is None or not (dtype.is_integer or dtype == tf.bool):
        return None
    arrays = [v.array() for v in values]
    if not arrays or any(a is None for a in arrays):
        return None
    if not all(t.dtype.is_integer or t.dtype == tf.bool for t in op.inputs):
        return None
    wide = np.broadcast_arrays(*[a for a in arrays if a is not None])
    if wide[0].size > MOST_NUMBERS:
        return None
    columns = [
        a.ravel()
        if _may_be_wrapped(op) or _counts_elements(t)
        else _unwrapped(a.ravel(), t.dtype)
        for a, t in zip(wide, op.inputs, strict=True)
    ]
    found = [function(*n) for n in zip(*columns, strict=True)]
    hangs = any(v.on_batch_size for v in values)
    found = [in_dtype(n, dtype) for n in found]
    if None in found and any(v.hangs_on_batch for v in values):
        return None
    result = np.empty(len(found), object)
    result[:] = found
    return values_lib.numbers_of(result.reshape(wide[0].shape), hangs)


def padded(op: tf.Operation, values: Sequence[Value]) -> Value | None:
    """Returns known numbers with a border of a known one.

    Args:
        op: An operation that pads.
        values: Its inputs.

    Returns:
        A `Value` with `numbers`, or `None` if nothing is known.
    """
    value, widths, *border = values
    array, around = value.array(), widths.array()
    number = border[0].numbers if border else (ZERO,)
    if array is None or around is None or number is None:
        return None
    if op.type not in ("Pad", "PadV2") or not all(
        n is not None and n.is_number for n in around.ravel()
    ):
        return None
    before, after = around.astype(int).T
    sizes = before + array.shape + after
    if min((*before, *after), default=0) < 0 or sizes.prod() > MOST_NUMBERS:
        return None
    wide = np.full(sizes, number[0], object)
    inner = zip(before, array.shape, strict=True)
    wide[tuple(slice(b, b + n) for b, n in inner)] = array
    return values_lib.numbers_of(wide, any(v.on_batch_size for v in values))


def _may_be_wrapped(op: tf.Operation) -> bool:
    """Tells if numbers that wrapped around give the result, wrapped around."""
    if op.type in ("Cast", "Select", "SelectV2"):
        return op.outputs[0].dtype.size <= op.inputs[-1].dtype.size
    return op.type in _WRAP_ALIKE


def _counts_elements(tensor: tf.Tensor) -> bool:
    """Tells a number of elements: one that does not fit stops its kernel."""
    return tensor.op.type == "Size"


def _unwrapped(
    numbers: Iterable[MaybeSize], dtype: tf.DType
) -> list[MaybeSize]:
    """Drops numbers that may have wrapped around."""

    def fits(number: Size) -> bool:
        if dtype.is_unsigned and not values_lib.at_least(number, ZERO):
            return False
        return number.surely_fits(8 * dtype.size)

    return [n if n is None or n.is_number or fits(n) else None for n in numbers]


def in_dtype(number: MaybeSize, dtype: tf.DType) -> MaybeSize:
    """Drops numbers that wrap around; a truth value is 0 or 1.

    Args:
        number: A number.
        dtype: Type of the tensor that holds it.
    """
    if number is None:
        return None
    if dtype == tf.bool:
        return Size.of(int(number != 0)) if number.is_number else None
    if not number.is_number:
        return number if number.may_fit(8 * dtype.size) else None
    low, high = bounds_lib.limits(dtype)
    return number if low <= int(number) <= high else None


def _known(function: Callable[..., MaybeSize]) -> Callable[..., MaybeSize]:
    """Extends a function to numbers that may be unknown."""

    def apply(*numbers: MaybeSize) -> MaybeSize:
        return None if None in numbers else function(*numbers)

    return apply


def _may_be_zero(divisor: Size) -> bool:
    """Tells if not all kernels stop at a division, or give the same."""
    return not any(values_lib.at_least(d, ONE) for d in (divisor, -divisor))


def _floor_divide(a: Size, b: Size) -> MaybeSize:
    if _may_be_zero(b):
        return None
    exact = a.divided_by(b)
    if exact is not None:
        return exact
    if a.is_number and b.is_number:
        return Size.of(int(a) // int(b))
    return None


def _truncate_divide(a: Size, b: Size) -> MaybeSize:
    # Both round alike where nothing is negative.
    bounds = a.least(), b.least()
    if any(bound is None or bound < 0 for bound in bounds):
        return None if _may_be_zero(b) else a.divided_by(b)
    return _floor_divide(a, b)


def _floor_mod(a: Size, b: Size) -> MaybeSize:
    if _may_be_zero(b):
        return None
    if a.divided_by(b) is not None:
        return sizes_lib.ZERO
    if a.is_number and b.is_number:
        return Size.of(int(a) % int(b))
    return None


def _truth(value: bool | None) -> MaybeSize:
    return None if value is None else Size.of(int(value))


def _at_least(a: Size, b: Size) -> bool | None:
    if values_lib.at_least(a, b):
        return True
    return False if values_lib.at_least(b, a + 1) else None


def _equal(a: Size, b: Size) -> bool | None:
    if a == b:
        return True
    apart = values_lib.at_least(a, b + 1) or values_lib.at_least(b, a + 1)
    return False if apart else None


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _select(condition: MaybeSize, a: MaybeSize, b: MaybeSize) -> MaybeSize:
    if condition is None or not condition.is_number:
        return a if a == b else None
    return a if int(condition) else b


def _and(a: MaybeSize, b: MaybeSize) -> MaybeSize:
    if a == 0 or b == 0:
        return sizes_lib.ZERO
    return sizes_lib.ONE if a == 1 and b == 1 else None


def _or(a: MaybeSize, b: MaybeSize) -> MaybeSize:
    if a == 1 or b == 1:
        return sizes_lib.ONE
    return sizes_lib.ZERO if a == 0 and b == 0 else None


_FUNCTIONS: dict[str, Callable[..., MaybeSize]] = {
    "Add": _known(lambda a, b: a + b),
    "AddV2": _known(lambda a, b: a + b),
    "Sub": _known(lambda a, b: a - b),
    "Mul": _known(lambda a, b: a * b),
    "Neg": _known(lambda a: -a),
    "FloorDiv": _known(_floor_divide),
    "TruncateDiv": _known(_truncate_divide),
    "FloorMod": _known(_floor_mod),
    "Maximum": _known(values_lib.greater),
    "Minimum": _known(values_lib.smaller),
    "Equal": _known(lambda a, b: _truth(_equal(a, b))),
    "NotEqual": _known(lambda a, b: _truth(_not(_equal(a, b)))),
    "GreaterEqual": _known(lambda a, b: _truth(_at_least(a, b))),
    "Less": _known(lambda a, b: _truth(_not(_at_least(a, b)))),
    "Greater": _known(lambda a, b: _truth(_not(_at_least(b, a)))),
    "LessEqual": _known(lambda a, b: _truth(_at_least(b, a))),
    "LogicalAnd": _and,
    "LogicalOr": _or,
    "LogicalNot": _known(lambda a: _truth(a == 0)),
    "Select": _select,
    "SelectV2": _select,
    "Cast": lambda a: a,
}
