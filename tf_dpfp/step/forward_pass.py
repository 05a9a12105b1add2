"""Forward pass of a micro-batch, up to one loss per example.

The layers run once, on the batch. What makes one number of a batch runs on
single examples: the compiled loss (`losses`), a `compute_loss` of the model's
own, and what layers add by `add_loss` or an `activity_regularizer`. For the
last two the model is called once more for each example, vectorised; its
layers with weights then give what they gave the first time, so that nothing is
differentiated twice and the gradient of each example is known.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import layers as layers_lib
from tf_dpfp import per_example
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.step import own_losses
from tf_dpfp.step.plan import Plan


@dataclasses.dataclass(frozen=True)
class ForwardPass:
    """Result of a forward pass.

    Attributes:
        y_pred: Predictions.
        losses: One loss per example.
        calls: Recorded calls of layers.
        representations: Representations that layers release.
        tracked: Variables of metrics, and what each example adds to them.
        has_own_losses: True if the model or its layers make losses.
    """

    y_pred: Any
    losses: tf.Tensor
    calls: list[per_example.LayerCall]
    representations: Sequence[layers_lib.Release]
    tracked: Sequence[tuple[keras.Variable, tf.Tensor]] = ()
    has_own_losses: bool = False


def call_model(model: keras.Model, x):
    """Calls the model in training mode, each layer once."""
    arguments = {}
    if keras_trainer.takes_training(model):
        arguments["training"] = True
    layers = keras_layers.all_layers(model)
    scope = keras_layers.root_scope(model)
    with scope, keras_layers.without_rematerialization(layers):
        return model(x, **arguments)


def forward(
    model: keras.Model,
    plan: Plan,
    data: tuple,
    recording: contextlib.AbstractContextManager,
    noise: bool = True,
) -> ForwardPass:
    """Runs a model on a micro-batch.

    Args:
        model: A built model.
        plan: Its plan.
        data: `(x, y, sample_weight, ...)`.
        recording: Context that records the calls of layers.
        noise: Add noise to representations; not in a trial.

    Returns:
        A `ForwardPass`.

    Raises:
        ValueError: If a loss is not one number per example.
    """
    x, y, sample_weight = data[:3]
    with recording as calls, plan.step(noise) as representations:
        y_pred = call_model(model, x)
        own = own_losses.of(model, plan.units, calls, (x, y, sample_weight))
        if own is not None:
            _check_no_representations(own, plan)
            own = own.with_calls_of_loss(y_pred, calls, call_model)
    if own is None:
        with per_example.explaining(calls):
            losses = _compiled(model, plan, y, y_pred, sample_weight)
        return ForwardPass(y_pred, losses, calls, representations)
    found = own.losses(y_pred, calls, call_model)
    losses = found.losses
    if not own.replaces_compiled and plan.loss is not None:
        losses += plan.loss(y, y_pred, sample_weight)
    return ForwardPass(
        y_pred, losses, calls, representations, found.tracked, True
    )


def _compiled(model, plan: Plan, y, y_pred, sample_weight) -> tf.Tensor:
    if plan.loss is None:
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss, and no layer "
            "adds one. Private training needs one loss per example: give "
            "`loss=` to `compile`."
        )
    return plan.loss(y, y_pred, sample_weight)


def _check_no_representations(own: own_losses.OwnLosses, plan: Plan) -> None:
    if plan.representations is None:
        return
    raise ValueError(
        f"{own.where} makes a loss of its own, and the model releases "
        "representations with noise: it can't be told whether that loss goes "
        "past the noise. Move it into the `loss` of `compile`."
    )
