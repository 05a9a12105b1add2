"""Ids of persons: which examples are whose.

Two persons under one id are protected as one, so that each of them alone moves
a sum by more than is counted. So nothing that was told apart may become one on
the way: by a common type for several, by rounding, or by a missing id.
"""

import numbers
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling.source import Source

# Types of numpy that are equal to these, and hashed alike.
_SAME = {np.str_: str, np.bytes_: bytes, np.bool_: numbers.Number}


def numbered(source: Source, users: Any) -> tuple[np.ndarray, int]:
    """Numbers the persons, in the order in which their first examples come.

    Args:
        source: All examples.
        users: One id for each example, or a function from a batch of examples
            to their ids.

    Returns:
        The number of the person of each example, and how many persons there
        are.

    Raises:
        ValueError: If an id is missing or was rounded, or there is not one for
            each example.
        TypeError: If ids are no numbers, strings or other values to compare.
    """
    ids: list[Any] = []
    for part in _parts(source, users):
        ids += _checked(part)
    _check_types(ids)
    known: dict[Any, int] = {}
    try:
        codes = [known.setdefault(one, len(known)) for one in ids]
    except TypeError as error:
        raise TypeError(
            "Ids of `users` must be hashable: integers or strings. Received: "
            f"ids of type {type(ids[0]).__name__}"
        ) from error
    return np.array(codes, np.int64), len(known)


def _parts(source: Source, users: Any) -> Iterator[np.ndarray]:
    """Yields the ids of all examples, in parts of a type each."""
    if callable(users):
        yield from _computed(source, users)
        return
    ids = _array(users)
    if ids.shape != (source.size,):
        raise ValueError(
            f"`users` must have one id for each of the {source.size} examples, "
            f"of shape ({source.size},). Received: users of shape {ids.shape}"
        )
    yield ids


def _computed(
    source: Source, users: Callable[..., Any]
) -> Iterator[np.ndarray]:
    """Calls a function on all examples, one part after the other."""
    for first in range(0, source.size, source_lib.CHUNK):
        indices = np.arange(first, min(first + source_lib.CHUNK, source.size))
        leaves = source.take(indices)
        components = keras.tree.pack_sequence_as(source.structure, leaves)
        ids = _array(users(*components))
        if ids.shape != indices.shape:
            raise ValueError(
                "The function `users` must return one id for each example of "
                f"the batch it is given, of shape {indices.shape}. Received: "
                f"shape {ids.shape}"
            )
        yield ids


def _array(users: Any) -> np.ndarray:
    if isinstance(users, tf.Tensor):
        users = users.numpy()
    elif isinstance(users, (list, tuple)):
        # As objects: numpy would make one type of several.
        given, users = users, np.empty(len(users), object)
        users[:] = given
    # Masked ones become whatever is below the mask.
    _check_none_missing(np.ma.is_masked(users))
    return np.asarray(users)


def _checked(ids: np.ndarray) -> list[Any]:
    """Returns the ids of a part, none of them missing or rounded."""
    if ids.dtype.kind not in "iubUSfMO":
        raise TypeError(
            "Ids of `users` must be integers, strings, dates or other values "
            f"that can be compared. Received: users of dtype {ids.dtype}"
        )
    listed = ids.tolist()
    is_missing = ids.dtype.kind in "Of" and any(map(_is_missing, listed))
    is_missing |= ids.dtype.kind == "M" and bool(np.isnat(ids).any())
    _check_none_missing(is_missing)
    if ids.dtype.kind == "f":
        _check_exact(ids.dtype, float(np.abs(ids).max(initial=0.0)))
    for one in listed if ids.dtype.kind == "O" else ():
        if isinstance(one, (float, np.floating)):
            _check_exact(np.result_type(one), abs(float(one)))
    return listed


def _check_exact(dtype: np.dtype, greatest: float) -> None:
    """Refuses floats that stand for several integers."""
    limit = 2.0 ** (np.finfo(dtype).nmant + 1)
    if greatest >= limit:
        raise ValueError(
            f"Ids of `users` that are {dtype.name} and {limit:.0f} or more "
            "were rounded, and several persons may have become one, who are "
            "then protected together and not each. Give ids as integers or "
            "strings, from where they come from on. "
            f"Received: users of {dtype.name}"
        )


def _check_none_missing(is_missing: bool) -> None:
    if is_missing:
        raise ValueError(
            "Every example needs the id of its person. Leave out examples "
            "without one, or give each an id of its own. Received: users with "
            "missing ids (None, NaN or masked)"
        )


def _check_types(ids: list[Any]) -> None:
    kinds = set(map(type, ids))
    if any(issubclass(kind, numbers.Number) for kind in kinds):
        kinds = {
            numbers.Number if issubclass(kind, numbers.Number) else kind
            for kind in kinds
        }
    kinds = {_SAME.get(kind, kind) for kind in kinds}
    if len(kinds) > 1:
        raise TypeError(
            "Ids of `users` must be of one type: '1' and 1 would be two "
            "persons. Received: ids of types "
            f"{sorted(kind.__name__ for kind in kinds)}"
        )


def _is_missing(one: Any) -> bool:
    if one is None:
        return True
    try:
        return bool(one != one)
    except TypeError:  # As of pandas.NA.
        return True
