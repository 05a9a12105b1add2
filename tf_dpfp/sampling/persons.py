"""Persons with several examples, and batches that are drawn by person."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import arguments
from tf_dpfp.sampling import person_ids
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling.source import Source

# Index of a place that no example fills.
ABSENT = -1


class PersonBatch(NamedTuple):
    """Batch with persons in the first axis and their examples in the second.

    Attributes:
        x: Inputs, of shapes `(persons, max_examples, ...)`.
        y: Targets.
        sample_weight: Weights; zero at places that no example fills.
    """

    x: Any
    y: Any
    sample_weight: Any


def max_examples_of(batch: Any) -> int | None:
    """Returns the number of places for the examples of a person.

    Args:
        batch: An element of a data set, or its specification.

    Returns:
        The number; `None` if the batch is not one of persons.

    Raises:
        ValueError: If tensors of the batch have different numbers of places.
    """
    if not isinstance(batch, PersonBatch):
        return None
    count = second_axis(batch)
    if count is None:
        shapes = [t.shape for t in tree.flatten(tuple(batch)) if t is not None]
        raise ValueError(
            "Every tensor of a batch of persons has the persons in its first "
            "axis and as many places for their examples in the second, a "
            f"static number. Received: shapes {[tuple(s) for s in shapes]}"
        )
    return count


def second_axis(batch: Any) -> int | None:
    """Returns the size of the second axis of all tensors of a batch.

    Args:
        batch: A batch, or its specification.

    Returns:
        The size; `None` if it differs, is not static, or there is no such axis.
    """
    tensors = [t for t in tree.flatten(tuple(batch)) if t is not None]
    shapes = [tf.TensorShape(t.shape) for t in tensors]
    found = {s[1] if s.rank and s.rank > 1 else None for s in shapes}
    count = found.pop()
    return None if found or count is None else int(count)


def flat(batch: Any) -> Any:
    """Lays the examples of all persons end to end.

    Args:
        batch: Nested tensors or specifications, `(persons, places, ...)`.

    Returns:
        The same structure, `(persons * places, ...)`.
    """

    def of(leaf: Any) -> Any:
        if leaf is None:
            return None
        if isinstance(leaf, tf.TensorSpec):
            persons, places = leaf.shape[:2]
            size = None if persons is None else persons * places
            return tf.TensorSpec([size, *leaf.shape[2:]], leaf.dtype)
        leaf = tf.convert_to_tensor(leaf)
        shape, known = tf.shape(leaf), leaf.shape
        together = tf.reshape(
            leaf, tf.concat([[shape[0] * shape[1]], shape[2:]], axis=0)
        )
        size = None if known[0] is None else known[0] * known[1]
        return tf.ensure_shape(together, [size, *known[2:]])

    return tree.map_structure(of, batch)


def apart(batch: tuple[Any, ...], places: int) -> tuple[Any, ...]:
    """Cuts examples that lie end to end into persons; inverse of `flat`.

    Args:
        batch: Nested tensors of a multiple of `places` examples.
        places: Number of places of a person.

    Returns:
        The same structure, `(persons, places, ...)`.
    """

    def of(leaf: tf.Tensor) -> tf.Tensor:
        shape, size = tf.shape(leaf), leaf.shape[0]
        apart = tf.reshape(
            leaf, tf.concat([[shape[0] // places, places], shape[1:]], axis=0)
        )
        persons = None if size is None else size // places
        return tf.ensure_shape(apart, [persons, places, *leaf.shape[1:]])

    return tree.map_structure(of, batch)


@dataclasses.dataclass(frozen=True)
class Persons:
    """The examples of each person, and how many of them a step may have.

    Attributes:
        examples: Indices of all examples, person by person.
        starts: For each person, the place in `examples` of the first one.
        counts: For each person, the number of examples.
        max_examples: Greatest number of examples of a person in a step.
    """

    examples: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    max_examples: int

    @property
    def size(self) -> int:
        """Number of persons."""
        return len(self.starts)

    def every_nth(self, first: int, step: int) -> "Persons":
        """Selects the persons `first`, `first + step` and so on."""
        return dataclasses.replace(
            self,
            starts=self.starts[first::step],
            counts=self.counts[first::step],
        )

    def draw_examples(
        self, rng: np.random.Generator, drawn: np.ndarray
    ) -> np.ndarray:
        """Chooses examples of the persons of a batch.

        All examples of a person who has at most `max_examples`; of others so
        many, all subsets equally likely.

        Args:
            rng: Generator that the randomness comes from.
            drawn: Indices of the persons.

        Returns:
            Indices of examples, `(persons, max_examples)`; `ABSENT` where a
            person has fewer.
        """
        starts, counts = self.starts[drawn], self.counts[drawn]
        places = np.arange(self.max_examples)
        found = np.minimum(starts[:, None] + places, len(self.examples) - 1)
        is_there = places < counts[:, None]
        chosen = np.where(is_there, self.examples[found], ABSENT)
        for place in np.flatnonzero(counts > self.max_examples):
            own = rng.choice(counts[place], self.max_examples, replace=False)
            chosen[place] = self.examples[starts[place] + own]
        return chosen

    def digest(self, source: Source, key: bytes) -> bytes:
        """Computes a digest of the examples and of whose they are.

        Args:
            source: The examples.
            key: Secret key of at most 64 bytes.

        Returns:
            The digest.
        """
        found = hashlib.blake2b(source_lib.digest(source, key), key=key)
        for array in (self.examples, self.starts, self.counts):
            found.update(np.ascontiguousarray(array, np.int64).tobytes())
        found.update(str(self.max_examples).encode())
        return found.digest()


def checked_places(users: Any, max_examples_per_user: int | None) -> int | None:
    """Checks `max_examples_per_user` together with `users`.

    Args:
        users: Argument of `poisson_batches`.
        max_examples_per_user: Argument of `poisson_batches`.

    Returns:
        Number of places of a person; `None` if examples are drawn.

    Raises:
        ValueError: If one is given alone, or the number is not positive.
    """
    if (users is None) != (max_examples_per_user is None):
        raise ValueError(
            "`users` and `max_examples_per_user` must be given together: a "
            "step has up to so many examples of each person. Received: "
            f"users of type {type(users).__name__}, max_examples_per_user="
            f"{max_examples_per_user!r}"
        )
    if users is None:
        return None
    return arguments.positive_integer(
        "max_examples_per_user", max_examples_per_user
    )


def group(
    source: Source,
    users: Any,
    max_examples: int,
) -> Persons:
    """Finds the examples of each person.

    Args:
        source: All examples.
        users: One id for each example, or a function from a batch of examples
            to their ids.
        max_examples: Greatest number of examples of a person in a step.

    Returns:
        The persons, in the order in which their first examples come.

    Raises:
        ValueError: If an id is missing or was rounded, or there is not one for
            each example.
        TypeError: If ids are no numbers, strings or other values to compare.
    """
    codes, size = person_ids.numbered(source, users)
    examples = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=size)
    starts = np.cumsum(counts) - counts
    return Persons(examples, starts, counts, max_examples)
