"""Sums of the gradients of consecutive examples, as of one example.

The examples of one person stand one after the other. The gradient of the person
is their sum, and its norm is not the sum of their norms: it is computed of the
sum itself. What a gradient has along positions grows: those of all examples of
a person are the positions of one.
"""

import tensorflow as tf

from tf_dpfp.per_example import gradients
from tf_dpfp.per_example import sums
from tf_dpfp.per_example.mapped import Mapped
from tf_dpfp.per_example.side_by_side import SideBySide


def add_consecutive(
    gradient: gradients.PerExampleGradient,
    count: tf.Tensor | int,
    present: tf.Tensor | None = None,
) -> gradients.PerExampleGradient:
    """Adds up the gradients of every `count` consecutive examples, exactly.

    Args:
        gradient: Gradients of `n * count` examples.
        count: Number of examples that are added up.
        present: Boolean, `(n * count,)`. An example without it adds nothing,
            even if its gradient is not finite. `None`: all add theirs.

    Returns:
        Gradients of n examples. Products and lookups keep their factored
        form.
    """
    if isinstance(gradient, gradients.OuterProduct):
        return _add_product(gradient, count, present)
    if isinstance(gradient, gradients.EmbeddingRows):
        return gradients.EmbeddingRows(
            _along_positions(gradient.ids, count),
            _along_positions(_of_present(gradient.values, present), count),
            gradient.num_rows,
        )
    if isinstance(gradient, sums.TiedTable):
        rows = add_consecutive(gradient.rows, count, present)
        product = add_consecutive(gradient.product, count, present)
        assert isinstance(rows, gradients.EmbeddingRows)
        assert isinstance(product, gradients.OuterProduct)
        return sums.TiedTable(rows, product)
    if isinstance(gradient, SideBySide):
        return SideBySide(
            [add_consecutive(part, count, present) for part in gradient.parts]
        )
    if isinstance(gradient, Mapped):
        inner = add_consecutive(gradient.inner, count, present)
        return Mapped(inner, gradient.linear, gradient.of_product)
    values = _of_present(gradient.materialize(), present)
    return gradients.PerExampleTensor(
        tf.reduce_sum(_apart(values, count), axis=1)
    )


def _add_product(
    product: gradients.OuterProduct,
    count: tf.Tensor | int,
    present: tf.Tensor | None,
) -> gradients.OuterProduct:
    # Both sides, for zero times infinity is NaN.
    return product.with_factors(
        _along_positions(_of_present(product.left, present), count),
        _along_positions(_of_present(product.right, present), count),
    )


def _of_present(values: tf.Tensor, present: tf.Tensor | None) -> tf.Tensor:
    """Zeros in place of the rows of examples that are not present."""
    if present is None:
        return values
    rows = tf.reshape(present, [-1] + [1] * (values.shape.rank - 1))
    return tf.where(rows, values, tf.zeros([], values.dtype))


def _divided(size: int | None, count: tf.Tensor | int) -> int | None:
    if size is None or not isinstance(count, int):
        return None
    return size // count


def _apart(values: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """From `(n * count, ...)` to `(n, count, ...)`."""
    shape = tf.shape(values)
    # Not -1 for n: it cannot be inferred beside a zero dimension.
    apart = tf.reshape(
        values, tf.concat([[shape[0] // count, count], shape[1:]], axis=0)
    )
    first = _divided(values.shape[0], count)
    each = count if isinstance(count, int) else None
    return tf.ensure_shape(apart, [first, each, *values.shape[1:]])


def _along_positions(values: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """From `(n * count, positions, ...)` to `(n, count * positions, ...)`."""
    shape, known = tf.shape(values), values.shape
    joined = tf.reshape(
        values,
        tf.concat([[shape[0] // count, count * shape[1]], shape[2:]], axis=0),
    )
    first = _divided(known[0], count)
    positions = None
    if known[1] is not None and isinstance(count, int):
        positions = known[1] * count
    return tf.ensure_shape(joined, [first, positions, *known[2:]])
