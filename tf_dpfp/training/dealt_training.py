"""Training on several replicas: every example of a batch goes to one."""

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import replicas
from tf_dpfp import step as step_lib
from tf_dpfp import validation
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.sampling import pipelines
from tf_dpfp.training import preparation
from tf_dpfp.training import state as state_lib


def fit(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
):
    """`fit` on several replicas: each example of a batch goes to one."""
    arguments = dict(arguments)
    _check_no_class_weight(arguments)
    batches = replicas.batches_of(arguments, pipeline)
    del arguments["x"]
    if pipeline.batch_size is not None:  # Arrays, all of which are in it.
        arguments |= {"y": None, "sample_weight": None, "batch_size": None}
    arguments["shuffle"] = False  # The data set has its own order.
    arguments["steps_per_epoch"] = replicas.steps_per_epoch(
        batches, arguments["steps_per_epoch"]
    )
    groups = build(model, strategy, batches.element_spec).groups
    replicas.check_workers(strategy, model, groups, pipeline, arguments)
    replicas.check_examples(strategy, batches)
    arguments["callbacks"] = replicas.with_check(
        arguments["callbacks"], strategy
    )
    with (
        _dealt_to(model, strategy),
        preparation.sampled(model, pipeline),
        replicas.fitting(strategy, model),
    ):
        return state_lib.ordinary(model, "fit")(
            replicas.dealt(strategy, batches), **arguments
        )


def train_on_batch(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    arguments: dict[str, Any],
):
    """`train_on_batch` on several replicas."""
    _check_no_class_weight(arguments)
    names = ("x", "y", "sample_weight")
    batch = replicas.whole_batch(
        strategy, tuple(arguments[name] for name in names)
    )
    build(model, strategy, batch)
    with (
        _dealt_to(model, strategy),
        keras_distribution.without_symbolic_build(model),
    ):
        state_lib.ordinary(model, "train_on_batch")(
            *replicas.pieces_of(strategy, batch)
        )
    return keras_distribution.logs_of_all(model, arguments["return_dict"])


def build(
    model: keras.Model, strategy: tf.distribute.Strategy, batch: Any
) -> step_lib.Plan:
    """Does what no replica can do: makes variables, and tries the model."""
    optimizer = state_lib.require_private_optimizer(model)
    specs = tree.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype) if tf.is_tensor(t) else t,
        batch,
    )
    with tf.init_scope():
        data = replicas.build(strategy, model, specs)
        validation.raise_if_invalid(model, made_private=True)
        plan = preparation.build_plan(model, *data)
        optimizer.ensure_ledger_open()
    return plan


@contextlib.contextmanager
def _dealt_to(model: keras.Model, strategy: tf.distribute.Strategy):
    """Says that what a step is given is the piece of one replica."""
    state = state_lib.of(model)
    state.dealt_to = strategy.num_replicas_in_sync
    try:
        yield
    finally:
        state.dealt_to = 1


def _check_no_class_weight(arguments: dict[str, Any]) -> None:
    if arguments["class_weight"] is not None:
        raise ValueError(
            "`class_weight` can't be used on several replicas. Give weights "
            "with the examples instead (`sample_weight`)."
        )
