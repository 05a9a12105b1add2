"""Which weights are clipped together: those of a device."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.clipping import placed
from tests.oracles import reference
from tests.training import crossings
from tf_dpfp import clipping

pytestmark = pytest.mark.usefixtures("seeded", "without_trial")


@pytest.mark.parametrize("devices", [placed.DEVICES, placed.THREE_DEVICES])
def test_groups_are_the_devices(devices):
    model = placed.private(placed.mlp(devices))
    groups = placed.groups(model)
    assert [g.name for g in groups] == list(devices)
    assert [list(g.members) for g in groups] == placed.indices(
        *[4] * len(devices)
    )
    assert [crossings.short(g.device) for g in groups] == list(devices)
    for group in groups:
        assert math.isclose(group.clip_norm, 0.5 / len(devices) ** 0.5)


def test_layers_that_alternate_between_devices_make_two_groups():
    model = placed.private(placed.mlp(("CPU:1", "CPU:2", "CPU:1")))
    members = [list(g.members) for g in placed.groups(model)]
    assert members == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7]]


def test_a_model_on_one_device_is_one_group():
    model = placed.private(placed.mlp(("CPU:0",)), run={"jit_compile": True})
    with pytest.warns(UserWarning, match="clips like Flat"):
        assert [g.clip_norm for g in placed.groups(model)] == [0.5]
        model.train_on_batch(*placed.data())


def test_devices_of_the_same_number_on_two_hosts_are_two_groups():
    class Value(keras.Variable):
        """On a host that is not there."""

        def __init__(self, task):
            super().__init__(np.zeros(3, "float32"))
            self.device = f"/job:worker/replica:0/task:{task}/device:GPU:0"

        @property
        def value(self):
            return self

    owned = [clipping.OwnedVariable(Value(task), None) for task in (0, 1, 0)]
    groups = tf_dpfp.clipping.PerDevice().groups(owned, 1.0)
    assert [g.members for g in groups] == [(0, 2), (1,)]
    assert [g.name for g in groups] == [g.device for g in groups]


def test_a_variable_of_no_known_device_is_refused():
    with tf.Graph().as_default():
        variable = tf.compat.v1.get_variable(
            "homeless", (3,), use_resource=True
        )
    with pytest.raises(ValueError, match="device 'homeless"):
        tf_dpfp.clipping.PerDevice().device_of(variable)


class TwoPlaces(layers.Layer):
    """One layer with weights of its own on two devices."""

    def build(self, input_shape):
        width = input_shape[-1]
        with tf.device(placed.DEVICES[0]):
            self.kernel = self.add_weight(shape=(width, 5), name="kernel")
        with tf.device(placed.DEVICES[1]):
            self.scale = self.add_weight(
                shape=(5,), initializer="ones", name="scale"
            )

    def call(self, x):
        with tf.device(placed.DEVICES[0]):
            x = tf.matmul(x, self.kernel)
        with tf.device(placed.DEVICES[1]):
            return x * self.scale


def test_weights_of_one_layer_on_two_devices_are_two_groups():
    def build():
        return keras.Sequential(
            [
                keras.Input((placed.FEATURES,)),
                TwoPlaces(),
                layers.Dense(placed.CLASSES),
            ]
        )

    model = placed.private(build())
    groups = placed.groups(model)
    names = [(g.name, g.members) for g in groups]
    assert names == [("CPU:1", (0,)), ("CPU:2", (1,)), ("CPU:0", (2, 3))]
    x, y = placed.data()
    gradients = placed.gradients(build, model, x, y)
    expected = reference.clipped_sums(
        gradients, placed.indices(1, 1, 2), [0.5 / 3**0.5] * 3
    )
    placed.assert_close(placed.sums(model, x, y), expected)
    # Each norm where its weights are, although the layer runs on both.
    placed.assert_nothing_of_clipping_crosses(model, x, y)


class Unplaced(keras.Model):
    """A model that places what it calls, but not its weights."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(19, "tanh")
        self.norm = layers.LayerNormalization()
        self.second = layers.Dense(placed.CLASSES)

    def call(self, x):
        with tf.device(placed.DEVICES[0]):
            x = self.norm(self.first(x))
        with tf.device(placed.DEVICES[1]):
            return self.second(x)


