"""Trial of a model on made-up inputs, before it sees any data.

Static checks can't see what a custom layer computes. The trial runs the real
forward pass on random numbers and looks at three things that the guarantee
rests on:

* what comes out for one example does not depend on the others, nor on how
  many they are, and neither does what it contributes to the gradient;
* the per-example gradients add up to what automatic differentiation gives,
  so no path from a weight to the loss was missed;
* no variable but the random state changes, so no statistics are kept.

The inputs are drawn from a fixed seed: nothing here depends on the data.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import per_example
from tf_dpfp import user_warnings
from tf_dpfp.independence import inputs
from tf_dpfp.independence import own_losses
from tf_dpfp.independence.comparison import Difference
from tf_dpfp.independence.comparison import difference
from tf_dpfp.independence.comparison import far_apart
from tf_dpfp.independence.comparison import tolerance_of
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.per_example import batched
from tf_dpfp.step import forward_pass
from tf_dpfp.step import traced as traced_lib
from tf_dpfp.step.plan import Plan

# Examples in the batch that the first example is tried in a second time.
_OTHER_BATCH_SIZE = 5
_GENERIC_RULE = (
    "`tf_dpfp.gradient_rules.register_gradient_rule(OuterLayer)"
    "(tf_dpfp.gradient_rules.GenericRule)`"
)


class ExamplesMeetError(ValueError):
    """Raised if an example depends on others of its batch."""


class _Pass(NamedTuple):
    """Forward and backward pass on one batch.

    Attributes:
        outputs: Predictions and losses of the first example, flat.
        expected: Gradients by automatic differentiation.
        gradients: Per-example gradients.
        own_losses: The losses of the examples, if the model or its layers
            make them, else nothing.
    """

    outputs: list[tf.Tensor]
    expected: list[tf.Tensor | tf.IndexedSlices | None]
    gradients: list[per_example.PerExampleGradient | None]
    own_losses: list[tf.Tensor]

    def weighted(
        self, index: int, factors: list[float]
    ) -> tf.Tensor | tf.IndexedSlices | None:
        """Returns a weighted sum of a variable's per-example gradients."""
        gradient = self.gradients[index]
        if gradient is None:
            return None
        if isinstance(gradient, per_example.EmbeddingRows):
            # Not the whole table, which may be most of a model.
            rows, values = gradient.clipped_rows(tf.constant(factors))
            return tf.IndexedSlices(
                tf.reshape(values, [-1, tf.shape(values)[2]]),
                tf.reshape(rows, [-1]),
                tf.constant([gradient.num_rows, values.shape[2]]),
            )
        return gradient.weighted_sum(tf.constant(factors))


def _run(model, plan: Plan, data, batch_size: int) -> _Pass:
    data = traced_lib.as_examples(data)
    variables = [v.value for v in plan.variables]
    # The same ones for both batches, wherever a generator is held.
    seeds = keras_random.seeds_from(keras_random.numbered())
    with tf.GradientTape() as tape, seeds:
        passed = forward_pass.forward(
            model, plan, data, _recorded(plan, data), noise=False
        )
        calls, y_pred, losses = passed.calls, passed.y_pred, passed.losses
        total = tf.reduce_sum(losses)
    if any(call.is_spread for call in calls):
        with plan.step(noise=False):
            _check_shapes(y_pred, forward_pass.call_model(model, data[0]))
    expected, sources = tape.gradient(
        total, (variables, [call.sources for call in calls])
    )
    gathered = clipping_lib.gather_gradients(
        calls, _dense(sources), plan.variables
    )
    _check_batch_sizes(plan, gathered, batch_size)

    return _Pass(
        [t[0] for t in tree.flatten((y_pred, losses)) if t is not None],
        expected,
        gathered,
        [losses] if passed.has_own_losses else [],
    )


def _recorded(plan: Plan, data):
    # Outside of a graph nobody knows which arguments have the batch in them.
    if tf.executing_eagerly():
        return per_example.record_calls(plan.units)
    return plan.record(data)


def _dense(gradients):
    return tree.map_structure(
        lambda g: None if g is None else tf.convert_to_tensor(g), gradients
    )


