"""`TimeDistributed` against a float64 loop over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests.per_example import oracle
from tf_dpfp import per_example

L = keras.layers


def _inputs(shape, dtype="float64"):
    return tf.constant(np.random.default_rng(1).normal(size=shape), dtype)


def _network(dtype):
    return keras.Sequential(
        [
            keras.Input((4, 4, 2), dtype=dtype),
            L.Conv2D(2, 2, activation="tanh", dtype=dtype),
            L.LayerNormalization(dtype=dtype),
            L.Flatten(dtype=dtype),
            L.Dense(3, dtype=dtype),
        ]
    )


CASES = [
    pytest.param(lambda d: L.Dense(2, dtype=d), (3, 4, 5), id="dense"),
    pytest.param(lambda d: L.Conv2D(2, 2, dtype=d), (3, 2, 4, 4, 2), id="conv"),
    pytest.param(_network, (3, 2, 4, 4, 2), id="network"),
    pytest.param(lambda d: L.GRU(2, dtype=d), (2, 3, 4, 2), id="gru"),
    pytest.param(
        lambda d: L.TimeDistributed(L.Dense(2, dtype=d), dtype=d),
        (2, 3, 2, 4),
        id="nested",
    ),
]


class _OwnCell(L.SimpleRNNCell):
    """Of a type that only the generic rule serves."""


class _Scaled(L.Layer):
    """Own weights beside a layer."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.scale = self.add_weight(shape=(2,), initializer="ones")

    def call(self, x):
        return self.dense(x) * self.scale

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2)


def _scaled_twice():
    return L.TimeDistributed(_Scaled())


def _built(make, shape):
    layer = L.TimeDistributed(make("float64"), dtype="float64")
    x = _inputs(shape)
    layer(x)
    rng = np.random.default_rng(2)
    for v in layer.trainable_variables:
        v.assign(v + tf.cast(0.3 * rng.normal(size=v.shape), v.dtype))
    return layer, x


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_exact(make, shape):
    layer, x = _built(make, shape)
    plain = layer(x)
    units = per_example.find_units(layer)
    assert len(units) > 1 and units[0].layer is layer
    with per_example.record_calls(units):
        seen = layer(x)
    np.testing.assert_allclose(seen, plain, atol=1e-12)
    weights = oracle.weights_like(plain)
    expected = oracle.loop(layer, x, weights)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, *shape[2:]], "float64")],
        autograph=False,
    )
    def of_unknown_length(x):
        found = oracle.recorded(layer, x, weights)
        return [found[i].materialize() for i in sorted(found)]

    found = oracle.recorded(layer, x, weights)
    unknown = of_unknown_length(x)
    for i, one in enumerate(expected):
        for each in (found[i].materialize(), unknown[i]):
            np.testing.assert_allclose(each, one, rtol=1e-9, atol=1e-12)
        norms = np.sum(one.reshape(len(one), -1) ** 2, axis=1)
        np.testing.assert_allclose(found[i].squared_norms(), norms, rtol=1e-3)


def test_masks_reach_what_takes_them():
    layer, x = _built(lambda d: L.LSTM(2, dtype=d), (2, 3, 4, 2))
    mask = tf.constant(np.random.default_rng(3).integers(0, 2, (2, 3, 4)))

    def call(m, both):
        return m(both[0], mask=tf.cast(both[1], "bool"))

    weights = oracle.weights_like(call(layer, (x, mask)))
    found = oracle.recorded(layer, (x, mask), weights, call)
    expected = oracle.loop(layer, (x, mask), weights, call)
    for i, one in enumerate(expected):
        np.testing.assert_allclose(found[i].materialize(), one, atol=1e-10)


def test_layers_that_may_add_losses_take_the_generic_rule():
    inner = L.Dense(2, activity_regularizer="l2")
    layer = L.TimeDistributed(inner)
    layer.build((None, 3, 4))
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, per_example.GenericRule)


