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
from tf_dpfp.step.microbatch import forward


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a trial showed.

    Attributes:
        problems: Why the layer's noise does not protect the examples.
        trainable_below: Paths of the trainable weights below the layer.
        calls: How often such layers are called in a forward pass.
        positions: Which of the model's trainable weights those are.
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
        What the trial showed.

    Raises:
        ValueError: With every problem.
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
        model: The model.
        x: Inputs, or their specifications: shapes and types are looked at.

    Returns:
        What the trial showed. Where it could not be made, that is a problem.
    """
    return inputs.outside_of_graphs(_examine, model, x)


# Rows of the second trial, which are not as many as those of the first.
_COMPANY = 2 * inputs.ROWS


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One forward pass inside a trial."""

    outputs: list[tf.Tensor]
    state: list[tf.Tensor]
    given: list[tf.Tensor]
    training: list[bool]
    connected: list[bool]


def _forward(model: keras.Model, x: Any, variables: list) -> _Pass:
    trained = model.trainable_variables
    with inputs.restored(model.non_trainable_variables):
        with tf.GradientTape() as tape, layers_lib.trial() as trial:
            y_pred = forward(model, x)
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
    rng = np.random.default_rng(0)
    statistics = [
        v
        for v in model.non_trainable_variables
        if not keras_layers.is_seed_variable(v)
    ]
    connected, training = [], []

    def run(first, other):
        # The same first example in other, and more, company.
        company = tree.map_structure(
            lambda a, b: None if a is None else tf.concat([a[:1], b[1:], b], 0),
            first,
            other,
        )
        passes = [_forward(model, x, statistics) for x in (first, other)]
        beside = _forward(model, company, statistics)
        connected.extend(passes[0].connected)
        training.extend(beside.training)
        rows = [t.shape[0] for t in beside.given]
        if any(count != _COMPANY for count in rows):
            raise _OtherRows(rows)
        return (
            _differences(passes[0].outputs, passes[1].outputs),
            _differences(passes[0].state, passes[1].state),
            _differences(
                [t[:1] for t in passes[0].given], [t[:1] for t in beside.given]
            ),
        )

    try:
        first = tree.map_structure(lambda leaf: inputs.made_up(leaf, rng), x)
        other = tree.map_structure(lambda leaf: inputs.made_up(leaf, rng), x)
        result = tf.function(run, autograph=False)(first, other)
    except _OtherRows as error:
        return Findings(
            (
                f"It is called with {error.args[0]} rows for a batch of "
                f"{_COMPANY} examples, so its rows are not the examples. "
                "Keep the batch in the first axis, without merging others "
                "into it.",
            ),
            (),
            len(training),
        )
    except (inputs.CannotProbe, tf.errors.OpError) as error:
        return Findings(
            (
                f"It could not be tried on made-up inputs ({error}). Put what "
                "can't be made up (lookups of strings, say) into the data "
                "pipeline.",
            ),
            (),
            0,
        )
    result = tree.map_structure(lambda t: t.numpy(), result)
    tolerance = comparison.tolerance_of(model)
    around = not all(map(_is_same, result[0]))
    changed = [
        f"'{v.path}'"
        for v, d in zip(statistics, result[1], strict=True)
        if not _is_same(d)
    ]
    mixed = any(comparison.far_apart([d], tolerance)[0] for d in result[2])
    problems = []
    if not training:
        problems.append("The layer is not called. Put it into the model.")
    elif around:
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
    if changed:
        problems.append(
            f"The forward pass keeps statistics of the data, without noise, in "
            f"{', '.join(changed)}. Set `layer.trainable = False`, or replace "
            "the layer."
        )
    if mixed:
        problems.append(
            "What reaches the layer for one example depends on the other "
            "examples of the batch. Replace what mixes them below it."
        )
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
        len(training),
        tuple(below),
    )


def _is_same(difference: comparison.Difference) -> bool:
    # From the same constant: nothing but the order of a sum may differ.
    return bool(difference.distance <= 1e-6 * difference.scale)


class _OtherRows(Exception):
    """The layer's rows are not the examples of the batch."""


def _differences(
    one: list[tf.Tensor], two: list[tf.Tensor]
) -> list[comparison.Difference]:
    return [comparison.difference(a, b) for a, b in zip(one, two, strict=True)]
