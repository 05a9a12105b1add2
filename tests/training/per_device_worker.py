"""Checks of per-device clipping on three logical CPUs.

`python -m tests.training.per_device_worker results.json` writes the name of
every check with its traceback, or null. Logical devices must be made before
TensorFlow starts, so that this is a process of its own.
"""

import collections
import contextlib
import json
import math
import sys
import tempfile
import traceback
import warnings
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from scipy import stats

import tf_dpfp
from tests.training import crossings
from tests.training import reference
from tf_dpfp import clipping
from tf_dpfp import step as step_lib
from tf_dpfp.clipping import clipped_sum
from tf_dpfp.clipping import placement
from tf_dpfp.independence import gradients as probe
from tf_dpfp.training import compiling

BATCH, FEATURES, CLASSES, EXPECTED = 11, 7, 3, 8.0
CLIP = 2.5
DEVICES = ("CPU:1", "CPU:2")
CHECKS = {}


def check(function):
    """Makes a function one of the checks."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


# Models.


@keras.saving.register_keras_serializable(package="per_device_worker")
class OnDevice(layers.Layer):
    """A chain of layers whose weights and operations are on a device."""

    def __init__(self, chain, device, **kwargs):
        super().__init__(**kwargs)
        self.chain, self.device = chain, device

    def build(self, input_shape):
        with tf.device(self.device):
            for layer in self.chain:
                if not layer.built:  # In `from_config`.
                    layer.build(input_shape)
                input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        with tf.device(self.device):
            for layer in self.chain:
                x = layer(x)
            return x

    def get_config(self):
        chain = [keras.saving.serialize_keras_object(c) for c in self.chain]
        return super().get_config() | {"chain": chain, "device": self.device}

    @classmethod
    def from_config(cls, config):
        # Keras builds what was built as soon as it is there.
        with tf.device(config["device"]):
            config["chain"] = [
                keras.saving.deserialize_keras_object(c)
                for c in config["chain"]
            ]
        return cls(**config)


def _mlp(devices=DEVICES, rows=FEATURES, **kwargs):
    """Two dense layers on each device, all of different sizes."""
    widths = (19, 23, 29, 31, 37)
    model = keras.Sequential([keras.Input((rows,))])
    for number, device in enumerate(devices):
        last = number == len(devices) - 1
        chain = [
            layers.Dense(widths[2 * number], "tanh", **kwargs),
            layers.Dense(CLASSES)
            if last
            else layers.Dense(widths[2 * number + 1], "tanh", **kwargs),
        ]
        model.add(OnDevice(chain, device))
    return model


@keras.saving.register_keras_serializable(package="per_device_worker")
class Unplaced(keras.Model):
    """A model that places what it calls, but not its weights."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(19, "tanh")
        self.norm = layers.LayerNormalization()
        self.second = layers.Dense(CLASSES)

    def call(self, x):
        with tf.device(DEVICES[0]):
            x = self.norm(self.first(x))
        with tf.device(DEVICES[1]):
            return self.second(x)


class Placed(Unplaced):
    """A model that places both."""

    def build(self, input_shape):
        with tf.device(DEVICES[0]):
            self.first.build(input_shape)
            self.norm.build((None, 19))
        with tf.device(DEVICES[1]):
            self.second.build((None, 19))


class Tied(keras.Model):
    """A table that is read on one device and multiplied with on the other."""

    def __init__(self):
        super().__init__()
        self.table = ReversibleTable()
        self.hidden = layers.Dense(5, "tanh")

    def build(self, input_shape):
        with tf.device(DEVICES[0]):
            self.table.build(input_shape)
        with tf.device(DEVICES[1]):
            self.hidden.build((None, None, 5))

    def call(self, ids):
        with tf.device(DEVICES[0]):
            x = self.table(ids)
        with tf.device(DEVICES[1]):
            x = tf.reduce_mean(self.hidden(x), axis=1)
            return self.table(x, reverse=True)


class ReversibleTable(layers.Layer):
    def build(self, input_shape):
        self.table = self.add_weight(shape=(FEATURES, 5), name="table")

    def call(self, x, reverse=False):
        if reverse:
            return tf.matmul(x, self.table, transpose_b=True)
        return tf.gather(self.table, x)


