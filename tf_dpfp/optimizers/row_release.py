"""Release of a sparse table: the rows that pass, with noise.

**Mechanism.** Two vectors with Gaussian noise: the contributions of examples to
all rows of all sparse tables, of sensitivity C_1, and all clipped sums, of
sensitivity C. They are one Gaussian mechanism (`accounting.joint`). Released is
a function of the two: which rows have a noised contribution of at least the
threshold, and the noised sums of these rows. Adjacency: one example added or
removed. Noise that this function does not read is not drawn.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import noise as noise_lib
from tf_dpfp.optimizers.sparse import Sparse


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
        self,
        total: clipping_lib.RowSums,
        num_rows: int,
        deviation: float | tf.Tensor,
        keys: tuple[Any, Any, Any],
    ) -> tf.IndexedSlices:
        """Releases the rows of one table that pass.

        Args:
            total: The clipped sum of the table.
            num_rows: Its number of rows.
            deviation: Standard deviation of the noise on the sum.
            keys: Keys of the noise on the sum, on the counts of rows in
                `total`, and on those of all others.

        Returns:
            The rows, in ascending order, with their noised sums.
        """
        total = clipping_lib.added_up(total)
        # Rows of count 0 may be among them; they pass like those that are not.
        counts = tf.math.divide_no_nan(total.contributions, self.deviation)
        if not self.deviation:
            counts = tf.where(total.contributions > 0.0, float("inf"), 0.0)
            counts = tf.cast(counts, tf.float64)
        kept = noise_lib.passes(counts, self.threshold, keys[1])
        # Numbers of no row, as a rule of one's own may give, name none.
        kept &= (total.rows >= 0) & (total.rows < num_rows)
        rows = tf.boolean_mask(total.rows, kept)
        others = noise_lib.passing_of(num_rows, self.threshold, keys[2])
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
        noise = noise_lib.gaussian_noise_like(values, deviation, keys[0])
        return tf.IndexedSlices(
            noise_lib.noised(values, noise),
            tf.gather(rows, order),
            tf.constant([num_rows, width], tf.int64),
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
