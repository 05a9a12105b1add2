"""Values of single examples in an evaluation: correctness and clipped loss.

The model runs in inference mode, in a graph that is proved to keep examples
apart, for batches of any size: row i of what comes out is a function of example
i alone. So it does not matter which others are in its batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import noise as noise_lib
from tf_dpfp import step as step_lib
from tf_dpfp.independence import evaluation_proof
from tf_dpfp.independence import step_proof
from tf_dpfp.keras_private import addition as keras_addition
from tf_dpfp.keras_private import distribution as keras_distribution
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import lookups as keras_lookups
from tf_dpfp.keras_private import metrics as keras_metrics
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.mechanisms import proved
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.step import losses as losses_lib
from tf_dpfp.step import single_examples

# Takes `(y_true, y_pred)` of a batch of one and returns a number in [0, 1].
Correct = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is computed of an example.

    Attributes:
        correct: Function of labels and predictions of one example; `None`:
            what the compiled loss says is correct; False: nothing.
        loss_bound: Bound of its loss; `None`: no loss.
    """

    correct: Correct | None | bool
    loss_bound: float | None

    @property
    def names(self) -> list[str]:
        """Names of the values, in their order."""
        accuracy = [] if self.correct is False else ["accuracy"]
        return accuracy + ([] if self.loss_bound is None else ["loss"])


def function_of(
    model: keras.Model, wanted: Wanted, specs: Any
) -> Callable[..., tf.Tensor]:
    """Returns the function from a batch to the values of its examples.

    Args:
        model: A private, built model.
        wanted: What to compute.
        specs: Specifications of `(x, y, sample_weight)`, nested; of batches of
            any size.

    Returns:
        Takes the leaves of a batch; returns float32 of shape `(batch, 1 + K)`:
        whether the example takes part, and its values in [0, 1].

    Raises:
        ValueError: If it can't be traced, or is not proved.
    """
    kept = state_lib.state_of(model).evaluations
    kind = (
        proved.settings(model),
        wanted,
        str(tree.map_structure(repr, specs)),
        getattr(model, "_compile_loss", None),
    )
    if kind not in kept:
        # Those of a model that has changed hold on to what it was.
        kept.clear()
        kept[kind] = _proved_function(model, wanted, specs)
    return kept[kind]


def _proved_function(
    model: keras.Model, wanted: Wanted, specs: Any
) -> Callable[..., tf.Tensor]:
    loss = _loss_of(model, wanted)
    seeds = noise_lib.LayerSeeds()
    seeds.build()
    found: list = []

    def traced(*leaves):
        leaves = step_lib.as_examples(list(leaves))
        remaining = iter(leaves)
        batch = tree.map_structure(
            lambda s: None if s is None else next(remaining), specs
        )
        with keras_random.seeds_from(seeds.of_pass()):
            values = _values(model, wanted, loss, *batch)
        found.extend(
            evaluation_proof.findings_of(
                model,
                evaluation_proof.TracedEvaluation(
                    tf.compat.v1.get_default_graph(),
                    leaves,
                    values,
                    seeds.handles(),
                    keras_trainer.loss_trackers(loss),
                    keras_metrics.variables_of(model),
                ),
            )
        )
        return values

    flat = [spec for spec in tree.flatten(specs) if spec is not None]
    with compilation.tracing_for(compilation.Target.KERNELS):
        try:
            made = tf.function(
                traced, autograph=False, input_signature=flat
            ).get_concrete_function()
        except ValueError:
            raise
        except Exception as error:  # Of any code in a layer or a loss.
            step_proof.raise_unless_proved(
                model, [proved.not_traced(error)], "evaluated"
            )
            raise
    step_proof.raise_unless_proved(model, found, "evaluated")
    return made


def _loss_of(model: keras.Model, wanted: Wanted) -> Any:
    """Returns the compiled loss of single examples; `None` if not wanted."""
    if wanted.loss_bound is None:
        return None
    loss, loss_weights = keras_trainer.compiled_loss_arguments(model)
    return keras_trainer.structured_loss(
        losses_lib.per_example(loss),
        loss_weights,
        getattr(model, "output_names", None),
    )