class Placed(Unplaced):
    """A model that places both."""

    def build(self, input_shape):
        with tf.device(placed.DEVICES[0]):
            self.first.build(input_shape)
            self.norm.build((None, 19))
        with tf.device(placed.DEVICES[1]):
            self.second.build((None, 19))


def test_a_subclassed_model_is_placed_where_it_is_built():
    x, y = placed.data()
    model = placed.private(Placed())
    model.build((None, placed.FEATURES))
    model.fit(x, y, batch_size=placed.BATCH, verbose=0)
    assert [(g.name, len(g.members)) for g in placed.groups(model)] == [
        ("CPU:1", 4),
        ("CPU:2", 2),
    ]
    # Keras builds the layers of a model without a `build` of its own outside
    # of any placement.
    model = placed.private(Unplaced())
    with pytest.warns(UserWarning, match="all weights are on CPU:0"):
        model.fit(x, y, batch_size=placed.BATCH, verbose=0)
        assert [g.name for g in placed.groups(model)] == ["CPU:0"]


class Tied(keras.Model):
    """A table that is read on one device and multiplied with on the other."""

    def __init__(self):
        super().__init__()
        self.table = ReversibleTable()
        self.hidden = layers.Dense(5, "tanh")

    def build(self, input_shape):
        with tf.device(placed.DEVICES[0]):
            self.table.build(input_shape)
        with tf.device(placed.DEVICES[1]):
            self.hidden.build((None, None, 5))

    def call(self, ids):
        with tf.device(placed.DEVICES[0]):
            x = self.table(ids)
        with tf.device(placed.DEVICES[1]):
            x = tf.reduce_mean(self.hidden(x), axis=1)
            return self.table(x, reverse=True)


class ReversibleTable(layers.Layer):
    def build(self, input_shape):
        self.table = self.add_weight(shape=(placed.FEATURES, 5), name="table")

    def call(self, x, reverse=False):
        if reverse:
            return tf.matmul(x, self.table, transpose_b=True)
        return keras.ops.take(self.table, x, axis=0)


def test_a_table_tied_over_two_devices_is_one_variable():
    rng = np.random.default_rng(0)
    x = rng.integers(0, placed.FEATURES, (placed.BATCH, 4))
    y = rng.integers(0, placed.FEATURES, placed.BATCH)

    def build():
        model = Tied()
        model(x)
        return model

    model = placed.private(build())
    groups = placed.groups(model)
    assert [(g.name, len(g.members)) for g in groups] == [
        ("CPU:1", 1),
        ("CPU:2", 2),
    ]
    gradients = placed.gradients(build, model, x, y)
    expected = reference.clipped_sums(
        gradients,
        [list(g.members) for g in groups],
        [0.5 / 2**0.5] * 2,
    )
    placed.assert_close(placed.sums(model, x, y), expected)
    placed.assert_nothing_of_clipping_crosses(model, x, y)


@pytest.mark.parametrize("size", [None, 4])
def test_a_weight_used_behind_the_back_of_its_layer_is_refused(size):
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = layers.Dense(5)
            self.out = layers.Dense(placed.CLASSES)

        def build(self, input_shape):
            with tf.device(placed.DEVICES[0]):
                self.hidden.build(input_shape)
            with tf.device(placed.DEVICES[1]):
                self.out.build((None, 5))

        def call(self, x):
            with tf.device(placed.DEVICES[0]):
                h = self.hidden(x)
            with tf.device(placed.DEVICES[1]):
                return tf.matmul(h, self.out.kernel)

    model = placed.private(Unused(), microbatch_size=size)
    with pytest.raises(ValueError, match="but not through a"):
        model.train_on_batch(*placed.data())
