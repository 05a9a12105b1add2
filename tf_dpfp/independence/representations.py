"""Trials of models with a `DPRepresentationClip`, on made-up inputs.

The layer's noise protects what goes through it. A trial looks for what does
not: with the layer's output replaced by a constant, nothing that the model
computes may depend on the inputs any more. What reaches the layer for one
example must depend on that example alone.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import layers as layers_lib
from tf_dpfp.independence import comparison
from tf_dpfp.independence import inputs
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.step.forward_pass import call_model


@dataclasses.dataclass(frozen=True)
class Findings:
    """Findings of a trial.

    Attributes:
        problems: Reasons why the layer's noise does not protect the examples.
        trainable_below: Paths of the trainable weights below the layer.
        calls: Number of calls of such layers in a forward pass.
        positions: Indices of these weights among the trainable ones.
    """

    problems: tuple[str, ...]
    trainable_below: tuple[str, ...]
    calls: int
    positions: tuple[int, ...] = ()


def raise_if_unprotected(model: keras.Model, x: Any) -> Findings:
    """Tries a model and raises if its noise does not protect the examples.

    Args:
        model: A model with such a layer, built or not.
        x: Inputs, or their specifications: shapes and types are looked at.

    Returns:
        Findings of the trial.

    Raises:
        ValueError: If there are problems; it lists them all.
    """
    if not model.built:
        inputs.build(model, x)
    found = examine(model, x)
    if found.problems:
        listed = "\n".join(f"  - {problem}" for problem in found.problems)
        raise ValueError(
            f"Model '{model.name}' is not protected by its "
            f"DPRepresentationClip:\n{listed}"
        )
    return found


def examine(model: keras.Model, x: Any) -> Findings:
    """Tries a built model on made-up inputs.

    Args:
        model: A built model.
        x: Inputs, or their specifications: shapes and types are looked at.

    Returns:
        Findings of the trial. A trial that can't be made is a problem, too.
    """
    return inputs.outside_of_graphs(_examine, model, x)


# Examples in the batch that the first example is tried in a second time.
_OTHER_BATCH_SIZE = 2 * inputs.EXAMPLES


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Forward pass inside a trial.

    Attributes:
        outputs: Predictions, their masks and the model's own losses.
        state: Statistics after the pass.
        given: Inputs of the `DPRepresentationClip`, call by call.
        training: For every call, true if it was one of training.
        connected: For every trainable weight, true if it is below the layer.
    """

    outputs: list[tf.Tensor]
    state: list[tf.Tensor]
    given: list[tf.Tensor]
    training: list[bool]
    connected: list[bool]


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Differences between passes, which should all be zero.

    Attributes:
        outputs: Predictions and losses on two batches; the layer's output is
            the same constant in both.
        state: Statistics after these batches.
        mixing: What the layer is given for the first example, in two batches.
    """

    outputs: list[comparison.Difference]
    state: list[comparison.Difference]
    mixing: list[comparison.Difference]


def _forward(model: keras.Model, x: Any, variables: list) -> _Pass:
    trained = model.trainable_variables
    with inputs.restored(model.non_trainable_variables):
        with tf.GradientTape() as tape, layers_lib.trial() as trial:
            y_pred = call_model(model, x)
        found = [None] * len(trained)
        if trial.inputs and trained:
            found = tape.gradient(trial.inputs, [v.value for v in trained])
        flat = [t for t in tree.flatten(y_pred) if t is not None]
        masks = [keras_layers.mask_of(t) for t in flat]
        outputs = [*flat, *(m for m in masks if m is not None), *model.losses]
        return _Pass(
            [tf.convert_to_tensor(t) for t in outputs],
            [tf.identity(v.value) for v in variables],
            trial.inputs,
            trial.training,
            [gradient is not None for gradient in found],
        )


def _examine(model: keras.Model, x: Any) -> Findings:
    statistics = inputs.statistics_of(model)
    connected: list[bool] = []
    training: list[bool] = []

    def run(first, second):
        passes = [_forward(model, x, statistics) for x in (first, second)]
        other_batch = inputs.followed_by(first, second, twice=True)
        other = _forward(model, other_batch, statistics)
        connected.extend(passes[0].connected)
        training.extend(other.training)
        _check_batch_sizes(other.given)
        return (
            _differences(passes[0].outputs, passes[1].outputs),
            _differences(passes[0].state, passes[1].state),
            _differences(
                [t[:1] for t in passes[0].given], [t[:1] for t in other.given]
            ),
        )

    try:
        rng = np.random.default_rng(0)
        first = inputs.made_up_batch(x, rng)
        second = inputs.made_up_batch(x, rng)
        result = tf.function(run, autograph=False)(first, second)
    except _WrongBatchSize as error:
        return Findings((str(error),), (), len(training))
    except (inputs.CannotTry, tf.errors.OpError) as error:
        return Findings(
            (
                f"It could not be tried on made-up inputs ({error}). Put what "
                "takes no such inputs (the decoding of images, say) into the "
                "data pipeline.",
            ),
            (),
            0,
        )
    compared = _Comparison(*tree.map_structure(lambda t: t.numpy(), result))
    tolerance = comparison.tolerance_of(model)
    problems = _problems(compared, statistics, training, tolerance)
    return _findings(model, problems, connected, len(training))


def _problems(
    compared: _Comparison,
    statistics: list,
    training: list[bool],
    tolerance: float,
) -> list[str]:
    """Returns the reasons why the noise does not protect the examples."""
    problems = []
    if not training:
        problems.append("The layer is not called. Put it into the model.")
    elif not all(map(_is_same, compared.outputs)):
        problems.append(
            "The examples reach the outputs or the losses of the model on a "
            "way around the layer (a connection that skips it, a mask, "
            "`add_loss`, an `activity_regularizer`). Let everything that comes "
            "from the inputs go through it."
        )
    if not all(training):
        problems.append(
            "The layer is called without `training=True` in training, and adds "
            "no noise. Give the model's `call` an argument `training`, and "
            "pass it on."
        )
    changed = [
        f"'{v.path}'"
        for v, d in zip(statistics, compared.state, strict=True)
        if not _is_same(d)
    ]
    if changed:
        problems.append(
            f"The forward pass keeps statistics of the data, without noise, in "
            f"{', '.join(changed)}. Set `layer.trainable = False`, or replace "
            "the layer."
        )
    # Each input by itself: one of them may be small.
    if any(comparison.far_apart([d], tolerance)[0] for d in compared.mixing):
        problems.append(
            "What reaches the layer for one example depends on the other "
            "examples of the batch. Replace what mixes them below it."
        )
    return problems


def _findings(
    model: keras.Model, problems: list[str], connected: list[bool], calls: int
) -> Findings:
    trained = model.trainable_variables
    below = [
        position
        for position, (_, is_below) in enumerate(
            zip(trained, connected, strict=True)
        )
        if is_below
    ]
    return Findings(
        tuple(problems),
        tuple(trained[i].path for i in below),
        calls,
        tuple(below),
    )


def _is_same(difference: comparison.Difference) -> bool:
    # From the same constant: nothing but the order of a sum may differ.
    return bool(difference.distance <= 1e-6 * difference.scale)


class _WrongBatchSize(Exception):
    """Raised if the layer's first axis is not that of the examples."""


def _check_batch_sizes(given: list[tf.Tensor]) -> None:
    sizes = [t.shape[0] for t in given]
    if any(size != _OTHER_BATCH_SIZE for size in sizes):
        raise _WrongBatchSize(
            f"It is called with {sizes} rows for a batch of "
            f"{_OTHER_BATCH_SIZE} examples, so its rows are not the examples. "
            "Keep the batch in the first axis, without merging others into it."
        )


def _differences(
    one: list[tf.Tensor], two: list[tf.Tensor]
) -> list[comparison.Difference]:
    return [comparison.difference(a, b) for a, b in zip(one, two, strict=True)]
