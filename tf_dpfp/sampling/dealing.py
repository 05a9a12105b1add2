"""Deals each batch to replicas: every example goes to one of them."""

from typing import Any

import keras
import tensorflow as tf

from tf_dpfp.sampling import padding
from tf_dpfp.sampling import parts


def deal(
    batches: tf.data.Dataset, replicas: int, static: bool = False
) -> tf.data.Dataset:
    """Cuts every batch into one piece for each replica, forever.

    Piece r of a batch is for replica r. Every example of a batch is in one of
    its pieces; pieces may be empty, and their sizes differ by at most one. So
    unlike the batching that `tf.distribute` does by itself, it is exact for
    batches of any size. The number of the part that a batch was drawn from goes
    with every piece.

    Args:
        batches: Batches of any size. When they end, they begin anew.
        replicas: Number of pieces.
        static: Boolean, whether pieces must have one static size. The batches
            must then be `(x, y, sample_weight)` of one static size, and may
            get more padding of weight zero.

    Returns:
        The pieces of the first batch, of the second one, and so on; infinite.

    Raises:
        ValueError: If a component of a batch has no axis over examples.
    """

    @tf.autograph.experimental.do_not_convert
    def pieces(*batch: Any) -> tf.data.Dataset:
        if static:
            batch, _ = padding.pad_to_multiple(batch, replicas)

        # A named tuple is one argument, not several.
        whole = batch if type(element) is tuple else batch[0]
        rows, part = parts.split(whole)

        def piece(replica: tf.Tensor) -> Any:
            dealt = piece_of(rows, replica, replicas, static)
            return dealt if part is None else parts.PartBatch(dealt, part)

        return tf.data.Dataset.range(replicas).map(piece)

    element = batches.element_spec
    dealt = batches.repeat().flat_map(pieces)
    return dealt.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )


def piece_of(
    batch: Any, replica: tf.Tensor, replicas: int, static: bool = False
) -> Any:
    """Cuts one replica's piece out of a batch.

    Args:
        batch: Nested tensors with the examples in their first axis.
        replica: Index of the piece.
        replicas: Number of pieces, which together hold each example once.
        static: Boolean, whether the number of examples is static, and a
            multiple of `replicas`.

    Returns:
        The piece, nested like the batch.

    Raises:
        ValueError: If a component of the batch has no axis over examples.
    """
    for leaf in keras.tree.flatten(batch):
        if leaf is not None and leaf.shape.rank == 0:
            raise ValueError(
                "A component of the batches has no first axis over examples, "
                "so it can't be dealt to replicas. Leave it out. "
                f"Received: {leaf}"
            )
    replica = tf.cast(replica, tf.int64)
    return keras.tree.map_structure(
        lambda leaf: (
            None if leaf is None else _piece(leaf, replica, replicas, static)
        ),
        batch,
    )


def _piece(
    leaf: tf.Tensor, replica: tf.Tensor, replicas: int, static: bool
) -> tf.Tensor:
    size = leaf.shape[0] if static else tf.shape(leaf, out_type=tf.int64)[0]
    piece = leaf[replica * size // replicas : (replica + 1) * size // replicas]
    if static:
        piece = tf.ensure_shape(piece, [size // replicas, *leaf.shape[1:]])
    return piece
