"""Optimizers that belong to one model, and are built for it."""

import keras

from tf_dpfp import optimizers
from tf_dpfp import step as step_lib
from tf_dpfp.keras_private import layers as keras_layers


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
    model: keras.Model,
    optimizer: optimizers.PrivateOptimizer,
    was_called: bool = False,
) -> None:
    """Builds the optimizer before training, so that files can restore it.

    Args:
        model: The model.
        optimizer: Its optimizer.
        was_called: True if calls of the model make no more weights.
    """
    if optimizer.built or not model.built:
        return
    if not was_called and keras_layers.has_unbuilt(model):
        return
    if model.trainable_variables:
        optimizer.build(model.trainable_variables)


def check_all_planned(model: keras.Model, plan: step_lib.Plan) -> None:
    """Refuses a model that made weights after its step was planned.

    Args:
        model: The model, after it was called.
        plan: Its plan, made before.

    Raises:
        ValueError: If the plan lacks some of its weights.
    """
    planned = {id(v) for v in (*plan.variables, *plan.above)}
    late = [v.path for v in model.trainable_variables if id(v) not in planned]
    if late:
        raise ValueError(
            f"Model '{model.name}' made weights when it was called, after its "
            "private step was planned. Make them in `build`, or call the model "
            f"on a batch before `compile`. Received: late weights={late}"
        )
