"""Sums over the rows of a table that a batch touches, and who touched them.

An example touches the rows of a table that its clipped gradient is not zero on.
Its contribution is 1 to each of them, over all tables, scaled down where that
is longer than the contribution clip C_1: to `min(1, C_1 / sqrt(m))` for m rows.

**Sensitivity.** Adding or removing one example moves the contributions of all
rows, together, by at most C_1 in L2 norm, and the sums as if they were written
out for the whole table: by at most the clip norms of their groups.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_dpfp import per_example

# For rounding in float64, so that a contribution is never longer than C_1.
_MARGIN = 1.0 - 2.0**-40


class RowSums(NamedTuple):
    """Clipped sum of a table, row by row. Not private until noise is added.

    Rows may be named more than once: what they have is to be added up.

    Attributes:
        rows: Numbers of rows, int64 of shape `(n,)`.
        values: Gradients of these rows, `(n, width)`.
        contributions: Clipped contributions to these rows, float64 of shape
            `(n,)`.
    """

    rows: tf.Tensor
    values: tf.Tensor
    contributions: tf.Tensor


@dataclasses.dataclass(frozen=True)
class SparseTables:
    """Tables that are released where they are touched.

    Attributes:
        positions: Positions in the list of trainable variables.
        contribution_clip: The clip norm C_1 of contributions.
        names: Names of their layers, for messages.
    """

    positions: tuple[int, ...]
    contribution_clip: float
    names: tuple[str, ...]

    def name_of(self, position: int) -> str:
        """Returns the name of the layer of the table at a position."""
        return self.names[self.positions.index(position)]


class ClippedTable(NamedTuple):
    """Per-example gradients of a table, with their clip factors.

    Attributes:
        gradient: The gradients.
        factors: The clip factor of each example, `(batch,)`.
        name: Name of its layer.
    """

    gradient: per_example.PerExampleGradient
    factors: tf.Tensor
    name: str


def row_sums(
    tables: Sequence[ClippedTable], contribution_clip: float
) -> list[RowSums]:
    """Sums the clipped gradients of tables over examples, row by row.

    Args:
        tables: The tables; their gradients are lookups.
        contribution_clip: The clip norm C_1 of contributions.

    Returns:
        The sums of each table.

    Raises:
        ValueError: If a gradient is not one of lookups.
    """
    clipped = [_lookups(table) for table in tables]
    touched = [tf.reduce_any(values != 0.0, axis=2) for _, values in clipped]
    numbers = tf.add_n(
        [tf.reduce_sum(tf.cast(t, tf.float64), axis=1) for t in touched]
    )
    # Of no rows an infinite quotient, and so 1.
    scales = tf.minimum(contribution_clip * tf.math.rsqrt(numbers), 1.0)
    scales *= _MARGIN
    return [
        RowSums(
            tf.reshape(tf.cast(rows, tf.int64), [-1]),
            tf.reshape(values, [-1, values.shape[2]]),
            tf.reshape(
                tf.where(mine, scales[:, None], tf.zeros([], tf.float64)), [-1]
            ),
        )
        for (rows, values), mine in zip(clipped, touched, strict=True)
    ]


def _lookups(table: ClippedTable) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each example's rows, none twice, with clipped gradients."""
    if not isinstance(table.gradient, per_example.EmbeddingRows):
        raise ValueError(
            f"Table '{table.name}' is used otherwise than to look up its rows "
            "by an Embedding, so that every row has a gradient in every step: "
            "it is tied to an output, say, or its layer has a `call` of its "
            "own or is inside of TimeDistributed or the like. Leave it out of "
            "`sparse_tables`, or give the other use a weight of its own and "
            "call the Embedding itself on the ids."
        )
    return table.gradient.clipped_rows(table.factors)


def added_up(sums: RowSums) -> RowSums:
    """Adds up what is of the same row.

    Args:
        sums: Sums in which rows may be named more than once.

    Returns:
        Sums in which they are not.
    """
    rows, places = tf.unique(sums.rows)
    count = tf.shape(rows)[0]
    return RowSums(
        rows,
        tf.math.unsorted_segment_sum(sums.values, places, count),
        tf.math.unsorted_segment_sum(sums.contributions, places, count),
    )
