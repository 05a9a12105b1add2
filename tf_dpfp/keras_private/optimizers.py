"""Keras optimizers: their variables, and the sum over replicas they take."""

from typing import Any

import keras


def updated_variables(
    optimizer: keras.optimizers.Optimizer,
) -> list[keras.Variable]:
    """Lists the variables an optimizer was built for; empty before that."""
    return list(optimizer._trainable_variables)


def calls_variable(optimizer: Any) -> keras.Variable | None:
    """Returns the variable that counts the calls of an optimizer.

    Those that only accumulated a gradient are in it: `iterations` leaves them
    out, and is no variable then.

    Args:
        optimizer: An optimizer; `None`, or anything else, counts nothing.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return getattr(inner, "_iterations", None)


def calls_of(optimizer: Any) -> int:
    """Counts the calls of an optimizer, also under replicas.

    Args:
        optimizer: As in `calls_variable`.
    """
    count = calls_variable(optimizer)
    # A variable of replicas has no `int`.
    return 0 if count is None else int(count.value.numpy())


class WithoutAllReduce:
    """Passes over the sum of gradients over replicas.

    For gradients that are added up already: Keras would add them up once more,
    and move those of one replica to the first device and back.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars
