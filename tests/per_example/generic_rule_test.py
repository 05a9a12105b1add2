"""The generic rule and whole models, against a float64 loop over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import generic

L = keras.layers
ops = keras.ops


@keras.saving.register_keras_serializable("tf_dpfp_test")
class Mixer(L.Layer):
    """Owns a weight beside a sublayer, and uses both."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(3, activation="tanh", dtype=self.dtype_policy)

    def build(self, shape):
        self.dense.build(shape)
        self.gate = self.add_weight(shape=(3,), name="gate")

    def call(self, x):
        return self.dense(x) * self.gate


@keras.saving.register_keras_serializable("tf_dpfp_test")
class Noisy(L.Layer):
    """A weight whose gradient is the dropout mask it was multiplied with."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = L.Dropout(0.5, seed=1)

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x, training=True):
        return self.dropout(x * self.scale, training=training)


@keras.saving.register_keras_serializable("tf_dpfp_test")
class OwnCell(L.SimpleRNNCell):
    """A cell that no rule knows."""

    def call(self, sequence, states, training=False):
        output, new = super().call(sequence, states, training=training)
        return output * self.bias, new


class Convolves(L.Layer):
    """Convolves by a function, with a kernel of its own."""

    def __init__(self, function, shape, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.function, self.shape = function, shape
        self.dropout = L.Dropout(rate, seed=1, dtype=self.dtype_policy)

    def build(self, shape):
        self.kernel = self.add_weight(shape=self.shape, name="kernel")

    def call(self, x, training=True):
        x = self.dropout(self.function(x, self.kernel), training=training)
        return keras.ops.tanh(x)

    def get_config(self):
        own = {"function": self.function, "shape": self.shape}
        return {**super().get_config(), **own}


def _inputs(*shape, dtype="float32"):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


def _randomize(layer):
    rng = np.random.default_rng(2)
    for v in layer.trainable_variables:
        v.assign(v + tf.cast(0.3 * rng.normal(size=v.shape), v.dtype))


GENERIC = [
    pytest.param(lambda: L.RNN(OwnCell(3)), (3, 4, 5), id="own-cell"),
]


@pytest.mark.parametrize(("make", "shape"), GENERIC)
def test_generic_rule_is_exact(make, shape):
    layer, inputs = make(), _inputs(*shape)
    layer(inputs)
    _randomize(layer)
    units = per_example.find_units(layer)
    assert all(isinstance(u.rule, per_example.GenericRule) for u in units)
    oracle.check(layer, inputs, modes=["graph"])


# With weights of its own for each example none of them is one operation. (There
# are no grouped convolutions in float64 on a CPU.)
CONVOLUTIONS = {
    "1d": (lambda x, w: ops.conv(x, w, 1, "same"), (6, 2), (3, 2, 4)),
    "2d": (lambda x, w: ops.conv(x, w, 2, "valid"), (5, 6, 2), (3, 2, 2, 4)),
    "dilated": (
        lambda x, w: ops.conv(x, w, 1, "same", dilation_rate=2),
        (5, 6, 2),
        (3, 3, 2, 4),
    ),
    "3d": (lambda x, w: ops.conv(x, w), (3, 3, 3, 2), (2, 2, 2, 2, 3)),
    "transposed 1d": (
        lambda x, w: ops.conv_transpose(x, w, 2, "same"),
        (4, 2),
        (3, 4, 2),
    ),
    "transposed 2d": (
        lambda x, w: ops.conv_transpose(x, w, 2, "valid"),
        (4, 3, 2),
        (3, 3, 4, 2),
    ),
    "depthwise 1d": (
        lambda x, w: ops.depthwise_conv(x, w, 1, "same"),
        (6, 2),
        (3, 2, 3),
    ),
    "depthwise 2d": (
        lambda x, w: ops.depthwise_conv(x, w, 2, "valid"),
        (5, 6, 2),
        (3, 3, 2, 2),
    ),
    "resized": (
        lambda x, w: tf.image.resize(x * w, (3, 5)),
        (4, 4, 2),
        (2,),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_generic_rule_of_convolutions(name):
    function, shape, kernel = CONVOLUTIONS[name]
    layer, inputs = Convolves(function, kernel), _inputs(3, *shape)
    layer(inputs)
    _randomize(layer)
    oracle.check(layer, inputs, modes=["graph"])


@pytest.mark.parametrize("name", ["1d", "transposed 2d", "depthwise 2d"])
def test_a_private_step_of_convolutions_is_proved_and_bounded(
    name, without_trial
):
    function, shape, kernel = CONVOLUTIONS[name]
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    y = np.arange(4.0)[:, None]

    def step(rows):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input(shape), Convolves(function, kernel), L.Flatten()]
        )
        model.add(L.Dense(1))
        tf_dpfp.make_private(model)
        model.compile(
            tf_dpfp.DPSGD(
                1.0,
                l2_norm_clip=0.1,
                noise_multiplier=0.0,
                expected_batch_size=1,
            ),
            "mse",
        )
        before = model.get_weights()
        model.train_on_batch(x[rows], y[rows])
        return np.concatenate(
            [
                np.ravel(a - b)
                for a, b in zip(model.get_weights(), before, strict=True)
            ]
        )

    moved = np.linalg.norm(step([0, 1, 2, 3]) - step([0, 1, 3]))
    assert 0.09 < moved <= 0.1 * 1.0001


def test_what_is_not_vectorised_draws_its_dropout_once():
    function, shape, kernel = CONVOLUTIONS["1d"]
    layer = Convolves(function, kernel, rate=0.5)
    inputs = _inputs(3, *shape)
    layer(inputs)

    @tf.function(autograph=False)
    def run():
        with tf.GradientTape() as tape:
            outputs, call = generic.GENERIC_RULE.record(
                layer, layer.call, (inputs,), {}
            )
            loss = tf.reduce_sum(outputs)
        return outputs, tape.gradient(loss, call.sources)[0]

    outputs, gradients = run()
    kept = outputs != 0
    assert 0 < np.mean(kept) < 1 and not np.all(kept[0] == kept[1])
    for x, seen, output, gradient in zip(
        inputs, kept, outputs, gradients, strict=True
    ):
        with tf.GradientTape() as tape:
            kernel = layer.kernel.value
            found = tf.tanh(2 * function(x[None], kernel)[0])
            loss = tf.reduce_sum(tf.where(seen, found, 0.0))
        np.testing.assert_allclose(output[seen], found[seen], rtol=1e-5)
        np.testing.assert_allclose(
            gradient, tape.gradient(loss, kernel), rtol=1e-4, atol=1e-5
        )


def test_generic_rule_compiled():
    layer, inputs = Mixer(), _inputs(3, 4, 5)
    layer(inputs)
    _randomize(layer)
    oracle.check(layer, inputs, modes=["xla"])


def test_generic_rule_of_a_list_of_inputs():
    layer = L.Attention(use_scale=True)
    inputs = [_inputs(3, 4, 5), _inputs(3, 6, 5)]
    layer(inputs)
    _randomize(layer)
    oracle.check(layer, inputs)


def test_lora_is_exact():
    layer, inputs = L.Conv2D(4, 3), _inputs(3, 5, 6, 2)
    layer(inputs)
    layer.enable_lora(2)
    _randomize(layer)
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, per_example.GenericRule)
    twin = L.Conv2D(4, 3, dtype="float64")
    twin(oracle.as_double(inputs))
    twin.enable_lora(2)
    for mine, theirs in (
        (twin._kernel, layer._kernel),
        (twin.bias, layer.bias),
        (twin.lora_kernel_a, layer.lora_kernel_a),
        (twin.lora_kernel_b, layer.lora_kernel_b),
    ):
        mine.assign(tf.cast(theirs.value, mine.dtype))
    oracle.check(layer, inputs, double=twin)


def test_generic_rule_in_eager_mode():
    layer, inputs = Mixer(), _inputs(3, 4, 5)
    layer(inputs)
    _randomize(layer)
    oracle.check(layer, inputs)


@pytest.mark.parametrize("graph", [False, True])
def test_dropout_in_a_generic_unit_is_drawn_once(graph):
    layer, inputs = Noisy(), tf.ones([6, 20])
    layer(inputs)
    units = per_example.find_units(layer)
    assert isinstance(units[0].rule, per_example.GenericRule)

    def run(x):
        with (
            per_example.record_calls(units) as calls,
            tf.GradientTape() as tape,
        ):
            outputs = layer(x, training=True)
            loss = tf.reduce_sum(outputs)
        (call,) = calls
        (found,) = call.rule.gradients(call, tape.gradient(loss, call.sources))
        return outputs, found[1].materialize()

    if graph:
        run = tf.function(
            run,
            input_signature=[tf.TensorSpec([None, 20], tf.float32)],
            autograph=False,
        )
    outputs, gradients = run(inputs)
    # The gradient is the very mask that the forward pass used.
    np.testing.assert_array_equal(outputs, gradients)
    masks = outputs.numpy()
    assert set(np.unique(masks)) == {0.0, 2.0}
    assert len({m.tobytes() for m in masks}) == len(masks)
    again, _ = run(inputs)
    assert np.any(again.numpy() != masks)


def test_statistics_of_the_data_are_refused():
    layer = L.BatchNormalization()
    layer.build((None, 3))
    units = per_example.find_units(layer)
    with (
        per_example.record_calls(units),
        pytest.raises(ValueError, match="statistics"),
    ):
        layer(_inputs(4, 3), training=True)


class Twice(keras.Model):
    """One dense layer and one table, each read more than once."""

    def __init__(self, dtype="float32"):
        super().__init__(dtype=dtype)
        self.table = L.Embedding(5, 4, dtype=dtype)
        self.dense = L.Dense(4, activation="tanh", dtype=dtype)
        self.convolution = L.Conv1D(4, 3, padding="same", dtype=dtype)

    def call(self, ids):
        x = self.table(ids) + self.table(ids[:, ::-1]) ** 2
        x = self.convolution(self.convolution(x))
        return self.dense(self.dense(x))


def test_layers_called_twice_are_exact():
    ids = tf.constant([[0, 1, 1], [2, 2, 2], [4, 3, 0]])
    model, twin = Twice(), Twice("float64")
    model(ids)
    twin(ids)
    _randomize(model)
    twin.set_weights([w.astype("float64") for w in model.get_weights()])
    oracle.check(model, ids, modes=["eager", "graph", "xla"], double=twin)


def _attention(kind, dtype="float32"):
    query, value = (
        keras.Input((4, 6), dtype=dtype),
        keras.Input((5, 6), dtype=dtype),
    )
    if kind == "multi-head":
        layer = L.MultiHeadAttention(2, 3, value_dim=4, dtype=dtype)
    else:
        layer = L.GroupQueryAttention(3, 4, 2, dtype=dtype)
    return keras.Model([query, value], layer(query, value))


@pytest.mark.parametrize(
    ("kind", "modes"),
    [("multi-head", ["graph", "xla"]), ("group-query", ["eager", "graph"])],
)
def test_attention_through_its_parts(kind, modes):
    model, twin = _attention(kind), _attention(kind, "float64")
    _randomize(model)
    twin.set_weights([w.astype("float64") for w in model.get_weights()])
    units = per_example.find_units(model)
    assert {type(u.layer) for u in units} == {L.EinsumDense}
    inputs = [_inputs(3, 4, 6), _inputs(3, 5, 6)]
    oracle.check(model, inputs, modes=modes, double=twin)


def _image_model(dtype="float32"):
    image = keras.Input((12, 12, 1), dtype=dtype)
    x = L.Conv2D(4, 4, strides=2, padding="same", dtype=dtype)(image)
    x = L.GroupNormalization(2, dtype=dtype)(x)
    x = L.PReLU(shared_axes=[1, 2], dtype=dtype)(x)
    x = L.MaxPool2D(2, 1)(x)
    x = L.SeparableConv2D(6, 3, activation="tanh", dtype=dtype)(x)
    x = x + L.DepthwiseConv2D(3, padding="same", dtype=dtype)(x)
    x = L.LayerNormalization(dtype=dtype)(L.Flatten()(x))
    return keras.Model(image, L.Dense(3, dtype=dtype)(x))


def test_a_whole_model():
    model, twin = _image_model(), _image_model("float64")
    _randomize(model)
    twin.set_weights([w.astype("float64") for w in model.get_weights()])
    inputs = _inputs(4, 12, 12, 1)
    oracle.check(model, inputs, modes=["eager", "graph"], double=twin)
