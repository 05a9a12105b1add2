"""
Title: Noise on two thin matrices in place of a kernel
Author: The tf_dpfp authors
Date created: 2026/11/22
Last modified: 2026/11/29
Description: Private training with low-rank carriers, and when they pay.
Accelerator: None
"""

"""
## Introduction

Private training adds noise to every number of a gradient. A kernel of shape
`(d, p)` gets `d * p` noisy numbers, although the gradient of a batch lies
mostly in a few directions: the signal is in the few, the noise in all.

**Low-rank carriers** (RGP, [Yu et al., 2021](https://arxiv.org/abs/2106.09352))
look at a kernel through two thin matrices with orthonormal columns, `L` of
shape `(d, r)` and `R` of shape `(p, r)`. Of a kernel's gradient `G` a step
clips, noises and releases `G R` and `L' G`, which is `r * (d + p)` numbers, and
goes back from there to an update of the whole kernel. What lies outside of both
spans is lost; so is nearly all of the noise. The model computes what it did,
and epsilon is that of the noise multiplier, as always.

So everything hangs on where the carriers point. They may look at nothing
private, but what was released is free to look at: the weights (`"weight"`), or
how far the weights have moved since the first step (`"history"`). Random
directions (`"random"`) are what both have to beat.

In this example we train one network four times, at the same epsilon: with plain
flat clipping, and with carriers of each source.
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
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 6))

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

epsilon = 3.0
delta = 1e-5
batch_size = 2048

batches = tf_dpfp.poisson_batches(
    x_train, y_train, expected_batch_size=batch_size
)
steps = epochs * len(batches)
noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
    epsilon=epsilon,
    delta=delta,
    sampling_rate=batch_size / len(x_train),
    steps=steps,
)
print(f"Noise multiplier: {noise_multiplier:.3f}")

"""
## A network, and the one line

`reparametrize()` marks kernels; nothing else about the model changes. We leave
the last layer out: it is small, and it learns the most.

`"history"` needs something to look back on. For the first `warmup_steps`,
here a tenth of the training, the carriers follow the weight.
"""

rank = 16


def make_model(carrier_source=None):
    keras.utils.set_random_seed(0)  # The same first weights for all.
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(512, activation="tanh", name="a"),
            layers.Dense(512, activation="tanh", name="b"),
            layers.Dense(10, name="logits"),
        ]
    )
    if carrier_source is not None:
        tf_dpfp.reparametrize(
            model,
            rank,
            exclude="logits",
            carrier_source=carrier_source,
            warmup_steps=steps // 10,
        )
    return tf_dpfp.make_private(model)


"""
How many numbers get noise, with and without carriers:
"""

kernels = [(784, 512), (512, 512)]
print("Without carriers:", sum(d * p for d, p in kernels))
print("With carriers:   ", sum(rank * (d + p) for d, p in kernels))

"""
## Training

The clip norm is small, so that nearly every gradient is scaled to it, whether
it has lost its part outside of the carriers or not; with Adam the scale of the
update does not matter. The learning rates were chosen in a few trials each.
"""


def train(carrier_source=None):
    model = make_model(carrier_source)
    model.compile(
        optimizer=tf_dpfp.DPAdam(
            learning_rate=1e-2 if carrier_source is None else 3e-3,
            l2_norm_clip=0.1,
            noise_multiplier=noise_multiplier,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        batches,
        epochs=epochs,
        validation_data=(x_test, y_test),
        validation_batch_size=1024,
        verbose=0,
    )
    accuracy = history.history["val_accuracy"]
    spent = tf_dpfp.compute_epsilon(model, delta)
    print(
        f"{carrier_source or 'no carriers'}: test accuracy "
        f"{accuracy[-1]:.4f}, epsilon {spent:.3f}"
    )
    return accuracy


accuracies = {
    source or "no carriers": train(source)
    for source in (None, "history", "weight", "random")
}

"""
## What came of it
"""

figure, axes = plt.subplots(figsize=(6, 4))
for label, accuracy in accuracies.items():
    axes.plot(
        range(1, epochs + 1), [100 * a for a in accuracy], "o-", label=label
    )
axes.set(xlabel="Epoch", ylabel="Test accuracy (%)")
axes.legend(title=f"Carriers of rank {rank}")
figure.tight_layout()
figure.savefig("low_rank_carriers.png", dpi=150)

"""
## Conclusion

The same network and settings, trained once for each rank by
`python -m benchmarks.rgp_table --tasks=mlp --epsilons=3 --seeds=1`:

| Carriers | Rank 1 | Rank 4 | Rank 16 | None |
| --- | --- | --- | --- | --- |
| none | | | | 84.2 % |
| `"history"` | 75.6 % | 81.2 % | 83.2 % | |
| `"weight"` | 76.7 % | 80.6 % | 83.1 % | |
| `"random"` | 78.5 % | 81.0 % | 82.6 % | |

One training each, so differences of a few tenths may be chance: the one above
came to 84.4 % without carriers, and with rank 16 to 82.5, 83.1 and 82.6 %.
Plain clipping wins here, and it is worth knowing why. The carriers do what they
promise: with rank 4 the noise of both kernels has 1.4 % of its energy. And the
history does point somewhere: after one and two epochs of a training of two it
kept 21 % and 14 % of the gradient's energy, where random directions would keep
1.4 %. But the rest of the gradient is lost in every step, and that weighs more
than the noise. At epsilon 8, with far less noise, rank 4 gains less than a
point; rank 16 at epsilon 3 gains two. With less budget the gap closes: at
epsilon 0.5, plain clipping comes to 81.5 % and `"history"` of rank 16 to 80.9
%.

With rank 1, following anything did worse here than following nothing: random
directions change in every step, and so miss none for long.

So reach for carriers when noise is what holds a training back, or when a step's
time is: one through carriers needs no gradient of the size of a kernel, which
on wide layers makes it cheaper than an ordinary step. Try a rank of 16 before
one of 1, and compare with plain clipping at the same epsilon.

Where to go from here:

- [Benchmarks](../../docs/benchmarks.md#accuracy-of-low-rank-carriers): more
  tasks, and what was measured of the gradient and the noise.
- `include=` and `exclude=` choose layers, and several calls give them different
  ranks; `left_only=True` releases one carrier in place of two.
- Whoever fine-tunes a pretrained model calls `reparametrize()` on it just so;
  biases, scales and embedding tables have no carriers, and can be frozen.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