@keras_lookups.guarded()
@keras_addition.as_rows()
@keras_distribution.whole_losses()
def _values(
    model: keras.Model, wanted: Wanted, loss: Any, x, y, sample_weight
) -> tf.Tensor:
    arguments = {}
    if keras_trainer.takes_training(model):
        arguments["training"] = False
    y_pred = model(x, **arguments)
    size = tf.shape(tree.flatten(x)[0])[0]
    is_finite = _are_finite(y_pred, size)
    values = []
    if wanted.correct is not False:
        correct = _correct(model, wanted.correct, y, y_pred, sample_weight)
        right = tf.clip_by_value(_row(correct, size), 0.0, 1.0)
        values.append(tf.where(is_finite, right, tf.zeros_like(right)))
    if loss is not None:
        bound = float(wanted.loss_bound or 0.0)
        losses = _row(loss(y, y_pred, sample_weight), size)
        share = tf.clip_by_value(losses, 0.0, bound) / bound
        values.append(tf.where(is_finite, share, tf.ones_like(share)))
    # NaN passes through clipping.
    values = [
        tf.where(tf.math.is_finite(value), value, tf.ones_like(value) * worst)
        for value, worst in zip(values, _worst(wanted), strict=True)
    ]
    present = losses_lib.has_weight(sample_weight, size)
    return tf.stack([tf.cast(present, tf.float32), *values], axis=1)


def _worst(wanted: Wanted) -> list[float]:
    return [0.0 if name == "accuracy" else 1.0 for name in wanted.names]


def _row(value: Any, size: tf.Tensor) -> tf.Tensor:
    value = tf.cast(tf.convert_to_tensor(value), tf.float32)
    if value.shape.rank != 1:
        raise ValueError(
            "An evaluation needs one number for each example. Received: a "
            f"value of shape {tuple(value.shape)}"
        )
    return tf.reshape(value, [size])


def _are_finite(y_pred: Any, size: tf.Tensor) -> tf.Tensor:
    """Tells for each example if all of its predictions are finite."""
    rows = [tf.ones([size], tf.bool)]
    for leaf in tree.flatten(y_pred):
        leaf = tf.convert_to_tensor(leaf)
        if leaf.dtype.is_floating:
            axes = list(range(1, leaf.shape.rank))
            rows.append(tf.reduce_all(tf.math.is_finite(leaf), axis=axes))
    return tf.reduce_all(tf.stack(rows), axis=0)


def _correct(
    model: keras.Model, correct: Any, y, y_pred, sample_weight
) -> tf.Tensor:
    if correct is None:
        return _by_loss(only_loss(model), y, y_pred, sample_weight)

    def of_one(example):
        return [tf.reduce_mean(tf.cast(correct(*example), tf.float32))]

    given = tree.map_structure(tf.convert_to_tensor, (y, y_pred))
    (found,) = single_examples.mapped(of_one, given)
    return found


_SPARSE = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_CATEGORICAL = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)
_BINARY = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
)


def _is_one_of(loss: Any, kinds: tuple) -> bool:
    return type(loss) in kinds or any(loss is kind for kind in kinds)


def only_loss(model: keras.Model) -> Any:
    """Returns the loss of a model with one, if it says what is correct.

    Args:
        model: A compiled model.

    Returns:
        A loss of classes; `None` if there is no such, or several.
    """
    if not keras_trainer.has_compiled_loss(model):
        return None
    loss, _ = keras_trainer.compiled_loss_arguments(model)
    leaves = [leaf for leaf in tree.flatten(loss) if leaf is not None]
    if len(leaves) != 1 or len(tree.flatten(getattr(model, "outputs", 1))) > 1:
        return None
    found = keras.losses.get(leaves[0])
    known = _is_one_of(found, (*_SPARSE, *_CATEGORICAL, *_BINARY))
    return found if known else None


def _by_loss(loss: Any, y, y_pred, sample_weight) -> tf.Tensor:
    """Tells for each example how much of it is correct, by a loss of classes.

    Of an example with several positions it is the share of those that count.
    """
    mask = keras_layers.mask_of(y_pred)
    (y_pred,) = map(tf.convert_to_tensor, tree.flatten(y_pred))
    (y,) = map(tf.convert_to_tensor, tree.flatten(y))
    if _is_one_of(loss, _BINARY):
        if y.shape.rank == y_pred.shape.rank - 1:
            y = y[..., None]
        # A loss that is a function takes probabilities.
        threshold = 0.0 if getattr(loss, "from_logits", False) else 0.5
        right = tf.equal(y_pred > threshold, tf.cast(y, y_pred.dtype) > 0.5)
    else:
        answer = tf.argmax(y_pred, axis=-1, output_type=tf.int64)
        if _is_one_of(loss, _CATEGORICAL):
            classes = tf.argmax(y, axis=-1, output_type=tf.int64)
        else:
            if y.shape.rank == y_pred.shape.rank:
                y = tf.squeeze(y, -1)
            classes = tf.cast(y, tf.int64)
            ignored = getattr(loss, "ignore_class", None)
            if ignored is not None:
                counts = tf.not_equal(classes, int(ignored))
                mask = counts if mask is None else tf.cast(mask, bool) & counts
        right = tf.equal(answer, classes)
    return losses_lib.reduce_examples(
        tf.cast(right, tf.float32),
        sample_weight if right.shape.rank != 1 else None,
        mask if right.shape.rank != 1 else None,
        "mean_with_sample_weight",
    )
