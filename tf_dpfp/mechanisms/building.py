"""Optimizers that belong to one model, and are built for it."""

import keras

from tf_dpfp import optimizers


def check_same_model(
    model: keras.Model, optimizer: optimizers.PrivateOptimizer
) -> None:
    """Refuses an optimizer that was built for another model.

    Args:
        model: The model.
        optimizer: Its optimizer.

    Raises:
        ValueError: If the optimizer updates variables of another model.
    """
    if not optimizer.built or not model.built:
        return
    mine = {id(v) for v in model.variables}
    if any(id(v) not in mine for v in optimizer.updated_variables):
        raise ValueError(
            f"The optimizer '{optimizer.name}' was built for another model. "
            "Make a new optimizer for each model: its ledger belongs to one."
        )


def build_optimizer(
    model: keras.Model, optimizer: optimizers.PrivateOptimizer
) -> None:
    """Builds the optimizer before training, so that files can restore it.

    Args:
        model: The model.
        optimizer: Its optimizer.
    """
    if model.built and not optimizer.built and model.trainable_variables:
        optimizer.build(model.trainable_variables)
