"""Gives a batch of any size the shapes a compiled step needs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


def pad_to_multiple(
    tree: Any, multiple: int, batch_size: int | tf.Tensor | None = None
) -> tuple[Any, tf.Tensor]:
    """Appends zero rows until the number of rows is a multiple.

    An empty batch becomes `multiple` rows, so that no layer ever sees an empty
    tensor. Strings are padded with the empty string.

    Args:
        tree: tensors with a common first dimension, nested in any way. `None`
            leaves are kept.
        multiple: what the number of rows is made divisible by, at least 1.
        batch_size: the number of rows. Read from the tensors when not given.

    Returns:
        `(padded, mask)`. `padded` has the structure and dtypes of `tree`;
        `mask` is boolean of shape `(rows,)` and true for the rows of `tree`.
        Shapes are static wherever those of `tree` are.

    Raises:
        ValueError: if `multiple` is below 1, a tensor has no first dimension,
            or the tensors do not have `batch_size` rows.
    """
    _check_size("multiple", multiple)
    tree = keras.tree.map_structure(_to_tensor, tree)
    batch_size = _static_rows(tree, batch_size)
    if batch_size is None:
        batch_size = tf.shape(_tensors(tree)[0])[0]
    if isinstance(batch_size, int):
        rows = max(-(-batch_size // multiple), 1) * multiple
    else:
        batch_size = tf.cast(batch_size, tf.int32)
        rows = tf.maximum(-(-batch_size // multiple), 1) * multiple

    def pad(leaf):
        if leaf is None:
            return None
        with tf.control_dependencies(_same_rows(leaf, batch_size)):
            leaf = tf.identity(leaf)
        extra = tf.concat([[rows - batch_size], tf.shape(leaf)[1:]], axis=0)
        padded = tf.concat([leaf, tf.zeros(extra, leaf.dtype)], axis=0)
        static_rows = rows if isinstance(rows, int) else None
        return tf.ensure_shape(padded, [static_rows, *leaf.shape[1:]])

    mask = tf.range(rows) < batch_size
    return keras.tree.map_structure(pad, tree), mask


def split_microbatches(tree: Any, microbatch_size: int) -> Any:
    """Cuts every tensor into pieces of `microbatch_size` rows.

    Args:
        tree: tensors whose first dimension is a multiple of `microbatch_size`,
            as `pad_to_multiple` returns them, nested in any way. `None` leaves
            are kept.
        microbatch_size: rows of a piece, at least 1.

    Returns:
        The tree with tensors of shape `(pieces, microbatch_size, ...)`.

    Raises:
        ValueError: if `microbatch_size` is below 1 or a tensor cannot be cut
            into whole pieces.
    """
    _check_size("microbatch_size", microbatch_size)

    def split(leaf):
        if leaf is None:
            return None
        leaf = _to_tensor(leaf)
        rows = leaf.shape[0]
        if rows is None:
            pieces, row_count = None, tf.shape(leaf)[0]
        elif rows % microbatch_size:
            raise ValueError(
                f"A batch of {rows} rows cannot be cut into microbatches of "
                f"{microbatch_size}. Pad it with `pad_to_multiple` first."
            )
        else:
            pieces, row_count = rows // microbatch_size, rows
        # Not -1 for the pieces: it cannot be inferred beside a zero dimension.
        shape = tf.concat(
            [
                [row_count // microbatch_size, microbatch_size],
                tf.shape(leaf)[1:],
            ],
            axis=0,
        )
        return tf.ensure_shape(
            tf.reshape(leaf, shape), [pieces, microbatch_size, *leaf.shape[1:]]
        )

    return keras.tree.map_structure(split, tree)


def _check_size(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")


def _to_tensor(leaf: Any) -> tf.Tensor | None:
    if leaf is None:
        return None
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise ValueError(
            f"A batch cannot hold a {type(leaf).__name__}. Make it dense first "
            "(for example with `.to_tensor()` or `tf.sparse.to_dense`)."
        )
    leaf = tf.convert_to_tensor(leaf)
    if leaf.shape.rank is None or leaf.shape.rank < 1:
        raise ValueError(
            "Every tensor of a batch needs a known rank and a first dimension "
            f"over examples, got shape {leaf.shape}."
        )
    return leaf


def _tensors(tree: Any) -> list[tf.Tensor]:
    tensors = [leaf for leaf in keras.tree.flatten(tree) if leaf is not None]
    if not tensors:
        raise ValueError("The batch holds no tensor at all.")
    return tensors


def _static_rows(
    tree: Any, batch_size: int | tf.Tensor | None
) -> int | tf.Tensor | None:
    """The number of rows: an integer when any tensor knows it statically."""
    if batch_size is not None:
        static = tf.get_static_value(batch_size)
        batch_size = batch_size if static is None else int(static)
    known = {leaf.shape[0] for leaf in _tensors(tree)} - {None}
    if isinstance(batch_size, int):
        known.add(batch_size)
    if len(known) > 1:
        raise ValueError(
            "All tensors of a batch need the same number of rows, got "
            f"{sorted(known)}."
        )
    return known.pop() if known else batch_size


def _same_rows(leaf: tf.Tensor, batch_size: int | tf.Tensor) -> list[Any]:
    if leaf.shape[0] is not None and isinstance(batch_size, int):
        return []
    return [
        tf.debugging.assert_equal(
            tf.shape(leaf)[0],
            batch_size,
            message="All tensors of a batch need the same number of rows.",
        )
    ]
