"""Clipped sums of one physical batch.

    forward pass, calls recorded -> one loss per example -> one backward pass to
    the recorded tensors -> per-example norms -> clip factors -> clipped sums

This module strings the rooms together and decides nothing about any of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import compilation
from tf_dpfp import low_rank
from tf_dpfp import per_example
from tf_dpfp.keras_private import metrics as keras_metrics
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.step import forward_pass
from tf_dpfp.step import losses as losses_lib
from tf_dpfp.step import traced as traced_lib
from tf_dpfp.step.plan import Plan


class BatchSums(NamedTuple):
    """Sums that are added up over micro-batches.

    Attributes:
        clipped: Clipped sums and counts; private.
        above: Gradient of each variable above released representations;
            `None` where there is none.
    """

    clipped: clipping_lib.ClippedSums
    above: list[tf.Tensor | None]


@dataclasses.dataclass(frozen=True)
class MicrobatchResult:
    """Result of one micro-batch.

    Attributes:
        sums: Sums of the micro-batch; private.
        losses: One loss per example, `(batch,)`.
        y_pred: Predictions.
        tracked: Variables of metrics, and what each example adds to them.
    """

    sums: BatchSums
    losses: tf.Tensor
    y_pred: Any
    tracked: Sequence[tuple[keras.Variable, tf.Tensor]] = ()


def clipped_microbatch(
    model: keras.Model,
    plan: Plan,
    x,
    y,
    sample_weight,
    is_example: tf.Tensor,
    piece: tf.Tensor | int = 0,
) -> MicrobatchResult:
    """Clipped sums of one physical batch.

    Args:
        model: A built model.
        plan: Its plan.
        x: Inputs.
        y: Labels.
        sample_weight: Sample weights, or `None`.
        is_example: Boolean, `(batch,)`: false for padding.
        piece: Number of the micro-batch in its step.

    Returns:
        A `MicrobatchResult`.

    Raises:
        ValueError: If the loss depends on a trainable variable through a call
            that was not recorded.
    """
    before = traced_lib.count_operations()
    data = (x, y, sample_weight, is_example)
    data = x, y, sample_weight, is_example = traced_lib.as_examples(data)
    with tf.GradientTape() as tape, _seeds(plan, piece):
        passed = forward_pass.forward(model, plan, data, plan.record(data))
        calls = passed.calls
        losses = _one_per_example(passed.losses, is_example)
        # One that is not finite takes no part, above representations either.
        counts = is_example & tf.math.is_finite(losses)
        total = tf.reduce_sum(tf.where(counts, losses, tf.zeros_like(losses)))
        total *= tf.cast(plan.loss_scale, total.dtype)
    source_gradients, above = _source_gradients(plan, tape, total, calls)
    present = (
        is_example
        & losses_lib.has_weight(sample_weight, tf.shape(is_example)[0])
        & tf.math.is_finite(losses)
    )
    gradients = clipping_lib.gather_gradients(
        calls, source_gradients, plan.variables, plan.groups
    )
    of_examples = gradients
    gradients = low_rank.project_all(gradients, plan.carriers, plan.variables)
    if plan.on_traced is not None and not tf.executing_eagerly():
        graph = tf.compat.v1.get_default_graph()
        plan.on_traced(
            traced_lib.Traced(
                graph,
                graph.get_operations()[before:],
                [t for t in tree.flatten(data) if t is not None],
                losses,
                present,
                passed.representations,
                gradients,
                [v.path for v in plan.variables],
                plan.secret_handles(),
                keras_trainer.loss_trackers(plan.loss),
                [v.value for v in keras_metrics.variables_of(model)],
                piece,
                plan.of_weights,
                plan.in_pieces,
            )
        )
    if plan.joined > 1:
        gradients, present = _joined(plan, of_examples, present)
    clipped = clipping_lib.clip_and_sum(
        gradients, plan.groups, present, plan.tables
    )
    return MicrobatchResult(
        BatchSums(clipped, above), losses, passed.y_pred, passed.tracked
    )


def _joined(
    plan: Plan,
    gradients: Sequence[per_example.PerExampleGradient | None],
    present: tf.Tensor,
) -> tuple[list[per_example.PerExampleGradient | None], tf.Tensor]:
    """Adds up the gradients of the rows of a person, or of an example's views.

    Args:
        plan: Plan of the step.
        gradients: Gradients of the rows, before any projection; of views,
            divided by their number.
        present: Boolean: true for rows that take part.

    Returns:
        What is to be clipped, and who takes part: those with a row that does.
    """
    rows = plan.joined
    added = [
        None
        if gradient is None
        else per_example.add_consecutive(gradient, rows, present)
        for gradient in gradients
    ]
    present = tf.reduce_any(tf.reshape(present, [-1, rows]), axis=1)
    projected = low_rank.project_all(added, plan.carriers, plan.variables)
    return projected, present


def _seeds(plan: Plan, piece: tf.Tensor | int):
    """Opens the context in which random layers take the seeds of the step."""
    xla = compilation.target() is compilation.Target.XLA
    return keras_random.seeds_from(plan.seeds(piece), threefry=xla)


def _source_gradients(plan: Plan, tape, total: tf.Tensor, calls):
    """Gradients of the recorded tensors, and of the variables above."""
    sources = [call.sources for call in calls]
    recorded = {id(v) for call in calls for v in _variables_of(call)}
    unseen = [v for v in plan.variables if id(v) not in recorded]
    found, unseen_gradients, above = backward(
        tape,
        total,
        [sources, [v.value for v in unseen], [v.value for v in plan.above]],
        plan,
    )
    _check_unseen(unseen, unseen_gradients)
    scale = plan.loss_scale
    # The mean over views: rules are linear in these gradients.
    return _unscale(found, scale * plan.views), _unscale([above], scale)[0]


def backward(tape, total: tf.Tensor, sources, plan: Plan):
    """Gradients of the sources, each layer's where its forward pass ran."""
    on_devices = any(group.device is not None for group in plan.groups)
    if tf.executing_eagerly() or not on_devices:
        return tape.gradient(total, sources)
    # A tape leaves the placement of its operations to TensorFlow, which puts
    # the whole backward pass on the first device.
    found = tf.compat.v1.gradients(
        total, tree.flatten(sources), colocate_gradients_with_ops=True
    )
    return tree.pack_sequence_as(sources, found)


