"""Per-example gradients by a loop over examples: the truth to compare with.

The loop runs the real layer on batches of one in float64; nothing of the
package takes part in it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from tests.oracles import reference
from tf_dpfp import per_example

# Half precision rounds every product; everything else must agree closely.
TOLERANCES = {
    "float32": 2e-4,
    "float64": 1e-9,
    "mixed_float16": 2e-2,
    "mixed_bfloat16": 8e-2,
}


def weights_like(outputs) -> list[tf.Tensor]:
    """Fixed random weights that make a loss of the outputs, per example."""
    rng = np.random.default_rng(7)
    return [
        tf.constant(rng.normal(size=t.shape[1:]), t.dtype)
        for t in tf.nest.flatten(outputs)
    ]


def losses_of(outputs, weights) -> tf.Tensor:
    """One loss for every example: curved, so that gradients differ."""
    total = 0.0
    for tensor, weight in zip(tf.nest.flatten(outputs), weights, strict=True):
        tensor = tf.cast(tensor, tf.float64 if is_double(tensor) else "float32")
        term = tf.cast(weight, tensor.dtype) * (tensor + 0.1 * tensor**2)
        total += tf.reduce_sum(term, axis=list(range(1, tensor.shape.rank)))
    return total


def is_double(tensor) -> bool:
    return tensor.dtype == tf.float64


def in_double(layer: keras.layers.Layer, inputs) -> keras.layers.Layer:
    """A copy of the layer with the same weights, computing in float64."""

    def widen(config):
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy" or (
                config.get("class_name") == "DTypePolicyMap"
            ):
                return "float64"
            return {
                k: "float64" if k == "dtype" else widen(v)
                for k, v in config.items()
            }
        if isinstance(config, (list, tuple)):
            return type(config)(widen(v) for v in config)
        return config

    copy = type(layer).from_config(widen(layer.get_config()))
    copy(as_double(inputs))
    for mine, theirs in zip(copy.variables, layer.variables, strict=True):
        if mine.dtype == theirs.dtype and "float" not in mine.dtype:
            continue
        mine.assign(tf.cast(theirs.value, tf.float64))
    return copy


def as_double(inputs):
    return tf.nest.map_structure(
        lambda x: tf.cast(x, tf.float64) if x.dtype.is_floating else x, inputs
    )


def loop(
    layer: keras.layers.Layer,
    inputs,
    weights,
    call: Callable[[keras.layers.Layer, Any], Any] = lambda m, x: m(x),
) -> list[np.ndarray]:
    """Gradients of every trainable variable, example by example.

    Args:
        layer: A layer that computes in float64.
        inputs: A batch, or a nested structure of batches.
        weights: What `weights_like` returned.
        call: How the layer is called.

    Returns:
        One array of shape `(batch, *variable.shape)` for every trainable
        variable.
    """
    rows = reference.gradients(
        lambda one: losses_of(call(layer, one), weights),
        layer.trainable_variables,
        inputs,
    )
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


def recorded(
    layer: keras.layers.Layer,
    inputs,
    weights,
    call: Callable[[keras.layers.Layer, Any], Any] = lambda m, x: m(x),
) -> dict[int, per_example.PerExampleGradient]:
    """What the rules say, by the position of the trainable variable."""
    units = per_example.find_units(layer)
    with (
        per_example.record_calls(units) as calls,
        tf.GradientTape(persistent=True) as tape,
    ):
        tape.watch(inputs)
        loss = tf.reduce_sum(losses_of(call(layer, inputs), weights))
    parts: dict[int, list] = {}
    order = {id(v): i for i, v in enumerate(layer.trainable_variables)}
    for layer_call in calls:
        found = tape.gradient(
            loss,
            layer_call.sources,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        for variable, part in layer_call.of_examples(tuple(found)):
            if id(variable) in order:
                parts.setdefault(order[id(variable)], []).append(part)
    return {i: per_example.add(p) for i, p in parts.items()}


@dataclasses.dataclass
class Result:
    """Everything that a `PerExampleGradient` answers, for every variable."""

    materialized: list[np.ndarray]
    squared_norms: list[np.ndarray]
    sums: list[np.ndarray]


def answers(
    layer: keras.layers.Layer,
    inputs,
    factors,
    mode: str = "eager",
    call: Callable[[keras.layers.Layer, Any], Any] = lambda m, x: m(x),
    few: Sequence[int] = (),
) -> list[Result]:
    """Runs the rules.

    Args:
        layer: The layer or model.
        inputs: A batch.
        factors: Of the weighted sum.
        mode: "eager", "graph" (of unknown batch size) or "xla" (compiled).
        call: How the layer is called.
        few: Numbers of examples to run on afterwards, with factors of one: by
            the same trace, if it is one of unknown batch size.

    Returns:
        The `Result`, and one for each number of few examples.
    """
    weights = weights_like(call(layer, inputs))
    count = len(layer.trainable_variables)

    def run(inputs, factors):
        found = recorded(layer, inputs, weights, call)
        assert sorted(found) == list(range(count)), "a variable was missed"
        ordered = [found[i] for i in range(count)]
        return (
            [p.materialize() for p in ordered],
            [p.squared_norms() for p in ordered],
            [p.weighted_sum(tf.cast(factors, "float32")) for p in ordered],
        )

    if mode != "eager":
        unknown = mode == "graph"
        specs = tf.nest.map_structure(
            lambda x: tf.TensorSpec(
                [None if unknown else x.shape[0], *x.shape[1:]], x.dtype
            ),
            (inputs, factors),
        )
        run = tf.function(
            run, input_signature=specs, jit_compile=not unknown, autograph=False
        )

    def as_numpy(tensors):
        return [tf.cast(t, tf.float64).numpy() for t in tensors]

    batches = [(inputs, factors)]
    for size in few:
        one_size = tf.nest.map_structure(lambda x, n=size: x[:n], inputs)
        batches.append((one_size, tf.ones([size], factors.dtype)))
    return [Result(*map(as_numpy, run(*batch))) for batch in batches]


def check(
    layer: keras.layers.Layer,
    inputs,
    *,
    policy: str = "float32",
    modes: Sequence[str] = ("eager",),
    call: Callable[[keras.layers.Layer, Any], Any] = lambda m, x: m(x),
    double: keras.layers.Layer | None = None,
    few: Sequence[int] = (),
) -> None:
    """Compares the rules with the loop; raises AssertionError if they differ.

    Args:
        layer: A built layer of the given policy.
        inputs: A batch; random factors with zeros are drawn for it.
        policy: Sets the tolerance.
        modes: As `mode` of `answers`, one after the other.
        call: How the layer is called.
        double: The layer in float64, if `get_config` does not tell.
        few: Sizes of smaller batches, for the mode "graph".
    """
    if double is None:
        double = in_double(layer, inputs)
    # Half-precision layers see rounded inputs; so must the oracle.
    truth = loop(
        double, as_double(inputs), weights_like(call(layer, inputs)), call
    )
    batch = tf.nest.flatten(inputs)[0].shape[0]
    rng = np.random.default_rng(3)
    factors = rng.uniform(0.1, 1.0, size=batch).astype("float32")
    factors[:: max(2, batch // 2)] = 0.0
    for mode in modes:
        sizes = few if mode == "graph" else ()
        found, *of_few = answers(
            layer, inputs, tf.constant(factors), mode, call, sizes
        )
        _assert_close(found, truth, factors, layer, TOLERANCES[policy])
        for size, one in zip(sizes, of_few, strict=True):
            _assert_first(one, found, size)


def _assert_first(few, every, size):
    """Asserts that a smaller batch has the gradients of its examples."""
    for sums, norms, rows in zip(
        few.sums, few.squared_norms, every.materialized, strict=True
    ):
        assert sums.shape == rows.shape[1:]
        assert norms.shape == (size,)
        expected = rows[:size].sum(axis=0)
        np.testing.assert_allclose(sums, expected, atol=1e-3, rtol=1e-3)


def _assert_close(found, truth, factors, layer, tolerance):
    # Some gradients are zero but for rounding (the bias of attention keys):
    # they are compared on the scale of the others.
    largest = max(np.max(np.abs(t), initial=0.0) for t in truth)
    for i, expected in enumerate(truth):
        name = layer.trainable_variables[i].path
        scale = max(np.max(np.abs(expected)), 1e-2 * largest) + 1e-12
        np.testing.assert_allclose(
            found.materialized[i] / scale,
            expected / scale,
            atol=tolerance,
            err_msg=f"{name}: gradients",
        )
        # The norm is of what is summed: exact up to the stated slack.
        own = np.sum(
            found.materialized[i] ** 2, axis=tuple(range(1, expected.ndim))
        )
        slack = 1e-9 if tolerance == TOLERANCES["float64"] else 3e-6
        assert np.all(found.squared_norms[i] >= own * (1 - slack)), (
            f"{name}: a norm below the true one"
        )
        np.testing.assert_allclose(
            found.squared_norms[i],
            own,
            rtol=2e-3,
            atol=1e-6 * scale**2,
            err_msg=name,
        )
        shape = [-1] + [1] * (expected.ndim - 1)
        np.testing.assert_allclose(
            found.sums[i] / scale,
            np.sum(expected * factors.reshape(shape), axis=0) / scale,
            atol=3 * tolerance,
            err_msg=f"{name}: sum",
        )


def check_dropout(layer: keras.layers.Layer, inputs: tf.Tensor) -> None:
    """Both draw the same masks, and their gradients agree in sum.

    Args:
        layer: A recurrent layer with dropout that computes in float64.
        inputs: A batch.
    """
    seeds = [v for v in layer.variables if not v.trainable]
    before = [v.numpy() for v in seeds]
    with tf.GradientTape() as tape:
        plain = layer(inputs, training=True)
        loss = tf.reduce_sum(plain**2)
    expected = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    for variable, state in zip(seeds, before, strict=True):
        variable.assign(state)
    units = per_example.find_units(layer)
    with per_example.record_calls(units) as calls, tf.GradientTape() as tape:
        seen = layer(inputs, training=True)
        loss = tf.reduce_sum(seen**2)
    np.testing.assert_allclose(seen, plain, atol=1e-12)
    assert np.any(layer(inputs, training=False).numpy() != seen.numpy())
    (call,) = calls
    sources = tape.gradient(loss, call.sources)
    found = {id(v): g for v, g in call.rule.gradients(call, sources)}
    ones = tf.ones([len(inputs)], "float64")
    for variable, sum_ in zip(layer.trainable_variables, expected, strict=True):
        gradient = found[id(variable)]
        np.testing.assert_allclose(gradient.weighted_sum(ones), sum_, atol=1e-9)
        own = gradient.materialize().numpy().reshape(len(inputs), -1)
        np.testing.assert_array_less(
            np.sum(own**2, axis=1) * (1 - 1e-9) - 1e-12,
            gradient.squared_norms(),
        )


def assert_trains(model: keras.Model, shape: Sequence[int]) -> None:
    """Asserts that a private `fit` of a model moves all its weights.

    Args:
        model: A model with two classes.
        shape: Shape of the inputs, those of all examples.
    """
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = np.random.default_rng(1).normal(size=shape).astype("float32")
    batches = tf_dpfp.poisson_batches(
        x, np.arange(len(x)) % 2, expected_batch_size=4
    )
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(batches, epochs=1, verbose=0)
    for v, one in zip(model.trainable_variables, before, strict=True):
        assert np.any(v.numpy() != one)
