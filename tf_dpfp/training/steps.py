"""A private step of a model: from a batch to an update, or to clipped sums."""

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import optimizers
from tf_dpfp import step as step_lib
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.step import losses as losses_lib
from tf_dpfp.training import preparation
from tf_dpfp.training import representations
from tf_dpfp.training import state as state_lib


def train_step(model: keras.Model, data) -> dict:
    """One step as Keras takes it: update, metrics, logs."""
    if representations.alone(model):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        preparation.try_representations(model, x)
        return state_lib.ordinary(model, "train_step")(data)
    optimizer = state_lib.require_private_optimizer(model)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    plan = preparation.build_plan(model, x, y, sample_weight)

    def update_logs(x, y, sample_weight, rows, result):
        present = rows & losses_lib.nonzero_rows(
            sample_weight, tf.shape(rows)[0]
        )
        keras_trainer.loss_tracker(model).update_state(
            tf.where(present, result.losses, tf.zeros_like(result.losses)),
            sample_weight=tf.cast(present, result.losses.dtype),
        )
        keras_trainer.track_output_losses(
            model, y, result.y_pred, sample_weight
        )
        keras_trainer.update_metrics(
            model, x, y, result.y_pred, sample_weight, present
        )

    sums = step_lib.clipped_batch(
        model,
        plan,
        x,
        y,
        sample_weight,
        optimizer.microbatch_size,
        update_logs,
    )
    _, regularization = step_lib.regularization_gradients(plan)
    optimizer.apply(
        step_lib.as_clipped_gradients(
            plan,
            sums,
            regularization,
            _rows_of(x),
            state_lib.of(model).dealt_to,
        )
    )
    return model.get_metrics_result()


def clipped_piece(
    model: keras.Model, piece: tuple, replicas: int
) -> optimizers.ClippedGradients:
    """Clipped gradients of what one of several replicas has of a batch."""
    optimizer = state_lib.require_private_optimizer(model)
    plan = preparation.build_plan(model, *piece)
    sums = step_lib.clipped_batch(
        model, plan, *piece, optimizer.microbatch_size, lambda *_: None
    )
    _, regularization = step_lib.regularization_gradients(plan)
    return step_lib.as_clipped_gradients(
        plan, sums, regularization, _rows_of(piece[0]), replicas
    )


def _rows_of(x) -> tf.Tensor | int:
    """Number of examples of a batch."""
    leaf = tree.flatten(x)[0]
    size = leaf.shape[0]
    return tf.shape(leaf)[0] if size is None else size
