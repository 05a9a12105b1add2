"""Training of a private model's weights beside its own steps.

A model may be a layer of another one, and two models may share layers. Each
counts its own steps; here is what is known of the others.
"""

import weakref

import keras

from tf_dpfp import user_warnings
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import optimizers as keras_optimizers
from tf_dpfp.mechanisms import ordinary_steps
from tf_dpfp.mechanisms import state as state_lib

_PRIVATE: "weakref.WeakSet[keras.Model]" = weakref.WeakSet()


def remember(model: keras.Model) -> None:
    """Remembers a private model, as long as it is there.

    Args:
        model: A model that was just made private.
    """
    _PRIVATE.add(model)
    state_lib.state_of(model).ordinary_inside = _ordinary_inside(model)


def found(model: keras.Model) -> list[str]:
    """Lists, in sentences, training that the model's ledger does not count.

    Args:
        model: A private model.

    Returns:
        The sentences; none if nothing is known.
    """
    before = state_lib.state_of(model).ordinary_inside
    steps = _ordinary_inside(model) - before
    said = []
    if steps > 0:
        said.append(
            f"ordinary optimizers of models inside of it took {steps} steps"
        )
    # Frozen ones, too: what another model learned is in them.
    mine = set(map(id, model.variables))
    for other in sorted(_PRIVATE, key=lambda m: m.name):
        if other is model or not mine & _trained(other):
            continue
        mechanism = state_lib.state_of(other).mechanism
        steps = sum(e.steps for e in mechanism.entries()) if mechanism else 0
        if steps:
            said.append(
                f"the private model '{other.name}', with which it shares "
                f"weights, took {steps} steps, which its own ledger counts"
            )
    return said


def warn_of(model: keras.Model) -> None:
    """Warns of private training of the same weights, under another ledger.

    Args:
        model: A model that was just made private.
    """
    for said in found(model):
        user_warnings.warn(
            f"Of the weights of '{model.name}' a part was trained before: "
            f"{said}, and the epsilon of '{model.name}' does not. On the same "
            "data the two epsilons add up, and so do the deltas: train with "
            "one model, or add them yourself."
        )


def _ordinary_inside(model: keras.Model) -> int:
    return sum(ordinary_steps.by_optimizer(model, itself=False).values())


def _trained(model: keras.Model) -> set[int]:
    """Weights that a model trains, or trained before they were frozen."""
    weights = keras_layers.trainable_variables(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and optimizer.built:
        weights = weights + keras_optimizers.updated_variables(optimizer)
    return set(map(id, weights))