def _variables_of(call: per_example.LayerCall) -> list[keras.Variable]:
    return call.rule.variables(call.layer)


def _unscale(source_gradients, scale: float):
    def unscale(gradient):
        if gradient is None:
            return None
        if isinstance(gradient, tf.IndexedSlices):
            gradient = tf.convert_to_tensor(gradient)
        if gradient.dtype == tf.float16:
            gradient = tf.cast(gradient, tf.float32)
        return gradient if scale == 1.0 else gradient / scale

    return [[unscale(g) for g in group] for group in source_gradients]


def _one_per_example(losses: tf.Tensor, is_example: tf.Tensor) -> tf.Tensor:
    if losses.shape.rank != 1 or not losses.shape.is_compatible_with(
        is_example.shape
    ):
        raise ValueError(
            "The loss did not reduce to one number per example: its shape is "
            f"{tuple(losses.shape)} for a batch of {is_example.shape[0]}."
        )
    # Fails where the sizes are known only now, instead of broadcasting.
    return tf.reshape(losses, tf.shape(is_example))


def _check_unseen(variables, gradients) -> None:
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is not None:
            raise ValueError(
                f"The loss depends on '{variable.path}', but not through a "
                "call of the layer that owns it: its per-example gradients "
                "are out of reach. Call the layer instead of reading its "
                "weights, or set `layer.trainable = False`."
            )
