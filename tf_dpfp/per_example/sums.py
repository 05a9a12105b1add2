"""Sums of the per-example gradients of one variable over its uses."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dpfp.per_example import gradients

# The layout of products that land in a lookup table: (num_rows, width).
TABLE_LAYOUT = "table"


class TiedTable(gradients.PerExampleGradient):
    """Lookups in a table and products with the same table, added exactly.

    The gradient of a table E that is read by rows and that also projects:
    `onehot(ids)^T values + left^T right`, with left `(batch, s, num_rows)`.
    The cross term of the norm is a gather of `left` at the ids.
    """

    def __init__(
        self, rows: gradients.EmbeddingRows, product: gradients.OuterProduct
    ):
        self.rows = rows
        self.product = product

    def squared_norms(self) -> tf.Tensor:
        ids, values = self.rows.distinct()
        squares = self.rows.squared_norms()
        own = squares + self.product.squared_norms()
        slack = 4.0 * gradients.SLACK * own
        if self.product.writes_matrix:
            # Of the numbers that are summed: positions that cancel each other
            # leave behind what they were rounded by.
            picked = tf.gather(
                self.product.materialize(), ids, axis=1, batch_dims=1
            )
            cross = tf.reduce_sum(picked * values, axis=(1, 2))
        else:
            # (batch, s, t): left at the id of every row.
            picked = tf.gather(self.product.left, ids, axis=2, batch_dims=1)
            inner = tf.matmul(self.product.right, values, transpose_b=True)
            cross = tf.reduce_sum(picked * inner, axis=(1, 2))
            slack += (
                2.0
                * gradients.SLACK
                * self.product.lengths()
                * tf.sqrt(squares)
            )
        # The sum of two is at most twice as long as its parts are together:
        # rounding is relative to those, not to what is left of them.
        return tf.maximum(own + 2.0 * cross, 0.0) + slack

    def weighted_sum(self, factors: tf.Tensor) -> tf.Tensor:
        return self.rows.weighted_sum(factors) + self.product.weighted_sum(
            factors
        )

    def materialize(self) -> tf.Tensor:
        return self.rows.materialize() + self.product.materialize()


def _concatenate(parts, make):
    first = parts[0]
    return first if len(parts) == 1 else make(parts)


def _add_products(
    parts: Sequence[gradients.OuterProduct],
) -> gradients.OuterProduct:
    return parts[0].with_factors(
        tf.concat([p.left for p in parts], axis=1),
        tf.concat([p.right for p in parts], axis=1),
    )


def _add_rows(
    parts: Sequence[gradients.EmbeddingRows],
) -> gradients.EmbeddingRows:
    return gradients.EmbeddingRows(
        tf.concat([tf.cast(p.ids, tf.int64) for p in parts], axis=1),
        tf.concat([p.values for p in parts], axis=1),
        parts[0].num_rows,
    )


def add(
    parts: Sequence[gradients.PerExampleGradient],
) -> gradients.PerExampleGradient:
    """The exact sum of per-example gradients of one variable.

    A variable that several calls read (a layer called twice, tied
    embeddings) has one gradient per example, the sum; its norm is not the
    sum of the norms.

    Args:
        parts: Per-example gradients of the same variable and batch.

    Returns:
        One `PerExampleGradient`. Products of one layout and lookups keep
        their factored form; anything else is materialised.
    """
    if len(parts) == 1:
        return parts[0]
    products = [p for p in parts if isinstance(p, gradients.OuterProduct)]
    rows = [p for p in parts if isinstance(p, gradients.EmbeddingRows)]
    same_layout = len({p.layout for p in products}) <= 1
    if same_layout and len(products) + len(rows) == len(parts):
        if not rows:
            return _concatenate(products, _add_products)
        if not products:
            return _concatenate(rows, _add_rows)
        product = _concatenate(products, _add_products)
        if product.layout == TABLE_LAYOUT:
            return TiedTable(_concatenate(rows, _add_rows), product)
    return gradients.PerExampleTensor(
        tf.add_n([p.materialize() for p in parts])
    )
