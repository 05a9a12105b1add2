"""Ordinary training of a model, before it was made private.

What the weights learnt then, no ledger holds. On public data that is how a
pretrained model comes about; on the data of the private training it is the
whole of them, given away.
"""

import keras

from tf_dpfp import optimizers
from tf_dpfp import user_warnings
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import optimizers as keras_optimizers
from tf_dpfp.mechanisms import clip_layers


def ordinary_steps(model: keras.Model) -> int:
    """Counts the steps of ordinary optimizers that a model shows.

    Args:
        model: A model, before it is compiled privately.

    Returns:
        Steps of the optimizers that it and the models inside it are compiled
        with, less those that a `DPRepresentationClip` counted.
    """
    found = by_optimizer(model)
    counted = sum(
        entry.steps
        for layer in clip_layers.layers_of(model)
        for entry in layer.ledger_entries
        if entry.release.has_representations
    )
    return max(0, sum(found.values()) - counted)


def by_optimizer(model: keras.Model, itself: bool = True) -> dict[int, int]:
    """Counts the steps of each ordinary optimizer of a model.

    Args:
        model: The model.
        itself: Count its own, beside those of the models inside it.

    Returns:
        Steps by identity of the optimizer.
    """
    return {
        id(part.optimizer): keras_optimizers.calls_of(part.optimizer)
        for part in keras_layers.all_layers(model)
        if isinstance(getattr(part, "optimizer", None), keras.Optimizer)
        and not isinstance(part.optimizer, optimizers.PrivateOptimizer)
        and (itself or part is not model)
    }


def warn_of(model: keras.Model, steps: int) -> None:
    """Warns of ordinary steps.

    Args:
        model: The model.
        steps: Number of its ordinary steps; no warning if it is 0.
    """
    if not steps:
        return
    user_warnings.warn(
        f"Model '{model.name}' took {steps} ordinary steps before it was made "
        "private, and no epsilon counts them. If they were on the data of the "
        "private training, its weights give these data away: start with new "
        "weights. If they were on public data, nothing is lost. Received: "
        f"optimizer.iterations={steps}",
        UserWarning,
    )
