"""Which layers are recorded, by which rule, and in which thread."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.per_example import oracle
from tf_dpfp import per_example
from tf_dpfp.per_example import recording

L = keras.layers


def _built(layer, *shape):
    layer.build(shape)
    return layer


def test_frozen_layers_are_not_recorded():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            L.Conv2D(3, 3),
            L.GroupNormalization(3),
            L.Flatten(),
            L.Dense(2),
        ]
    )
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    units = per_example.find_units(model)
    assert [type(u.layer) for u in units] == [L.Dense]
    x = tf.random.normal([3, 6, 6, 2])
    with per_example.record_calls(units) as calls:
        model(x)
    assert [c.layer for c in calls] == [model.layers[-1]]


def test_every_trainable_variable_is_in_a_unit():
    inputs = keras.Input((8, 8, 3))
    x = L.SeparableConv2D(4, 3)(L.Conv2D(3, 3, groups=3)(inputs))
    x = L.PReLU()(L.Conv2DTranspose(2, 2)(x))
    x = L.LSTM(3)(L.Reshape((-1, 2))(x))
    model = keras.Model(inputs, L.Dense(2)(x))
    covered = {
        id(v) for u in per_example.find_units(model) for v in u.variables
    }
    assert covered == {id(v) for v in model.trainable_variables}


def test_layer_is_put_back_as_it_was():
    layer = _built(L.Dense(3, activation="relu"), None, 2)
    activation = layer.activation
    with per_example.record_calls(per_example.find_units(layer)):
        layer(tf.ones([1, 2]))
    assert "call" not in vars(layer)
    assert layer.activation is activation

    def fail(x):
        raise ArithmeticError

    layer.activation = fail
    with (
        pytest.raises(ArithmeticError),
        per_example.record_calls(per_example.find_units(layer)),
    ):
        layer(tf.ones([1, 2]))
    assert "call" not in vars(layer)
    assert layer.activation is fail


class Doubled(L.Dense):
    def call(self, inputs):
        return 2.0 * super().call(inputs)


class Halved(L.Dense):
    @property
    def kernel(self):
        return 0.5 * super().kernel


class Standardized(L.Conv2D):
    """The override that the documentation of Conv2D proposes."""

    def convolution_op(self, inputs, kernel):
        mean = tf.reduce_mean(kernel, axis=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel - mean)


class Named(L.Dense):
    """Computes what its base does."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)

    def get_config(self):
        return super().get_config()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        pytest.param(lambda **k: Doubled(3, **k), (4, 5), id="call"),
        pytest.param(lambda **k: Halved(3, **k), (4, 5), id="kernel"),
        pytest.param(
            lambda **k: Standardized(3, 2, **k), (4, 5, 5, 2), id="convolution"
        ),
    ],
)
def test_subclass_that_computes_otherwise_does_not_inherit(make, shape):
    layer, twin = make(), make(dtype="float64")
    inputs = tf.random.normal(shape, seed=1)
    layer(inputs)
    twin(tf.cast(inputs, tf.float64))
    twin.set_weights([w.astype("float64") for w in layer.get_weights()])
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, per_example.GenericRule)
    oracle.check(layer, inputs, double=twin)


def test_subclass_that_computes_the_same_inherits():
    layer = _built(Named(3), None, 2)
    assert per_example.rule_for(layer) is per_example.rule_for(
        _built(L.Dense(3), None, 2)
    )


def test_registered_rule_is_used():
    class Scale(L.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],))

        def call(self, x):
            return x * self.scale

    @per_example.register_gradient_rule(Scale)
    class ScaleRule(per_example.GradientRule):
        def gradients(self, call, output_gradients):
            values = call.inputs * output_gradients[0]
            return [(call.layer.scale, per_example.PerExampleTensor(values))]

    layer, twin = Scale(), Scale(dtype="float64")
    inputs = tf.random.normal([4, 3])
    layer(inputs)
    twin(tf.cast(inputs, tf.float64))
    twin.set_weights([w.astype("float64") for w in layer.get_weights()])
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, ScaleRule)
    oracle.check(layer, inputs, double=twin)


def test_registration_of_something_else_is_refused():
    with pytest.raises(TypeError, match="subclass of keras.layers.Layer"):
        per_example.register_gradient_rule(L.Dense(1))
    with pytest.raises(TypeError, match="subclass of GradientRule"):
        per_example.register_gradient_rule(L.Dropout)(lambda: None)


def test_recording_does_not_nest():
    units = per_example.find_units(_built(L.Dense(1), None, 1))
    with (
        per_example.record_calls(units),
        pytest.raises(RuntimeError, match="does not nest"),
        per_example.record_calls(units),
    ):
        pass


def test_call_inside_a_loop_is_refused():
    class Looping(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x):
            return tf.map_fn(lambda row: self.dense(row[None])[0], x)

    model = Looping()
    model.dense.build((None, 2))
    units = per_example.find_units(model)

    @tf.function
    def run(x):
        with per_example.record_calls(units):
            return model(x)

    with pytest.raises(ValueError, match="inside a loop or a function"):
        run(tf.ones([3, 2]))


