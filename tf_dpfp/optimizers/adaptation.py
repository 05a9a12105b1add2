"""Adaptive clip norms: estimates as optimizer state, moved by noised counts."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import noise as noise_lib
from tf_dpfp import user_warnings
from tf_dpfp.optimizers.clipped_gradients import ClippedGradients
from tf_dpfp.optimizers.release import Draws

# Standard deviation of the noise on a fraction, beyond which one warns.
_GREATEST_COUNT_NOISE = 0.25


class Adaptation:
    """Keeps one estimate for each group, in one optimizer variable.

    The variable has an entry for every variable the optimizer updates, and
    the variables of a group hold the same number: so it has a shape before
    any group is known, and means the same when layers are frozen later. Zero
    stands for an estimate that is still the initial one.

    Everything written here comes from noised counts.

    Args:
        optimizer: The optimizer that owns the variable, being built.
        variables: The variables it updates.
        adaptive: The settings.
    """

    def __init__(
        self,
        optimizer,
        variables: Sequence[keras.Variable],
        adaptive: clipping_lib.Adaptive,
    ):
        self._adaptive = adaptive
        self._positions = {id(v): i for i, v in enumerate(variables)}
        self._estimates = optimizer.add_variable(
            shape=(len(variables),),
            initializer="zeros",
            dtype="float32",
            aggregation="only_first_replica",
            name="clip_estimates",
        )

    def current_groups(
        self,
        groups: Sequence[clipping_lib.Group],
        variables: Sequence[keras.Variable],
        l2_norm_clip: float,
    ) -> tuple[clipping_lib.Group, ...]:
        """Returns the groups with the clip norms of the next step.

        Args:
            groups: The groups, with their initial estimates.
            variables: The variables that the members of groups index.
            l2_norm_clip: The bound of the whole release.
        """
        return clipping_lib.with_estimates(
            groups,
            self.current(groups, variables),
            l2_norm_clip,
            self._adaptive.rescale,
        )

    def current(
        self,
        groups: Sequence[clipping_lib.Group],
        variables: Sequence[keras.Variable],
    ) -> list[tf.Tensor]:
        """Reads the estimate of each group before the step.

        Args:
            groups: The groups, with their initial estimates.
            variables: The variables that the members of groups index.

        Returns:
            Scalar tensors.
        """
        values = tf.convert_to_tensor(self._estimates.value)
        estimates = []
        for group in groups:
            stored = values[self._position(variables, group.members[0])]
            known = clipping_lib.bounded_estimates(stored)
            estimates.append(tf.where(stored > 0.0, known, group.estimate))
        return estimates

    def noised_counts(
        self,
        clipped: ClippedGradients,
        noise_multiplier: float,
        expected_batch_size: float,
        draws: Draws,
    ) -> tuple[float, tf.Tensor]:
        """Adds noise to the counts of this replica.

        Args:
            clipped: The clipped sums, with their counts.
            noise_multiplier: Noise multiplier of sums and counts together.
            expected_batch_size: Divisor of the counts, for a warning.
            draws: The noise of this replica.

        Returns:
            The noise multiplier that is left for the sums, and the counts.
        """
        counts: tf.Tensor = clipped.counts
        if self._adaptive.shared:
            # Each example adds at most 1/2 to the mean, as to one count.
            counts = tf.reduce_mean(counts, keepdims=True)
        budget = accounting.split_budget(
            noise_multiplier, self._adaptive.budget_share, counts.shape[0]
        )
        _warn_if_drowned(budget, expected_batch_size)
        if noise_multiplier:
            counts += noise_lib.gaussian_noise(
                counts.shape,
                budget.counts * draws.share,
                # The keys before it are those of the variables.
                draws.key(len(clipped.variables)),
            )
        return budget.sums, counts

    def move(
        self,
        clipped: ClippedGradients,
        noised_counts: tf.Tensor,
        expected_batch_size: tf.Tensor,
    ) -> None:
        """Moves the estimates, by noised counts of all replicas.

        Args:
            clipped: The clipped sums; their groups and variables are read.
            noised_counts: The counts, noised and added up over replicas.
            expected_batch_size: Public; never the size of the batch.
        """
        estimates = clipping_lib.updated_estimates(
            tf.stack([group.estimate for group in clipped.groups]),
            noised_counts,
            expected_batch_size,
            self._adaptive,
        )
        self.write(clipped.groups, clipped.variables, estimates)

    def write(
        self,
        groups: Sequence[clipping_lib.Group],
        variables: Sequence[keras.Variable],
        estimates: tf.Tensor,
    ) -> None:
        """Keeps the estimates for the next step.

        Args:
            groups: The groups.
            variables: The variables that the members of groups index.
            estimates: The estimate of each group, `(K,)`; from noised counts.
        """
        positions, sources = [], []
        for number, group in enumerate(groups):
            for member in group.members:
                positions.append([self._position(variables, member)])
                sources.append(number)
        self._estimates.assign(
            tf.tensor_scatter_nd_update(
                tf.convert_to_tensor(self._estimates.value),
                positions,
                tf.gather(estimates, sources),
            )
        )

    def _position(
        self, variables: Sequence[keras.Variable], member: int
    ) -> int:
        variable = variables[member]
        if id(variable) not in self._positions:
            raise ValueError(
                f"The optimizer keeps no threshold for '{variable.path}': it "
                "was built without that variable. Compile the model with a "
                "new optimizer; it takes the ledger over."
            )
        return self._positions[id(variable)]


def check_counts(
    clipped: ClippedGradients, adaptive: clipping_lib.Adaptive | None
) -> None:
    """Refuses clipped gradients without the counts that clip norms need.

    Args:
        clipped: The clipped gradients.
        adaptive: Settings of the optimizer, `None` where nothing adapts.

    Raises:
        ValueError: If counts are missing.
    """
    if adaptive is not None and clipped.counts is None:
        raise ValueError(
            "These clipped gradients carry no counts, from which adaptive "
            "thresholds are found: they were made for another optimizer. "
            "Compile the model with this one."
        )


def _warn_if_drowned(
    budget: accounting.BudgetSplit, expected_batch_size: float
) -> None:
    """Warns if noise would dominate the adaptive clip norms."""
    deviation = budget.counts / expected_batch_size
    if deviation > _GREATEST_COUNT_NOISE:
        user_warnings.warn(
            "The fractions that adaptive thresholds follow get noise of "
            f"standard deviation {deviation:.2g}, so the thresholds will "
            "wander. Raise the expected batch size (now "
            f"{expected_batch_size:g}) or `budget_share`, clip fewer groups, "
            "or lower Adaptive's `learning_rate`.",
        )
