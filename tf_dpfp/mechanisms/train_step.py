"""One private step, from a batch to the optimizer and the logs."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import optimizers
from tf_dpfp import sampling as sampling_lib
from tf_dpfp import step as step_lib
from tf_dpfp.keras_private import metrics as keras_metrics
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.mechanisms import updates
from tf_dpfp.step import losses as losses_lib

if TYPE_CHECKING:
    from tf_dpfp.mechanisms.gradients import Gradients


def train_step(mechanism: "Gradients", data: Any) -> dict[str, Any]:
    """Takes one step as Keras does: update, metrics, logs.

    Args:
        mechanism: The mechanism of the model.
        data: A batch, as Keras gives it to `train_step`.

    Returns:
        The logs.
    """
    model = mechanism.model
    under_xla = compilation.target() is compilation.Target.XLA

    def update_logs(x, y, sample_weight, is_example, result):
        present = is_example & losses_lib.has_weight(
            sample_weight, tf.shape(is_example)[0]
        )
        keras_trainer.loss_tracker(model).update_state(
            tf.where(present, result.losses, tf.zeros_like(result.losses)),
            sample_weight=tf.cast(present, result.losses.dtype),
        )
        keras_metrics.add(result.tracked, present)
        keras_metrics.update(
            model, x, y, result.y_pred, sample_weight, present, under_xla
        )

    batch: Any
    batch, part = sampling_lib.split_part(data)
    if sampling_lib.kind_of(batch) is None:
        batch = keras.utils.unpack_x_y_sample_weight(batch)
    clipped = clipped_gradients(
        mechanism, batch, mechanism.state.dealt_to, update_logs
    )
    mechanism.optimizer.apply(dataclasses.replace(clipped, part=part))
    return model.get_metrics_result()


def clipped_gradients(
    mechanism: "Gradients",
    batch: tuple,
    num_replicas: int = 1,
    after_microbatch: Callable[..., None] = lambda *_: None,
    stamp: counting.Stamp | None = None,
) -> optimizers.ClippedGradients:
    """Computes clipped gradients of a batch, or of one replica's piece.

    Args:
        mechanism: The mechanism of the model.
        batch: `(x, y, sample_weight)`; or a `PersonBatch` or a `ViewBatch`:
            then the gradients of persons, or the mean gradients of views, are
            clipped.
        num_replicas: Number of replicas that the batch was dealt to.
        after_microbatch: Function called for every micro-batch: metrics.
        stamp: Claim of the batch; `None`: that of the steps of this thread.

    Returns:
        `ClippedGradients`; private until the optimizer adds noise.

    Raises:
        ValueError: If the batch is of persons or views and representations
            are released.
        RuntimeError: If TensorFlow is set to compute products more coarsely
            than the norms allow for.
    """
    compilation.refuse_coarse_products()
    compilation.keep_float32_products()
    model = mechanism.model
    x, y, sample_weight = batch
    kind = sampling_lib.kind_of(batch)
    # Layers and losses get the rows end to end.
    rows = tuple(batch if kind is None else sampling_lib.flat(batch))
    plan = mechanism.plan(*rows)
    if kind is not None:
        mechanism.check_joined(kind)
        plan = dataclasses.replace(plan, kind=kind)
    is_dealt = num_replicas > 1
    with layers_lib.dealt() if is_dealt else contextlib.nullcontext():
        sums = step_lib.clipped_batch(
            model,
            plan,
            x,
            y,
            sample_weight,
            mechanism.optimizer.microbatch_size,
            after_microbatch,
        )
    size = _batch_size(x)
    if is_dealt and plan.representations is not None:
        size = layers_lib.total(size)
    update = updates.Update(model)
    with update([]):
        _, regularization = step_lib.regularization_gradients(plan)
    clipped = step_lib.as_clipped_gradients(
        plan, sums, regularization, size, num_replicas
    )
    return dataclasses.replace(
        clipped,
        owner=mechanism.optimizer,
        update=update,
        stamp=mechanism.optimizer.stamp(plan.kind) if stamp is None else stamp,
    )


def _batch_size(x: Any) -> tf.Tensor | int:
    leaf = tree.flatten(x)[0]
    size = leaf.shape[0]
    return tf.shape(leaf)[0] if size is None else size
