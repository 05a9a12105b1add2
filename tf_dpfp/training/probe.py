"""One trial of a model on made-up inputs, before it sees any data.

Static checks can't see what a custom layer computes. The probe runs the real
forward pass on random numbers and looks at three things that the guarantee
rests on:

* what comes out for one example does not depend on the others, and neither
  does what it contributes to the gradient;
* the per-example gradients add up to what automatic differentiation gives,
  so no path from a weight to the loss was missed;
* no variable but the random state changes, so no statistics are kept.

The inputs are drawn from a fixed seed: nothing here depends on the data.
"""

import concurrent.futures
import contextlib
import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import per_example
from tf_dpfp.per_example import keras_layers
from tf_dpfp.training import private_step

_ROWS = 3
_UNKNOWN_SIZE = 4
_TOLERANCES = {"float16": 5e-2, "bfloat16": 1e-1}
_TOLERANCE = 2e-3


class _CannotProbe(Exception):
    """Inputs of this kind can't be made up."""


def _made_up(leaf, rng: np.random.Generator) -> tf.Tensor | None:
    if leaf is None:
        return None
    dtype = tf.as_dtype(leaf.dtype)
    shape = [_ROWS] + [
        _UNKNOWN_SIZE if size is None else size for size in leaf.shape[1:]
    ]
    if dtype == tf.bool:
        return tf.ones(shape, tf.bool)
    if dtype.is_integer:
        return tf.cast(rng.integers(0, 2, shape), dtype)
    if dtype.is_floating:
        return tf.cast(rng.uniform(0.1, 0.9, shape), dtype)
    raise _CannotProbe(f"inputs of type {dtype.name}")


