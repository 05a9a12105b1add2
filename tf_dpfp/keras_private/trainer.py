"""Properties of `keras.Model` beyond the public API.

Each function stands for one private thing of Keras; the tests beside it fail
when Keras changes it.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import keras
from keras.src.trainers import compile_utils


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """Returns the metric behind the `loss` entry of the logs."""
    return model._loss_tracker


def structured_loss(
    loss: Any, loss_weights: Any, output_names: list[str] | None
) -> keras.losses.Loss:
    """Keras's own matching of losses to outputs and labels.

    Args:
        loss: Losses, nested as in `compile`.
        loss_weights: Weights, nested as in `compile`, or `None`.
        output_names: Names of the model's outputs, if it has any.

    Returns:
        An object to call with `(y_true, y_pred, sample_weight)`: the weighted
        sum of whatever the losses return.
    """
    return compile_utils.CompileLoss(
        loss, loss_weights, output_names=output_names
    )


def has_compiled_loss(model: keras.Model) -> bool:
    """Tells if `compile` was given a loss."""
    return getattr(model, "_compile_loss", None) is not None


def compiled_loss_arguments(model: keras.Model) -> tuple[Any, Any]:
    """Returns the `loss` and `loss_weights` that `compile` was given."""
    compile_loss = model._compile_loss
    return compile_loss._user_loss, compile_loss._user_loss_weights


def has_own_loss(model: keras.Model) -> bool:
    """Tells if the model's class computes its loss by itself."""
    return type(model).compute_loss is not keras.Model.compute_loss


def compute_loss(model: keras.Model, x, y, y_pred, sample_weight) -> Any:
    """Calls `compute_loss`, with or without its `training` argument."""
    return model._compute_loss(x, y, y_pred, sample_weight, training=True)


def loss_trackers(loss: Any) -> list:
    """Returns the variables in which a compiled loss keeps that of outputs."""
    return [
        variable.value
        for metric in getattr(loss, "metrics", ())
        for variable in metric.variables
    ]


_LOOP = inspect.unwrap(keras.Model.fit).__code__


def is_fit_loop(frame: types.FrameType) -> bool:
    """Tells the frame of Keras's own loop over the batches of a `fit`."""
    return frame.f_code is _LOOP


def data_of_loop(frame: types.FrameType) -> Any:
    """Returns the data that Keras's own loop takes its batches of.

    Args:
        frame: Its frame.
    """
    return frame.f_locals["x"]


def preprocesses(model: keras.Model) -> bool:
    """Tells a task of KerasHub, whose `fit` maps each batch on its way."""
    return any(
        "fit" in vars(cls) and cls.__module__.startswith("keras_hub.")
        for cls in type(model).__mro__
    )


def fit_loops(frame: types.FrameType | None) -> int:
    """Counts the loops of `fit` that a frame is in, itself included."""
    found = 0
    while frame is not None:
        found += is_fit_loop(frame)
        frame = frame.f_back
    return found


def start_at(model: keras.Model, epoch: int | None) -> None:
    """Lets the `fit` that is about to run begin at a later epoch.

    Args:
        model: The model.
        epoch: The epoch; `None`: that which `fit` is given.
    """
    model._initial_epoch = epoch


def takes_training(model: keras.Model) -> bool:
    """Tells if the model's `call` has a `training` argument."""
    return "training" in inspect.signature(type(model).call).parameters


def on_compiling_loaded(
    compile_loaded: Callable[[keras.Model, dict], bool],
    compiled: Callable[[keras.Model], None],
) -> None:
    """Adds to how Keras compiles loaded models.

    Keras leaves a model that overrides `compile` uncompiled, or, where its
    constructor compiles it, with an optimizer that has nothing to do with the
    file. The tasks of KerasHub are of this kind.

    Args:
        compile_loaded: Called with the model and its saved configuration;
            returns whether it compiled the model. If not, all is as before.
        compiled: Called with every model that is loaded, once it is compiled.
    """
    ordinary = keras.Model.compile_from_config

    @functools.wraps(ordinary)
    def compile_from_config(self, config):
        custom = type(self).compile is not keras.Model.compile
        if not (custom and config and compile_loaded(self, config)):
            ordinary(self, config)
        compiled(self)

    keras.Model.compile_from_config = compile_from_config