class _Result(NamedTuple):
    """Differences between the passes, in numbers only.

    Attributes:
        changed: For each statistic, true if the forward pass changed it.
        outputs: Those of the first example's outputs, in two batches.
        contribution: Those of what it adds to every gradient.
        sums: Those of the gradients by automatic differentiation and the
            sums of the per-example gradients.
        own_losses: Those of the examples, if the model or its layers make
            losses, else nothing.
    """

    changed: list[tf.Tensor]
    outputs: list[Difference]
    contribution: list[Difference]
    sums: list[Difference]
    own_losses: list[tf.Tensor]


def _try(model, plan, statistics, batch, other_batch) -> _Result:
    state = model.non_trainable_variables
    before = [tf.identity(v.value) for v in statistics]
    with inputs.restored(state):
        first = _run(model, plan, batch, inputs.EXAMPLES)
        changed = [
            tf.reduce_any(
                tf.not_equal(v.value, value)
                & ~(_is_nan(v.value) & _is_nan(value))
            )
            for v, value in zip(statistics, before, strict=True)
        ]
    with inputs.restored(state):
        other = _run(model, plan, other_batch, _OTHER_BATCH_SIZE)
    contribution: list[Difference] = []
    sums: list[Difference] = []
    everyone = [1.0] * inputs.EXAMPLES
    for index in range(len(plan.variables)):
        # One after the other: a large model's gradients do not all fit.
        with tf.control_dependencies([d.distance for d in sums[-1:]]):
            contribution.append(
                difference(
                    first.weighted(index, _only_first(inputs.EXAMPLES)),
                    other.weighted(index, _only_first(_OTHER_BATCH_SIZE)),
                )
            )
        with tf.control_dependencies([contribution[-1].distance]):
            sums.append(
                difference(
                    first.expected[index], first.weighted(index, everyone)
                )
            )
    outputs = [
        difference(a, b)
        for a, b in zip(first.outputs, other.outputs, strict=True)
    ]
    return _Result(changed, outputs, contribution, sums, first.own_losses)


def _only_first(batch_size: int) -> list[float]:
    return [1.0] + [0.0] * (batch_size - 1)


def _is_nan(value) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    if value.dtype.is_floating:
        return tf.math.is_nan(value)
    return tf.zeros_like(value, tf.bool)


def check(model: keras.Model, plan: Plan, data: Any) -> None:
    """Tries a model on made-up inputs.

    Args:
        model: A built model.
        plan: Its plan.
        data: `(x, y, sample_weight)` of a real batch; only shapes and types
            are looked at.

    Raises:
        ValueError: If examples influence each other, gradients are missed or
            wrong, or statistics are kept.
    """
    inputs.outside_of_graphs(_check, model, plan, data)


def _check(model: keras.Model, plan: Plan, data: Any) -> None:
    if plan.loss is not None and _is_text(data[1]):
        return  # The compiled loss refuses it, in a sentence.
    try:
        rng = np.random.default_rng(0)
        batch = inputs.made_up_batch(data, rng)
        other_batch = inputs.followed_by(
            batch, inputs.made_up_batch(data, rng, _OTHER_BATCH_SIZE)
        )
        for losses in _compare(model, plan, batch, other_batch):
            own_losses.check(model, batch, losses)
    except (inputs.CannotTry, tf.errors.OpError) as error:
        user_warnings.warn(
            f"Model '{model.name}' could not be tried on made-up inputs "
            f"({error}); whether its per-example gradients add up to its "
            "gradient was not checked. That examples stay apart is proved all "
            "the same.",
        )


def _is_text(y: Any) -> bool:
    leaves = [leaf for leaf in tree.flatten(y) if leaf is not None]
    return len(leaves) == 1 and leaves[0].dtype == tf.string


def _compare(
    model: keras.Model, plan: Plan, batch, other_batch
) -> list[np.ndarray]:
    """Compares two passes; raises ValueError if they disagree.

    Returns:
        The losses of the examples, if the model or its layers make losses,
        else nothing.
    """
    statistics = inputs.statistics_of(model)

    def run(a, b):
        return _try(model, plan, statistics, a, b)

    # To run once costs less than to compile, but for what is vectorised over
    # examples: that takes long to differentiate outside of a graph.
    eager_error: Exception | None = None
    vectorised = per_example.GenericRule, per_example.OwnWeightsRule
    if not any(isinstance(u.rule, vectorised) for u in plan.units):
        try:
            return _judge(model, plan, statistics, run(batch, other_batch))
        except (ValueError, tf.errors.OpError) as error:
            # In a graph it can be told which arguments of a layer have the
            # batch in them, and which are the same for all examples.
            eager_error = error
    try:
        result = tf.function(run, autograph=False)(batch, other_batch)
    except tf.errors.OpError as error:
        raise eager_error or error from None
    return _judge(model, plan, statistics, result)