class TwoPlaces(layers.Layer):
    """One layer with weights of its own on two devices."""

    def build(self, input_shape):
        width = input_shape[-1]
        with tf.device(DEVICES[0]):
            self.kernel = self.add_weight(shape=(width, 5), name="kernel")
        with tf.device(DEVICES[1]):
            self.scale = self.add_weight(
                shape=(5,), initializer="ones", name="scale"
            )

    def call(self, x):
        with tf.device(DEVICES[0]):
            x = tf.matmul(x, self.kernel)
        with tf.device(DEVICES[1]):
            return x * self.scale


class Function(layers.Layer):
    """A layer whose call is a function that TensorFlow compiles by itself."""

    def build(self, input_shape):
        self.compiled = tf.function(lambda x: tf.sin(3.0 * x), autograph=False)

    def call(self, x):
        return self.compiled(x)

    def compute_output_shape(self, input_shape):
        return input_shape


def _with_functions():
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            OnDevice([layers.Dense(19, "tanh"), Function()], DEVICES[0]),
            OnDevice([Function(), layers.Dense(CLASSES)], DEVICES[1]),
        ]
    )


def _data(seed=0):
    rng = np.random.default_rng(seed)
    # Norms on both sides of the thresholds.
    x = rng.normal(size=(BATCH, FEATURES)) * rng.uniform(0.01, 3.0, (BATCH, 1))
    return x.astype(np.float32), rng.integers(0, CLASSES, BATCH)


def _compile_arguments():
    return {"loss": keras.losses.SparseCategoricalCrossentropy(True)}


def _private(model, optimizer=tf_dpfp.DPSGD, run=None, **kwargs):
    arguments = dict(
        l2_norm_clip=0.5,
        noise_multiplier=0.0,
        clipping="per_device",
        expected_batch_size=EXPECTED,
    )
    tf_dpfp.make_private(model)
    model.compile(
        optimizer(0.7, **(arguments | kwargs)),
        **_compile_arguments(),
        **(run or {}),
    )
    return model


def _step(model, x, y):
    """Traces a step of the model anew and looks at its graphs."""
    model.train_function = None
    return crossings.of_step(lambda: model.train_on_batch(x, y))


def _assert_nothing_of_clipping_crosses(model, x, y):
    found = _step(model, x, y).crossings
    assert found
    assert not [c for c in found if c.carries], found


def _groups(model):
    return model.optimizer.groups(step_lib.owned_variables(model))


def _compiled_sums(model):
    """A function from a batch to clipped sums."""

    @tf.function(autograph=False, reduce_retracing=True)
    def run(x, y):
        found = tf_dpfp.clipped_gradients(model, x, y).sums
        return [tf.convert_to_tensor(s) for s in found]

    return lambda x, y: [s.numpy() for s in run(tf.constant(x), tf.constant(y))]


def _sums(model, x, y):
    return _compiled_sums(model)(x, y)


# The oracle: single examples in float64.


class Oracle:
    """Gradients of single examples, by a float64 twin of a model."""

    def __init__(self, build, model):
        self._twin = reference.Reference(
            build,
            model,
            lambda: keras.optimizers.SGD(1.0),
            reference.flat_group,
            1.0,
            1.0,
            _compile_arguments,
        )

    def gradients(self, model, x, y):
        """For every example, the gradients by variable."""
        for mine, theirs in zip(
            self._twin.model.variables, model.variables, strict=True
        ):
            mine.assign(theirs.numpy())
        result = []
        with reference.double_precision():
            for i in range(len(x)):
                one = reference.rows((x, y, None), slice(i, i + 1))
                found, _ = self._twin._loss_and_gradients(*one)
                result.append([g.numpy() for g in found])
        return result


def _example_gradients(build, model, x, y):
    return Oracle(build, model).gradients(model, x, y)


def _norms(gradients, group):
    return np.array(
        [math.sqrt(sum(np.sum(g[k] ** 2) for k in group)) for g in gradients]
    )


def _clipped(gradients, groups, factor):
    """Sums, with `factor(group number, norm)` for every example and group."""
    total = [np.zeros_like(g) for g in gradients[0]]
    for number, group in enumerate(groups):
        norms = _norms(gradients, group)
        for norm, example in zip(norms, gradients, strict=True):
            for k in group:
                total[k] += factor(number, norm) * example[k]
    return total


def _hard(thresholds):
    return lambda number, norm: min(1.0, thresholds[number] / norm)


def _assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        # A clipped gradient is one part in 2^15 shorter than the threshold.
        atol = 1e-4 * np.max(np.abs(e))
        np.testing.assert_allclose(a, e, rtol=2e-4, atol=atol)


def _indices(*sizes):
    """Groups of so many variables, one after the other."""
    ends = np.cumsum(sizes).tolist()
    return [list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)]


# Groups.


@check
def groups_are_the_devices():
    for devices in (DEVICES, ("CPU:1", "CPU:2", "CPU:0")):
        model = _private(_mlp(devices))
        groups = _groups(model)
        assert [g.name for g in groups] == list(devices)
        assert [list(g.members) for g in groups] == _indices(
            *[4] * len(devices)
        )
        assert [crossings.short(g.device) for g in groups] == list(devices)
        for group in groups:
            assert math.isclose(group.clip_norm, 0.5 / len(devices) ** 0.5)


@check
def layers_that_alternate_between_devices_make_two_groups():
    model = _private(_mlp(("CPU:1", "CPU:2", "CPU:1")))
    members = [list(g.members) for g in _groups(model)]
    assert members == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7]]


@check
def a_model_on_one_device_is_one_group():
    model = _private(_mlp(("CPU:0",)), run={"jit_compile": True})
    assert [g.clip_norm for g in _groups(model)] == [0.5]
    model.train_on_batch(*_data())


@check
def devices_of_the_same_number_on_two_hosts_are_two_groups():
    class Value(keras.Variable):
        """On a host that is not there."""

        def __init__(self, task):
            super().__init__(np.zeros(3, "float32"))
            self.device = f"/job:worker/replica:0/task:{task}/device:GPU:0"

        @property
        def value(self):
            return self

    owned = [clipping.OwnedVariable(Value(task), None) for task in (0, 1, 0)]
    groups = tf_dpfp.PerDevice().groups(owned, 1.0)
    assert [g.members for g in groups] == [(0, 2), (1,)]
    assert [g.name for g in groups] == [g.device for g in groups]


@check
def a_variable_of_no_known_device_is_refused():
    with tf.Graph().as_default():
        variable = tf.compat.v1.get_variable(
            "homeless", (3,), use_resource=True
        )
    try:
        tf_dpfp.PerDevice().device_of(variable)
    except ValueError as error:
        assert "device 'homeless" in str(error), error
    else:
        raise AssertionError("not refused")


@check
def weights_of_one_layer_on_two_devices_are_two_groups():
    def build():
        return keras.Sequential(
            [keras.Input((FEATURES,)), TwoPlaces(), layers.Dense(CLASSES)]
        )

    model = _private(build())
    groups = _groups(model)
    names = [(g.name, g.members) for g in groups]
    assert names == [("CPU:1", (0,)), ("CPU:2", (1,)), ("CPU:0", (2, 3))]
    x, y = _data()
    gradients = _example_gradients(build, model, x, y)
    expected = _clipped(gradients, _indices(1, 1, 2), _hard([0.5 / 3**0.5] * 3))
    _assert_close(_sums(model, x, y), expected)
    # Each norm where its weights are, although the layer runs on both.
    _assert_nothing_of_clipping_crosses(model, x, y)


# Sums.


def _assert_some_are_clipped(gradients, groups, thresholds):
    for group, threshold in zip(groups, thresholds, strict=True):
        clipped = _norms(gradients, group) > threshold
        assert 0 < np.sum(clipped) < BATCH, (clipped, threshold)


@check
def sums_equal_the_loop_that_clips_each_device():
    x, y = _data()
    for devices in (DEVICES, ("CPU:1", "CPU:2", "CPU:0")):
        count = len(devices)
        bound = CLIP * count**0.5
        model = _private(_mlp(devices), l2_norm_clip=bound)
        groups, thresholds = _indices(*[4] * count), [CLIP] * count
        gradients = _example_gradients(lambda d=devices: _mlp(d), model, x, y)
        _assert_some_are_clipped(gradients, groups, thresholds)
        expected = _clipped(gradients, groups, _hard(thresholds))
        _assert_close(_sums(model, x, y), expected)
        flat = _clipped(gradients, [sum(groups, [])], _hard([bound]))
        for a, b in zip(flat, expected, strict=True):
            assert np.max(np.abs(a - b)) > 0.01


@check
def given_thresholds_go_by_the_name_of_the_device():
    x, y = _data()
    chosen = {"CPU:1": 0.3, "CPU:2": 0.4}
    per_device = tf_dpfp.PerDevice(thresholds=chosen)
    model = _private(_mlp(), clipping=per_device)
    gradients = _example_gradients(_mlp, model, x, y)
    expected = _clipped(gradients, _indices(4, 4), _hard([0.3, 0.4]))
    _assert_close(_sums(model, x, y), expected)
    wrong = _private(
        _mlp(), clipping=tf_dpfp.PerDevice(thresholds={"GPU:1": 0.5})
    )
    try:
        _groups(wrong)
    except ValueError as error:
        assert "CPU:1" in str(error) and "GPU:1" in str(error), error
    else:
        raise AssertionError("not refused")


@check
def automatic_thresholds_scale_each_device():
    x, y = _data()
    per_device = tf_dpfp.PerDevice(thresholds="automatic")
    model = _private(_mlp(), clipping=per_device)
    stability = per_device.thresholds.stability
    gradients = _example_gradients(_mlp, model, x, y)
    expected = _clipped(
        gradients,
        _indices(4, 4),
        lambda _, norm: 0.5 / 2**0.5 / (norm + stability),
    )
    _assert_close(_sums(model, x, y), expected)


@check
def adaptive_thresholds_follow_each_device():
    x, y = _data()
    groups = _indices(4, 4)
    for rescale in (True, False):
        adaptive = tf_dpfp.Adaptive(
            initial={"CPU:1": 0.6, "CPU:2": 0.2},
            learning_rate=0.9,
            rescale=rescale,
        )
        per_device = tf_dpfp.PerDevice(thresholds=adaptive)
        model = _private(_mlp(), clipping=per_device)
        estimates = np.array([0.6, 0.2])
        oracle = Oracle(_mlp, model)
        sums = _compiled_sums(model)
        for _ in range(3):
            gradients = oracle.gradients(model, x, y)
            scale = 0.5 / np.linalg.norm(estimates) if rescale else 1.0
            expected = _clipped(gradients, groups, _hard(estimates * scale))
            _assert_close(sums(x, y), expected)
            below = [
                np.sum(_norms(gradients, g) <= e)
                for g, e in zip(groups, estimates, strict=True)
            ]
            fractions = (np.array(below) - BATCH / 2) / EXPECTED + 0.5
            model.train_on_batch(x, y)
            estimates *= np.exp(-0.9 * (np.clip(fractions, 0, 1) - 0.5))
        assert len({g.device for g in _groups(model)}) == 2


@check
def training_equals_the_loop():
    x, y = _data()

    def build():
        return _mlp(kernel_regularizer=keras.regularizers.L2(0.05))

    for microbatch_size, momentum in ((None, 0.9), (4, 0.0)):
        model = _private(
            build(), momentum=momentum, microbatch_size=microbatch_size
        )
        twin = reference.Reference(
            build,
            model,
            lambda m=momentum: keras.optimizers.SGD(0.7, m),
            lambda _: _indices(4, 4),
            0.5,
            EXPECTED,
            _compile_arguments,
        )
        for _ in range(3):
            model.train_on_batch(x, y)
            twin.step(x, y)
        twin.assert_weights_equal(model)


@check
def a_subclassed_model_is_placed_where_it_is_built():
    x, y = _data()
    model = _private(Placed())
    model.build((None, FEATURES))
    model.fit(x, y, batch_size=BATCH, verbose=0)
    assert [(g.name, len(g.members)) for g in _groups(model)] == [
        ("CPU:1", 4),
        ("CPU:2", 2),
    ]
    # Keras builds the layers of a model without a `build` of its own outside
    # of any placement.
    model = _private(Unplaced())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, batch_size=BATCH, verbose=0)
    assert [g.name for g in _groups(model)] == ["CPU:0"]
    assert any("all weights are on CPU:0" in str(c.message) for c in caught)


