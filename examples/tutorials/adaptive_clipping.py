"""
Title: Clipping every layer by itself, at thresholds that adapt
Author: The tf_dpfp authors
Date created: 2026/11/22
Last modified: 2026/11/29
Description: Private training with per-layer clipping and adaptive thresholds.
Accelerator: None
"""

"""
## Introduction

Private training clips the gradient of every example, so that no example weighs
more than another. The usual way is *flat*: the norm of the whole gradient, over
all layers, decides. The other way is *group-wise*
([He et al., 2022](https://arxiv.org/abs/2212.01539)): each layer clips its own
part of the gradient by itself. A layer needs to know nothing of the others, so
its gradients can be clipped, summed up and thrown away while the backward pass
goes on; and where a model is spread over devices, no norm has to travel.

The question is at which thresholds. Layers differ: the gradients of one may be
ten times as long as those of another, and the proportions change during
training. One threshold for all wastes noise on the short ones and cuts the long
ones down. **Adaptive thresholds** follow the gradients. Each layer counts how
many examples lie below its estimate of, say, the median norm, and moves the
estimate. The counts tell about the data, so they get noise of their own, within
the same privacy budget.

In this example we train one network three times, at the same epsilon: with flat
clipping, with fixed and with adaptive per-layer thresholds.
"""

"""
## Setup
"""

import gzip
import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers

import tf_dpfp

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 15))

try:
    (x_train, y_train), (x_test, y_test) = (
        keras.datasets.fashion_mnist.load_data()
    )
except Exception:
    # Without a way there: Debian has the files (dataset-fashion-mnist).
    def read(name, offset):
        path = f"/usr/share/datasets/fashion-mnist/{name}-ubyte.gz"
        with gzip.open(path) as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=offset)

    x_train, x_test = (
        read(f"{name}-images-idx3", 16).reshape(-1, 28, 28)
        for name in ("train", "t10k")
    )
    y_train, y_test = (
        read(f"{name}-labels-idx1", 8) for name in ("train", "t10k")
    )

# Scaled and centred by constants: the mean of the data would have to be
# private.
x_train, x_test = (
    (x[..., None] / 127.5 - 1.0).astype("float32") for x in (x_train, x_test)
)

"""
## The budget

The noise multiplier follows from the budget alone. Nothing below changes it:
whatever the groups and the thresholds are, epsilon is that of this multiplier.
"""

epsilon = 2.7
delta = 1e-5
batch_size = 2048

batches = tf_dpfp.poisson_batches(
    x_train, y_train, expected_batch_size=batch_size
)
noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
    epsilon=epsilon,
    delta=delta,
    sampling_rate=batch_size / len(x_train),
    steps=epochs * len(batches),
)
print(f"Noise multiplier: {noise_multiplier:.3f}")

"""
## Three ways to clip

`clipping` is one object: what is clipped together, and at which thresholds.
`tf_dpfp.clip_norms(model)` shows the thresholds. Adaptive ones come from noised
counts only, so looking at them, or logging them, costs nothing.
"""


def train(clipping):
    keras.utils.set_random_seed(0)  # The same first weights for all three.
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(
                16, 8, strides=2, padding="same", activation="tanh", name="a"
            ),
            layers.MaxPooling2D(2, strides=1),
            layers.Conv2D(32, 4, strides=2, activation="tanh", name="b"),
            layers.MaxPooling2D(2, strides=1),
            layers.Flatten(),
            layers.Dense(32, activation="tanh", name="c"),
            layers.Dense(10, name="d"),
        ]
    )
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPSGD(
            learning_rate=40.0,
            l2_norm_clip=0.1,
            noise_multiplier=noise_multiplier,
            clipping=clipping,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    thresholds = [tf_dpfp.clip_norms(model)]
    history = model.fit(
        batches,
        epochs=epochs,
        validation_data=(x_test, y_test),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda _epoch, _logs: thresholds.append(
                    tf_dpfp.clip_norms(model)
                )
            )
        ],
        verbose=0,
    )
    accuracy = history.history["val_accuracy"]
    spent = tf_dpfp.compute_epsilon(model, delta)
    print(f"  test accuracy {accuracy[-1]:.4f}, epsilon {spent:.3f}")
    return accuracy, thresholds


print("Flat clipping")
flat, _ = train(tf_dpfp.Flat())

print("Per layer, fixed thresholds")
fixed, _ = train(tf_dpfp.PerLayer())

"""
With `Adaptive()` the bound `l2_norm_clip` is split among the layers in
proportion to their median norms. `target_quantile` is the fraction of examples
that is to lie below the estimate, and `budget_share` what the counts take of
the budget: with the default, one hundredth, the gradients get half a percent
more noise than they would otherwise.
"""

print("Per layer, adaptive thresholds")
adaptive, thresholds = train(
    tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Adaptive(
            target_quantile=0.5, budget_share=0.01
        )
    )
)

"""
## What the thresholds did
"""

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for name in thresholds[0]:
    left.plot([row[name] for row in thresholds], label=name.split("/")[-1])
left.axhline(0.05, color="grey", linestyle=":", label="fixed")
left.set(xlabel="Epoch", ylabel="Threshold", ylim=(0, None))
left.legend(title="Layer")
for label, accuracy in [
    ("flat", flat),
    ("per layer, fixed", fixed),
    ("per layer, adaptive", adaptive),
]:
    right.plot(
        range(1, epochs + 1), [100 * a for a in accuracy], "o-", label=label
    )
right.set(xlabel="Epoch", ylabel="Test accuracy (%)")
right.legend()
figure.tight_layout()
figure.savefig("adaptive_thresholds.png", dpi=150)

"""
The last layer's gradients shrink while the network learns, and its threshold
with them: what it no longer needs of the bound goes to the others. Thresholds
are scaled so that their squares always add up to that of `l2_norm_clip`.

## Conclusion

| Clipping | Epochs | Test accuracy | ε at δ = 1e-5 |
| --- | --- | --- | --- |
| flat | 15 | 85.7 % | 2.7 |
| per layer, fixed thresholds | 15 | 85.3 % | 2.7 |
| per layer, adaptive thresholds | 15 | 85.5 % | 2.7 |

One training each, so differences of a few tenths may be chance; the
[benchmarks](../../docs/benchmarks.md#ways-to-clip) have three of each, twice as
long, with the same order: fixed thresholds lose a little, and adaptive ones win
it back.

Where to go from here:

- `target_quantile`, `learning_rate`, `initial` and `budget_share` are the
  arguments of `Adaptive()`. Noise on the counts grows with the root of the
  number of layers: with a hundred of them and small batches, take a larger
  `budget_share`, or group layers into blocks with
  `tf_dpfp.clipping.PerBlock()`.
- With `rescale=False` the thresholds are the quantiles themselves, and the
  bound follows the gradients.
  `tf_dpfp.Flat(thresholds=tf_dpfp.clipping.Adaptive(rescale=False))` is flat
  clipping at an adaptive norm.
- `tf_dpfp.clipping.Automatic()` has no thresholds to find.
- `clipping="per_device"` clips the parts of a model that is split over
  devices: `python -m examples.trainers.two_devices`.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