def test_two_threads_over_one_layer():
    """Each thread sees its own calls only, and a third one sees none."""
    layer = _built(L.Dense(3, activation="tanh"), None, 2)
    units = per_example.find_units(layer)
    activation = layer.activation
    plain = layer(tf.ones([1, 2])).numpy()
    start = threading.Barrier(3)
    failures = []

    def record(value):
        try:
            start.wait()
            for _ in range(60):
                x = tf.fill([2, 2], value)
                with per_example.record_calls(units) as calls:
                    outputs = layer(x)
                (call,) = calls
                assert call.inputs is x
                np.testing.assert_allclose(
                    tf.tanh(call.sources[0]), outputs, rtol=1e-6
                )
        except Exception as error:  # Raised again by the main thread.
            failures.append(error)

    def call_only():
        try:
            start.wait()
            for _ in range(120):
                np.testing.assert_array_equal(layer(tf.ones([1, 2])), plain)
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=record, args=(0.25,)),
        threading.Thread(target=record, args=(-0.5,)),
        threading.Thread(target=call_only),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert "call" not in vars(layer)
    assert layer.activation is activation


class _Holder(keras.layers.Layer):
    def __init__(self, own_weight=False):
        super().__init__()
        self.inner = keras.layers.Dense(3)
        self.own_weight = own_weight

    def build(self, shape):
        self.inner.build(shape)
        if self.own_weight:
            self.scale = self.add_weight(shape=(3,), initializer="ones")
        self.built = True

    def call(self, x):
        x = self.inner(x)
        return x * self.scale if self.own_weight else x


@pytest.mark.parametrize("own_weight", [False, True])
def test_layers_unfrozen_inside_a_frozen_one_are_found(own_weight):
    holder = _Holder(own_weight)
    model = keras.Sequential([keras.Input((2,)), holder])
    holder.trainable = False
    assert per_example.find_units(model) == []
    holder.inner.trainable = True
    # Keras trains them.
    expected = {id(v) for v in model.trainable_variables}
    assert expected == {id(v) for v in holder.inner.variables}
    (unit,) = per_example.find_units(model)
    assert {id(v) for v in unit.variables} == expected
    inputs = tf.constant([[1.0, 2.0], [3.0, -1.0]])
    with (
        per_example.record_calls([unit]) as calls,
        tf.GradientTape() as tape,
    ):
        loss = tf.reduce_sum(tf.square(model(inputs)))
    found = tape.gradient(loss, calls[0].sources)
    pairs = calls[0].rule.gradients(calls[0], tuple(found))
    assert expected <= {id(v) for v, _ in pairs}


class _Stopped(Exception):
    pass


def test_rows_that_are_folded_twice_are_folded_by_both():
    with pytest.raises(_Stopped):
        with recording.folded(2):
            with recording.folded(3):
                assert recording._RECORDER.positions == 6
                assert recording.is_folded()
            assert recording._RECORDER.positions == 2
            raise _Stopped
    assert not recording.is_folded()


def test_a_recording_ends_and_holds_no_other():
    layer = _built(L.Dense(3), None, 2)
    units = per_example.find_units(layer)
    for _ in range(2):
        with pytest.raises(_Stopped):
            with per_example.record_calls(units):
                with pytest.raises(RuntimeError, match="does not nest"):
                    with per_example.record_calls(units):
                        pass
                raise _Stopped
        assert recording._RECORDER.calls is None


def test_what_is_played_back_is_what_was_given():
    layer = _built(L.Dense(1), None, 2)
    units = per_example.find_units(layer)
    x = tf.ones([4, 2])
    ordinary = layer(x)

    def given(number, added=None):
        return id(layer), recording.Played(number * ordinary, added)

    with recording.played_back(units, [given(2.0, tf.constant(7.0)), given(3)]):
        np.testing.assert_array_equal(layer(x), 2.0 * ordinary)
        assert [float(loss) for loss in layer.losses] == [7.0]
        with recording.played_back(units, [given(5.0)]):
            np.testing.assert_array_equal(layer(x), 5.0 * ordinary)
        np.testing.assert_array_equal(layer(x), 3.0 * ordinary)
        with pytest.raises(recording.NotRecordedError, match="more often"):
            layer(x)
    np.testing.assert_array_equal(layer(x), ordinary)


def test_what_is_the_same_for_all_examples_gets_a_row_for_each_position():
    layer = _built(L.Dense(3), None, 2)
    units = per_example.find_units(layer)
    with (
        per_example.record_calls(units, lambda _: False, 4) as calls,
        recording.folded(5),
    ):
        outputs = layer(tf.ones([1, 2]))
    (call,) = calls
    assert call.is_spread
    assert call.inputs.shape == (20, 2)
    assert outputs.shape == (20, 3)


class _OnItsWeights(L.Layer):
    """Calls a layer on a weight alone, which takes the generic rule."""

    def __init__(self):
        super().__init__()
        self.first, self.second = L.Dense(2), L.Dense(2)

    def build(self, shape):
        self.table = self.add_weight(shape=(1, 2))
        self.first.build(shape)
        self.second.build((1, 2))

    def call(self, x):
        return self.first(x) + self.second(tf.convert_to_tensor(self.table))


def test_calls_of_a_rule_that_gave_up_are_forgotten():
    layer = _built(_OnItsWeights(), None, 2)
    units = per_example.find_units(layer)
    assert units[0].rule.holds_units
    with per_example.record_calls(units) as calls:
        layer(tf.ones([4, 2]))
    (call,) = calls
    assert call.layer is layer
    assert isinstance(call.rule, per_example.GenericRule)


def test_beside_another_thread_each_call_is_recorded_once():
    layer = _built(_Holder(own_weight=True), None, 2)
    units = per_example.find_units(layer)
    begun, ends = threading.Event(), threading.Event()

    def record():
        with per_example.record_calls(units):
            begun.set()
            ends.wait()

    other = threading.Thread(target=record)
    other.start()
    begun.wait()
    try:
        with per_example.record_calls(units) as calls:
            layer(tf.ones([4, 2]))
    finally:
        ends.set()
        other.join()
    assert [call.layer for call in calls] == [layer.inner, layer]
    assert "call" not in vars(layer)
