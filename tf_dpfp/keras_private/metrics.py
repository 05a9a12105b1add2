"""Metrics of a training step, of the examples of a batch and not of padding.

Rows of padding are taken out, and what is left goes through Keras's own code:
metrics of tokens under a mask, of images, of several outputs, and those that
take no weights. XLA compiles for sizes that it knows, and can take nothing
out; there, rows of padding get the weight zero.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import trainer
from tf_dpfp.keras_private import variables


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables in which metrics of a model keep what they saw.

    Args:
        model: A model, compiled or not; its metrics may not be built yet.
    """
    metrics = list(model.metrics)
    compiled = getattr(model, "_compile_metrics", None)
    if compiled is not None:
        given = [compiled._user_metrics, compiled._user_weighted_metrics]
        metrics += [
            m for m in tree.flatten(given) if isinstance(m, keras.Metric)
        ]
    found = {id(v): v for m in metrics for v in m.variables}
    # A metric of a weight may hold it; it can't write it.
    weights = set(map(id, model.weights))
    return [v for key, v in found.items() if key not in weights]


def update(
    model: keras.Model,
    x,
    y,
    y_pred,
    sample_weight,
    is_example: tf.Tensor,
    fixed_size: bool = False,
) -> None:
    """Updates the compiled metrics, and the loss of each output.

    Args:
        model: A compiled model.
        x: Inputs.
        y: Labels.
        y_pred: Predictions.
        sample_weight: Sample weights, or `None`.
        is_example: Boolean, `(batch,)`: false for padding.
        fixed_size: Keep all tensors at their sizes, for XLA.

    Raises:
        ValueError: If a metric writes a weight of the model, or a variable of
            its optimizer.
    """
    kept = [*model.weights, *model.optimizer.variables]
    with variables.kept(kept):
        _update(
            model, x, y, y_pred, sample_weight, is_example, fixed_size, kept
        )


def _update(
    model,
    x,
    y,
    y_pred,
    sample_weight,
    is_example,
    fixed_size: bool,
    weights: Sequence[keras.Variable],
) -> None:
    compiled = model._compile_metrics
    if compiled is not None and not compiled.built:
        with variables.made_eagerly():
            compiled.build(y, y_pred)
    if fixed_size:
        _track_output_losses(model, y, y_pred, sample_weight)
        _update_weighted(model, x, y, y_pred, sample_weight, is_example)
        return
    if not _has_any(model, y_pred):
        return

    def update_with_examples():
        kept = [
            _rows(part, is_example) for part in (x, y, y_pred, sample_weight)
        ]
        x_kept, *rest = kept
        rest[-1] = _spread_over_masks(*rest[1:])
        with variables.kept(weights):  # The branch has a graph of its own.
            _track_output_losses(model, *rest)
            model.compute_metrics(x_kept, *rest)
        return tf.constant(True)

    # Some functions are not a number for no examples.
    tf.cond(
        tf.reduce_any(is_example),
        update_with_examples,
        lambda: tf.constant(False),
    )


def add(
    tracked: Sequence[tuple[keras.Variable, tf.Tensor]], is_example: tf.Tensor
) -> None:
    """Adds to variables of metrics what each example adds to them.

    Args:
        tracked: Variables, and tensors of their shape with examples in front.
        is_example: Boolean, `(batch,)`: false for padding.
    """
    for variable, added in tracked:
        rows = tf.reshape(is_example, [-1, *[1] * (added.shape.rank - 1)])
        kept = tf.where(rows, added, tf.zeros_like(added))
        variable.assign_add(tf.reduce_sum(kept, axis=0))


def _is_plain(model: keras.Model) -> bool:
    return type(model).compute_metrics is keras.Model.compute_metrics


def _tracks_outputs(model: keras.Model, y_pred) -> bool:
    loss = model._compile_loss
    if loss is None or trainer.has_own_loss(model):
        return False
    return bool(loss.metrics or tree.is_nested(y_pred))


def _has_any(model: keras.Model, y_pred) -> bool:
    return (
        model._compile_metrics is not None
        or not _is_plain(model)
        or _tracks_outputs(model, y_pred)
    )


def _rows(part: Any, is_example: tf.Tensor) -> Any:
    """Takes the examples out of nested tensors, with their masks."""

    def kept(leaf):
        if leaf is None or not len(leaf.shape):
            return leaf
        mask = keras_layers.mask_of(leaf)
        if mask is not None:
            mask = tf.boolean_mask(mask, is_example)
        leaf = tf.boolean_mask(leaf, is_example)
        return keras_layers.with_mask(leaf, mask)

    return tree.map_structure(kept, part)


def _spread_over_masks(y_pred: Any, sample_weight: Any) -> Any:
    """Gives weights of examples the shape of the masks they meet.

    Keras multiplies them without asking for their shapes, and padding is
    marked by weights of examples.
    """
    predictions, weights = tree.flatten(y_pred), tree.flatten(sample_weight)
    if sample_weight is None or len(predictions) != len(weights):
        return sample_weight
    return tree.pack_sequence_as(
        sample_weight,
        [
            _spread(w, keras_layers.mask_of(p))
            for w, p in zip(weights, predictions, strict=True)
        ],
    )


def _spread(weight: Any, mask: Any) -> Any:
    if weight is None or mask is None:
        return weight
    weight = tf.convert_to_tensor(weight)
    missing = mask.shape.rank - weight.shape.rank
    if missing <= 0:
        return weight
    weight = weight[(..., *[None] * missing)]
    return weight * tf.ones_like(mask, weight.dtype)


def _track_output_losses(model: keras.Model, y, y_pred, sample_weight) -> None:
    """Updates the loss of each output, where the model has several."""
    if _tracks_outputs(model, y_pred):
        model._compile_loss(y, y_pred, sample_weight)


def _update_weighted(
    model: keras.Model, x, y, y_pred, sample_weight, is_example
) -> None:
    """Updates metrics with a weight of zero for padding."""
    metrics = model._compile_metrics
    if metrics is None or not _is_plain(model):
        model.compute_metrics(x, y, y_pred, sample_weight)
        return
    weights = tf.cast(is_example, keras.config.floatx())
    flat_y, flat_y_pred = metrics._flatten_y(y), metrics._flatten_y(y_pred)
    flat_weights = [sample_weight] * len(flat_y)
    if tree.is_nested(sample_weight):
        flat_weights = metrics._flatten_y(sample_weight)
    for group, chosen in (
        (metrics._flat_metrics, [weights] * len(flat_y)),
        (metrics._flat_weighted_metrics, flat_weights),
    ):
        for listed, y_t, y_p, weight in zip(
            group, flat_y, flat_y_pred, chosen, strict=True
        ):
            for metric in listed.metrics if listed is not None else ():
                weight = weights if weight is None else weight
                if isinstance(metric, keras.metrics.MeanMetricWrapper):
                    # Others leave masks alone.
                    spread = _spread(weight, keras_layers.mask_of(y_p))
                    metric.update_state(y_t, y_p, spread)
                else:
                    metric.update_state(y_t, y_p, weight)