@check
def a_table_tied_over_two_devices_is_one_variable():
    rng = np.random.default_rng(0)
    x = rng.integers(0, FEATURES, (BATCH, 4))
    y = rng.integers(0, FEATURES, BATCH)

    def build():
        model = Tied()
        model(x)
        return model

    model = _private(build())
    groups = _groups(model)
    assert [(g.name, len(g.members)) for g in groups] == [
        ("CPU:1", 1),
        ("CPU:2", 2),
    ]
    gradients = _example_gradients(build, model, x, y)
    expected = _clipped(
        gradients, [list(g.members) for g in groups], _hard([0.5 / 2**0.5] * 2)
    )
    _assert_close(_sums(model, x, y), expected)
    _assert_nothing_of_clipping_crosses(model, x, y)


@check
def functions_inside_of_the_model_work():
    x, y = _data()
    model = _private(_with_functions(), l2_norm_clip=CLIP)
    gradients = _example_gradients(_with_functions, model, x, y)
    expected = _clipped(gradients, _indices(2, 2), _hard([CLIP / 2**0.5] * 2))
    _assert_close(_sums(model, x, y), expected)
    _assert_nothing_of_clipping_crosses(model, x, y)


@check
def a_weight_used_behind_the_back_of_its_layer_is_refused():
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = layers.Dense(5)
            self.out = layers.Dense(CLASSES)

        def build(self, input_shape):
            with tf.device(DEVICES[0]):
                self.hidden.build(input_shape)
            with tf.device(DEVICES[1]):
                self.out.build((None, 5))

        def call(self, x):
            with tf.device(DEVICES[0]):
                h = self.hidden(x)
            with tf.device(DEVICES[1]):
                return tf.matmul(h, self.out.kernel)

    for size in (None, 4):
        model = _private(Unused(), microbatch_size=size)
        try:
            model.train_on_batch(*_data())
        except ValueError as error:
            assert "but not through a" in str(error), error
        else:
            raise AssertionError("not refused")


# Sensitivity.


@check
def one_example_moves_each_device_by_its_threshold():
    chosen = {"CPU:1": 0.3, "CPU:2": 0.4}
    rng = np.random.default_rng(1)
    for thresholds in (chosen, "automatic"):
        per_device = tf_dpfp.PerDevice(thresholds=thresholds)
        model = _private(_mlp(), clipping=per_device)
        limits = [g.clip_norm for g in _groups(model)]
        sums = _compiled_sums(model)
        x, y = _data()
        greatest = np.zeros(2)
        for scale in (1e-6, 1e-2, 1.0, 1e3, 1e18):
            more = (rng.normal(size=(1, FEATURES)) * scale).astype(np.float32)
            label = np.array([0])
            moves = [
                (a - b).astype(np.float64)
                for a, b in zip(
                    sums(np.concatenate([x, more]), np.concatenate([y, label])),
                    sums(x, y),
                    strict=True,
                )
            ]
            lengths = [_norms([moves], g)[0] for g in _indices(4, 4)]
            # The difference of two sums is rounded.
            assert np.all(lengths <= np.array(limits) + 1e-5), lengths
            greatest = np.maximum(greatest, lengths)
        assert np.all(greatest > 0.95 * np.array(limits)), greatest


# Noise.


def _p_value(sample, scale):
    return stats.kstest(sample, stats.norm(0.0, scale).cdf).pvalue


@check
def the_noise_of_a_device_goes_by_its_own_threshold():
    def build():
        return keras.Sequential(
            [
                keras.Input((300,)),
                # Large enough for the noise that XLA compiles.
                OnDevice(
                    [layers.Dense(240, kernel_initializer="zeros")], DEVICES[0]
                ),
                OnDevice(
                    [layers.Dense(150, kernel_initializer="zeros")], DEVICES[1]
                ),
            ]
        )

    chosen = {"CPU:1": 0.3, "CPU:2": 0.4}
    x = np.zeros((BATCH, 300), np.float32)
    y = np.zeros((BATCH, 150), np.float32)
    for size in (None, 4):
        model = tf_dpfp.make_private(build())
        model.compile(
            tf_dpfp.DPSGD(
                1.0,
                l2_norm_clip=0.5,
                noise_multiplier=1.7,
                clipping=tf_dpfp.PerDevice(thresholds=chosen),
                expected_batch_size=EXPECTED,
                microbatch_size=size,
            ),
            loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        )
        moves = []
        for _ in range(2):
            before = model.get_weights()
            model.train_on_batch(x, y)
            moves.append(
                [
                    (a - b).astype(np.float64).ravel()
                    for a, b in zip(model.get_weights(), before, strict=True)
                ]
            )
        for pair, threshold in (((0, 1), 0.3), ((2, 3), 0.4)):
            sample = np.concatenate([m[i] for m in moves for i in pair])
            scale = 1.7 * math.sqrt(2) * threshold / EXPECTED
            assert _p_value(sample, scale) > 1e-6
            # Of the bound, of the other device, of one group, and next to it.
            for wrong in (
                1.7 * 0.5 / EXPECTED,
                1.7 * math.sqrt(2) * (0.7 - threshold) / EXPECTED,
                scale / math.sqrt(2),
                scale * 0.95,
                scale * 1.05,
            ):
                assert _p_value(sample, wrong) < 1e-6, (threshold, wrong)
        kernels = [m[i][:36000] for m in moves for i in (0, 2)]
        for i, a in enumerate(kernels):
            for b in kernels[:i]:
                assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(36000)


