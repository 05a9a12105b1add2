"""
Title: Private training on several devices
Author: The tf_dpfp authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: Replicas that share a batch, and a model that is split.
Accelerator: None
"""

"""
## Introduction

There are two reasons for more than one device. The data are many: then every
device has a copy of the model and takes a part of each batch (*replicas*). Or
the model is large: then every device has a part of the model. Both can be
private, and neither changes what the guarantee says:

- with replicas, each example of a batch is on exactly one of them, each adds a
  share of the noise, and the sum has the noise and the epsilon of one device;
- in a split model, each device clips the gradients of its own part
  (*per-device clipping*, [He et al., 2022](https://arxiv.org/abs/2212.01539)),
  and no norm of an example's gradient goes from one device to another.

This example runs on any machine: two logical CPUs stand in for two GPUs. With
GPUs leave out `num_logical_cpus`, and name them in place of the CPUs.
"""

"""
## Setup

`make_strategy()` splits the CPU, so it comes before anything else of
TensorFlow. Make one strategy in a process, and use it throughout.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import contextlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp

strategy = tf_dpfp.distribute.make_strategy("mirrored", num_logical_cpus=2)
print(f"{strategy.num_replicas_in_sync} replicas")

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 10))
delta = 1e-5
batch_size = 1000
budgets = [0.3, 1.0, 3.0]

"""
## Data

Made up: 20,000 points to learn from, in three classes that a random network has
drawn.
"""

rng = np.random.default_rng(0)
x = rng.normal(size=(22_000, 20)).astype("float32")
hidden = np.tanh(x @ rng.normal(size=(20, 8)) / 4)
y = np.argmax(hidden @ rng.normal(size=(8, 3)), axis=1)
x_train, y_train, x_test, y_test = (
    x[:20_000],
    y[:20_000],
    x[20_000:],
    y[20_000:],
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

"""
## Replicas

The model is made and compiled in the scope of the strategy. That is all:
`fit()` deals the examples of each Poisson batch to the replicas. The expected
batch size is that of all of them together.
"""


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(32, activation="tanh"),
            layers.Dense(3),
        ]
    )


def train(epsilon, scope):
    batches = tf_dpfp.poisson_batches(
        x_train, y_train, expected_batch_size=batch_size
    )
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        epsilon, delta, batch_size / len(x_train), epochs * len(batches)
    )
    with scope:
        model = make_model()
        tf_dpfp.make_private(model)
        model.compile(
            tf_dpfp.DPAdam(
                0.02, l2_norm_clip=0.5, noise_multiplier=noise_multiplier
            ),
            loss=loss,
            metrics=["accuracy"],
        )
    model.fit(batches, epochs=epochs, verbose=0)
    predicted = np.argmax(model.predict(x_test, verbose=0), axis=1)
    accuracy = np.mean(predicted == y_test)
    spent = tf_dpfp.compute_epsilon(model, delta)
    print(f"  epsilon {spent:.3f}, test accuracy {accuracy:.3f}")
    return model, accuracy


print("One device")
alone = [train(epsilon, contextlib.nullcontext())[1] for epsilon in budgets]
print("Two replicas")
models, together = zip(
    *(train(epsilon, strategy.scope()) for epsilon in budgets), strict=True
)

plt.figure(figsize=(6, 4))
plt.semilogx(budgets, [100 * a for a in alone], "o-", label="one device")
plt.semilogx(budgets, [100 * a for a in together], "s--", label="two replicas")
plt.xticks(budgets, budgets)
plt.minorticks_off()
plt.xlabel("ε at δ = 1e-5")
plt.ylabel("Test accuracy (%)")
plt.legend()
plt.tight_layout()
plt.savefig("several_devices.png", dpi=150)

"""
The ledger belongs to the model, not to its replicas: each step is counted once.
"""

print(tf_dpfp.ledger(models[-1]))

"""
## A model that is split

Weights are where they are *built*, and a layer runs where it is *called*. This
layer places a chain of layers on one device, in both respects.
"""


class OnDevice(layers.Layer):
    """A chain of layers on one device."""

    def __init__(self, chain, device, **kwargs):
        super().__init__(**kwargs)
        self.chain, self.device = chain, device

    def build(self, input_shape):
        with tf.device(self.device):
            for layer in self.chain:
                layer.build(input_shape)
                input_shape = layer.compute_output_shape(input_shape)

    def call(self, x):
        with tf.device(self.device):
            for layer in self.chain:
                x = layer(x)
            return x


keras.utils.set_random_seed(0)
split = keras.Sequential(
    [
        keras.Input((20,)),
        OnDevice([layers.Dense(32, activation="tanh")], "CPU:0"),
        OnDevice([layers.Dense(3)], "CPU:1"),
    ]
)
batches = tf_dpfp.poisson_batches(
    x_train, y_train, expected_batch_size=batch_size
)
tf_dpfp.make_private(split)
split.compile(
    tf_dpfp.DPAdam(
        0.02,
        l2_norm_clip=0.5,
        noise_multiplier=tf_dpfp.calibrate_noise_multiplier(
            1.0, delta, batch_size / len(x_train), epochs * len(batches)
        ),
        clipping="per_device",
    ),
    loss=loss,
)
split.fit(batches, epochs=epochs, verbose=0)
accuracy = np.mean(
    np.argmax(split.predict(x_test, verbose=0), axis=1) == y_test
)
print(f"Clip norms: {tf_dpfp.clip_norms(split)}")
print(
    f"Split, clipped by device: epsilon "
    f"{tf_dpfp.compute_epsilon(split, delta):.3f}, test accuracy {accuracy:.3f}"
)

"""
## Conclusion

| Training | ε = 0.3 | ε = 1 | ε = 3 |
| --- | --- | --- | --- |
| one device | 90.4 % | 92.1 % | 92.7 % |
| two replicas | 90.9 % | 91.0 % | 92.4 % |
| split, clipped by device | | 91.5 % | |

![Test accuracy against epsilon](../../docs/tutorial_several_devices.png)

Test accuracies on 2000 points, one training each at δ = 1e-5; 43 seconds of CPU
time for all. Batches and noise are drawn anew in each training, so differences
of a point mean little: what is drawn is distributed alike.

Where to go from here:

- The same works on several machines: `make_strategy("multi_worker")`, and the
  variable `TF_CONFIG` on each of them.
- `PerDevice(thresholds="adaptive")` finds how much of the clip norm each device
  needs. With `clipping="flat"` a split model is clipped at once, and norms go
  from device to device.
- `python -m examples.trainers.train --model=cnn --strategy=mirrored
  --num_logical_cpus=2` and `python -m examples.trainers.two_devices` do this
  from the command line.
- The [guide](../../docs/guide.md#several-devices-and-machines) says what is
  refused, and [the guarantee](../../docs/guarantee.md#replicas) what travels
  between replicas. Logical CPUs are what this was run on, and no GPUs.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
