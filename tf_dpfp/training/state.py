"""What makes a model a private one, and what it remembers."""

import inspect
import types
from typing import Any

import keras

from tf_dpfp import accounting
from tf_dpfp import optimizers
from tf_dpfp.training import representations

_STATE = "_tf_dpfp_state"


class Private:
    """Base of classes all of whose models train privately."""


class State:
    """What a private model remembers; not tracked or saved by Keras."""

    def __init__(self):
        self.loss = None
        self.probed = False
        self.findings: representations.Findings | None = None
        self.tried_with: tuple[bool, ...] = ()
        self.populations: set[int] = set()
        # Over how many replicas the batches of `fit` are dealt; not outside.
        self.dealt_to = 1


def is_private(model: keras.Model) -> bool:
    """Whether a model trains privately."""
    return isinstance(model, Private) or hasattr(model, _STATE)


def of(model: keras.Model) -> State:
    """The private state of a model, made if there is none."""
    if not hasattr(model, _STATE):
        object.__setattr__(model, _STATE, State())
    return getattr(model, _STATE)


def state_of(model: keras.Model) -> State:
    """The private state of a model, for reports.

    Raises:
        NotPrivateError: If the model was not made private.
    """
    if not is_private(model):
        raise optimizers.NotPrivateError(
            f"Model '{model.name}' is not private. Call "
            "tf_dpfp.make_private(model) first."
        )
    return of(model)


def ordinary(model: keras.Model, name: str):
    """The model's own method, as if it were not private."""
    classes = list(type(model).__mro__)
    if Private in classes:
        classes = classes[classes.index(Private) + 1 :]
    for cls in classes:
        if name in vars(cls):
            return types.MethodType(vars(cls)[name], model)
    raise AttributeError(name)


def bound(method, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    found = inspect.signature(method).bind(*args, **kwargs)
    found.apply_defaults()
    return found.arguments


def require_private_optimizer(
    model: keras.Model,
) -> optimizers.PrivateOptimizer:
    """The model's optimizer, which must be private.

    Raises:
        NotPrivateError: If it is not.
    """
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, optimizers.PrivateOptimizer):
        return optimizer
    raise optimizers.NotPrivateError(
        f"Model '{model.name}' is private and is compiled with "
        f"{type(optimizer).__name__}, which adds no noise. Compile it with a "
        "private optimizer, for example optimizer=tf_dpfp.DPAdam(...)."
    )


def released(model: keras.Model) -> list[accounting.LedgerEntry]:
    """What a model has released so far.

    Args:
        model: A private, compiled model, or one with a `DPRepresentationClip`.

    Raises:
        NotPrivateError: If it is neither.
    """
    if representations.layers_of(model):
        return representations.entries(model)
    state_of(model)
    return require_private_optimizer(model).ledger_entries


def next_step(model: keras.Model) -> list[accounting.LedgerEntry]:
    """What the next step of a model releases; as `released` otherwise."""
    if representations.layers_of(model):
        return representations.next_step(model)
    return [require_private_optimizer(model).next_entry]
