"""What stands between a model that is compiled and its first private step."""

import contextlib

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import step as step_lib
from tf_dpfp import validation
from tf_dpfp.independence import gradients as gradient_trial
from tf_dpfp.independence import inputs
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.sampling import pipelines
from tf_dpfp.step import losses as losses_lib
from tf_dpfp.training import representations
from tf_dpfp.training import state as state_lib


def strategy_of(
    model: keras.Model, optimizer: optimizers.PrivateOptimizer
) -> tf.distribute.Strategy | None:
    """The strategy that a model trains under, by whichever way."""
    strategy = replicas.strategy_for(model, optimizer)
    if replicas.deals(strategy) and representations.layers_of(model):
        raise ValueError(
            f"Model '{model.name}' has a DPRepresentationClip, which trains on "
            "one replica, and its strategy has several. Train without one."
        )
    return strategy


def ready(model: keras.Model) -> optimizers.PrivateOptimizer:
    """Checks everything that can be checked before the first step."""
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"Model '{model.name}' is not compiled. Call model.compile("
            "optimizer=tf_dpfp.DPAdam(...), loss=...) first."
        )
    optimizer = state_lib.require_private_optimizer(model)
    check_same_model(model, optimizer)
    optimizer.check_marks()
    _require_loss(model)
    validation.raise_if_invalid(model, made_private=True, by_gradients=True)
    if representations.beside_sums(model):
        representations.announce(model)
    return optimizer


def _require_loss(model: keras.Model) -> None:
    if not keras_trainer.has_compiled_loss(model):
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss. Private "
            "training needs one loss per example: give `loss=` to `compile`."
        )


def check_same_model(
    model: keras.Model, optimizer: optimizers.PrivateOptimizer
) -> None:
    """Raises if an optimizer was built for another model."""
    if not optimizer.built or not model.built:
        return
    mine = {id(v) for v in model.variables}
    theirs = optimizer.updated_variables
    if any(id(v) not in mine for v in theirs):
        raise ValueError(
            f"The optimizer '{optimizer.name}' was built for another model. "
            "Make a new optimizer for each model: its ledger belongs to one."
        )


def build_optimizer(
    model: keras.Model, optimizer: optimizers.PrivateOptimizer
) -> None:
    """Early, so that callbacks can restore the optimizer's state."""
    if model.built and not optimizer.built and model.trainable_variables:
        optimizer.build(model.trainable_variables)


def try_representations(model: keras.Model, x) -> representations.Findings:
    """Checks a model with noised representations, once."""
    state = state_lib.of(model)
    frozen = representations.trainability(model)
    if state.findings is None or state.tried_with != frozen:
        state.findings = representations.raise_if_unprotected(model, x)
        validation.raise_if_invalid(
            model,
            made_private=True,
            by_gradients=representations.beside_sums(model),
        )
        # A model that is built on the way has more layers than before.
        state.tried_with = representations.trainability(model)
        # Other weights have other per-example gradients.
        state.probed = False
    representations.check_trained(model, state.findings)
    return state.findings


@contextlib.contextmanager
def sampled(model: keras.Model, pipeline: pipelines.Pipeline):
    """Steps inside are counted as drawn the way the pipeline is."""
    optimizer = state_lib.require_private_optimizer(model)
    drawn = pipeline.drawn
    if drawn is None:
        optimizer.open_ledger(pipeline.sampling, pipeline.seeded)
    else:
        optimizer.open_ledger(
            pipeline.sampling,
            pipeline.seeded,
            representations.layers_of(model)[0].declared(drawn),
            drawn.capacity,
        )
    try:
        yield
    finally:
        # Steps taken outside `fit` must not inherit its claim.
        optimizer.open_ledger(accounting.UnknownSampling())


def build_plan(model: keras.Model, x, y, sample_weight) -> step_lib.Plan:
    """Builds what is not built, checks the model once, and makes a plan.

    Args:
        model: A private, compiled model.
        x: Inputs of a batch; only shapes matter.
        y: Labels.
        sample_weight: Sample weights, or `None`.

    Returns:
        The `Plan` of the step.

    Raises:
        ValueError: If the model can't be trained privately.
    """
    optimizer = state_lib.require_private_optimizer(model)
    state = state_lib.of(model)
    if not model.built:
        inputs.build(model, x)
        validation.raise_if_invalid(model, made_private=True, by_gradients=True)
    _require_loss(model)
    if state.loss is None:
        loss, loss_weights = keras_trainer.compiled_loss_arguments(model)
        state.loss = keras_trainer.structured_loss(
            losses_lib.per_example(loss),
            loss_weights,
            getattr(model, "output_names", None),
        )
        state.probed = False
    released = None
    if representations.beside_sums(model):
        rows = representations.announce(model)
        found = try_representations(model, x)
        build_optimizer(model, optimizer)
        released = step_lib.RowsBelow(rows, found.positions)
    plan = step_lib.make_plan(model, optimizer, state.loss, released)
    if not state.probed:
        gradient_trial.check(model, plan, (x, y, sample_weight))
        state.probed = True
    return plan
