"""One trial of a model on made-up inputs, before it sees any data.

Static checks can't see what a custom layer computes. The probe runs the real
forward pass on random numbers and looks at three things that the guarantee
rests on:

* what comes out for one example does not depend on the others;
* the per-example gradients add up to what automatic differentiation gives,
  so no path from a weight to the loss was missed;
* no variable but the random state changes, so no statistics are kept.

The inputs are drawn from a fixed seed: nothing here depends on the data.
"""

import contextlib
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


def _run(model, plan: private_step.Plan, data):
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
    found = [
        None if g is None else g.weighted_sum(tf.ones([_ROWS]))
        for g in gathered
    ]
    return y_pred, losses, _dense(expected), found


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
        with _restored(state):
            result = _run(model, plan, first)
            changed = [
                v
                for v, value in zip(statistics, before)
                if not np.array_equal(v.numpy(), value, equal_nan=True)
            ]
        with _restored(state):
            company = _run(model, plan, other)
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
    _check_company(result[:2], company[:2], tolerance)
    _check_gradients(plan, result[2], result[3], tolerance)


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
        a, b = (np.asarray(t[0], dtype=np.float64) for t in (a, b))
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
    for variable, a, b in zip(plan.variables, expected, found):
        if a is None and b is None:
            continue
        a = np.zeros(variable.shape) if a is None else np.asarray(a, np.float64)
        b = np.zeros(variable.shape) if b is None else np.asarray(b, np.float64)
        if not np.all(np.isfinite(a)):
            continue
        scale = np.max(np.abs(a), initial=1e-6)
        if a.shape != b.shape or not np.allclose(
            a, b, rtol=0.0, atol=tolerance * scale
        ):
            raise ValueError(
                f"The per-example gradients of '{variable.path}' do not add "
                "up to its gradient: the loss depends on it outside the "
                "recorded calls of its layer, or a registered gradient rule "
                "is wrong. Call the layer instead of reading its weights, or "
                "mend the rule."
            )
