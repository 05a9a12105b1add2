"""Augmented views of examples, and batches of them.

**Sensitivity.** A view is made of one example alone, and the mean of the
gradients of an example's views is clipped: what an example adds has the norm
of a clip norm at most, however many views it has. So neighbours, sensitivity
and epsilon are those of single examples. It needs views that see no other
example, and random numbers of theirs that do not hang on the row of the
example, or are secret (`augmentation`).
"""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp.sampling import augmentation
from tf_dpfp.sampling import persons


class ViewBatch(NamedTuple):
    """Batch with examples in the first axis and their views in the second.

    Attributes:
        x: Inputs, of shapes `(examples, views, ...)`.
        y: Targets, the same for all views of an example.
        sample_weight: Weights, likewise.
    """

    x: Any
    y: Any
    sample_weight: Any


@dataclasses.dataclass(frozen=True)
class Views:
    """Views of each example that is drawn.

    Attributes:
        count: Number of views of an example.
        augment: Function of one example; `None` for views that are copies.
    """

    count: int
    augment: augmentation.Augment | None


def checked(augment: Any, multiplicity: int | None, users: Any) -> Views | None:
    """Checks `augment` together with `multiplicity`.

    Args:
        augment: Argument of `poisson_batches`.
        multiplicity: Argument of `poisson_batches`.
        users: Argument of `poisson_batches`.

    Returns:
        The views of each example; `None` if batches hold examples as they are.

    Raises:
        ValueError: If an argument is out of range, or there are persons.
        TypeError: If `augment` is neither layers nor a function.
    """
    count = 1
    if multiplicity is not None:
        count = arguments.positive_integer("multiplicity", multiplicity)
    function = augmentation.checked(augment)
    if count == 1 and function is None:
        return None
    if users is not None:
        raise ValueError(
            "The gradient of a person is a sum over examples, and that of an "
            "example a mean over views: nothing is built for both. Leave out "
            "`augment` and `multiplicity`, or `users`; `map_fn` augments the "
            "examples of persons once each. Received: users of type "
            f"{type(users).__name__}, multiplicity={multiplicity}"
        )
    return Views(count, function)


def of_batch(
    batch: tuple[Any, ...], views: Views, seeds: tf.Tensor
) -> tuple[Any, ...]:
    """Makes the views of all examples of a batch.

    Args:
        batch: `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        views: Views of each example.
        seeds: Secret seed of each example, int64, `(examples, 2)`.

    Returns:
        A `ViewBatch`; a batch like the one given if each has one view.

    Raises:
        ValueError: If there are several views and no targets.
    """
    x, *others = batch
    others = tree.map_structure(
        lambda leaf: tf.repeat(leaf, views.count, axis=0), others
    )
    x = _views_of(x, views, seeds)
    if views.count == 1:
        return (x, *others)
    if not others:
        raise ValueError(
            "Views of examples need targets: pass `y`. Received: "
            f"multiplicity={views.count}, batches of x alone"
        )
    if len(others) == 1:
        size = tf.shape(seeds)[0] * views.count
        weight = tf.ones([size], keras.config.floatx())
        known = seeds.shape[0]
        rows = None if known is None else known * views.count
        others.append(tf.ensure_shape(weight, [rows]))
    return ViewBatch(*persons.apart((x, *others), views.count))


def _views_of(x: Any, views: Views, seeds: tf.Tensor) -> Any:
    """Makes the views of all examples, one after the other, end to end."""
    count = views.count
    if views.augment is None:
        return tree.map_structure(
            lambda leaf: tf.repeat(leaf, count, axis=0), x
        )
    specs = tree.map_structure(
        lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), x
    )
    one = augmentation.traced(views.augment, specs)

    def view(row: tf.Tensor) -> Any:
        place = row // count
        example = tree.map_structure(lambda leaf: leaf[place], x)
        # Another seed for each view; `augmentation` counts in the first number.
        number = tf.stack([0, tf.cast(row % count, seeds.dtype)])
        return one(example, seeds[place] + number)

    # A loop over single views: none of them can see another example.
    made = tf.map_fn(
        view,
        tf.range(tf.shape(seeds)[0] * count),
        fn_output_signature=tree.map_structure(
            lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype),
            one.structured_outputs,
        ),
    )
    known = seeds.shape[0]
    rows = None if known is None else known * count
    return tree.map_structure(
        lambda leaf: tf.ensure_shape(leaf, [rows, *leaf.shape[1:]]), made
    )


def kind_of(batch: Any) -> accounting.PersonSums | accounting.ViewSums | None:
    """Returns what a step on a batch releases, if it joins rows.

    Args:
        batch: An element of a data set, or its specification.

    Returns:
        Sums of persons or of views; `None` if the rows are examples.

    Raises:
        ValueError: If tensors of the batch differ in their second axis.
    """
    places = persons.max_examples_of(batch)
    if places is not None:
        return accounting.PersonSums(places)
    if not isinstance(batch, ViewBatch):
        return None
    count = persons.second_axis(batch)
    if count is None:
        raise ValueError(
            "Every tensor of a batch of views has the examples in its first "
            "axis and as many views of each in the second, a static number. "
            "Received: shapes "
            f"{[tuple(t.shape) for t in tree.flatten(tuple(batch))]}"
        )
    return accounting.ViewSums(count)
