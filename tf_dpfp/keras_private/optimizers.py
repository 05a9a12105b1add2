"""Keras optimizers: their variables, and the sum over replicas they take."""

from typing import Any

import keras


def updated_variables(
    optimizer: keras.optimizers.Optimizer,
) -> list[keras.Variable]:
    """Lists the variables an optimizer was built for; empty before that."""
    return list(optimizer._trainable_variables)


class WithoutAllReduce:
    """Passes over the sum of gradients over replicas.

    For gradients that are added up already: Keras would add them up once more,
    and move those of one replica to the first device and back.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars
