"""Argument checks: one rule, one wording and one exception everywhere.

Every function returns the argument as a plain Python value, or raises a
`ValueError` that names the argument, its range and what came.
"""

import contextlib
import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any

# float64 counts exactly up to here, and so do the ledger and every Keras file.
MAX_COUNT = 2**53


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> float:
    """Checks a finite real number.

    Args:
        name: Name of the argument, for the message.
        value: The argument. Text and booleans are no numbers.
        least: Smallest value allowed.
        most: Greatest value allowed.
        above: Bound that the value must exceed.
        below: Bound that the value must stay under.
        hint: Sentence added to the message: a reason or a way out.

    Returns:
        A Python float; `0.0` for `-0.0`.

    Raises:
        ValueError: If `value` is not a finite number in the range.

    Example:

    >>> number("sampling_rate", 0.25, above=0.0, most=1.0)
    0.25
    """
    found = math.nan
    if isinstance(value, numbers.Real) or _is_scalar_array(value):
        if not _is_bool(value):
            with contextlib.suppress(OverflowError):
                found = float(value)
    inside = (
        math.isfinite(found)
        and (least is None or found >= least)
        and (most is None or found <= most)
        and (above is None or found > above)
        and (below is None or found < below)
    )
    if not inside:
        limits = _limits(least, most, above, below)
        raise ValueError(
            _message(name, value, f"a finite number{limits}", hint)
        )
    # Equal settings are written alike: -0.0 becomes 0.0.
    return found + 0.0


def integer(
    name: str,
    value: Any,
    *,
    least: int = 0,
    most: int = MAX_COUNT,
    hint: str = "",
) -> int:
    """Checks an integer in a range.

    Args:
        name: Name of the argument, for the message.
        value: The argument. Floats, text and booleans are no integers.
        least: Smallest value allowed.
        most: Greatest value allowed.
        hint: Sentence added to the message: a reason or a way out.

    Returns:
        A Python int.

    Raises:
        ValueError: If `value` is not an integer in the range.

    Example:

    >>> integer("steps", 100)
    100
    """
    try:
        found = least - 1 if _is_bool(value) else operator.index(value)
    except TypeError:
        found = least - 1
    if not least <= found <= most:
        upper = "" if most == MAX_COUNT else f" and at most {most}"
        raise ValueError(
            _message(
                name, value, f"an integer of at least {least}{upper}", hint
            )
        )
    return found


def positive_integer(name: str, value: Any, *, hint: str = "") -> int:
    """Checks an integer of at least 1; see `integer`."""
    return integer(name, value, least=1, hint=hint)


def seed(
    value: Any,
    name: str = "seed",
    *,
    most: int = 2**63 - 1,
    is_optional: bool = True,
) -> int | None:
    """Checks a seed: `None`, or an integer from 0 to 2^63 - 1.

    Args:
        value: The argument. Floats, text and booleans are no seeds.
        name: Name of the argument, for the message.
        most: Greatest seed allowed; another one if fewer bits are used.
        is_optional: False if `None` is refused, too.

    Returns:
        A Python int, or `None`.

    Raises:
        ValueError: If `value` is neither.
    """
    if value is None and is_optional:
        return None
    try:
        return integer(name, value, least=0, most=most)
    except ValueError:
        words = "None or an integer" if is_optional else "an integer"
        power = f"2**{(most + 1).bit_length() - 1}"
        raise ValueError(
            _message(name, value, f"{words} from 0 to {power} - 1", "")
        ) from None


def boolean(name: str, value: Any) -> bool:
    """Checks `True` or `False`.

    Args:
        name: Name of the argument, for the message.
        value: The argument.

    Returns:
        A Python bool.

    Raises:
        ValueError: If `value` is neither.
    """
    if not _is_bool(value):
        raise ValueError(_message(name, value, "True or False", ""))
    return bool(value)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """Checks a choice among names.

    Args:
        name: Name of the argument, for the message.
        value: The argument.
        allowed: Every value that is allowed.

    Returns:
        `value`.

    Raises:
        ValueError: If `value` is not among `allowed`.
    """
    # Compared one by one: `in` would ask an array for its truth.
    if not any(type(value) is type(a) and value == a for a in allowed):
        raise ValueError(_message(name, value, f"one of {list(allowed)}", ""))
    return value


def _is_bool(value: Any) -> bool:
    """Recognises Python's and numpy's booleans."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_scalar_array(value: Any) -> bool:
    """Recognises arrays and tensors of one number, without their truth."""
    dtype = getattr(value, "dtype", None)
    kind = getattr(getattr(dtype, "as_numpy_dtype", dtype), "__name__", "")
    kind = kind or str(dtype)
    return (
        getattr(value, "shape", None) == ()
        and hasattr(value, "__float__")
        and kind.startswith(("float", "int", "uint"))
    )


def _limits(least, most, above, below) -> str:
    words = [
        f" {word} {bound:g}"
        for word, bound in (
            ("of at least", least),
            ("above", above),
            ("at most", most),
            ("below", below),
        )
        if bound is not None
    ]
    return " and".join(words)


def _is_number(text: str) -> bool:
    """Recognises text that would be a number without its quotes."""
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def _message(name: str, value: Any, wanted: str, hint: str) -> str:
    reason = f" {hint}" if hint else ""
    if isinstance(value, str) and _is_number(value):
        reason += " Leave the quotes out: text is no number."
    return f"`{name}` must be {wanted}.{reason} Received: {name}={value!r}"
