"""Arguments of layers with the batch in them, and those without."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras import ops

import tf_dpfp
from tf_dpfp.independence import first_axes
from tf_dpfp.independence import gradients as gradient_trial

WORDS, LENGTH, WIDTH = 7, 4, 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CAPTURED = tf.range(4)

HAS_THE_BATCH = {
    "the batch": lambda x: x,
    "of the batch": lambda x: tf.reduce_sum(x, 1),
    "one for each row": lambda x: tf.range(tf.shape(x)[0]),
    "repeated": lambda x: tf.tile(tf.range(4)[None], [tf.shape(x)[0], 1]),
    "ones like it": tf.ones_like,
    "one example": lambda x: x[:1],
}
HAS_NOT = {
    "positions": lambda x: tf.range(tf.shape(x)[1]),
    "a row of positions": lambda x: tf.range(tf.shape(x)[1])[None],
    "a square": lambda x: tf.zeros([tf.shape(x)[1], tf.shape(x)[1]]),
    "a constant": lambda x: tf.constant([1, 2, 3, 4]),
    "captured": lambda x: CAPTURED + 1,
}


@pytest.mark.parametrize("length", [4, None])
@pytest.mark.parametrize("name", [*HAS_THE_BATCH, *HAS_NOT])
def test_what_has_the_batch_in_it(name, length):
    make = HAS_THE_BATCH.get(name) or HAS_NOT[name]
    found = []

    @tf.function(autograph=False)
    def trace(x):
        is_batched = first_axes.FirstAxes([x])
        found.append(is_batched(tf.convert_to_tensor(make(x))))

    trace.get_concrete_function(tf.TensorSpec([None, length], tf.float32))
    assert found == [name in HAS_THE_BATCH]


def test_a_constant_of_the_model_is_the_same_for_all():
    found = []

    @tf.function(autograph=False)
    def trace(x):
        found.append(first_axes.FirstAxes([x])(CAPTURED))

    trace.get_concrete_function(tf.TensorSpec([None, 4], tf.float32))
    assert found == [False]


def test_what_an_outer_graph_captured_may_be_data():
    found = []

    @tf.function(autograph=False)
    def trace(x, other):
        def body(i):
            inner = tf.identity(x)
            is_batched = first_axes.FirstAxes([inner])
            found.append(is_batched(other + 1.0))
            found.append(is_batched(CAPTURED + 1))
            return i + 1

        tf.while_loop(lambda i: i < 1, body, [0])

    spec = tf.TensorSpec([None, 4], tf.float32)
    trace.get_concrete_function(spec, tf.TensorSpec([4], tf.float32))
    assert found == [True, False]


class Positions(layers.Layer):
    """Adds a table of positions, as hand-written transformers do."""

    def __init__(self, axes):
        super().__init__()
        self.axes = axes
        self.words = layers.Embedding(WORDS, WIDTH)
        self.table = layers.Embedding(LENGTH, WIDTH)

    def call(self, ids):
        places = ops.arange(ops.shape(ids)[-1])
        if self.axes == "(1, n)":
            places = places[None]
        if self.axes == "(n, n)":
            places = places + places[:, None] * 0
        found = self.table(places)
        if self.axes == "then one more":
            found = found[None]
        return self.words(ids) + found


def _model(axes, length):
    inputs = keras.Input((length,), dtype="int32")
    x = Positions(axes)(inputs)
    return keras.Model(
        inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))
    )


def _clipped_sums(model, x, y, clip_norm):
    """Sums by a loop over examples, on the model before it is private."""
    variables = [v.value for v in model.trainable_variables]
    sums = [np.zeros(v.shape) for v in variables]
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            loss = LOSS(y[i : i + 1], model(x[i : i + 1]))
        found = [
            tf.convert_to_tensor(g).numpy()
            for g in tape.gradient(loss, variables)
        ]
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in found))
        for total, gradient in zip(sums, found, strict=True):
            total += gradient * min(1.0, clip_norm / norm)
    return sums


@pytest.mark.parametrize(
    ("axes", "length", "arguments"),
    [
        ("(n,)", LENGTH, {}),
        ("(1, n)", None, {}),
        ("(n,)", LENGTH, {"run_eagerly": True}),
        ("(n,)", LENGTH, {"jit_compile": True}),
    ],
)
def test_a_table_of_positions_equals_a_loop_over_examples(
    axes, length, arguments, monkeypatch
):
    if arguments:
        monkeypatch.setattr(gradient_trial, "check", lambda *_: None)
    keras.utils.set_random_seed(0)
    # As many examples as positions: their numbers tell nothing.
    rng = np.random.default_rng(0)
    x = rng.integers(0, WORDS, (LENGTH, LENGTH)).astype("int32")
    y = rng.integers(0, 2, LENGTH)
    model = _model(axes, length)
    before = [v.numpy() for v in model.trainable_variables]
    expected = _clipped_sums(model, x, y, clip_norm=0.1)
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(
        1.0, l2_norm_clip=0.1, noise_multiplier=0.0, expected_batch_size=LENGTH
    )
    model.compile(optimizer, LOSS, **arguments)
    model.train_on_batch(x, y)
    for variable, old, total in zip(
        model.trainable_variables, before, expected, strict=True
    ):
        np.testing.assert_allclose(
            (old - variable.numpy()) * LENGTH, total, atol=1e-5
        )


def test_another_use_of_a_table_is_refused_with_a_way_out():
    model = _model("then one more", LENGTH)
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPSGD(1.0, noise_multiplier=1.0, expected_batch_size=2)
    model.compile(optimizer, LOSS)
    # In a note on what Keras raises.
    with pytest.raises(ValueError, match=r"`x \+ table\(positions\)`"):
        model.train_on_batch(np.zeros((2, LENGTH), "int32"), np.zeros(2))
    assert not tf_dpfp.ledger(model)
