"""Models on two logical CPUs, and what their clipped sums should be."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests.oracles import reference
from tests.training import crossings
from tf_dpfp import step as step_lib

BATCH, FEATURES, CLASSES, EXPECTED = 11, 7, 3, 8.0
CLIP = 2.5
DEVICES = ("CPU:1", "CPU:2")
THREE_DEVICES = (*DEVICES, "CPU:0")


@keras.saving.register_keras_serializable(package="per_device")
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


def mlp(devices=DEVICES, rows=FEATURES, **kwargs):
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


def data(seed=0):
    rng = np.random.default_rng(seed)
    # Norms on both sides of the thresholds.
    x = rng.normal(size=(BATCH, FEATURES)) * rng.uniform(0.01, 3.0, (BATCH, 1))
    return x.astype(np.float32), rng.integers(0, CLASSES, BATCH)


def compile_arguments():
    return {"loss": keras.losses.SparseCategoricalCrossentropy(True)}


def private(model, optimizer=tf_dpfp.DPSGD, run=None, **kwargs):
    arguments = dict(
        l2_norm_clip=0.5,
        noise_multiplier=0.0,
        clipping="per_device",
        expected_batch_size=EXPECTED,
    )
    tf_dpfp.make_private(model)
    model.compile(
        optimizer(0.7, **(arguments | kwargs)),
        **compile_arguments(),
        **(run or {}),
    )
    return model


def noisy(clipping="per_device", **kwargs):
    model = mlp(kernel_regularizer=keras.regularizers.L2(0.05))
    return private(
        model,
        tf_dpfp.DPAdam,
        clipping=clipping,
        noise_multiplier=1.0,
        **kwargs,
    )


def step(model, x, y):
    """Traces a step of the model anew and looks at its graphs."""
    model.train_function = None
    return crossings.of_step(lambda: model.train_on_batch(x, y))


def assert_nothing_of_clipping_crosses(model, x, y):
    found = step(model, x, y).crossings
    assert found
    assert not [c for c in found if c.carries], found


def groups(model):
    return model.optimizer.groups(step_lib.owned_variables(model))


def compiled_sums(model):
    """A function from a batch to clipped sums."""

    @tf.function(autograph=False, reduce_retracing=True)
    def run(x, y):
        found = tf_dpfp.loops.clipped_gradients(model, x, y).sums
        return [tf.convert_to_tensor(s) for s in found]

    return lambda x, y: [s.numpy() for s in run(tf.constant(x), tf.constant(y))]


def sums(model, x, y):
    return compiled_sums(model)(x, y)


def twin_arguments(build, model, members, momentum=0.0):
    """For a float64 twin that is trained as `private` trains."""
    return (
        build,
        model,
        lambda: keras.optimizers.SGD(0.7, momentum),
        lambda _: members,
        0.5,
        EXPECTED,
        compile_arguments,
    )


def gradients(build, model, x, y):
    """The gradient of every example, by a float64 twin."""
    twin = reference.Reference(*twin_arguments(build, model, []))
    return twin.gradients(x, y)[0]


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        # A clipped gradient is one part in 2^15 shorter than the threshold.
        atol = 1e-4 * np.max(np.abs(e))
        np.testing.assert_allclose(a, e, rtol=2e-4, atol=atol)


def indices(*sizes):
    """Groups of so many variables, one after the other."""
    ends = np.cumsum(sizes).tolist()
    return [list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)]
