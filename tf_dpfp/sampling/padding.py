"""Padding and cutting of batches to the shapes that a compiled step needs."""

from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import arguments


def pad_to_multiple(
    tree: Any, multiple: int, batch_size: int | tf.Tensor | None = None
) -> tuple[Any, tf.Tensor]:
    """Pads a batch with zeros until its size is a multiple.

    An empty batch is padded to `multiple`, so that no layer ever sees an empty
    tensor. Strings are padded with the empty string.

    Args:
        tree: Tensors with a common first axis over examples, nested in any
            way. `None` leaves are kept.
        multiple: Divisor of the padded size, at least 1.
        batch_size: Number of examples. Defaults to that of the tensors.

    Returns:
        `(padded, is_example)`. `padded` has the structure and dtypes of
        `tree`; `is_example` is a boolean tensor of shape `(padded size,)`,
        false for padding. Shapes are static if those of `tree` are.

    Raises:
        ValueError: If `multiple` is not a positive integer, a tensor has no
            first axis, or the tensors do not have `batch_size` examples.
    """
    multiple = arguments.positive_integer("multiple", multiple)
    tree = keras.tree.map_structure(_to_tensor, tree)
    batch_size = _static_size(tree, batch_size)
    if batch_size is None:
        batch_size = tf.shape(_tensors(tree)[0])[0]
    if isinstance(batch_size, int):
        size = max(-(-batch_size // multiple), 1) * multiple
    else:
        batch_size = tf.cast(batch_size, tf.int32)
        size = tf.maximum(-(-batch_size // multiple), 1) * multiple
    return pad(tree, size, batch_size)


def pad(
    tree: Any, size: int | tf.Tensor, batch_size: int | tf.Tensor
) -> tuple[Any, tf.Tensor]:
    """Pads a batch with zeros to a size.

    Args:
        tree: Tensors with a common first axis over examples, nested in any
            way. `None` leaves are kept.
        size: Number of rows afterwards, at least `batch_size`.
        batch_size: Number of examples.

    Returns:
        `(padded, is_example)`, as of `pad_to_multiple`.
    """

    def pad_leaf(leaf):
        if leaf is None:
            return None
        with tf.control_dependencies(_same_size(leaf, batch_size)):
            leaf = tf.identity(leaf)
        extra = tf.concat([[size - batch_size], tf.shape(leaf)[1:]], axis=0)
        padded = tf.concat([leaf, tf.zeros(extra, leaf.dtype)], axis=0)
        static_size = size if isinstance(size, int) else None
        return tf.ensure_shape(padded, [static_size, *leaf.shape[1:]])

    is_example = tf.range(size) < batch_size
    return keras.tree.map_structure(pad_leaf, tree), is_example


def split_microbatches(tree: Any, microbatch_size: int) -> Any:
    """Cuts every tensor into pieces of `microbatch_size` examples.

    Args:
        tree: Tensors whose first axis is a multiple of `microbatch_size`, as
            `pad_to_multiple` returns them, nested in any way. `None` leaves
            are kept.
        microbatch_size: Number of examples of a piece, at least 1.

    Returns:
        The tree with tensors of shape `(pieces, microbatch_size, ...)`.

    Raises:
        ValueError: If `microbatch_size` is not a positive integer, or a tensor
            cannot be cut into whole pieces.
    """
    microbatch_size = arguments.positive_integer(
        "microbatch_size", microbatch_size
    )

    def split(leaf):
        if leaf is None:
            return None
        leaf = _to_tensor(leaf)
        batch_size = leaf.shape[0]
        if batch_size is None:
            pieces, batch_size = None, tf.shape(leaf)[0]
        elif batch_size % microbatch_size:
            raise ValueError(
                f"A batch of {batch_size} examples cannot be cut into "
                "microbatches. Pad it with `pad_to_multiple` first. "
                f"Received: microbatch_size={microbatch_size}"
            )
        else:
            pieces = batch_size // microbatch_size
        # Not -1 for the pieces: it cannot be inferred beside a zero dimension.
        shape = tf.concat(
            [
                [batch_size // microbatch_size, microbatch_size],
                tf.shape(leaf)[1:],
            ],
            axis=0,
        )
        return tf.ensure_shape(
            tf.reshape(leaf, shape), [pieces, microbatch_size, *leaf.shape[1:]]
        )

    return keras.tree.map_structure(split, tree)


def _to_tensor(leaf: Any) -> tf.Tensor | None:
    if leaf is None:
        return None
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"A batch cannot hold a {type(leaf).__name__}. Make it dense first "
            "(for example with `.to_tensor()` or `tf.sparse.to_dense`; a "
            "matrix of scipy.sparse with `.toarray()`). "
            f"Received: shape {leaf.shape}"
        )
    leaf = tf.convert_to_tensor(leaf)
    if leaf.shape.rank is None or leaf.shape.rank < 1:
        raise ValueError(
            "Every tensor of a batch needs a known rank and a first axis over "
            f"examples. Received: shape {leaf.shape}"
        )
    return leaf


def _tensors(tree: Any) -> list[tf.Tensor]:
    tensors = [leaf for leaf in keras.tree.flatten(tree) if leaf is not None]
    if not tensors:
        raise ValueError(f"The batch holds no tensor at all. Received: {tree}")
    return tensors


def _static_size(
    tree: Any, batch_size: int | tf.Tensor | None
) -> int | tf.Tensor | None:
    """Returns the batch size: an integer if any tensor has it statically."""
    if batch_size is not None:
        static = tf.get_static_value(batch_size)
        batch_size = batch_size if static is None else int(static)
    known = {leaf.shape[0] for leaf in _tensors(tree)} - {None}
    if isinstance(batch_size, int):
        known.add(batch_size)
    if len(known) > 1:
        raise ValueError(
            "All tensors of a batch need the same number of examples. "
            f"Received: {sorted(known)}"
        )
    return known.pop() if known else batch_size


def _same_size(leaf: tf.Tensor, batch_size: int | tf.Tensor) -> list[Any]:
    """Returns the operations that check a size which is not static."""
    if leaf.shape[0] is not None and isinstance(batch_size, int):
        return []
    return [
        tf.debugging.assert_equal(
            tf.shape(leaf)[0],
            batch_size,
            message="All tensors of a batch need the same number of examples.",
        )
    ]
