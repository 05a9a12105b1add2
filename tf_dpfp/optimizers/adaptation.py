"""Estimates behind adaptive thresholds, as optimizer state."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import clipping as clipping_lib


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
    """

    def __init__(self, optimizer, variables: Sequence[keras.Variable]):
        self._positions = {id(v): i for i, v in enumerate(variables)}
        self._estimates = optimizer.add_variable(
            shape=(len(variables),),
            initializer="zeros",
            dtype="float32",
            aggregation="only_first_replica",
            name="clip_estimates",
        )

    def current(
        self,
        groups: Sequence[clipping_lib.Group],
        variables: Sequence[keras.Variable],
    ) -> list[tf.Tensor]:
        """The estimate of each group before the step.

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
            estimates.append(tf.where(stored > 0.0, stored, group.estimate))
        return estimates

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