def _judge(model, plan: Plan, statistics, result: _Result) -> list[np.ndarray]:
    result = tree.map_structure(lambda t: t.numpy(), result)
    tolerance = tolerance_of(model)
    _check_statistics(
        [
            v
            for v, changed in zip(statistics, result.changed, strict=True)
            if changed
        ]
    )
    _check_mixing(result, tolerance)
    _check_gradients(plan, result.sums, tolerance)
    if not any(found.scale > 0.0 for found in result.sums):
        _warn_of_silence(model)
    return result.own_losses


def _warn_of_silence(model: keras.Model) -> None:
    """Warns that nothing but noise would train the model."""
    user_warnings.warn(
        f"Model '{model.name}': on made-up inputs, no example has a finite "
        "gradient other than zero, so that noise alone would train it. A "
        "crossentropy of outputs without softmax or sigmoid needs "
        "from_logits=True: where it takes them for probabilities it is "
        "constant beyond 0 and 1. A loss that compares the examples of a "
        "batch (contrastive or triplet losses, scores over the batch) is "
        "constant, or not a number, on one example alone, and a private step "
        "takes the loss of each example alone. Give each example what it is "
        "compared with, as further inputs, or use a loss that is defined on "
        "one example.",
    )


def _check_batch_sizes(plan: Plan, gathered, expected: int) -> None:
    for variable, gradient in zip(plan.variables, gathered, strict=True):
        if gradient is None:
            continue
        rows = gradient.squared_norms().shape[0]
        if rows is not None and rows != expected:
            raise ValueError(
                f"The layer of '{variable.path}' is called with {rows} rows "
                f"for a batch of {expected} examples, so its rows are not the "
                "examples. Keep the batch in the first axis, without merging "
                "others into it: layers take further axes as they are. Or let "
                "the layer that moves the batch see one example at a time: "
                f"`tf_dpfp.PerExample(layer)`, or {_GENERIC_RULE}."
            )


def _check_shapes(recorded: Any, ordinary: Any) -> None:
    """Refuses another use of what is the same for all examples."""
    for a, b in zip(
        tree.flatten(recorded), tree.flatten(ordinary), strict=True
    ):
        if tf.is_tensor(a) and not a.shape.is_compatible_with(b.shape):
            raise ValueError(
                "A layer is called on what is the same for all examples, and "
                "gives one row for each example in a private step. With that "
                f"the model gives {tuple(a.shape)} instead of "
                f"{tuple(b.shape)}. Use what the layer gives by broadcasting, "
                f"as in `x + table(positions)`. {batched.OF_ONE_GRAPH}"
            )


def _check_statistics(changed) -> None:
    if changed:
        names = ", ".join(f"'{v.path}'" for v in changed)
        raise ValueError(
            f"The forward pass changes {names}: statistics of the data would "
            "leave without noise. Replace the layer, or set "
            "`layer.trainable = False` if that stops it."
        )


def _check_mixing(result: _Result, tolerance: float) -> None:
    # Each output by itself: one of them may be small.
    apart = [far_apart([d], tolerance)[0] for d in result.outputs]
    if any(apart + far_apart(result.contribution, tolerance)):
        raise ExamplesMeetError(
            "What the model computes for one example depends on the other "
            "examples of the batch, or on their number, so clipping one "
            "example's gradient "
            "does not bound its influence. Find the layer or loss that "
            "mixes examples and replace it."
        )


def _check_gradients(plan, sums: list[Difference], tolerance: float) -> None:
    apart = far_apart(sums, tolerance)
    for variable, is_apart in zip(plan.variables, apart, strict=True):
        if is_apart:
            raise ValueError(
                f"The per-example gradients of '{variable.path}' do not add "
                "up to its gradient: the loss depends on it outside the "
                "recorded calls of its layer, or a registered gradient rule "
                "is wrong. Call the layer instead of reading its weights, or "
                "mend the rule. A layer that takes a gradient in its own "
                "`call`, as gradient penalties do, needs the generic rule: "
                f"{_GENERIC_RULE}."
            )