# Placement


# Placement.


def _expected_crossings(devices=DEVICES, size=BATCH):
    """Activations and their gradients, and which examples take part."""
    widths = (19, 23, 29, 31, 37)
    first, second = devices
    hidden = ("float32", (size, widths[1]))
    logits = ("float32", (size, CLASSES))
    return collections.Counter(
        [
            ("CPU:0", first, "float32", (size, FEATURES)),
            (first, second, *hidden),
            (second, "CPU:0", *logits),
            ("CPU:0", second, *logits),
            (second, first, *hidden),
            ("CPU:0", first, "bool", (size,)),
            ("CPU:0", second, "bool", (size,)),
        ]
    )


def _not_scalars(found):
    return collections.Counter(
        (c.source, c.to, c.dtype.name, c.shape) for c in found if c.shape != ()
    )


def _noisy(clipping="per_device", **kwargs):
    model = _mlp(kernel_regularizer=keras.regularizers.L2(0.05))
    return _private(
        model,
        tf_dpfp.DPAdam,
        clipping=clipping,
        noise_multiplier=1.0,
        **kwargs,
    )


@check
def only_activations_and_their_gradients_cross():
    step = _step(_noisy(), *_data())
    assert not [c for c in step.crossings if c.carries], step.crossings
    assert _not_scalars(step.crossings) == _expected_crossings()
    # Every device draws the noise of its variables, all at once, and updates
    # them.
    for device in DEVICES:
        operations = step.operations[device]
        assert len(operations["StatelessRandomUniformFullIntV2"]) == 1
        assert len(operations["AssignSubVariableOp"]) == 4
    for device, operations in step.operations.items():
        names = [n for several in operations.values() for n in several]
        for scope in (clipped_sum.EXAMPLES_SCOPE, clipped_sum.SUM_SCOPE):
            found = {n.split("/")[0] for n in names if scope in n}
            expected = {"CPU:1": {scope}, "CPU:2": {f"{scope}_1"}}
            assert found == expected.get(device, set()), (device, found)


@check
def micro_batches_send_sums_and_nothing_of_single_examples():
    model = _noisy(microbatch_size=4)
    step = _step(model, *_data())
    assert not [c for c in step.crossings if "examples" in c.carries]
    sums = [c.shape for c in step.crossings if c.carries and c.shape]
    variables = [tuple(v.shape) for v in model.trainable_variables]
    assert collections.Counter(sums) <= collections.Counter(variables), sums
    # The first micro-batch is outside of the loop, where shapes are known.
    expected = _expected_crossings(size=4)
    found = _not_scalars(step.crossings)
    assert all(found[key] >= 1 for key in expected), found


@check
def only_counts_cross_where_thresholds_adapt():
    for rescale in (True, False):
        adaptive = tf_dpfp.Adaptive(rescale=rescale)
        step = _step(_noisy(tf_dpfp.PerDevice(thresholds=adaptive)), *_data())
        assert _not_scalars(step.crossings) == _expected_crossings()
        counts = [c for c in step.crossings if c.carries]
        assert [c.source for c in counts] == list(DEVICES), counts
        assert {c.carries for c in counts} == {frozenset({"sum"})}, counts


