"""Trains a model that is split over two devices, clipped on each by itself.

`python -m examples.trainers.two_devices` puts the convolutions of a small CNN
on one device and the dense layers on another, and trains it privately on MNIST
with `tf_dpfp.clipping.PerDevice`: no norm of an example's gradient goes from
one device to the other. By default the devices are two logical CPUs, which is
all that it was run on; `--devices=GPU:0,GPU:1` names others.

Reference:
    He et al., 2022, arXiv 2212.01539 (per-device clipping).
"""

import collections
import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import app
from absl import flags
from keras import layers

import tf_dpfp
from examples.trainers import commands
from examples.trainers import datasets

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults of the shared flags."""

    epsilon: float = 3.0
    delta: float = 1e-5
    l2_norm_clip: float = 0.1
    batch_size: int = 1024
    epochs: int = 8
    learning_rate: float = 20.0


def _define_flags() -> None:
    commands.define_shared_flags(Defaults())
    flags.DEFINE_list("devices", ["CPU:0", "CPU:1"], "The two devices.")
    flags.DEFINE_string(
        "dataset", "mnist", "mnist, fashion_mnist or tfds:NAME."
    )
    flags.DEFINE_enum(
        "thresholds",
        "equal",
        ["equal", "by_dimension", "adaptive", "automatic"],
        "How the clip norm is split over the devices.",
    )


@keras.saving.register_keras_serializable(package="two_devices")
class OnDevice(layers.Layer):
    """A chain of layers on one device: weights, forward and backward pass.

    Args:
        chain: The layers, one after the other.
        device: A device's name.
        **kwargs: As for every layer.
    """

    def __init__(self, chain: Sequence[layers.Layer], device: str, **kwargs):
        super().__init__(**kwargs)
        self.chain, self.device = list(chain), device

    def build(self, input_shape):
        # Weights are where they are made, so they are made here, and not
        # when the layers are first called.
        with tf.device(self.device):
            for layer in self.chain:
                if not layer.built:
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
        # Loading makes the weights of the layers with the layers.
        with tf.device(config["device"]):
            chain = [
                keras.saving.deserialize_keras_object(c)
                for c in config["chain"]
            ]
        return cls(**(config | {"chain": chain}))


def make_devices(names: Sequence[str]) -> None:
    """Makes logical CPUs, and checks that all devices are there.

    Args:
        names: Such as "CPU:1". TensorFlow must not have been used before.

    Raises:
        ValueError: If these are not two devices of this machine.
    """
    kinds = [name.partition(":") for name in names]
    cpus = [int(n) for kind, _, n in kinds if kind == "CPU" and n.isdigit()]
    if cpus:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * (max(cpus) + 1),
        )
    there = [
        device.name.removeprefix("/device:")
        for device in tf.config.list_logical_devices()
    ]
    if len(set(names)) != 2 or not set(names) <= set(there):
        raise ValueError(
            f"--devices names two of {there}. Received: {list(names)}."
        )


def build(
    input_shape: tuple[int, ...], num_classes: int, devices: Sequence[str]
) -> keras.Model:
    """The CNN of `examples.trainers.train`, split in two.

    Args:
        input_shape: `(height, width, channels)` of the images.
        num_classes: Number of classes.
        devices: One for the convolutions, one for the dense layers.

    Returns:
        The model, built.
    """
    convolutions = [
        layers.Conv2D(16, 8, strides=2, padding="same", activation="tanh"),
        layers.MaxPooling2D(2, strides=1),
        layers.Conv2D(32, 4, strides=2, activation="tanh"),
        layers.MaxPooling2D(2, strides=1),
        layers.Flatten(),
    ]
    dense = [layers.Dense(32, activation="tanh"), layers.Dense(num_classes)]
    return keras.Sequential(
        [
            keras.Input(input_shape),
            OnDevice(convolutions, devices[0], name="convolutions"),
            OnDevice(dense, devices[1], name="dense"),
        ]
    )


def describe_devices(model: keras.Model) -> str:
    """What is on each device, and where it is clipped.

    Args:
        model: A private, compiled model.

    Returns:
        A line for each device.
    """
    weights = collections.Counter()
    for variable in model.trainable_variables:
        device = variable.value.device.rpartition("device:")[2]
        weights[device] += math.prod(variable.shape)
    return "\n".join(
        f"{device}: {weights[device]} weights, clipped at {threshold:.4f}"
        for device, threshold in tf_dpfp.clip_norms(model).items()
    )


def train() -> keras.Model:
    """Trains by the flags and prints what came of it.

    Returns:
        The trained model.

    Raises:
        ValueError: If the flags do not make sense.
        datasets.DatasetUnavailableError: If the data can't be loaded.
    """
    make_devices(FLAGS.devices)
    (x, y), test = datasets.load(FLAGS.dataset)
    model = build(x.shape[1:], 1 + int(y.max()), FLAGS.devices)
    batches = tf_dpfp.poisson_batches(
        x, y, expected_batch_size=FLAGS.batch_size
    )
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        FLAGS.epsilon,
        FLAGS.delta,
        FLAGS.batch_size / len(x),
        FLAGS.epochs * len(batches),
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            FLAGS.learning_rate,
            l2_norm_clip=FLAGS.l2_norm_clip,
            noise_multiplier=noise_multiplier,
            clipping=tf_dpfp.clipping.PerDevice(thresholds=FLAGS.thresholds),
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    print(describe_devices(model))
    model.fit(
        batches,
        epochs=FLAGS.epochs,
        validation_data=test,
        validation_batch_size=2048,
        callbacks=[tf_dpfp.PrivacyBudget(FLAGS.epsilon, FLAGS.delta)],
        verbose=1 if sys.stdout.isatty() else 2,
    )
    return model


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: The command line, flags taken out.

    Returns:
        The exit code: 0, or 2 if the flags do not make sense.
    """
    start = time.monotonic()
    try:
        if len(argv) > 1:
            raise ValueError(f"Not a flag: {argv[1]!r}.")
        model = train()
    except (ValueError, datasets.DatasetUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{describe_devices(model)}\n")
    print(tf_dpfp.privacy_statement(model, FLAGS.delta))
    print(f"This took {time.monotonic() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    _define_flags()
    app.run(main)