@contextlib.contextmanager
def _restored(variables):
    values = [tf.identity(v.value) for v in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values):
            variable.assign(value)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What one forward and backward pass gave.

    Attributes:
        outputs: Predictions and losses.
        contribution: What the first example adds to every gradient.
        expected: The gradients by automatic differentiation.
        found: The sums of the per-example gradients.
    """

    outputs: Any
    contribution: list[tf.Tensor | None]
    expected: list[tf.Tensor | None]
    found: list[tf.Tensor | None]


def _run(model, plan: private_step.Plan, data) -> tuple:
    x, y, sample_weight = data
    variables = [v.value for v in plan.variables]
    with tf.GradientTape(persistent=True) as tape:
        with per_example.record_calls(plan.units) as calls:
            y_pred = private_step.forward(model, x)
        losses = plan.loss(y, y_pred, sample_weight)
        total = tf.reduce_sum(losses)
    expected = tape.gradient(total, variables)
    sources = tape.gradient(total, [call.sources for call in calls])
    del tape
    gathered = clipping_lib.gather_gradients(
        calls, _dense(sources), plan.variables
    )
    _check_rows(plan, gathered)

    def weighted(factors):
        return [
            None if g is None else g.weighted_sum(tf.constant(factors))
            for g in gathered
        ]

    return (
        (y_pred, losses),
        weighted([1.0] + [0.0] * (_ROWS - 1)),
        _dense(expected),
        weighted([1.0] * _ROWS),
    )


def _dense(gradients):
    return tree.map_structure(
        lambda g: None if g is None else tf.convert_to_tensor(g), gradients
    )


def check(model: keras.Model, plan: private_step.Plan, data: Any) -> None:
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
    # A thread of its own is in eager mode whatever is traced in this one.
    # (`tf.init_scope` would leave the graph too, but tapes record nothing in
    # it.)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(_check, model, plan, data).result()


def _check(model: keras.Model, plan: private_step.Plan, data: Any) -> None:
    rng = np.random.default_rng(0)
    state = model.non_trainable_variables
    statistics = [v for v in state if not keras_layers.is_seed_variable(v)]
    try:
        first = tree.map_structure(lambda leaf: _made_up(leaf, rng), data)
        other = tree.map_structure(lambda leaf: _made_up(leaf, rng), data)
        # The same first example in other company.
        other = tree.map_structure(
            lambda a, b: None if a is None else tf.concat([a[:1], b[1:]], 0),
            first,
            other,
        )
        before = [v.numpy() for v in statistics]
        # One graph for both trials: what is vectorised over examples takes
        # many times as long to differentiate outside of one.
        run = tf.function(lambda data: _run(model, plan, data), autograph=False)
        with _restored(state):
            result = _Trial(*run(first))
            changed = [
                v
                for v, value in zip(statistics, before)
                if not np.array_equal(v.numpy(), value, equal_nan=True)
            ]
        with _restored(state):
            company = _Trial(*run(other))
    except (_CannotProbe, tf.errors.OpError) as error:
        warnings.warn(
            f"Model '{model.name}' could not be tried on made-up inputs "
            f"({error}); whether its own layers keep examples apart was not "
            "checked.",
            stacklevel=2,
        )
        return
    _check_statistics(changed)
    tolerance = max(
        [_TOLERANCE]
        + [
            _TOLERANCES.get(layer.compute_dtype, 0.0)
            for layer in keras_layers.all_layers(model)
        ]
    )
    first_rows = tree.map_structure(
        lambda t: t[0], (result.outputs, company.outputs)
    )
    _check_company(*first_rows, tolerance)
    _check_company(result.contribution, company.contribution, tolerance)
    _check_gradients(plan, result.expected, result.found, tolerance)


def _check_rows(plan: private_step.Plan, gathered) -> None:
    for variable, gradient in zip(plan.variables, gathered):
        if gradient is None:
            continue
        rows = gradient.squared_norms().shape[0]
        if rows != _ROWS:
            raise ValueError(
                f"The layer of '{variable.path}' is called with {rows} rows "
                f"for a batch of {_ROWS} examples, so its rows are not the "
                "examples. Keep the batch in the first axis, without merging "
                "others into it: layers take further axes as they are."
            )


def _check_statistics(changed) -> None:
    if changed:
        names = ", ".join(f"'{v.path}'" for v in changed)
        raise ValueError(
            f"The forward pass changes {names}: statistics of the data would "
            "leave without noise. Replace the layer, or set "
            "`layer.trainable = False` if that stops it."
        )


def _check_company(mine, theirs, tolerance: float) -> None:
    for a, b in zip(tree.flatten(mine), tree.flatten(theirs)):
        if a is None or b is None:
            continue
        a, b = (np.asarray(t, dtype=np.float64) for t in (a, b))
        scale = np.max(np.abs(a), initial=1e-6, where=np.isfinite(a))
        if not np.allclose(
            a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True
        ):
            raise ValueError(
                "What the model computes for one example depends on the other "
                "examples of the batch, so clipping one example's gradient "
                "does not bound its influence. Find the layer or loss that "
                "mixes examples and replace it."
            )


def _check_gradients(plan, expected, found, tolerance: float) -> None:
    triples = [
        (variable, a, b)
        for variable, a, b in zip(plan.variables, expected, found, strict=True)
        if a is not None or b is not None
    ]
    largest = [_largest(a) for _, a, _ in triples]
    # Some gradients are zero but for rounding (an attention key's bias): what
    # rounding is, the largest gradient tells.
    rounding = 1e-5 * max((x for x in largest if np.isfinite(x)), default=0.0)
    for (variable, a, b), scale in zip(triples, largest, strict=True):
        if not np.isfinite(scale):
            continue
        difference = _largest(a if b is None else b if a is None else a - b)
        if not difference <= tolerance * max(scale, 1e-6) + rounding:
            raise ValueError(
                f"The per-example gradients of '{variable.path}' do not add "
                "up to its gradient: the loss depends on it outside the "
                "recorded calls of its layer, or a registered gradient rule "
                "is wrong. Call the layer instead of reading its weights, or "
                "mend the rule."
            )


def _largest(gradient: tf.Tensor | None) -> float:
    if gradient is None:
        return 0.0
    absolute = tf.abs(tf.cast(gradient, tf.float32))
    # NaN would be lost in a maximum.
    total = float(tf.reduce_sum(absolute))
    return float(tf.reduce_max(absolute)) if np.isfinite(total) else total