@pytest.mark.parametrize(
    "make", [_Scaled, lambda: L.RNN(_OwnCell(2)), _scaled_twice]
)
def test_layers_without_a_rule_take_it_whole(make):
    layer = L.TimeDistributed(make())
    layer.build((None, 2, 3, 4))
    (unit,) = per_example.find_units(layer)
    assert unit.layer is layer
    assert isinstance(unit.rule, per_example.GenericRule)


def test_steps_of_layers_without_a_rule_are_proved():
    model = keras.Sequential(
        [keras.Input((2, 3)), L.TimeDistributed(_Scaled()), L.Flatten()]
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, l2_norm_clip=0.1, noise_multiplier=1.0), "mse"
    )
    x, y = np.ones((3, 2, 3), "float32"), np.full((3, 4), 9.0, "float32")
    found = tf_dpfp.loops.clipped_gradients(model, x, y)
    length = np.sqrt(sum(np.sum(np.square(s)) for s in found.sums))
    # Three examples that are equal.
    np.testing.assert_allclose(length, 0.3, rtol=1e-3)


def test_lookups_in_it_are_those_of_a_sparse_table():
    sums = []
    ids = np.random.default_rng(0).integers(0, 9, (6, 4, 2))
    for wrap in (L.TimeDistributed, lambda layer: layer):
        keras.utils.set_random_seed(0)
        table = L.Embedding(9, 3, name="items")
        model = keras.Sequential(
            [
                keras.Input((4, 2), dtype="int32"),
                wrap(table),
                L.Flatten(),
                L.Dense(2),
            ]
        )
        tf_dpfp.make_private(model)
        model.compile(
            tf_dpfp.DPSGD(
                0.1,
                l2_norm_clip=0.05,
                noise_multiplier=1.0,
                expected_batch_size=6,
                sparse_tables=tf_dpfp.Sparse("items"),
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        found = tf_dpfp.loops.clipped_gradients(model, ids, np.arange(6) % 2)
        sums.append(tf.nest.flatten(found.sums, expand_composites=True))
    for one, other in zip(*sums, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_noised_representation_in_it_is_refused():
    layer = L.TimeDistributed(
        keras.Sequential(
            [
                keras.Input((4,)),
                L.Dense(3),
                tf_dpfp.DPRepresentationClip(1.0, noise_multiplier=1.0),
            ]
        )
    )
    x = _inputs((2, 3, 4), "float32")
    layer(x)
    units = per_example.find_units(layer)
    with per_example.record_calls(units):
        with pytest.raises(ValueError, match="inside of a TimeDistributed"):
            layer(x)


def test_a_private_model_of_videos_trains():
    model = keras.Sequential(
        [
            keras.Input((3, 6, 6, 1)),
            L.TimeDistributed(L.Conv2D(2, 3, activation="relu")),
            L.TimeDistributed(L.MaxPooling2D(2)),
            L.TimeDistributed(L.Flatten()),
            L.TimeDistributed(L.Dropout(0.2)),
            L.SimpleRNN(4),
            L.Dense(2),
        ]
    )
    oracle.assert_trains(model, (16, 3, 6, 6, 1))


def test_no_time_step_is_refused():
    layer = L.TimeDistributed(L.Dense(2))
    layer(_inputs((2, 3, 4), "float32"))
    with per_example.record_calls(per_example.find_units(layer)):
        with pytest.raises(ValueError, match="has no time step"):
            layer(np.zeros((2, 0, 4), np.float32))


def test_what_it_holds_is_told_whether_it_trains():
    held = keras.Sequential([L.Dense(9), L.Dropout(0.5)])
    layer = L.TimeDistributed(held)
    x = _inputs((4, 5, 3), "float32")
    layer(x)
    units = per_example.find_units(layer)
    for training in (True, False):
        with per_example.record_calls(units):
            outputs = layer(x, training=training)
        assert bool(np.any(outputs == 0.0)) is training
