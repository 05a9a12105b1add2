"""Release of a sparse table: the rows that pass, with noise.

**Mechanism.** Two vectors with Gaussian noise: the contributions of examples to
all rows of all sparse tables, of sensitivity C_1, and all clipped sums, of
sensitivity C. They are one Gaussian mechanism (`accounting.joint`). Released is
a function of the two: which rows have a noised contribution of at least the
threshold, and the noised sums of these rows. Adjacency: one example added or
removed. Noise that this function does not read is not drawn.

**Replicas.** Each adds its share of the noise to the contributions of its
examples, on every row, and one all-reduce adds these up. So all read the same
counts, with the noise of one device, and take the same rows, to whose sums each
adds its share again.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import noise as noise_lib
from tf_dpfp.distribute import replicas
from tf_dpfp.optimizers.sparse import Sparse


class Table(NamedTuple):
    """What one replica knows of a sparse table in a step.

    Attributes:
        total: Its clipped sum on this replica.
        num_rows: Its number of rows.
        deviation: Standard deviation of this replica's noise on the sum.
        keys: Keys of this replica's noise: on the sum, on the counts of rows
            in `total`, and on those of all others.
    """

    total: clipping_lib.RowSums
    num_rows: int
    deviation: float | tf.Tensor
    keys: tuple[Any, Any, Any]


@dataclasses.dataclass(frozen=True)
class RowRelease:
    """How the rows of tables are released in a step.

    Attributes:
        threshold: In standard deviations of the noise on a count.
        deviation: Standard deviation of that noise.
        noise_multiplier: Noise multiplier of everything else that is released.
    """

    threshold: float
    deviation: float
    noise_multiplier: float

    def released(
        self, tables: Sequence[Table], share: float | tf.Tensor
    ) -> list[tf.IndexedSlices]:
        """Releases the rows that pass, with this replica's noise.

        Args:
            tables: The tables of this replica.
            share: Share of this replica in the standard deviation of all noise.

        Returns:
            The rows of each table, in ascending order, with their noised sums.
            They are the same on every replica, and their sums are not: those
            of all replicas are to be added up.
        """
        if replicas.count() == 1:
            return [self.released_alone(table) for table in tables]
        counts = replicas.sum_over_all(
            [self._noised_counts(table, share) for table in tables]
        )
        return [
            _noised_rows(table, self._passes(count))
            for table, count in zip(tables, counts, strict=True)
        ]

    def released_alone(self, table: Table) -> tf.IndexedSlices:
        """Releases the rows of one table that pass, where nobody else counts.

        Args:
            table: The table.

        Returns:
            The rows, in ascending order, with their noised sums.
        """
        total = clipping_lib.added_up(table.total)
        # Rows of count 0 may be among them; they pass like those that are not.
        counts = tf.math.divide_no_nan(total.contributions, self.deviation)
        if not self.deviation:
            counts = tf.where(total.contributions > 0.0, float("inf"), 0.0)
            counts = tf.cast(counts, tf.float64)
        kept = noise_lib.passes(counts, self.threshold, table.keys[1])
        kept &= _are_rows(total, table.num_rows)
        rows = tf.boolean_mask(total.rows, kept)
        others = noise_lib.passing_of(
            table.num_rows, self.threshold, table.keys[2]
        )
        others = tf.raw_ops.ListDiff(x=others, y=total.rows).out
        rows = tf.concat([rows, others], axis=0)
        # In this order alone: that of the sums is that of the batch.
        order = tf.argsort(rows)
        width = total.values.shape[1]
        values = tf.gather(
            tf.concat(
                [
                    tf.boolean_mask(total.values, kept),
                    tf.zeros([tf.size(others), width], total.values.dtype),
                ],
                axis=0,
            ),
            order,
        )
        return _noised(table, values, tf.gather(rows, order))

    def _noised_counts(
        self, table: Table, share: float | tf.Tensor
    ) -> tf.Tensor:
        """Counts every row on this replica, with its share of the noise.

        A coin, as one device draws it, needs the counts of all replicas: they
        would leave their replica without noise.
        """
        total = table.total
        kept = _are_rows(total, table.num_rows)
        counts = tf.math.unsorted_segment_sum(
            tf.cast(total.contributions, tf.float64),
            # Negative numbers name none.
            tf.where(kept, total.rows, -1),
            table.num_rows,
        )
        counts = tf.cast(counts, tf.float32)
        if not self.deviation:
            return counts
        noise = noise_lib.gaussian_noise(
            counts.shape, self.deviation * share, table.keys[1]
        )
        return noise_lib.noised(counts, noise)

    def _passes(self, counts: tf.Tensor) -> tf.Tensor:
        """Tells which rows pass; reads noised counts of all replicas alone."""
        if not self.deviation:
            return counts > 0.0
        return counts >= self.threshold * self.deviation


def _are_rows(total: clipping_lib.RowSums, num_rows: int) -> tf.Tensor:
    """Tells rows from numbers of none, as a rule of one's own may give."""
    return (total.rows >= 0) & (total.rows < num_rows)


def _noised_rows(table: Table, passed: tf.Tensor) -> tf.IndexedSlices:
    """Releases this replica's sums of some rows.

    Args:
        table: The table.
        passed: Truth value of each row: no more than was released.
    """
    rows = tf.where(passed)[:, 0]
    places = tf.where(passed, tf.cumsum(tf.cast(passed, tf.int64)) - 1, -1)
    total = table.total
    kept = _are_rows(total, table.num_rows)
    mine = tf.gather(places, tf.where(kept, total.rows, 0))
    values = tf.math.unsorted_segment_sum(
        total.values, tf.where(kept, mine, -1), tf.shape(rows)[0]
    )
    return _noised(table, values, rows)


def _noised(
    table: Table, values: tf.Tensor, rows: tf.Tensor
) -> tf.IndexedSlices:
    """Adds noise to the sums of rows."""
    noise = noise_lib.gaussian_noise_like(
        values, table.deviation, table.keys[0]
    )
    return tf.IndexedSlices(
        noise_lib.noised(values, noise),
        rows,
        tf.constant([table.num_rows, values.shape[1]], tf.int64),
    )


def row_release_of(
    sparse: Sparse | None, noise_multiplier: float
) -> RowRelease | None:
    """Splits a noise multiplier between contributions and everything else.

    Args:
        sparse: The setting; `None`: there are no sparse tables.
        noise_multiplier: Noise multiplier of a step, which the ledger counts.

    Returns:
        How rows are released; `None` without sparse tables.
    """
    if sparse is None:
        return None
    split = accounting.split_contributions(
        noise_multiplier, sparse.contribution_share
    )
    return RowRelease(
        sparse.threshold,
        split.contributions * sparse.contribution_clip,
        split.rest,
    )