@check
def what_crosses_shows_what_is_planted():
    x, y = _data()
    # Norms that are added up over devices.
    flat = _step(_noisy("flat"), x, y).crossings
    assert [c for c in flat if c.carries]

    # Clipping that is left to TensorFlow.
    def nowhere(device):
        return contextlib.nullcontext()

    with mock.patch.object(placement, "on", nowhere):
        left = _step(_noisy(), x, y).crossings
    assert [c for c in left if c.carries]
    # A backward pass that is.
    with mock.patch.object(
        step_lib,
        "_backward",
        lambda tape, total, sources, plan: tape.gradient(total, sources),
    ):
        taped = _step(_noisy(), x, y).crossings
    assert _not_scalars(taped) != _expected_crossings()


@check
def state_and_updates_are_on_the_device_of_the_variable():
    x, y = _data()

    def by_hand(model):
        run = tf.function(
            lambda x, y: model.optimizer.apply(
                tf_dpfp.clipped_gradients(model, x, y)
            ),
            autograph=False,
        )
        run(tf.constant(x), tf.constant(y))

    for train in (
        lambda model: model.train_on_batch(x, y),
        lambda model: model.fit(x, y, batch_size=BATCH, verbose=0),
        by_hand,
    ):
        model = _noisy(use_ema=True)
        train(model)
        found = collections.Counter(
            crossings.short(v.value.device)
            for v in model.optimizer.variables
            if "on_device" in v.path
        )
        # Momentum, velocity and average of four variables.
        assert found == {"CPU:1": 12, "CPU:2": 12}, found


@check
def a_saved_model_is_loaded_onto_its_devices():
    x, y = _data()
    chosen = {"CPU:1": 0.3, "CPU:2": 0.4}
    model = _noisy(tf_dpfp.PerDevice(thresholds=chosen))
    model.train_on_batch(x, y)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
    tf_dpfp.make_private(loaded)
    assert loaded.optimizer.clipping == model.optimizer.clipping
    assert _groups(loaded) == _groups(model)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
    for mine, theirs in zip(
        loaded.optimizer.variables, model.optimizer.variables, strict=True
    ):
        assert mine.value.device == theirs.value.device, mine.path
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    loaded.train_on_batch(x, y)


# Ways to run.


@check
def xla_over_several_devices_is_refused():
    model = _private(_mlp(), run={"jit_compile": True})
    try:
        model.train_on_batch(*_data())
    except ValueError as error:
        assert "jit_compile=False" in str(error), error
        assert "CPU:1" in str(error) and "CPU:2" in str(error), error
    else:
        raise AssertionError("not refused")
    # Where Keras turns XLA on by itself, it stays off.
    with mock.patch.object(compiling, "_has_accelerator", lambda: True):
        assert not compiling.suits_xla(model.optimizer)
        flat = tf_dpfp.DPSGD(noise_multiplier=1.0)
        assert compiling.suits_xla(flat)
        assert not _private(_mlp()).jit_compile


@check
def eager_steps_clip_on_each_device():
    x, y = _data()
    model = _private(_mlp(), l2_norm_clip=CLIP, run={"run_eagerly": True})
    seen = []
    squared_norms = clipped_sum._squared_norms

    def noted(*args):
        norms = squared_norms(*args)
        seen.append(crossings.short(norms.device))
        return norms

    gradients = _example_gradients(_mlp, model, x, y)
    expected = _clipped(gradients, _indices(4, 4), _hard([CLIP / 2**0.5] * 2))
    before = model.get_weights()
    with mock.patch.object(clipped_sum, "_squared_norms", noted):
        model.train_on_batch(x, y)
    assert seen == list(DEVICES), seen
    moves = [b - a for a, b in zip(model.get_weights(), before, strict=True)]
    _assert_close(moves, [0.7 / EXPECTED * e for e in expected])


def main(path: str, *only: str) -> None:
    """Runs the checks, or those that are named."""
    results = {}
    for name in only or CHECKS:
        keras.utils.set_random_seed(0)
        keras.backend.clear_session()
        results[name] = None
        try:
            # It is not what is checked, and it takes half of the time.
            with mock.patch.object(probe, "check"):
                CHECKS[name]()
        except Exception:
            results[name] = traceback.format_exc()
    with open(path, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 3,
    )
    main(*sys.argv[1:])
