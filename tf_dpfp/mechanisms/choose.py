"""Choice of the mechanism that a model trains by."""

from typing import Any

import keras

from tf_dpfp import optimizers
from tf_dpfp.mechanisms import clip_layers
from tf_dpfp.mechanisms import loaded
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.mechanisms.gradients import Gradients
from tf_dpfp.mechanisms.joint import Joint
from tf_dpfp.mechanisms.mechanism import Mechanism
from tf_dpfp.mechanisms.representations import Representations


def choose(model: keras.Model, optimizer: Any) -> Mechanism:
    """Chooses the mechanism of a model and an optimizer.

    | layers | optimizer | mechanism |
    |---|---|---|
    | any | private | `Gradients` |
    | with a `DPRepresentationClip` | ordinary | `Representations` |
    | with a `DPRepresentationClip` | private | `Joint` |

    Args:
        model: A private model.
        optimizer: Its optimizer; `None` if it is not compiled.

    Returns:
        The mechanism.

    Raises:
        NotPrivateError: If neither a layer nor the optimizer adds noise.
        ValueError: If two layers would draw the same noise.
    """
    layers = clip_layers.layers_of(model)
    clip_layers.check_seeds(layers)
    if not isinstance(optimizer, optimizers.PrivateOptimizer):
        if layers:
            return Representations(model, optimizer, layers)
        raise not_private(model, optimizer)
    if layers:
        return Joint(model, optimizer, layers)
    return Gradients(model, optimizer)


def mechanism_of(model: keras.Model) -> Mechanism:
    """Returns the mechanism that a model was compiled for.

    Args:
        model: A private model.

    Returns:
        The mechanism.

    Raises:
        NotPrivateError: If the model is not private, its optimizer was
            replaced after `compile`, or a `DPRepresentationClip` taken out.
    """
    state = state_lib.state_of(model)
    optimizer = getattr(model, "optimizer", None)
    chosen = state.mechanism
    if chosen is not None and optimizer is not chosen.optimizer:
        raise optimizers.NotPrivateError(
            f"The optimizer of model '{model.name}' was replaced after "
            "`compile`, and what the first one released would not be counted. "
            "Give the new one to `model.compile(optimizer=...)`. Received: "
            f"optimizer={type(optimizer).__name__}"
        )
    found = choose(model, optimizer)
    if chosen is None:
        if optimizer is not None:
            # Compiled before it was private: its ledger is the model's.
            state.mechanism = found
            loaded.absorb_loaded(found)
        return found
    if clip_layers.left_out(chosen.layers, found.layers):
        raise optimizers.NotPrivateError(
            f"A DPRepresentationClip was taken out of model '{model.name}' "
            "after `compile`, and what it released would not be counted. Call "
            "`model.compile` again."
        )
    loaded.absorb_loaded(found)
    # Others may be there since: a layer that was built may have made them.
    return found if found != chosen else chosen


def gradients_of(model: keras.Model) -> Gradients:
    """Returns the mechanism of a model whose gradients are clipped.

    Args:
        model: A private model, compiled with a private optimizer.

    Returns:
        `Gradients` or `Joint`.

    Raises:
        NotPrivateError: If the model is not private, or is compiled with an
            ordinary optimizer.
    """
    found = mechanism_of(model)
    if not isinstance(found, Gradients):
        raise not_private(model, found.optimizer)
    return found


def not_private(
    model: keras.Model, optimizer: Any
) -> optimizers.NotPrivateError:
    """Makes the error for an optimizer that adds no noise."""
    if optimizer is None:
        return optimizers.NotPrivateError(
            f"Model '{model.name}' is private and is not compiled. Call "
            "model.compile(optimizer=tf_dpfp.DPAdam(...), loss=...) first."
        )
    return optimizers.NotPrivateError(
        f"Model '{model.name}' is private and is compiled with "
        f"{type(optimizer).__name__}, which adds no noise. Compile it with a "
        "private optimizer, for example optimizer=tf_dpfp.DPAdam(...)."
    )
