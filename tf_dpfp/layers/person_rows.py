"""Rows of a batch that are the examples of one person.

A layer can't tell a person's rows from those of several examples, so the step
says it: a batch of persons has as many rows for each, and those that no example
fills have the weight zero.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tf_dpfp import counting
from tf_dpfp.clipping import clip_representations


@dataclasses.dataclass(frozen=True)
class Persons:
    """Persons of a batch whose rows lie end to end.

    Attributes:
        places: Number of rows of each.
        is_there: Boolean, `(rows,)`: false for a row without an example.
    """

    places: int
    is_there: tf.Tensor

    @classmethod
    def of(cls, places: int, weights: Sequence[tf.Tensor]) -> "Persons":
        """Tells rows of examples by their weights, of which one is not zero.

        Args:
            places: Number of rows of each person.
            weights: Sample weights, with rows in the first axis.
        """
        used = [
            tf.reduce_any(
                tf.not_equal(weight, 0),
                axis=list(range(1, weight.shape.rank)),
            )
            for weight in weights
        ]
        return cls(places, tf.reduce_any(tf.stack(used), axis=0))


class _Thread(threading.local):
    """Whose rows the calls of this thread get."""

    persons: Persons | None = None


_THREAD = _Thread()


@contextlib.contextmanager
def of_persons(persons: Persons | None) -> Iterator[None]:
    """Says whose rows the calls inside get, in this thread.

    Args:
        persons: The persons; `None` if each row is an example.
    """
    before, _THREAD.persons = _THREAD.persons, persons
    try:
        yield
    finally:
        _THREAD.persons = before


def release_of(release: counting.Release) -> counting.Release:
    """Returns the release of a call, of examples or of persons.

    Args:
        release: Release of a call on examples.
    """
    if _THREAD.persons is None:
        return release
    return of_places(release, _THREAD.persons.places)


def of_places(
    release: counting.Release, places: int | None
) -> counting.Release:
    """Returns what is released of persons with so many rows.

    Args:
        release: Release of a call on examples.
        places: Number of rows of each person; `None` for examples.

    Raises:
        ValueError: If labels are randomised.
    """
    if places is None:
        return release
    return release.of_kind(release.kind.of_persons(places))


def clipped(rows: tf.Tensor, clip_norm: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Clips the rows of a call: each by itself, or those of a person jointly.

    Args:
        rows: Examples in the first axis, float32 or wider.
        clip_norm: Bound on the L2 norm of an example's row, or of all rows of
            a person.

    Returns:
        What must be a function of each row's example alone, and the clipped
        rows.
    """
    persons = _THREAD.persons
    if persons is None:
        found = clip_representations(rows, clip_norm)
        return found, found
    # What the model makes of zeros is no example. Fails for another number of
    # rows, of which nobody said whose they are.
    ones = [1] * (rows.shape.rank - 1)
    like_rows = tf.concat([tf.shape(rows)[:1], ones], axis=0)
    is_there = tf.reshape(persons.is_there, like_rows)
    present = tf.where(is_there, rows, tf.zeros_like(rows))
    return rows, clip_representations(present, clip_norm, persons.places)
