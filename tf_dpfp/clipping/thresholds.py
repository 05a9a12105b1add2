"""Splits of one bound into the clip norms of several groups.

Every split keeps `sum_k C_k^2 = l2_norm_clip^2`, so that the sensitivity of
the whole release is the bound that the user gave.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tf_dpfp import arguments

# How a bound is split: "equal", "by_dimension", or pairs of a group's name and
# its clip norm (a dict, made hashable).
Split = str | tuple[tuple[str, float], ...]

# Given clip norms may miss the bound by rounding, not by more.
_TOLERANCE = 1e-6

# Float32 loses the squares of numbers below 1e-19. What that can hide of a
# gradient of ten billion numbers is shorter than any clip norm allowed.
LEAST = 1e-14


def as_split(name: str, value: Any) -> Split:
    """Checks a split and makes it hashable, as part of a frozen object.

    Args:
        name: The argument's name, for the message.
        value: `"equal"`, `"by_dimension"`, or a dict from group name to
            number (or what that became in a serialized form).

    Returns:
        The same split.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, str) and value in ("equal", "by_dimension"):
        return value
    if isinstance(value, Mapping):
        value = sorted(value.items())
    if isinstance(value, list | tuple):
        return tuple(
            (str(group), arguments.number(f"{name}[{group!r}]", number))
            for group, number in value
        )
    raise ValueError(
        f"`{name}` must be 'equal', 'by_dimension' or a dict from group name "
        f"to number. Received: {name}={value!r}"
    )


def split_bound(
    split: Split | Mapping[str, float],
    l2_norm_clip: float,
    names: Sequence[str],
    dimensions: Sequence[int],
) -> tuple[float, ...]:
    """Splits a bound among groups.

    Args:
        split: Result of `as_split`.
        l2_norm_clip: The bound C.
        names: Names of the groups.
        dimensions: Number of parameters of each.

    Returns:
        The clip norms, in the order of the names.

    Raises:
        ValueError: If given thresholds do not fit the groups or the bound.
    """
    if not isinstance(split, str):
        return given(l2_norm_clip, names, dict(split))
    if split == "equal":
        return equal_split(l2_norm_clip, len(names))
    return split_by_dimension(l2_norm_clip, dimensions)


def equal_split(l2_norm_clip: float, count: int) -> tuple[float, ...]:
    """Gives each of K groups `C / sqrt(K)`.

    Args:
        l2_norm_clip: The bound C.
        count: Number of groups, at least 1.

    Returns:
        The clip norms.
    """
    return (l2_norm_clip / math.sqrt(count),) * count


def split_by_dimension(
    l2_norm_clip: float, dimensions: Sequence[int]
) -> tuple[float, ...]:
    """Gives each group `C sqrt(d_k / sum_j d_j)`: the same per parameter.

    Args:
        l2_norm_clip: The bound C.
        dimensions: Number of parameters d_k of each group.

    Returns:
        The clip norms.
    """
    total = sum(dimensions)
    return tuple(l2_norm_clip * math.sqrt(d / total) for d in dimensions)


def given(
    l2_norm_clip: float, names: Sequence[str], thresholds: Mapping[str, float]
) -> tuple[float, ...]:
    """Orders and checks clip norms that the user gave by name.

    Args:
        l2_norm_clip: The bound C.
        names: Names of the groups.
        thresholds: The clip norm of each.

    Returns:
        The clip norms, in the order of the names.

    Raises:
        ValueError: If names do not match, a clip norm is too small or not
            finite, or their squares do not add up to that of the bound.
    """
    values = by_name("thresholds", names, thresholds)
    total = math.sqrt(math.fsum(v * v for v in values))
    if not math.isclose(total, l2_norm_clip, rel_tol=_TOLERANCE):
        raise ValueError(
            "The squares of the thresholds must add up to that of "
            f"l2_norm_clip={l2_norm_clip:g}; theirs add up to that of "
            f"{total:.10g}. Give that as l2_norm_clip, or scale them."
        )
    return values


def by_name(
    argument: str, names: Sequence[str], numbers: Mapping[str, float]
) -> tuple[float, ...]:
    """Puts one positive number for each group in the order of the names.

    Args:
        argument: The argument's name, for the messages.
        names: Names of the groups.
        numbers: The number of each.

    Returns:
        The numbers.

    Raises:
        ValueError: If names do not match, or a number is too small or not
            finite.
    """
    if set(names) != set(numbers):
        missing = sorted(set(names) - set(numbers))
        unknown = sorted(set(numbers) - set(names))
        raise ValueError(
            f"`{argument}` gives one number for each group. Missing: "
            f"{missing}; not a group: {unknown}."
        )
    return tuple(
        arguments.number(f"{argument}[{name!r}]", numbers[name], least=LEAST)
        for name in names
    )
