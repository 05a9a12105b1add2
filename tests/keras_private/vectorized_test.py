"""Functions of one example: as `tf.vectorized_map`, and compiled once."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.keras_private import vectorized


def _of_one(example):
    x, scale = example["x"], example["scale"]
    return tf.reduce_sum(x * x) * scale, tf.reduce_max(x)


def _step(mapped):
    def step(x, scale):
        with tf.GradientTape() as tape:
            tape.watch(x)
            values, largest = mapped(_of_one, {"x": x, "scale": scale})
        # Of a batch of unknown size it is slices.
        gradient = tf.convert_to_tensor(tape.gradient(values, x))
        return values, largest, gradient

    return step


def _arguments(n=6, scales=6):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(n, 4, 2)), tf.float32)
    return x, tf.constant(rng.normal(size=scales), tf.float32)


@pytest.mark.parametrize("scales", [6, 1])
@pytest.mark.parametrize("way", ["eager", "graph", "XLA", "unknown size"])
def test_it_is_vectorized_map(way, scales):
    arguments = _arguments(scales=scales)
    step = _step(vectorized.mapped)
    if way != "eager":
        signature = None
        if way == "unknown size":
            signature = [
                tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in arguments
            ]
        step = tf.function(step, signature, jit_compile=way == "XLA")
    wanted = _step(tf.vectorized_map)(*arguments)
    for mine, theirs in zip(step(*arguments), wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def _inputs(function, arguments):
    """Counts the inputs of XLA's program: what it need not know beforehand."""
    program = function.experimental_get_compiler_ir(*arguments)(stage="hlo")
    entry = program[program.index("ENTRY") :]
    return len(re.findall(r"parameter\(\d+\)", entry))


def test_xla_takes_examples_for_inputs():
    compiled = tf.function(_step(vectorized.mapped), jit_compile=True)
    assert _inputs(compiled, _arguments()) == 2


def test_tensorflow_still_makes_constants_of_them():
    """Fails when TensorFlow mends it: `vectorized` can then go."""
    compiled = tf.function(_step(tf.vectorized_map), jit_compile=True)
    assert _inputs(compiled, _arguments()) == 0


class _Centred(layers.Layer):
    """Without a rule: it is called on each example."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=input_shape[-1:], initializer="ones")

    def call(self, x):
        x = x * self.gain
        return x - keras.ops.mean(x, axis=-1, keepdims=True)


def _plain(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred))


@pytest.mark.usefixtures("without_trial")
@pytest.mark.parametrize(
    "layer, loss",
    [(_Centred, "mse"), (layers.Identity, _plain)],
    ids=["layer", "loss"],
)
def test_a_private_step_takes_examples_for_inputs(layer, loss):
    model = keras.Sequential([keras.Input((3,)), layer(), layers.Dense(1)])
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, expected_batch_size=4.0),
        loss,
        jit_compile=True,
    )
    x, y = tf.ones([4, 3]), tf.ones([4, 1])
    model.run_eagerly = True
    model.train_on_batch(x, y)
    model.run_eagerly = False
    step = tf.function(
        lambda *data: model.train_step(data), jit_compile=True, autograph=False
    )
    program = step.experimental_get_compiler_ir(x, y)(stage="hlo")
    entry = program[program.index("ENTRY") :]
    for shape in ("4,3", "4,1"):
        assert re.search(rf"f32\[{shape}\]\S* parameter\(\d+\)", entry), shape
